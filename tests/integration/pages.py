"""Reads the code blocks of Markdown pages and executes them, page by page."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]

PYTHON = frozenset({"python", "pycon"})
SHELL = frozenset({"bash", "console", "sh", "shell"})
PLAIN = frozenset({"ini", "json", "math", "mermaid", "text", "toml"})
# Sphinx's other ways to write code, which would be shown and not executed.
CODE_DIRECTIVES = frozenset({"code", "code-block", "code-cell", "doctest", "sourcecode", "testcode"})

_FENCE = re.compile(r"^(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*?)[ \t]*$")
_COMMENT = re.compile(r"<!--\s*not executed\b:?\s*(?P<reason>.*?)\s*-->", re.DOTALL)


class PageError(AssertionError):
    """A page whose code is broken; the message starts with page and line."""


@dataclass(frozen=True)
class Block:
    """One fenced code block: where its first line of code is, its language, and why it is not executed."""

    page: str
    line: int
    language: str
    code: str
    excuse: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages(root: Path = ROOT) -> list[Path]:
    """The pages whose code is executed."""
    return [root / "README.md", *sorted(p for p in (root / "docs").rglob("*.md") if "_build" not in p.parts)]


def read_page(path: Path, root: Path = ROOT) -> list[Block]:
    """The blocks of a page, which must all be of a known language."""
    return read_blocks(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())


def read_blocks(text: str, page: str) -> list[Block]:
    """Parse a page; complain about code that could not be executed without saying so."""
    blocks = list(_blocks(text.splitlines(), page, offset=0))
    for block in blocks:
        if block.excuse == "":
            raise PageError(f"{block.where}: `not executed` needs a reason: <!-- not executed: reason -->")
        if block.language not in PYTHON | SHELL | PLAIN:
            known = ", ".join(sorted(PYTHON | SHELL | PLAIN))
            raise PageError(f"{block.where}: a block in {block.language!r}; the languages are {known}")
    excuses = len(_COMMENT.findall(text))
    used = sum(block.excuse is not None for block in blocks)
    if excuses != used:
        raise PageError(f"{page}: {excuses} `not executed` comments, but {used} stand before a code block")
    return blocks


def _blocks(lines: list[str], page: str, offset: int) -> Iterator[Block]:
    i = 0
    while i < len(lines):
        opening = _FENCE.match(lines[i])
        if opening is None:
            i += 1
            continue
        start, indent, info = i + 1, opening["indent"], opening["info"]
        closing = re.compile(rf"^[ \t>]*{re.escape(opening['fence'][0])}{{{len(opening['fence'])},}}[ \t]*$")
        stop = next((k for k in range(start, len(lines)) if closing.match(lines[k])), None)
        if stop is None:
            raise PageError(f"{page}:{offset + start}: this fence is never closed")
        body = [_undent(line, indent) for line in lines[start:stop]]
        if info.startswith("{"):
            yield from _directive(info, body, page, offset + start)
        else:
            language = info.split()[0].lower() if info else "(no language)"
            code = "\n".join(body) + "\n"
            yield Block(page, offset + start + 1, language, code, _excuse(lines[: start - 1]))
        i = stop + 1


def _directive(info: str, body: list[str], page: str, offset: int) -> Iterator[Block]:
    """Blocks inside a MyST directive, such as a note; code must not hide in one of Sphinx's own."""
    name = info[1:].split("}")[0]
    hidden = name == "eval-rst" and any(
        ">>>" in line or re.match(rf"\s*\.\. ({'|'.join(CODE_DIRECTIVES)})::", line) for line in body
    )
    if name in CODE_DIRECTIVES or hidden:
        raise PageError(f"{page}:{offset}: code in {{{name}}} would not be executed; write a plain fence")
    yield from _blocks(body, page, offset)


def _undent(line: str, indent: str) -> str:
    return line[len(indent) :] if line.startswith(indent) else line.lstrip(" \t>")


def _excuse(before: list[str]) -> str | None:
    """The reason in a `not executed` comment that ends on the last line that is not blank."""
    last = len(before)
    while last and not before[last - 1].strip(" \t>"):  # blank, in a quotation as well
        last -= 1
    text = "\n".join(before[:last])
    found = _COMMENT.fullmatch(text[text.rfind("<!--") :].rstrip()) if "<!--" in text else None
    return None if found is None else " ".join(found["reason"].split())


def run_page(blocks: list[Block], source: Path | None = None) -> int:
    """Execute a page's Python blocks in one namespace and return how many there were.

    Raises
    ------
    PageError
        With page and line, as soon as a block raises, warns or prints what it does not promise.
    """
    # A real module: dataclasses and pickle look a class's module up by name.
    module = types.ModuleType("executed_page")
    executed = 0
    printed: str | None = None
    with _restored(module):
        for block in blocks:
            if block.language == "text" and printed is not None and block.excuse is None:
                _check_output(block, printed)
                printed = None
            if block.language not in PYTHON or block.excuse is not None:
                continue
            if block.language == "pycon" or block.code.lstrip().startswith(">>>"):
                _run_doctest(block, module)
            else:
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    _run_code(block, module, filename=str(source or block.page))
                printed = output.getvalue()
            executed += 1
    return executed


def _check_output(block: Block, printed: str) -> None:
    """Compare a shown output with the real one; digits may differ, since rounding does from machine to machine."""

    def skeleton(text: str) -> list[str]:
        plain = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?|\bnan\b", "#", text)
        return [" ".join(line.split()) for line in plain.strip().splitlines()]

    for shown, real in zip_longest(skeleton(block.code), skeleton(printed), fillvalue=""):
        if shown != real:
            raise PageError(f"{block.where}: the page shows {shown!r} where the code prints {real!r}")


def _run_code(block: Block, module: types.ModuleType, filename: str) -> None:
    try:
        # Blank lines in front put the page's own line numbers into the traceback.
        program = compile("\n" * (block.line - 1) + block.code, filename, "exec", dont_inherit=True)
        exec(program, module.__dict__)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame.lineno for frame in frames if frame.filename == filename]
        line = error.lineno if isinstance(error, SyntaxError) else inside[-1] if inside else block.line
        raise PageError(f"{block.page}:{line}: {type(error).__name__}: {error}") from error


def _run_doctest(block: Block, module: types.ModuleType) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    example = doctest.DocTestParser().get_doctest(block.code, module.__dict__, block.where, block.page, block.line - 1)
    if not example.examples:
        raise PageError(f"{block.where}: a pycon block without a >>> line")
    example.globs = module.__dict__  # doctest copies them; a page's blocks share theirs
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=flags)
    runner.run(example, out=said.write, clear_globs=False)
    if runner.summarize(verbose=False).failed:
        raise PageError(f"{block.where}: {said.getvalue()}")


@contextlib.contextmanager
def _restored(module: types.ModuleType) -> Iterator[None]:
    """Put back what a page changes for the whole process; warnings are errors by pytest's configuration."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    sys.modules[module.__name__] = module
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # A reader's screen shows the figure; the Agg backend of a test says that it cannot.
            warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
            yield
    finally:
        del sys.modules[module.__name__]
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


def commands(block: Block) -> list[str]:
    """The commands of a shell block: without prompts and comments, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", block.code)
    lines = (re.sub(r"^\$ ", "", line.strip()) for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
