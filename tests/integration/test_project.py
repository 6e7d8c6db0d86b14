"""What the project promises about itself: metadata, commands, public names and the order of its rooms."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import l2path
from tests.integration.pages import ROOT, SHELL, commands, read_page

SOURCE = ROOT / "src"

# The rooms from the top down: a room imports only from rows below its own, or from its own row.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"__init__"}),
    frozenset({"sklearn", "jax", "plots"}),
    frozenset({"crossval"}),
    frozenset({"path"}),
    frozenset({"engine"}),
    frozenset({"compiled", "outputs"}),
    frozenset({"compiling"}),
    frozenset({"data"}),
    frozenset({"blocks"}),
    frozenset({"batches"}),
    frozenset({"files", "progress"}),
    frozenset({"training"}),
    frozenset({"losses"}),
    frozenset({"optimizers"}),
    frozenset({"ridge"}),
    frozenset({"ridge_input"}),
    frozenset({"penalty", "units"}),
    frozenset({"scores"}),
    frozenset({"functional"}),
    frozenset({"order"}),
    frozenset({"lowerings", "memory"}),
    frozenset({"dispatch", "errors", "tables", "trees", "types"}),
)
FACES = ROWS[1]
# What result.plot() and to_dataframe() work with, and their types: matplotlib and pandas are imported when they are
# called, or for checking types alone.
FACE_MODULES = {"l2path.path.result", "l2path.crossval.result", "l2path.path.frame", "l2path.crossval.frame"} | {
    f"l2path.path.figures.{name}" for name in ("axes", "heatmap", "overview", "scores", "weights")
}
RUNTIME = {"torch", "numpy"}


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name; a package's name is its __init__'s."""
    found = {}
    for path in sorted((SOURCE / "l2path").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.Module, module: str, is_package: bool, known: Iterable[str]) -> dict[str, int]:
    """Absolute names of all modules that a module imports, anywhere in it, with the first line."""
    known = set(known)
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from package import module` imports that module, `from module import name` does not.
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        for name in names:
            found.setdefault(name, node.lineno)
    return found


def room(module: str) -> str:
    """The room of a module of l2path."""
    return "__init__" if module == "l2path" else module.split(".")[1]


def row(module: str) -> int:
    """The row of a module's room, counted from the top."""
    for number, rooms in enumerate(ROWS):
        if room(module) in rooms:
            return number
    raise AssertionError(f"{module}: give the room {room(module)!r} its row in ROWS")


def upward(graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Imports that go up."""
    return [
        f"{module}:{line} imports {target}, which is above it"
        for module, targets in graph.items()
        for target, line in targets.items()
        if target in graph and row(target) < row(module)
    ]


def circle(graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The modules of one import circle, or nothing."""
    try:
        TopologicalSorter({m: [t for t in targets if t in graph] for m, targets in graph.items()}).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, dict[str, int]]:
    """For each module, what it imports."""
    known = modules()
    assert "l2path" in known
    return {
        name: imports(ast.parse(path.read_text(encoding="utf-8")), name, path.stem == "__init__", known)
        for name, path in known.items()
    }


def test_imports_go_down(graph: dict[str, dict[str, int]]) -> None:
    assert upward(graph) == []


def test_there_is_no_import_circle(graph: dict[str, dict[str, int]]) -> None:
    assert circle(graph) == []


def test_only_functional_imports_torch_func(graph: dict[str, dict[str, int]]) -> None:
    importers = {m for m, targets in graph.items() if any(re.match(r"torch\.func\b", t) for t in targets)}
    assert {room(module) for module in importers} <= {"functional"}


def test_only_faces_import_anything_but_torch_and_numpy(graph: dict[str, dict[str, int]]) -> None:
    allowed = RUNTIME | {"l2path"} | sys.stdlib_module_names
    foreign = [
        f"{module}:{line} imports {target}"
        for module, targets in graph.items()
        if room(module) not in FACES and module not in FACE_MODULES
        for target, line in targets.items()
        if target.split(".")[0] not in allowed
    ]
    assert foreign == []


def test_the_import_checks_can_fail() -> None:
    known = {"l2path", "l2path.path", "l2path.errors", "l2path.optimizers", "l2path.optimizers.adam"}
    source = "def later():\n    from l2path import path\n"
    assert imports(ast.parse(source), "l2path.errors", False, known) == {"l2path.path": 2}
    source = "from . import adam\nfrom ..errors import L2PathError\nfrom .adam import adam\n"
    found = imports(ast.parse(source), "l2path.optimizers", True, known)
    assert found == {"l2path.optimizers.adam": 1, "l2path.errors": 2}
    assert imports(ast.parse("from .. import path"), "l2path.optimizers.adam", False, known) == {"l2path.path": 1}

    bad = {"l2path.path": {"l2path.errors": 1}, "l2path.errors": {"l2path.path": 2}}
    assert upward(bad) == ["l2path.errors:2 imports l2path.path, which is above it"]
    assert set(circle(bad)) == {"l2path.path", "l2path.errors"}
    with pytest.raises(AssertionError, match="give the room 'attic' its row"):
        row("l2path.attic")


def test_runtime_dependencies_are_torch_and_numpy_alone() -> None:
    requires = importlib.metadata.requires("l2path") or []
    runtime = [line for line in requires if "extra ==" not in line]
    assert {re.split(r"[<>=!~ \[;]", line)[0] for line in runtime} == RUNTIME


def test_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = importlib.metadata.metadata("l2path")
    assert l2path.__version__ == project["version"] == installed["Version"]
    assert installed["License-Expression"] == "Apache-2.0"
    assert installed["Requires-Python"] == ">=3.11"
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (SOURCE / "l2path" / "py.typed").is_file()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    given = [c for b in read_page(ROOT / "README.md") if b.language in SHELL for c in commands(b)]
    (command,) = (c for c in given if c.endswith("nox -s tests"))
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert command in lines
    assert lines.index(command) < lines.index(".venv/bin/nox -s lint typecheck docs build")


def test_environments_pin_torch() -> None:
    pinned = (ROOT / "tests" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert any(re.fullmatch(r"torch==\d+\.\d+\.\d+", line) for line in pinned)


def test_public_names_exist_and_are_in_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert len(set(l2path.__all__)) == len(l2path.__all__)
    for name in l2path.__all__:
        assert hasattr(l2path, name)
    missing = [n for n in l2path.__all__ if not n.startswith("__") and not re.search(rf"\b{n}\b", page)]
    assert missing == [], "docs/api.md does not mention these public names"


def test_importing_leaves_the_compiler_alone() -> None:
    """It takes more than a second to import, which only a compiled job has to wait for."""
    heavy = ("torch._dynamo", "torch._inductor", "sympy")
    code = f"import sys, l2path; print([name for name in sys.modules if name.startswith({heavy})])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
