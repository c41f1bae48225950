"""The command itself: help, exit codes, the form of errors."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import pytest

from reconciler.cli import main as program
from reconciler.cli.lazy import Lazy, LazyGroup
from reconciler.cli.main import SECTIONS
from reconciler.cli.snapshot import SECTIONS as SNAPSHOT_SECTIONS
from schemas.errors import ConfigError, ReconcileError, StalePlan, UsageError
from schemas.refusals import Expired

if TYPE_CHECKING:
    from tests.support.operators import Operator

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-m", "reconciler.cli.main"]


def reconcile(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    environment.pop("RECONCILE_CONFIG", None)
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*PROGRAM, *arguments], check=False, env=environment, capture_output=True, text=True, timeout=60, **options
    )


def every(sections: dict[str, dict[str, Lazy]]) -> list[tuple[str, Lazy]]:
    """All entries of a table."""
    return [entry for section in sections.values() for entry in section.items()]


@pytest.mark.parametrize(("name", "lazy"), [*every(SECTIONS), *every(SNAPSHOT_SECTIONS)])
def test_every_entry_of_the_table_exists(name: str, lazy: Lazy) -> None:
    """The overview promises no command that is not there, and gives each the name that it is called by."""
    module, _, attribute = lazy.target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert lazy.help.endswith(".")


def test_help_imports_nothing_but_click() -> None:
    """Start-up time is a feature: the overview imports no package that a command may need."""
    heavy = "pydantic ruamel yaml docker git eth_account eth_keyfile urllib3 rich blake3 sqlite3 asyncio subprocess"
    script = (
        "import sys; before = set(sys.modules)\n"  # what measures coverage is not ours
        "from reconciler.cli.main import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in '{heavy}'.split() if name in set(sys.modules) - before], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
    assert "Network operator:" in done.stdout


def test_pydantic_does_not_look_for_plugins() -> None:
    """Building a model imports nothing that reads what is installed: every command would wait for it."""
    script = (
        "import sys; before = set(sys.modules)\n"  # what measures coverage is not ours
        "import reconciler.cli.main\n"
        "from schemas.node import NodeConfig\n"
        "NodeConfig.model_rebuild()\n"
        "print(sorted({'importlib.metadata', 'email'} & set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_usage_errors_exit_64_everywhere() -> None:
    """Click's own code 2 means "changes are pending" here, so it never leaks."""
    for arguments in (["--bad"], ["nonsense"], ["snapshot", "nonsense"], ["snapshot", "set"], ["--watch", "plan"]):
        done = reconcile(*arguments)
        assert done.returncode == 64, arguments
        assert "Error:" in done.stderr


def test_usage_errors_as_json(operator: Operator) -> None:
    """With `--json`, an error is one JSON object on standard output, with a reason and the exit code."""
    found = json.loads(operator.run("snapshot", "show", "--json", "--bad", code=64).stdout)
    assert found["formatVersion"] == "1"
    assert found["error"]["reason"] == "UsageError"
    assert found["error"]["exitCode"] == 64


def test_version_is_the_distributions() -> None:
    """The version is printed without reading anything else."""
    done = reconcile("--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reconcile 0.")


class Failing:
    """A group whose only command fails in a given way, guarded like the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        def fail(*, as_json: bool) -> NoReturn:
            raise error

        original = LazyGroup.get_command
        monkeypatch.setattr(
            LazyGroup, "get_command", lambda self, ctx, name: fail if name == "fail" else original(self, ctx, name)
        )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no file", hint="make one"), 1),
        (Expired("too late"), 3),
        (StalePlan("moved on"), 4),
        (UsageError("no such thing"), 64),
    ],
)
def test_errors_of_the_tree(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, error: ReconcileError, code: int
) -> None:
    """An error's class is its exit code and its reason; the hint stands on a line of its own (I11)."""
    Failing(monkeypatch, error)
    found = operator.run("fail", code=code)
    assert found.stdout == ""
    assert found.stderr.splitlines()[0] == f"error: {error.reason}: {error.message}"
    assert (f"hint: {error.hint}" in found.stderr) == bool(error.hint)
    assert "Traceback" not in found.stderr
    assert json.loads(operator.run("fail", "--json", code=code).stdout)["error"] == {
        "reason": error.reason,
        "message": error.message,
        "hint": error.hint,
        "exitCode": code,
    }


def test_an_unexpected_error_is_one_line(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is one line that says how to see the traceback, and exits 1."""
    Failing(monkeypatch, RuntimeError("never\nthis"))
    found = operator.run("fail", code=1)
    assert found.stderr.startswith("error: InternalError: RuntimeError: never this\n")
    assert "Traceback" not in found.stderr
    assert "Traceback" in operator.run("fail", code=1, env={"RECONCILE_DEBUG": "1"}).stderr


def test_interrupts_exit_130(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with the code that shells expect, without a traceback."""
    Failing(monkeypatch, KeyboardInterrupt())
    assert "Traceback" not in operator.run("fail", code=130).output


def test_a_question_without_an_answer_exits_1(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declining, or having nobody to answer, is no interrupt."""
    Failing(monkeypatch, click.Abort())
    operator.run("fail", code=1)


def test_a_broken_pipe_is_quiet() -> None:
    """A reader that has enough (`| head -1`) leads to no message."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*PROGRAM, "schema", "list"], stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 1


def test_a_broken_pipe_while_flushing_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same when the pipe breaks only at the last flush."""

    def flush() -> None:
        raise BrokenPipeError(errno.EPIPE, "broken")

    silenced = []
    monkeypatch.setattr(program, "_silence", lambda: silenced.append(1))
    monkeypatch.setattr(sys.stdout, "flush", flush)
    assert program._guarded(lambda: None, []) == 1
    assert silenced == [1]


def test_options_before_a_command_hold_for_it(operator: Operator) -> None:
    """`reconcile --config FILE --json status` is `reconcile status --config FILE --json`."""
    missing = operator.root / "nowhere.yaml"
    first = json.loads(operator.run("--config", str(missing), "--json", "status", code=1).stdout)
    second = json.loads(operator.run("status", "--config", str(missing), "--json", code=1).stdout)
    assert first == second
    assert str(missing) in first["error"]["message"]


def test_the_interval_has_the_documents_grammar(operator: Operator) -> None:
    """Durations are written as in documents; anything else is a usage error that shows how."""
    assert "30s" in operator.run("--watch", "--interval", "30 seconds", code=64).output
    operator.run("--interval", "30s", code=64)


def test_commands_are_listed_with_their_help() -> None:
    """The overview shows every command in its section, and the exit codes."""
    done = reconcile("--help")
    for name, lazy in every(SECTIONS):
        assert any(line.split()[:1] == [name] and lazy.help in line for line in done.stdout.splitlines())
    assert "Exit codes:" in done.stdout


def test_signals_while_waiting_end_the_process() -> None:
    """SIGINT to a process that waits for an answer ends it with 130."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = (
        "import os, signal, click\n"
        "from reconciler.cli import main\n"
        "def wait(): os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "raise SystemExit(main._guarded(wait, []))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr
