"""How the native kernels are built, and that nothing depends on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from l2path import lowerings
from l2path.lowerings import native
from tests.unit.lowerings_kernels import native_kernels


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has not built anything yet, with a cache of its own."""
    monkeypatch.setattr(native, "_build", native._Build())
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)


def assert_stock() -> None:
    """Nothing is replaced, and everything works."""
    assert not lowerings.enabled()
    assert lowerings.compile_options() == {}


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Take a shell script for the compiler; asked for its macros, it says that it has none."""
    file = tmp_path / "compiler"
    file.write_text(f'#!/bin/sh\ncase "$*" in *-dM*) exit 0;; esac\n{script}\n', encoding="utf-8")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))


def test_nothing_is_built_before_it_is_asked_for() -> None:
    assert lowerings.status() == lowerings.Status("absent")
    assert_stock()
    assert not native.cache_folder().exists()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    status = lowerings.prepare(wait=None)
    assert status == lowerings.status()
    assert status.state == "failed"
    assert status.reason == "there is no C++ compiler: neither CXX nor g++, clang++ or c++ is one"
    assert_stock()


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(tmp_path, monkeypatch, "echo no such vector >&2; exit 1")
    status = lowerings.prepare(wait=None)
    assert status.state == "failed"
    assert status.reason == f"{tmp_path / 'compiler'} failed: no such vector"
    assert list(native.cache_folder().iterdir()) == []
    assert_stock()


def test_a_compiler_that_makes_nonsense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_has_kernels", lambda: False)  # they may be there from another test
    compiler(tmp_path, monkeypatch, 'for last; do :; done; echo nonsense > "$last"')
    status = lowerings.prepare(wait=None)
    assert status.state == "failed"
    assert "kernels-" in status.reason
    # It is not kept: the next process tries again.
    assert list(native.cache_folder().iterdir()) == []
    assert_stock()


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    assert lowerings.prepare(wait=None).state == "failed"
    assert_stock()


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert lowerings.prepare(wait=None) == lowerings.Status("off", "L2PATH_NATIVE=0 is set")
    assert native._build.thread is None
    assert_stock()


def test_the_switch_holds_for_what_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native._build, "status", lowerings.Status("ready", library=Path("kernels-1.so")))
    assert lowerings.enabled()
    monkeypatch.setenv(native.SWITCH, "0")
    assert_stock()


def test_it_is_built_in_the_background(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    compiler(tmp_path, monkeypatch, f"until [ -e {go} ]; do sleep 0.01; done; echo at last >&2; exit 1")
    assert lowerings.prepare().state == "building"
    assert lowerings.prepare(wait=0.01).state == "building"  # the same one
    assert_stock()
    go.touch()
    assert lowerings.prepare(wait=None).reason.endswith("at last")


def test_what_is_not_built_is_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(tmp_path, monkeypatch, "exit 1")
    assert lowerings.prepare(wait=None, make=False) == lowerings.Status("absent")
    assert not native.cache_folder().exists()
    assert_stock()
    assert lowerings.prepare(wait=None).state == "failed"  # asked for, it is


def test_nobody_waits_for_a_build_that_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    compiler(tmp_path, monkeypatch, f"until [ -e {go} ]; do sleep 0.01; done; exit 1")
    assert lowerings.prepare().state == "building"
    seen: list[lowerings.Status] = []
    looking = threading.Thread(target=lambda: seen.append(lowerings.prepare(wait=None, make=False)), daemon=True)
    looking.start()
    looking.join(5)
    assert [status.state for status in seen] == ["building"]
    go.touch()
    assert lowerings.prepare(wait=None).state == "failed"


def test_who_asks_for_a_build_gets_one_although_another_thread_only_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(tmp_path, monkeypatch, "echo built >&2; exit 1")
    whole, found = native._load, threading.Event()

    def slow(build: native._Build, make: bool) -> Path | None:
        if not make:
            found.wait(5)
        return whole(build, make)

    monkeypatch.setattr(native, "_load", slow)
    assert lowerings.prepare(make=False).state == "building"
    threading.Timer(0.1, found.set).start()
    assert lowerings.prepare(wait=None).reason.endswith("built")


def test_what_is_built_is_taken() -> None:
    native_kernels()
    native._build = native._Build()  # another process
    assert lowerings.prepare(wait=None, make=False).state == "ready"


def test_a_forked_child_does_not_wait_for_its_parents_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native._build, "status", lowerings.Status("building"))
    native._forget()
    assert lowerings.status().state == "absent"
    ready = lowerings.Status("ready", library=Path("kernels-1.so"))
    monkeypatch.setattr(native._build, "status", ready)
    native._forget()
    assert lowerings.status() == ready


def test_processes_that_build_at_once_leave_one_whole_library(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\nfor last; do :; done\nprintf one > "$last"; sleep 0.05; printf two >> "$last"\n')
    slow.chmod(0o755)
    library = native.cache_folder() / "kernels-1.so"
    threads = [threading.Thread(target=native._compile, args=(native._Build(), [str(slow)], library)) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    while any(thread.is_alive() for thread in threads):
        assert not library.exists() or library.read_text() == "onetwo"
    assert library.read_text() == "onetwo"
    assert [path.name for path in library.parent.iterdir()] == ["kernels-1.so"]


def test_the_library_is_kept_apart_by_what_it_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []

    def build() -> str:
        monkeypatch.setattr(native, "_build", native._Build())
        status = lowerings.prepare(wait=None)
        assert status.library is not None, status.reason
        made.append(status.library.name)
        return status.library.name

    monkeypatch.setattr(native, "_install", lambda library: None)
    compiler(tmp_path, monkeypatch, 'for last; do :; done; echo made >> "$last"')
    first = build()
    assert build() == first
    assert (native.cache_folder() / first).read_text() == "made\n"  # once
    folder = tmp_path / "sources"
    folder.mkdir()
    for source in native.sources():
        (folder / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(native, "SOURCE", folder / native.SOURCE.name)
    build()
    (folder / "product.h").write_text("// another")  # which it includes
    build()
    monkeypatch.setattr(torch, "__version__", "9.9")
    build()
    file = tmp_path / "compiler"
    file.write_text(file.read_text().replace("exit 0", "echo '#define __AVX9__ 1'; exit 0"))
    build()
    assert len(set(made)) == 5


def test_the_sources_are_all_there() -> None:
    sources = {source.name: source.read_text() for source in native.sources()}
    included = {name for text in sources.values() for name in re.findall(r'#include "(.*)"', text)}
    assert {*included, native.SOURCE.name} == set(sources)


def test_the_end_of_the_process_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # A compiler with a child, as they have, that holds the fifo open while it lives.
    compiler(tmp_path, monkeypatch, f"(echo begun; sleep 30; echo done) > {fifo} & wait")
    program = """
        from l2path import lowerings
        lowerings.prepare()
        assert input() == "end"
        """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process, fifo.open() as output:
        assert output.readline() == "begun\n"
        process.communicate("end\n")
        assert output.read() == ""  # and closed
    assert process.returncode == 0
    assert list(native.cache_folder().iterdir()) == []


def test_the_real_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")  # where it may be built already
    status = native_kernels()
    assert lowerings.enabled()
    assert status.library is not None
    assert status.library.is_file()
    assert torch.equal(torch.ops.l2path.tiled_mm(torch.ones(3, 4), torch.ones(4, 5)), torch.full((3, 5), 4.0))
    # A second build in one process finds the kernels loaded.
    monkeypatch.setattr(native, "_build", native._Build())
    assert native_kernels() == status
