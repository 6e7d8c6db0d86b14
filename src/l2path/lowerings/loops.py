"""The loop of a compiled program without tensors around its values: a pass over what inductor's C++ wrapper writes.

In each turn of a loop the wrapper makes a tensor for every value, and two more for everything that is handed from one
turn to the next: some ninety for a small network, which take longer than its kernels. Here values lie in memory that is
laid out before the loop begins, and are handed on as pointers. What a kernel computes, and in which order, stays.

The pass knows the statements that the wrapper writes for functional loops; a loop with any other is left as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from l2path.lowerings.statements import NAME, VIEW, Statement, UnknownStatement, arrays, numbers, read

HEADER = Path(__file__).with_name("loops.hpp")
ENTRY = "void inductor_entry_impl("
ALIGNED = 64  # bytes

WIDTHS = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}
_SCALARS = {"int64": "int64_t", "bool": "bool"}
_DROPPED = ("nothing", "declared", "shared", "handed", "handed_viewed", "owner", "reset", "layout")  # of other values
_OF_HANDLES = ("owner", "renamed", "viewed", "part", "reset", "layout")  # what stays where it is of a tensor


@dataclass
class Value:
    """Memory that a turn of the loop writes, under one name after the other.

    Attributes
    ----------
    first, last : int
        Lines between which it is in use.
    nbytes : int
    dtype : str
    carried : str, optional
        The value before the loop in whose place the next turn reads it.
    """

    first: int
    last: int
    nbytes: int
    dtype: str
    carried: str | None = None
    offset: int = 0


@dataclass
class Loop:
    """What is known of a loop while it is read."""

    arrays: dict[str, list[int]]
    types: dict[str, str]  # dtypes, of what kernels are handed
    aliases: dict[str, str] = field(default_factory=dict)  # names of what was there before
    values: dict[str, Value] = field(default_factory=dict)  # by each of their names
    parts: set[str] = field(default_factory=set)  # those of the names that are a part of a value
    handles: set[str] = field(default_factory=set)  # tensors that operations have made
    shared: dict[str, str] = field(default_factory=dict)  # second handles
    handed: dict[str, str] = field(default_factory=dict)  # what the next turn reads in place of a carried value
    views: dict[str, str] = field(default_factory=dict)  # that it reads of them, where it is not the same


def without_tensors(source: str) -> str:
    """Return the code of a program whose loop makes no tensors; unchanged where that is not known to be right.

    Parameters
    ----------
    source : str
        The function that inductor's C++ wrapper wrote.
    """
    lines = source.split("\n")
    found = [i for i, line in enumerate(lines) if line.strip() == "while (1) {"]
    entries = [i for i, line in enumerate(lines) if line.startswith(ENTRY)]
    if len(found) != 1 or len(entries) != 1:
        return source
    (start,), (entry,) = found, entries
    indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
    end = next(i for i in range(start, len(lines)) if lines[i] == f"{indent}}}")
    try:
        before, inside, after = _rewritten(list(read(lines[start + 1 : end])), arrays(lines[:start]))
    except (UnknownStatement, LookupError):  # an array that is written down elsewhere, say
        return source
    lines[entry] = f"{HEADER.read_text(encoding='utf-8')}\n{lines[entry]}"
    parts = [lines[:start], _indented(before, indent), lines[start : start + 1], _indented(inside, indent + "    ")]
    parts += [lines[end : end + 1], _indented(after, indent), lines[end + 1 :]]
    return "\n".join(line for part in parts for line in part)


def _indented(lines: list[str], indent: str) -> list[str]:
    return [indent + line for line in lines]


def _rewritten(body: Sequence[Statement], known: dict[str, list[int]]) -> tuple[list[str], list[str], list[str]]:
    """Return what comes before, in and after the loop."""
    casts = re.findall(rf"\((?:const )?(float|double)\*\)\(({NAME})\.data_ptr\(\)\)", "\n".join(s.text for s in body))
    loop = Loop(dict(known), {name: {"float": "float32", "double": "float64"}[type_] for type_, name in casts})
    for at, statement in enumerate(body):
        _note(loop, at, statement, body)
    for name, of in loop.handed.items():
        value = loop.values.get(of)
        if list(loop.handed.values()).count(of) > 1 or of in loop.parts or (value and value.carried):
            raise UnknownStatement(f"{of} is handed on with others")
        if value is not None:
            value.carried = name
    size = _lay_out({id(v): v for v in loop.values.values() if v.carried is None}.values())
    carried = {v.carried: v for v in loop.values.values() if v.carried is not None}
    outer = dict.fromkeys(loop.aliases.values())
    dtypes = sorted({value.dtype for value in loop.values.values()})
    before = [f"const int32_t loop_{dtype} = aoti_torch_dtype_{dtype}();" for dtype in dtypes]
    before += [f"l2path_loop::Arena loop_arena({size}L);"]
    before += [f"auto {name}_now = l2path_loop::local({name});" for name in outer]
    for name, value in carried.items():
        elements = value.nbytes // WIDTHS[value.dtype]
        before.append(f"l2path_loop::Turns {name}_turns({elements}L, loop_{value.dtype});")
    kept = [name for name, of in loop.handed.items() if of in loop.handles]
    before += [f"RAIIAtenTensorHandle {name}_kept;" for name in kept]
    inside = [line for at, statement in enumerate(body) for line in _written(loop, at, statement, body)]
    for name, of in loop.handed.items():
        if name in carried:
            inside += [f"{name}_now = {loop.views.get(name, of)};", f"{name}_turns.turn();"]
        elif name in kept:
            inside += [f"{name}_kept = std::move({of});", f"{name}_now = l2path_loop::local({name}_kept);"]
    after = [f"{name}_turns.leave({name}, {name}_now);" for name in carried]
    after += [f"if ({name}_kept.get() != nullptr) {name} = std::move({name}_kept);" for name in kept]
    return before, inside, after


def _note(loop: Loop, at: int, statement: Statement, body: Sequence[Statement]) -> None:
    """Note what a statement says of the loop's values."""
    parts = statement.parts
    for name in set(re.findall(NAME, statement.text)) & set(loop.values):
        loop.values[name].last = at
    if statement.kind == "array":
        loop.arrays[parts["name"]] = numbers(parts["numbers"])
    elif statement.kind == "alias":
        if parts["of"] in loop.values or parts["of"] in loop.handles:
            raise UnknownStatement(statement.text)
        loop.aliases[parts["name"]] = parts["of"]
    elif statement.kind == "empty":
        nbytes = _nbytes(loop.arrays[parts["sizes"]], loop.arrays[parts["strides"]], parts["dtype"])
        loop.values[parts["name"]] = Value(at, at, nbytes, parts["dtype"])
    elif statement.kind == "product" and (layout := _layout(body, at)) is not None:
        sizes, strides = numbers(layout["sizes"]), numbers(layout["strides"])
        dtype = _dtype_of(loop, parts["name"], body)
        loop.values[parts["name"]] = Value(at, at, _nbytes(sizes, strides, dtype), dtype)
    elif statement.kind == "owner" and parts["name"] not in {*loop.aliases, *loop.values}:
        loop.handles.add(parts["name"])
    elif statement.kind == "shared":
        loop.shared[parts["name"]] = parts["of"]
        if parts["of"] in loop.values:  # which is in use as long as that is
            loop.values[parts["name"]] = loop.values[parts["of"]]
    elif statement.kind in ("renamed", "viewed", "part"):
        if parts["of"] in loop.values:
            loop.values[parts["name"]] = loop.values[parts["of"]]
            if statement.kind == "part" or parts["of"] in loop.parts:
                loop.parts.add(parts["name"])
        elif parts["of"] in loop.handles:
            loop.handles.add(parts["name"])
        else:  # memory of another turn
            raise UnknownStatement(statement.text)
    elif statement.kind == "handed":
        _note_handed(loop, statement)
    elif statement.kind == "handed_viewed":
        if parts["of"] not in loop.values:
            raise UnknownStatement(statement.text)
        loop.handed[parts["name"]] = parts["of"]
        loop.views[parts["name"]] = _in_views(loop, parts["view"])


