"""Every code block of the README and of the documentation is executed."""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from pathlib import Path

import matplotlib
import pytest

from tests.integration.pages import (
    ROOT,
    SHELL,
    Block,
    PageError,
    commands,
    pages,
    read_blocks,
    read_page,
    run_page,
)

TEST_COMMAND = "python3 -m venv .venv && .venv/bin/python -m pip install -q nox && .venv/bin/nox -s tests"
DEMO_COMMAND = "python3 -m venv .venv && .venv/bin/python -m pip install -q nox && .venv/bin/nox -s demo"

KNOWN_COMMANDS = frozenset(
    {
        TEST_COMMAND,
        DEMO_COMMAND,
        ".ci/run",
        ".venv/bin/nox -l",
        ".venv/bin/nox -s bench",
        ".venv/bin/nox -s docs",
        ".venv/bin/nox -s lint typecheck docs build",
        ".venv/bin/nox -s slow",
        "python3 -m pip install .",
        'python3 -m pip install ".[plot]"',
        'python3 -m pip install ".[sklearn]"',
        'python3 -m pip install ".[plot,sklearn]"',
    }
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page starts in an empty folder and draws to files only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    matplotlib.use("Agg", force=True)


def sessions() -> set[str]:
    """Names of the nox sessions."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if any("nox.session" in ast.unparse(d) for d in f.decorator_list)}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_of_a_page_runs(page: Path) -> None:
    run_page(read_page(page), source=page)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_are_known(page: Path) -> None:
    for block in read_page(page):
        if block.language in SHELL and block.excuse is None:
            for command in commands(block):
                assert command in KNOWN_COMMANDS, f"{block.where}: {command!r} is in no list of tested commands"


def test_the_readme_gives_the_test_and_the_demo_command() -> None:
    given = [c for b in read_page(ROOT / "README.md") if b.language in SHELL for c in commands(b)]
    assert TEST_COMMAND in given
    assert DEMO_COMMAND in given


@pytest.mark.parametrize("command", sorted(KNOWN_COMMANDS))
def test_known_commands_name_what_exists(command: str) -> None:
    named = re.search(r"nox -s ([a-z ]+)", command)
    assert set(named[1].split() if named else ()) <= sessions()
    extras = re.search(r"\[(.*)\]", command)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras[1].split(",") if extras else ()) <= set(project["optional-dependencies"])
    if command.startswith(".ci"):
        assert (ROOT / command).is_file()


# The harness itself: it must be able to fail.


def blocks_of(text: str) -> list[Block]:
    return read_blocks(textwrap.dedent(text), "page.md")


def test_an_output_that_the_code_does_not_print_fails() -> None:
    page = "```python\nprint('best', 0.5)\n```\n\nIt prints\n\n```text\nbest 0.25\n```\n"
    assert run_page(blocks_of(page)) == 1  # digits are left to the machine
    for wrong in ("worst 0.25", "best 0.25\nand more", ""):
        with pytest.raises(PageError, match=r"the page shows .* where the code prints"):
            run_page(blocks_of(page.replace("best 0.25", wrong)))


def test_a_broken_block_fails_with_page_and_line() -> None:
    text = """\
    # A page

    ```python
    x = 1
    ```

    ```python
    y = x + 1

    assert y == 3, "one and one"
    ```
    """
    with pytest.raises(PageError, match=r"^page\.md:10: AssertionError: one and one"):
        run_page(blocks_of(text))


def test_the_line_in_the_page_is_named_when_the_error_is_deeper() -> None:
    with pytest.raises(PageError, match=r"^page\.md:3: JSONDecodeError"):
        run_page(blocks_of("```python\nimport json\njson.loads('{')\n```\n"))


def test_a_syntax_error_fails_with_page_and_line() -> None:
    with pytest.raises(PageError, match=r"^page\.md:3: SyntaxError"):
        run_page(blocks_of("```python\nx = 1\nx = = 2\n```\n"))


def test_a_block_that_warns_or_exits_fails() -> None:
    with pytest.raises(PageError, match="careful"):
        run_page(blocks_of("```python\nimport warnings\nwarnings.warn('careful')\n```\n"))
    with pytest.raises(PageError, match="SystemExit"):
        run_page(blocks_of("```python\nraise SystemExit(0)\n```\n"))


@pytest.mark.parametrize("language", ["python", "pycon"])
def test_a_wrong_output_fails(language: str) -> None:
    good = f"```{language}\n>>> 1 + 1\n2\n```\n"
    assert run_page(blocks_of(good)) == 1
    with pytest.raises(PageError, match=r"(?s)^page\.md:2: .*Expected:.*3.*Got:.*2"):
        run_page(blocks_of(good.replace("\n2\n", "\n3\n")))


def test_blocks_of_a_page_share_a_namespace_and_pages_do_not() -> None:
    text = "```python\na = 1\n```\n\n```pycon\n>>> b = a + 1\n```\n\n```python\nassert b == 2\n```\n"
    assert run_page(blocks_of(text)) == 3
    with pytest.raises(PageError, match="NameError"):
        run_page(blocks_of("```python\na\n```\n"))


def test_blocks_in_lists_and_directives_are_found() -> None:
    text = """\
    - first

      ```python
      x = 1
      ```

    ````{note}
    ```python
    assert x == 2
    ```
    ````
    """
    assert [block.line for block in blocks_of(text)] == [4, 9]
    with pytest.raises(PageError, match=r"^page\.md:9: AssertionError"):
        run_page(blocks_of(text))


def test_an_excused_block_is_skipped_and_says_why() -> None:
    text = "<!-- not executed: needs\n     two machines -->\n\n```python\n1 / 0\n```\n"
    (block,) = blocks_of(text)
    assert block.excuse == "needs two machines"
    assert run_page([block]) == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- not executed: -->\n```python\n1\n```\n", r"page\.md:3: .*needs a reason"),
        (
            "<!-- not executed: far away -->\n\ntext\n\n```python\n1\n```\n",
            "1 `not executed` comments, but 0",
        ),
        ("```py\n1\n```\n", r"page\.md:2: a block in 'py'"),
        ("```\n1\n```\n", "no language"),
        ("```{code-block} python\n1\n```\n", "would not be executed"),
        ("```{eval-rst}\n.. code-block:: python\n\n   1\n```\n", "would not be executed"),
        ("```python\n1\n", r"page\.md:1: this fence is never closed"),
    ],
)
def test_code_cannot_hide(text: str, complaint: str) -> None:
    with pytest.raises(PageError, match=complaint):
        read_blocks(text, "page.md")


def test_commands_lose_prompts_comments_and_continuations() -> None:
    (block,) = blocks_of("```console\n# first\n$ one && \\\n    two\n\n$ three\n```\n")
    assert commands(block) == ["one && two", "three"]
