"""The project's checks: ``nox -l`` lists them, ``nox -s tests -- tests/unit -k penalty`` picks tests."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import nox

if sys.version_info < (3, 11):  # noqa: UP036 - nox may run under an older Python than the package allows
    raise SystemExit(
        f"l2path needs Python 3.11 or newer; this nox runs on {sys.version.split()[0]}. "
        "Remedy: make the environment with a newer one, as in `python3.11 -m venv .venv`."
    )

nox.needs_version = ">=2024.10.9"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typecheck", "tests", "docs", "build"]

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
SHARED = ROOT / ".nox" / "shared"
# pip before 25.3 applies the first variable to build environments too; later versions read the second there.
PINNED = {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
# Two test workers on two cores must not start two threads each.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def shared_python(session: nox.Session, *extras: str) -> str:
    """Return the interpreter of an environment that sessions share, with l2path[extras] installed.

    torch is some 200 MB, installed into every environment again, so one environment serves the
    sessions that need it. ``rm -r .nox/shared`` starts it afresh.
    """
    python = SHARED / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        session.run(sys.executable, "-m", "venv", str(SHARED), external=True)
    target = f".[{','.join(extras)}]"
    session.run_install(*(str(python), "-m", "pip", "install", "-q", "--editable", target), env=PINNED, external=True)
    return str(python)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint and formatting."""
    session.install("-q", "ruff", env=PINNED)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=False)
def typecheck(session: nox.Session) -> None:
    """Types of src, tests, examples, docs/conf.py and this file."""
    python = shared_python(session, "dev")
    session.run(python, "-m", "mypy", *session.posargs, external=True)


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """All tests that are not slow, then the examples in docstrings; arguments go to pytest instead."""
    python = shared_python(session, "test")
    pytest = (python, "-m", "pytest")
    if session.posargs:
        session.run(*pytest, *session.posargs, env=ONE_THREAD, external=True)
        return
    session.run(*pytest, "-n", "2", "tests", env=ONE_THREAD, external=True)
    session.run(*pytest, "--doctest-modules", "src", env=ONE_THREAD, external=True)


@nox.session(python=False)
def slow(session: nox.Session) -> None:
    """The tests marked slow."""
    python = shared_python(session, "test")
    # 5: nothing is marked slow, which is no failure.
    session.run(
        *(python, "-m", "pytest", "-n", "2", "-m", "slow", *session.posargs),
        env=ONE_THREAD,
        external=True,
        success_codes=[0, 5],
    )


@nox.session(python=False)
def sanitize(session: nox.Session) -> None:
    """The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with each width of vector there is."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        session.skip("there is no C++ compiler: neither CXX nor g++ or clang++ is one")
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
    program = Path(session.create_tmp()).resolve() / "native_test"
    for target in native_targets(compiler):
        # GCC remarks that functions of wide vectors, which are all inlined, would be called in another way elsewhere.
        flags = (*checks, "-std=c++17", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", target)
        for test in sorted((ROOT / "tests" / "native").glob("*_test.cpp")):
            session.run(compiler, *flags, str(test.relative_to(ROOT)), "-o", str(program), external=True)
            session.run(str(program), external=True)
    if platform.system() == "Linux":
        sanitize_programs(session, compiler)


def sanitize_programs(session: nox.Session, compiler: str) -> None:
    """Train members with everything that is built for them under the sanitizers, in folders of its own."""
    python, folder = shared_python(session, "test"), Path(session.create_tmp()).resolve()
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(os.path.isabs(library) for library in libraries):  # a name alone: this compiler has them elsewhere
        session.skip("compiled programs were not run: the compiler has no shared libraries of its sanitizers")
    wrapper = folder / "g++"  # inductor looks at the name
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
    wrapper.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" {flags}\n', encoding="utf-8")
    wrapper.chmod(0o755)
    own = {"CXX": wrapper, "TORCHINDUCTOR_CACHE_DIR": folder / "programs", "TORCH_EXTENSIONS_DIR": folder / "kernels"}
    env = {name: str(path) for name, path in own.items()} | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python, which frees little at its end
        "L2PATH_REMEMBER": "0",
    }
    for name in ("programs", "kernels"):
        shutil.rmtree(folder / name, ignore_errors=True)
    session.run(python, "-m", "tests.native.programs", env=env, external=True)


def native_targets(compiler: str) -> list[str]:
    """Compiler flags for this processor, and for older ones of its kind whose programs it runs."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["-mcpu=native"]
    # The predefined macros say what the processor can do; a level above it would end in an illegal instruction.
    macros = subprocess.check_output([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], text=True)
    older = ["x86-64", "x86-64-v3"] if "__AVX2__" in macros and "__FMA__" in macros else ["x86-64"]
    return ["-march=native", *(f"-march={level}" for level in older)]


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors, into docs/_build."""
    python = shared_python(session, "docs")
    session.run(
        *(python, "-m", "sphinx", "-E", "-W", "--keep-going", "-b", "html", "docs", "docs/_build"),
        *session.posargs,
        external=True,
    )


@nox.session(python=False)
def demo(session: nox.Session) -> None:
    """The demonstration: a path of L2 strengths on scikit-learn's digits."""
    python = shared_python(session, "plot", "sklearn")
    session.run(python, "examples/digits_path.py", *session.posargs, external=True)


