"""The tutorial, run command by command in one shell, as its reader would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo import stop_node

from tests.docs.transcripts import DOCS, steps

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = DOCS.parent
PORT = "8123"
"""The page's; a free one stands in for it here."""


class Shell:
    """A bash that goes on from command to command, as a person's."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """What a command printed, on either stream."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = uuid.uuid4().hex
        self._process.stdin.write(f"{command}\necho {mark}\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            if line.rstrip().endswith(mark):
                return printed + line.rstrip()[: -len(mark)]
            printed += line
        raise AssertionError(f"the shell ended:\n{printed}")

    def end(self) -> None:
        """End it and whatever it has running."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A new user's: nothing configured, the command on PATH."""
    home = tmp_path / "home"
    home.mkdir()
    commands = Path(sys.executable).parent
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HOME": str(home),
        "PROJECT": str(ROOT),
        "LANG": "C.UTF-8",
        "COLUMNS": "200",
        **{f"GIT_{who}_{what}": "reader" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    shell = Shell(tmp_path, environment)
    yield shell
    config = tmp_path / "tutorial" / "node.yaml"
    if config.exists():
        stop_node(config)
    shell.run("kill %1")
    shell.end()


def free_port() -> str:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.timeout(600)
def test_every_command_prints_what_the_page_says(shell: Shell) -> None:
    """From nothing to a node that goes back by itself (I1, I2, I4, I5): the page is true."""
    checker, port = OutputChecker(), free_port()
    todo = steps(DOCS / "tutorial.md")
    assert len(todo) > 50
    for step in todo:
        command = step.command.replace(PORT, port)
        printed = re.sub(r"\x1b\[[0-9;]*m", "", shell.run(command)).replace(port, PORT)
        # A page leaves blank lines out; what follows a lone "..." may come directly.
        wanted = re.sub(r"(?m)^\.\.\.\n", "...", step.expected)
        fits = checker.check_output(wanted, printed, ELLIPSIS | NORMALIZE_WHITESPACE)
        assert fits, (
            f"tutorial.md:{step.line}: {step.command}\n--- the page says\n{step.expected}\n--- printed\n{printed}"
        )
