"""Arrays and plain data in one file that holds no code: a zip of ``.npy`` files and one JSON.

This room knows trees of dicts, lists, tuples, numbers, text, tensors and arrays, and nothing of what they mean: that is
the caller's, who gives each kind of content a name and a schema version.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from l2path.errors import ArgumentError

FORMAT, LAYOUT = "l2path", 1  # LAYOUT is how trees are written down here; what they mean has a version of its own
CONTENTS = "contents.json"
TAG = "$"  # key of the JSON objects that stand for what JSON does not know
START = b"PK\x03\x04"  # of every zip that has a file in it
WHEN = (1980, 1, 1, 0, 0, 0)  # equal contents make equal files
# What numpy has a dtype for is readable by numpy alone; the bits of all others are kept as integers.
PLAIN = {
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128,
}  # fmt: skip
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class Content(NamedTuple):
    """What a file holds."""

    kind: str
    schema: int
    tree: Any  # as it was given to write_file


def write_file(path: str | os.PathLike[str], kind: str, schema: int, tree: Any) -> None:
    """Write a tree to one file, all or nothing: what was there before stays until the new file is complete.

    Parameters
    ----------
    path : str or path
        In a directory that exists; nothing is appended to the name.
    kind : str
        What the tree is.
    schema : int
        Version of its meaning.
    tree : nested dict, list or tuple
        Of None, booleans, numbers, text, bytes, NumPy scalars and arrays, and dense tensors of any dtype and device.

    Raises
    ------
    ArgumentError
        For anything else in the tree, and for a directory that does not exist; nothing is written then.
    """
    writer = _Writer()
    contents = {"format": FORMAT, "layout": LAYOUT, "kind": kind, "schema": schema, "tree": writer.encoded(tree, kind)}
    text = json.dumps(contents, allow_nan=False)
    with replaced(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo(CONTENTS, WHEN)
        info.compress_type = zipfile.ZIP_DEFLATED  # text shrinks; trained weights hardly do
        archive.writestr(info, text)
        for number, array in enumerate(writer.arrays):
            with archive.open(zipfile.ZipInfo(_member(number), WHEN), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, as_array(array), allow_pickle=False)


def read_file(path: str | os.PathLike[str], newest: Mapping[str, int]) -> Content:
    """Read a file that :func:`write_file` has written; its tensors come back on the CPU.

    Parameters
    ----------
    path : str or path
    newest : dict of str to int
        The kinds that the caller reads, and the newest schema of each that it knows.

    Raises
    ------
    ArgumentError
        For a path without a file, another kind of file, a damaged one, and one of a newer version.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(f"{folder}/numbers", "numbers", 1, {"x": torch.ones(2, dtype=torch.bfloat16)})
    ...     read_file(f"{folder}/numbers", {"numbers": 1})
    Content(kind='numbers', schema=1, tree={'x': tensor([1., 1.], dtype=torch.bfloat16)})
    """
    path = checked_path(path)
    if not path.is_file():
        what = "a directory" if path.is_dir() else "a path where there is no file"
        _refuse(path, what, "check the path")
    with path.open("rb") as stream:
        start = stream.read(len(START))
    if start != START:
        _refuse(path, "another kind of file" if start else "an empty file", "pass the path that was given to save()")
    try:
        with zipfile.ZipFile(path) as archive:
            if CONTENTS not in archive.namelist():
                _refuse(path, "another kind of zip archive", "pass the path that was given to save()")
            contents = json.loads(archive.read(CONTENTS))
            if not isinstance(contents, dict) or contents.get("format") != FORMAT:
                _refuse(path, "another kind of zip archive", "pass the path that was given to save()")
            _check_versions(path, contents, newest)
            return Content(contents["kind"], contents["schema"], _Reader(archive).decoded(contents["tree"]))
    except ArgumentError:
        raise
    except Exception as error:  # whatever a reader trips over: sums that do not match, ends that are missing
        reason = f"a damaged or incomplete file ({type(error).__name__}: {error})"
        _refuse(path, reason, "copy it again from where it is whole, or save the result again", error)


def _check_versions(path: Path, contents: Mapping[str, Any], newest: Mapping[str, int]) -> None:
    """Refuse a kind of content that is not asked for, and versions that only a later l2path knows."""
    kind, layout, schema = contents["kind"], contents["layout"], contents["schema"]
    if layout > LAYOUT or schema > newest.get(kind, schema):
        version = f"{kind} in schema version {schema} (layout {layout})"
        _refuse(path, f"{version}, written by a newer l2path", "upgrade: python -m pip install --upgrade l2path")
    if kind not in newest:
        _refuse(path, f"a file of {kind}", f"this reads {' and '.join(newest)}")


def _refuse(path: Path, got: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise ArgumentError(
        "path", got=f"{str(path)!r}, {got}", expected="a file that l2path has saved", remedy=remedy
    ) from cause


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as one."""
    try:
        return Path(path)
    except TypeError:
        raise ArgumentError(
            "path", got=f"a {type(path).__name__}", expected="a str or a pathlib.Path", remedy="pass a file's name"
        ) from None


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a new file beside ``path`` that takes its place at the end, or vanishes after an error."""
    target = checked_path(path).absolute()
    if target.is_dir() or not target.parent.is_dir():
        missing = not target.parent.is_dir()
        raise ArgumentError(
            "path",
            got=f"{str(path)!r}, " + ("in a directory that does not exist" if missing else "which is a directory"),
            expected="the name of a file in a directory that exists",
            remedy=f"create it: pathlib.Path({str(target.parent)!r}).mkdir(parents=True)" if missing else "add a name",
        )
    target = target.resolve()  # a link stays, and what it points at is replaced
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def refusal(tree: Any) -> str | None:
    """Return why a tree cannot be written; None if it can."""
    try:
        _Writer().encoded(tree, "tree")
    except ArgumentError as error:
        return error.got
    return None


def _member(number: int) -> str:
    return f"arrays/{number}.npy"


@dataclass
class _Writer:
    """Writes trees down as JSON, and collects the arrays that it refers to."""

    arrays: list[Tensor | np.ndarray[Any, Any]] = field(default_factory=list)
    known: dict[int, Any] = field(default_factory=dict)  # by id: what occurs twice is one array, and is so when read

    def encoded(self, value: Any, where: str) -> Any:
        """Return a value as JSON; ``where`` says in errors what it is."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return {TAG: "number", "dtype": value.dtype.name, "value": self.encoded(value.item(), where)}
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {TAG: "float", "value": str(float(value))}
        if isinstance(value, (Tensor, np.ndarray, bytes)):
            if id(value) not in self.known:
                self.known[id(value)] = value, self._kept(value, where)  # alive, so that no other has its id
            return self.known[id(value)][1]
        if type(value) is list:
            return [self.encoded(v, f"{where}[{i}]") for i, v in enumerate(value)]
        if type(value) is tuple:
            return {TAG: "tuple", "items": self.encoded(list(value), where)}
        if isinstance(value, dict):
            if all(isinstance(k, str) for k in value) and TAG not in value:
                return {str(k): self.encoded(v, f"{where}[{k!r}]") for k, v in value.items()}
            pairs = [[self.encoded(k, where), self.encoded(v, f"{where}[{k!r}]")] for k, v in value.items()]
            return {TAG: "dict", "items": pairs}
        self._refuse(f"a {type(value).__name__}", where)

    def _kept(self, value: Tensor | np.ndarray[Any, Any] | bytes, where: str) -> dict[str, Any]:
        found: dict[str, Any] = {"array": len(self.arrays)}
        if isinstance(value, bytes):
            self.arrays.append(np.frombuffer(value, dtype=np.uint8))
            return {TAG: "bytes", **found}
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                self._refuse("an array of Python objects", where)
            self.arrays.append(value)
            return {TAG: "array", **found}
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            self._refuse(f"a tensor of {value.layout} on {value.device}", where)
        found["dtype"] = str(value.dtype).removeprefix("torch.")
        whole = value.detach()
        for axis, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
            if stride == 0 and size > 1:  # an expanded axis is one row on disk
                whole, found["shape"] = whole.narrow(axis, 0, 1), list(value.shape)
        self.arrays.append(whole)
        return {TAG: "tensor", **found}

    def _refuse(self, what: str, where: str) -> NoReturn:
        raise ArgumentError(
            "result",
            got=f"{what} as {where}",
            expected="numbers, text, arrays and tensors",
            remedy="no file can hold it without code: keep what it is made of",
        )


def as_array(value: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bits of a tensor as an array that numpy can write."""
    if isinstance(value, np.ndarray):
        return value
    plain = value.resolve_conj().resolve_neg().cpu().contiguous()
    found: np.ndarray[Any, Any] = (plain if plain.dtype in PLAIN else plain.view(BITS[plain.itemsize])).numpy()
    return found


class _Reader:
    """Makes trees of JSON and of the arrays of an archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.known: dict[int, Any] = {}

    def decoded(self, node: Any) -> Any:
        """Return what was encoded."""
        if isinstance(node, list):
            return [self.decoded(v) for v in node]
        if not isinstance(node, dict):
            return node
        tag = node.get(TAG)
        if tag is None:
            return {k: self.decoded(v) for k, v in node.items()}
        if tag == "tuple":
            return tuple(self.decoded(node["items"]))
        if tag == "dict":
            return {self.decoded(k): self.decoded(v) for k, v in node["items"]}
        if tag == "float":
            return float(node["value"])
        if tag == "number":
            return np.dtype(node["dtype"]).type(self.decoded(node["value"]))
        if tag not in ("tensor", "array", "bytes"):
            raise ValueError(f"an entry of the unknown kind {tag!r}")
        number = node["array"]
        if number not in self.known:
            self.known[number] = self._array(number, node)
        return self.known[number]

    def _array(self, number: int, node: Mapping[str, Any]) -> Any:
        with self.archive.open(_member(number)) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read():  # at its end the sum of what was read is checked
                raise ValueError(f"{_member(number)} is longer than its array")
        if node[TAG] != "tensor":
            return array if node[TAG] == "array" else array.tobytes()
        dtype = getattr(torch, node["dtype"])
        tensor = torch.from_numpy(array)
        tensor = tensor if tensor.dtype == dtype else tensor.view(dtype)
        return tensor.expand(node["shape"]) if "shape" in node else tensor