def _note_handed(loop: Loop, statement: Statement) -> None:
    name, of = statement.parts["name"], statement.parts["of"]
    if of in loop.aliases:
        if loop.aliases[of] != name:
            raise UnknownStatement(statement.text)
    elif name.endswith("_cond_result") and of in loop.values:
        loop.values[name] = loop.values[of]
    elif of in loop.values or of in loop.handles:
        loop.handed[name] = of
    else:
        raise UnknownStatement(statement.text)


def _written(loop: Loop, at: int, statement: Statement, body: Sequence[Statement]) -> Iterator[str]:
    """Yield what stands for a statement."""
    kind, parts = statement.kind, statement.parts
    name, of = parts.get("name", ""), parts.get("of", "")
    if kind == "alias":
        yield f"auto& {name} = {of}_now;"
    elif kind == "empty":
        yield _declared(loop.values[name], name, parts["axes"], parts["sizes"], parts["strides"])
    elif kind == "product" and name in loop.values:
        layout = _layout(body, at)
        assert layout is not None
        for what in ("sizes", "strides"):
            yield f"static constexpr int64_t {name}_{what}[] = {layout[what]};"
        yield _declared(loop.values[name], name, str(len(numbers(layout["sizes"]))), f"{name}_sizes", f"{name}_strides")
        a, b = _split(_in_views(loop, parts["operands"]))
        yield f"l2path_loop::product(l2path_loop::local({a}), l2path_loop::local({b}), {name});"
    elif kind == "product":
        yield f"AtenTensorHandle {name}_handle;"
        yield _in_views(loop, statement.text)
    elif kind == "operation":
        for made in re.findall(r"&(\w+_handle)\b", statement.text):
            yield f"AtenTensorHandle {made};"
        yield _in_views(loop, statement.text)
    elif kind == "shared" and of in loop.handles:
        yield f"AtenTensorHandle {name};"
        yield statement.text
    elif kind == "renamed" and of in loop.values:
        yield f"auto& {name} = {of};"
    elif kind in ("viewed", "part") and of in loop.values:
        yield f"auto {name} = {_in_views(loop, parts['view'])};"
    elif kind == "number":
        if of not in loop.aliases and of not in loop.values:
            raise UnknownStatement(statement.text)
        scalar = _SCALARS[parts["type"]]
        yield f"const {scalar} {name} = *static_cast<const {scalar}*>({of}.data_ptr());"
    elif kind == "handed" and name.endswith("_cond_result") and of in loop.values:
        yield f"auto& {name} = {of};"
    elif kind in ("array", "kernel", "named", "refused") or (kind in _OF_HANDLES and {name, of} & loop.handles):
        yield statement.text
    elif kind not in _DROPPED:
        raise UnknownStatement(statement.text)