@nox.session(python=False)
def bench(session: nox.Session) -> None:
    """Benchmarks side by side, into docs/benchmarks.md: all (hours), or e.g. ``mlp 8``, ``--quick mlp``, ``crossval``.

    The first argument may name a script of tests/benchmarks; else all arguments go to engines.py.
    """
    python = shared_python(session, "test")
    scripts = sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("[!_]*.py"))
    asked = list(session.posargs)
    if asked:
        runs = [asked if asked[0] in scripts else ["engines", *asked]]
    else:
        runs = [*([name] for name in scripts), ["engines", "--switches"], ["engines", "--scale"]]
    for script, *arguments in runs:
        session.run(python, "-m", f"tests.benchmarks.{script}", *arguments, external=True)


@nox.session(reuse_venv=False)
def build(session: nox.Session) -> None:
    """Build the wheel, install it alone into a new environment and import it from an empty folder."""
    out = Path(session.create_tmp()).resolve()
    wheels, empty = out / "wheels", out / "empty"
    for folder in (wheels, empty):
        folder.mkdir(exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), ".", env=PINNED)
    (wheel,) = wheels.glob("l2path-*.whl")
    check_contents(session, wheel)
    session.install("-q", str(wheel), env=PINNED)
    session.run("python", "-m", "pip", "check")
    script = out / "import_check.py"
    script.write_text(IMPORT_CHECK, encoding="utf-8")
    with session.chdir(empty):
        session.run("python", "-I", str(script), wheel.name.split("-")[1])


def check_contents(session: nox.Session, wheel: Path) -> None:
    """Every file under src/l2path is in the wheel, the type marker and the licence with it, and no other."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    source = ROOT / "src"
    listed = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if packed != listed:
        session.error(f"{wheel.name} and src/ differ in: {', '.join(sorted(packed ^ listed))}")
    if "l2path/py.typed" not in names:
        session.error(f"{wheel.name} lacks l2path/py.typed")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        session.error(f"{wheel.name} lacks the licence")


IMPORT_CHECK = textwrap.dedent(
    """
    import importlib.metadata, importlib.resources, sys
    import l2path
    installed, built = importlib.metadata.version("l2path"), sys.argv[1]
    assert installed == built, f"installed {installed}, built {built}"
    assert l2path.__version__ == built, f"l2path.__version__ is {l2path.__version__}, the wheel {built}"
    assert "site-packages" in l2path.__file__, f"imported {l2path.__file__}, not the installed wheel"
    assert importlib.resources.files("l2path").joinpath("py.typed").is_file(), "py.typed is not installed"
    for name in l2path.__all__:
        getattr(l2path, name)
    extras = {"matplotlib", "sklearn", "jax", "himalaya", "pytest", "transformers"} & set(sys.modules)
    assert not extras, f"import l2path also imported {extras}"
    print(f"l2path {built}: {len(l2path.__all__)} public names, imported from an empty folder")
    """
)
