"""The native kernels of ``kernels.cpp``: built in the background when asked for, never required.

What is built is kept where torch keeps compiled extensions, under a name that says what it was built from, by which
compiler and for which processor, so that it is built once for a machine and not used on another. A build happens in
a folder of its own and is moved into place whole: processes that build at the same time do not disturb each other.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from l2path.lowerings import convolution, pooling, recurrent

SWITCH = "L2PATH_NATIVE"
"""Environment variable: "0" keeps to torch's own kernels."""

SOURCE = Path(__file__).with_name("kernels.cpp")
"""What is compiled; it includes other files of its folder."""
PRODUCTS = ("tiled_bmm", "tiled_mm")


class Status(NamedTuple):
    """Whether the native kernels are there.

    Attributes
    ----------
    state : {"off", "absent", "building", "ready", "failed"}
        "off" by the environment variable L2PATH_NATIVE; "absent" before :func:`prepare`.
    reason : str
        Why it failed, or what switched it off.
    library : Path, optional
        Where it is ready: what is loaded. Its name is a digest of all that it depends on.
    """

    state: Literal["off", "absent", "building", "ready", "failed"]
    reason: str = ""
    library: Path | None = None


class _Build:
    """The one build of this process. Its fields change under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.status = Status("absent")
        self.thread: threading.Thread | None = None
        self.makes = False  # whether the thread may build
        self.compiler: subprocess.Popen[str] | None = None


_build = _Build()


def status() -> Status:
    """Return whether the native kernels are there, without starting anything."""
    return Status("off", f"{SWITCH}=0 is set") if os.environ.get(SWITCH) == "0" else _build.status


def enabled() -> bool:
    """Return whether the native kernels are ready for use."""
    return status().state == "ready"


def prepare(wait: float | None = 0.0, *, make: bool = True) -> Status:
    """Start to build the native kernels, if that has not happened yet, in a thread of its own; never raises.

    Where they were built before, on this machine with this torch, it takes some 20 ms, else some seconds. A process
    that ends earlier ends the build. A forked child has no share in a build that was under way: wait before a fork.

    Parameters
    ----------
    wait : float, optional
        Seconds to wait for the end of it; None is as long as it takes.
    make : bool
        Build them where that has not happened before; False takes them where they are there already, and waits for
        no build that is under way.
    """
    if status().state == "off":
        return status()
    build = _build
    with build.lock:
        if build.status.state == "building" and build.makes and not make:
            return build.status
        if build.status.state == "absent":
            build.makes = make
            build.thread = threading.Thread(target=_run, args=(build, make), name="l2path-native", daemon=True)
            build.status = Status("building")
            build.thread.start()
        thread = build.thread
    if thread is not None and wait != 0:
        thread.join(wait)
        if make and build.status.state == "absent":  # another thread has only looked whether they are there
            return prepare(wait)
    return build.status


def _run(build: _Build, make: bool) -> None:
    """Build and load; whatever goes wrong is a reason to do without, and none to trouble the caller."""
    try:
        library = _load(build, make)
        build.status = Status("ready", library=library) if library else Status("absent")
    except Exception as error:
        build.status = Status("failed", str(error) or type(error).__name__)
    finally:
        build.compiler = None


def _load(build: _Build, make: bool) -> Path | None:
    """Make the operations available; returns the library that they are from, None where it is not to be made."""
    compiler = find_compiler()
    root = Path(torch.__file__).parent
    command = [
        # -O3 takes a compiler twice as long, and what it makes is no faster.
        *(compiler, "-std=c++17", "-O2", *_processor_flags(), "-ffp-contract=fast", "-fPIC", "-shared"),
        *("-I", str(root / "include"), str(SOURCE), "-L", str(root / "lib"), "-ltorch_cpu"),
    ]
    # The predefined macros tell the compiler's version, and with -march=native the processor's abilities.
    macros = _call(build, [compiler, *_processor_flags(), "-x", "c++", "-dM", "-E", os.devnull])
    digest = hashlib.sha256("\n".join([*command, macros, torch.__version__]).encode())
    for source in sources():
        digest.update(source.read_bytes())
    library = cache_folder() / f"kernels-{digest.hexdigest()[:24]}.so"
    if not library.exists():
        if not make:
            return None
        _compile(build, command, library)
    try:
        _install(library)
    except OSError:  # not a library: the next process makes it anew
        library.unlink(missing_ok=True)
        raise
    return library


def sources() -> list[Path]:
    """Return all files that the library is made of."""
    return sorted(file for file in SOURCE.parent.iterdir() if file.suffix in (".cpp", ".h"))


def find_compiler() -> str:
    """Return the C++ compiler to use: ``CXX``, or a GCC or Clang on the path.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise FileNotFoundError("there is no C++ compiler: neither CXX nor g++, clang++ or c++ is one")


def _processor_flags() -> tuple[str, ...]:
    """Return what tells a compiler to use all that this processor can do."""
    return ("-march=native",) if platform.machine().lower() in ("x86_64", "amd64") else ("-mcpu=native",)


def cache_folder() -> Path:
    """Return where torch keeps compiled extensions, and there a folder of ours."""
    from torch._appdirs import user_cache_dir  # as torch.utils.cpp_extension does, whose import needs setuptools

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or user_cache_dir(appname="torch_extensions")
    return Path(root) / "l2path"


def _compile(build: _Build, command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="build-", dir=library.parent))
    # The interpreter may end meanwhile, which ends this thread without a word.
    atexit.register(_abandon, build, folder)
    try:
        made = folder / library.name
        _call(build, [*command, "-o", str(made)])
        os.replace(made, library)
    finally:
        atexit.unregister(_abandon)
        shutil.rmtree(folder, ignore_errors=True)


def _abandon(build: _Build, folder: Path) -> None:
    with build.lock:  # a compiler that is being started is known afterwards
        compiler = build.compiler
    if compiler is not None and compiler.poll() is None and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(compiler.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _call(build: _Build, command: list[str]) -> str:
    """Return what a command prints; an error that quotes its complaint if it fails."""
    with build.lock:
        compiler = build.compiler = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # an interrupt is meant for the user's program; and it ends with all its children
        )
    out, complaint = compiler.communicate()
    if compiler.returncode:
        raise RuntimeError(f"{command[0]} failed: {complaint.strip()[:2000]}")
    return out


def _install(library: Path) -> None:
    """Load a library and declare its operations."""
    convolution.declare()
    pooling.declare()
    recurrent.declare_native()
    for name in PRODUCTS:
        if not hasattr(torch.ops.l2path, name):
            # Any layout of the operands will do, so inductor has no reason to copy them.
            tags = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
            torch.library.define(f"l2path::{name}", "(Tensor a, Tensor b) -> Tensor", tags=tags)
            torch.library.register_fake(f"l2path::{name}", _shape_of_product)
    if not _has_kernels():
        # Its C functions must be visible to the libraries that inductor makes with cpp_wrapper=True.
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    if not _has_kernels():
        raise RuntimeError(f"{library.name} did not register its kernels")


def _has_kernels() -> bool:
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"l2path::{name}", "CPU") for name in names())


def names() -> list[str]:
    """Return the names of all operations that the library has kernels for."""
    return [*PRODUCTS, *convolution.SCHEMAS, *pooling.SCHEMAS, *(f"native_{name}" for name in recurrent.SCHEMAS)]


def _shape_of_product(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _forget() -> None:
    """In a forked child, whose parent was building: there is no thread here that would finish."""
    global _build
    if _build.status.state == "building":
        atexit.unregister(_abandon)  # which would end the parent's
        _build = _Build()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