def _declared(value: Value, name: str, axes: str, sizes: str, strides: str) -> str:
    where = f"loop_arena.data + {value.offset}L" if value.carried is None else f"{value.carried}_turns.data()"
    width = WIDTHS[value.dtype]
    return f"l2path_loop::Local {name}({where}, {axes}, {sizes}, {strides}, loop_{value.dtype}, {width});"


def _in_views(loop: Loop, text: str) -> str:
    """Return a text in which values that are no tensors are looked at in another shape without making one."""

    def view(match: re.Match[str]) -> str:
        of = match[1]
        if of in loop.handles:
            return match[0]
        if of not in loop.aliases and of not in loop.values:
            raise UnknownStatement(match[0])
        return f"l2path_loop::view({', '.join(match.groups())})"

    def whole(match: re.Match[str]) -> str:
        of = loop.shared[match[1]]
        return match[0] if of in loop.handles else of

    return re.sub(r"RAIIAtenTensorHandle\((tmp_\w+)\)", whole, re.sub(VIEW, view, text))


def _split(operands: str) -> tuple[str, str]:
    depth = 0
    for i, c in enumerate(operands):
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            return operands[:i].strip(), operands[i + 1 :].strip()
    raise UnknownStatement(operands)


def _layout(body: Sequence[Statement], at: int) -> dict[str, str] | None:
    """Return the shape that the wrapper asserts of what an operation makes."""
    name = body[at].parts["name"]
    following = (s for s in body[at + 1 : at + 4] if s.kind == "layout" and s.parts["name"] == name)
    return next((s.parts for s in following), None)


def _dtype_of(loop: Loop, product: str, body: Sequence[Statement]) -> str:
    """Return the dtype of a product: that of a kernel's argument which it is, or of one which it is made of."""
    names = [product]
    for s in body:
        if s.kind in ("renamed", "viewed") and s.parts["of"] in names:
            names.append(s.parts["name"])
        elif s.kind == "product" and s.parts["name"] in names:
            names += re.findall(NAME, s.parts["operands"])
    known = {loop.types[name] for name in names if name in loop.types}
    known |= {loop.values[name].dtype for name in names if name in loop.values}
    if len(known) != 1:
        raise UnknownStatement(f"dtype of {product}")
    return known.pop()


def _nbytes(sizes: list[int], strides: list[int], dtype: str) -> int:
    if dtype not in WIDTHS:
        raise UnknownStatement(dtype)
    if 0 in sizes:
        return WIDTHS[dtype]
    return (1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))) * WIDTHS[dtype]


def _lay_out(values: Iterable[Value]) -> int:
    """Give each value a place in the arena, first come first served, that no other has meanwhile; returns its size."""
    placed: list[Value] = []
    size = ALIGNED
    for value in sorted(values, key=lambda v: v.first):
        need = _aligned(value.nbytes)
        live = sorted((v for v in placed if v.last >= value.first), key=lambda v: v.offset)
        at = 0
        for other in live:
            if at + need <= other.offset:
                break
            at = max(at, other.offset + _aligned(other.nbytes))
        value.offset = at
        placed.append(value)
        size = max(size, at + need)
    return size


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def digest() -> str:
    """Return what tells programs that went through this pass from others."""
    files = (Path(__file__), Path(__file__).with_name("statements.py"), HEADER)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
