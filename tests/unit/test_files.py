"""Files of arrays and plain data: every bit comes back, no code is in them, and no damage goes unnoticed."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2path import ArgumentError
from l2path.files import read_file, refusal, write_file


def around(tree: Any, folder: Path) -> Any:
    """What comes back of a tree."""
    write_file(folder / "file", "things", 1, tree)
    return read_file(folder / "file", {"things": 1}).tree


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize("name", ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                                  "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64",
                                  "complex32", "complex64", "complex128"])  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3)], ids=str)
def test_tensors_of_every_dtype_keep_their_bits(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    n = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))  # NaN among them
    raw = raw % 2 if dtype == torch.bool else raw
    tensor = raw.view(dtype).reshape(shape) if n else torch.empty(shape, dtype=dtype)
    found = around(tensor, tmp_path)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert bits(found) == bits(tensor) == bytes(raw.tolist())
    found.zero_()  # memory of its own, that can be written


def test_plain_data_come_back_as_they_were(tmp_path: Path) -> None:
    tree = {
        "numbers": [0, -1, 2**70, 0.1, -0.0, 1e-320, math.inf, -math.inf, True, False, None],
        "text": ["", "λ < ‖θ‖ & \"'", "\ud800", "new\nline"],
        "tuple": (1, (2.0, ("3",)), []),
        "keys": {1: "one", (2, "b"): {"$": "a key of ours"}, None: 0.5, "1": {}},
        "scalars": [np.float64(0.1), np.float32(0.1), np.int8(-3), np.bool_(True), np.uint64(2**64 - 1)],
        "bytes": b"\x00\xff",
        "arrays": {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "t": np.array(["a", "bc"]), "0": np.array(7)},
    }
    found = around(tree, tmp_path)

    def same(a: Any, b: Any) -> None:
        assert type(a) is type(b)
        if isinstance(b, dict):
            assert list(a) == list(b)  # in their order
            for key in b:
                same(a[key], b[key])
        elif isinstance(b, (list, tuple)):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                same(x, y)
        elif isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        elif isinstance(b, float):
            assert np.float64(a).tobytes() == np.float64(b).tobytes()
        else:
            assert a == b

    same(found, tree)
    assert math.isnan(around([math.nan], tmp_path)[0])
    assert found["arrays"]["f"].flags.f_contiguous
    with pytest.raises(AssertionError):
        same([1], [1.0])


def test_what_occurs_twice_is_stored_once_and_is_one_again(tmp_path: Path) -> None:
    shared, equal = torch.arange(3.0), torch.arange(3.0)
    found = around({"a": shared, "b": [shared], "c": equal}, tmp_path)
    assert found["a"] is found["b"][0]
    assert found["a"] is not found["c"]
    with zipfile.ZipFile(tmp_path / "file") as archive:
        assert archive.namelist() == ["contents.json", "arrays/0.npy", "arrays/1.npy"]


def test_views_are_what_they_show(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    views = [base.T, base[:, ::2], base[1], torch.tensor([1 + 2j]).conj(), torch.tensor([1j]).conj().imag,
             nn.Parameter(base), (base.clone().requires_grad_() * 2)]  # fmt: skip
    for view, found in zip(views, around(views, tmp_path), strict=True):
        assert torch.equal(found, view)
        assert type(found) is Tensor
        assert not found.requires_grad
    wide = torch.ones(1, 3).expand(100_000, 3)
    assert torch.equal(around([wide], tmp_path)[0], wide)
    assert (tmp_path / "file").stat().st_size < 2000  # one row of it


def test_equal_contents_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_file(tmp_path / name, "things", 1, {"x": torch.ones(2), "y": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_there_is_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was called")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    tree = {"x": torch.ones(2, dtype=torch.bfloat16), "y": np.ones(2), "z": b"bytes"}
    assert set(around(tree, tmp_path)) == set(tree)
    with np.load(tmp_path / "file", allow_pickle=False) as arrays:  # numpy alone reads it
        assert [key for key in arrays if not key.endswith(".json")] == ["arrays/0", "arrays/1", "arrays/2"]
        assert all(isinstance(arrays[f"arrays/{n}"], np.ndarray) for n in range(3))
        assert json.loads(arrays["contents.json"])["kind"] == "things"


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Odd(), "a Odd"),
        ({1, 2}, "a set"),
        (1j, "a complex"),
        (range(3), "a range"),
        (np.array([Odd()], dtype=object), "an array of Python objects"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "on meta"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_needs_code_is_refused_by_its_place_and_nothing_is_written(value: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=rf"{what}.* as things\['a'\]\[1\]"):
        write_file(tmp_path / "file", "things", 1, {"a": [0, value]})
    assert list(tmp_path.iterdir()) == []
    assert what in (refusal([value]) or "")
    assert refusal([1, "a", torch.ones(1)]) is None


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, "things", 1, [torch.zeros(2), torch.zeros(2)])
    before = path.read_bytes()
    written: list[None] = []
    write_array = np.lib.format.write_array

    def full(*args: Any, **kwargs: Any) -> None:
        if written:
            raise OSError("no space left on device")
        write_array(*args, **kwargs)
        written.append(None)

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space"):
        write_file(path, "things", 1, [torch.ones(2), torch.ones(2)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_permissions_and_links_stay(tmp_path: Path) -> None:
    plain, path, link = tmp_path / "plain", tmp_path / "file", tmp_path / "link"
    plain.touch()
    write_file(path, "things", 1, 1)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    link.symlink_to(path)
    write_file(link, "things", 1, 2)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert read_file(path, {"things": 1}).tree == 2


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path: got '.*', in a directory that does not exist; .*mkdir"):
        write_file(tmp_path / "none" / "file", "things", 1, 1)
    with pytest.raises(ArgumentError, match=r"which is a directory"):
        write_file(tmp_path, "things", 1, 1)
    with pytest.raises(ArgumentError, match=r"path: got a int; expected a str or a pathlib.Path"):
        write_file(3, "things", 1, 1)  # type: ignore[arg-type]  # what a caller without types may pass


# --- what is no such file ---------------------------------------------------------------------------------------------


def saved_by_torch(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


def saved_by_numpy(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(2))


def foreign_json(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("contents.json", "[1]")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (None, "a path where there is no file"),
        (Path.mkdir, "a directory"),
        (Path.touch, "an empty file"),
        (lambda path: path.write_text("lambda,loss\n"), "another kind of file"),
        (saved_by_torch, "another kind of zip archive"),
        (saved_by_numpy, "another kind of zip archive"),
        (foreign_json, "another kind of zip archive"),
        (lambda path: write_file(path, "others", 1, 1), "a file of others; .*this reads things"),
        (lambda path: write_file(path, "things", 2, 1), "things in schema version 2 .* by a newer l2path; .*--upgrade"),
    ],
    ids=["nothing", "directory", "empty", "text", "torch", "numpy", "json", "kind", "schema"],
)
def test_other_files_are_told_apart(make: Any, what: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if make is not None:
        make(path)
    with pytest.raises(ArgumentError, match=f"path: got '.*file', {what}"):
        read_file(path, {"things": 1})


def changed_json(path: Path, **changes: Any) -> None:
    """Write the archive anew with other contents."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["contents.json"] = json.dumps(json.loads(parts["contents.json"]) | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_newer_layouts_and_unknown_entries(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "things", 1, 1)
    changed_json(path, layout=2)
    with pytest.raises(ArgumentError, match=r"layout 2\), written by a newer l2path"):
        read_file(path, {"things": 1})
    changed_json(path, layout=1, tree={"$": "hologram"})
    with pytest.raises(ArgumentError, match=r"damaged .* unknown kind 'hologram'"):
        read_file(path, {"things": 1})
    changed_json(path, tree={"$": "tensor", "array": 3, "dtype": "float32"})
    with pytest.raises(ArgumentError, match=r"damaged .*arrays/3\.npy"):
        read_file(path, {"things": 1})


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    path, stream = tmp_path / "file", io.BytesIO()
    np.lib.format.write_array(stream, np.array([Odd()], dtype=object), allow_pickle=True)
    write_file(path, "things", 1, 1)
    changed_json(path, tree={"$": "array", "array": 0})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("arrays/0.npy", stream.getvalue())
    with pytest.raises(ArgumentError, match=r"damaged .*Object arrays cannot be loaded"):
        read_file(path, {"things": 1})


def test_damage_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tree = {"x": torch.arange(20.0), "name": "text"}
    write_file(path, "things", 1, tree)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        try:
            found = read_file(path, {"things": 1}).tree
        except ArgumentError:
            noticed += 1
        else:  # a date in the archive, for example
            assert torch.equal(found["x"], tree["x"])  # type: ignore[arg-type]  # a tensor
            assert found["name"] == "text"
    assert noticed > 0.5 * len(whole)
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ArgumentError, match=r"damaged or incomplete|another kind|empty"):
            read_file(path, {"things": 1})
