"""How the demo shows what it does, and fails where something is not as it says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RECONCILE = Path(sys.executable).with_name("reconcile")
SHOWN = ("Wrote", "Signed", "Network", "Pin", "Address")
"""Lines of the operators' commands that are worth reading here."""

BOLD, DIM, BLUE, RESET = ("\x1b[1m", "\x1b[2m", "\x1b[34m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "", "")


class DemoError(Exception):
    """Something is not as the demo says."""


@dataclass
class Telling:
    """What is run in a folder, and shown."""

    folder: Path

    @property
    def config(self) -> Path:
        """The node's configuration."""
        return self.folder / "node.yaml"

    def title(self, text: str) -> None:
        """Begin a step."""
        print(f"\n{BOLD}{BLUE}== {text} {'=' * max(0, 100 - len(text))}{RESET}", flush=True)

    def say(self, text: str) -> None:
        """Say something about what was just seen."""
        print(f"{DIM}# {text}{RESET}", flush=True)

    def check(self, what: str, holds: object) -> None:
        """What the demo claims is so, or it fails.

        Raises:
            DemoError: it is not so.
        """
        if not holds:
            raise DemoError(f"this should hold, and does not: {what}")
        print(f"{DIM}# checked: {what}{RESET}", flush=True)

    def run(self, *arguments: str, code: int = 0, brief: bool = False, quiet: bool = False) -> str:
        """Run `reconcile`, show command and output, and check its exit code.

        Raises:
            DemoError: it ended with another code.
        """
        command = [str(RECONCILE), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, env=self._env())
        if not quiet:
            self._show(arguments, done, brief=brief and done.returncode == code)
        if done.returncode != code:
            raise DemoError(f"{' '.join(arguments)}: exit code {done.returncode}, expected {code}\n{done.stderr}")
        return done.stdout

    def _show(self, arguments: tuple[str, ...], done: subprocess.CompletedProcess[str], *, brief: bool) -> None:
        shown = [argument if " " not in argument else f"'{argument}'" for argument in arguments]
        print(f"{BOLD}$ reconcile {' '.join(shown)}{RESET}".replace(f"{self.folder}/", ""))
        lines = [*done.stderr.splitlines(), *done.stdout.splitlines()]
        if brief:
            lines = [line for line in lines if line.startswith(SHOWN)]
        for line in lines:
            print(line.replace(f"{self.folder}/", ""))
        if done.returncode:
            print(f"{DIM}[exit code {done.returncode}]{RESET}")
        sys.stdout.flush()

    def _env(self) -> dict[str, str]:
        colour = {"FORCE_COLOR": "1"} if sys.stdout.isatty() else {}
        return {**os.environ, **colour, "RECONCILE_CONFIG": str(self.config)}
