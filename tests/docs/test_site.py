"""The site: it can be built without a warning, its commands exist, and no event is without a meaning."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from reconciler.cli.main import cli
from schemas.events import EVENTS
from schemas.reasons import reasons
from schemas.states import CONDITIONS, HELD
from tests.docs.transcripts import DOCS, mentioned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT = DOCS.parent
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Every link leads somewhere, every page can be reached, every command has its section."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", str(DOCS), str(tmp_path)]
    built = subprocess.run([*command, "-d", str(tmp_path / "trees")], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    commands = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f"reconcile-{name}" in commands for name in cli.list_commands(click.Context(cli)))
    assert "stateDir" in (tmp_path / "reference" / "documents.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    """Each `reconcile ...` that a page mentions is a command, and has the options that it is given."""
    for line, text in mentioned(page):
        if "|" in text:
            continue  # several in one line, as an overview
        try:
            words = shlex.split(text.replace("...", ""))[1:]
        except ValueError:
            continue  # cut by the end of a line
        assert _is_understood(words), f"{page.relative_to(ROOT)}:{line}: {text}"


def _is_understood(words: list[str]) -> bool:
    command: click.Command = cli
    context = click.Context(cli, info_name="reconcile")
    while isinstance(command, click.Group):
        while words and words[0].startswith("-"):
            known = {name: option for option in command.params for name in option.opts}
            if words[0] not in known:
                return words[0] in ("--help", "--version")
            words = words[1:] if known[words[0]].is_flag else words[2:]  # type: ignore[attr-defined]
        if not words or words[0].isupper():  # a word that stands for any command
            return True
        found = command.get_command(context, words[0])
        if found is None:
            return False
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return all(word.partition("=")[0] in {*known, "--help"} for word in words if word.startswith("-") and len(word) > 1)


def noted() -> Iterator[tuple[Path, str]]:
    """Names of events that are written out in the code."""
    for path in (ROOT / "reconciler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Note", "_note") and len(node.args) > 1:
                name = node.args[1]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield path, name.value


def stated() -> set[str]:
    """Reasons of held changes and of conditions that are written out in the code."""
    found: set[str] = set()
    for path in (ROOT / "reconciler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said: list[ast.expr] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                said = node.args[1:2] if name == "hold" else node.args[:1] if name == "_NotPossibleError" else []
                said += [word.value for word in node.keywords if word.arg == "reason" and name == "Held"]
            elif isinstance(node, ast.Tuple) and len(node.elts) == 3 and path.name == "status.py":
                # Whether it holds, its reason, its words; not the three words of a literal type.
                said = [node.elts[1]] if not isinstance(getattr(node.elts[0], "value", None), str) else []
            constants = (part for one in said for part in ast.walk(one) if isinstance(part, ast.Constant))
            found |= {part.value for part in constants if isinstance(part.value, str) and part.value.isalpha()}
    return found


def test_every_state_has_its_meaning() -> None:
    """Whoever reads why a change waits, or why a condition is as it is, finds that word on a page."""
    found = stated()
    assert {"OutsideWindow", "NoAssignment", "NoMode", "Serving", "Converged"} <= found
    assert found - {*HELD, *CONDITIONS, *reasons()} == set()


def test_no_state_is_only_on_paper() -> None:
    """Every state of the tables is somewhere in the code; none is a reason, which has a page of its own."""
    files = [*(ROOT / "reconciler").rglob("*.py"), ROOT / "schemas" / "plan.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    assert {name for name in (*HELD, *CONDITIONS) if f'"{name}"' not in code} == set()
    assert not {*HELD, *CONDITIONS} & {*reasons()}


def test_every_event_has_its_meaning() -> None:
    """What the code notes is in the table that the reference is made of, or is a reason."""
    names = {name: path for path, name in noted()}
    assert len(names) > 20
    assert {name: path for name, path in names.items() if name not in {*EVENTS, *reasons()}} == {}


def test_no_event_is_only_on_paper() -> None:
    """Every event of the table is somewhere in the code; those of models' states are put together there."""
    files = [*(ROOT / "reconciler").rglob("*.py"), ROOT / "schemas" / "plan.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    states = {f"Model{state}" for state in ("Pending", "Active", "Inactive", "Failed", "Archived")}
    assert {name for name in EVENTS if f'"{name}"' not in code} <= states
