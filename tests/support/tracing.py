"""The store's operations under `strace`: every system call may be refused, or be the last one.

`python -m tests.support.tracing` reads one job per line from standard input and forks a victim for it; `strace` takes
hold of the victim, and only then it begins. Nothing is imported and nothing compiled by the victim, so that the n-th
call of a kind is the same one each time, and a run costs milliseconds: so a sweep over every call is a sweep.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from runtime.host import StopEvent
from schemas.errors import DownloadFailed, ModelCorrupt, NoSpace
from tests.support.crashing import ONE, V1, V2, open_store, perform
from tests.support.models import lay_out, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS: Final = (NoSpace, DownloadFailed, ModelCorrupt)
"""What an operation may end with; its exit status is ten more than the place in here."""

_FIRST_STATUS: Final = 10


class Tracer:
    """Runs operations of the store, each in a process of its own that `strace` holds."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def calls(self, root: Path, operation: str, source: str, *, of: str) -> dict[str, list[str]]:
        """Perform an operation undisturbed.

        Returns:
            What it called, by name of the call, each as strace writes it; of the calls that strace's expression names.
        """
        assert self._run(root, operation, source, "-e", f"trace={of}") == "ended"
        made: dict[str, list[str]] = {}
        for line in self._log.read_text(encoding="utf-8").splitlines():
            name, parenthesis, _ = line.partition("(")
            if parenthesis:
                made.setdefault(name.split()[-1], []).append(line)
        return made

    def disturb(self, root: Path, operation: str, source: str, *, call: str, what: str, at: int) -> str:
        """Perform an operation whose call number `at`, from 1, meets with `what` (strace's `error=...`, `signal=...`).

        Returns:
            `killed`, `ended`, the class of the error that it ended with, or how it ended otherwise.
        """
        return self._run(root, operation, source, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={at}")

    def _run(self, root: Path, operation: str, source: str, *options: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = [str(root), operation, source, "-o", str(self._log), *options]
        self._process.stdin.write("\t".join(job) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def tracer() -> Iterator[Tracer]:
    """A process that forks victims, and has them traced. Skips where there is no `strace`, or it may not trace."""
    strace = shutil.which("strace")
    required = os.environ.get("REQUIRE_STRACE") == "1"
    if (
        strace is None
        or subprocess.run([strace, "-o", os.devnull, "true"], check=False, capture_output=True).returncode
    ):
        (pytest.fail if required else pytest.skip)("strace is not installed, or may not trace here")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.support.tracing"]
        where = Path(__file__).parents[2]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=where) as process:
            yield Tracer(process, Path(folder, "log"))
            assert process.stdin is not None
            process.stdin.close()


# --- in the process that forks -------------------------------------------------------------------------------------


def _victim(root: Path, operation: str, source: str, begin: int) -> int:
    """Perform an operation, once there is something to read; the exit status."""
    select.select([begin], [], [])  # a call that no sweep is about
    try:
        perform(open_store(root, lambda _number, call: call())[0], operation, source)
    except ERRORS as error:
        return _FIRST_STATUS + ERRORS.index(type(error))
    return 0


def _traced(root: Path, operation: str, source: str, options: list[str]) -> str:
    begin, start = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _victim(root, operation, source, begin)
        finally:
            os._exit(status)
    os.close(begin)
    with subprocess.Popen(
        ["strace", "-p", str(child), *options], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()  # "strace: Process ... attached": from here on it sees every call
        os.write(start, b".")
        os.close(start)
        _, status = os.waitpid(child, 0)
        strace.stderr.read()
    if "attached" not in said:
        return f"strace: {said.strip()}"
    if os.WIFSIGNALED(status):
        return "killed"
    code = os.WEXITSTATUS(status)
    if code == 0:
        return "ended"
    with suppress(IndexError):
        return ERRORS[code - _FIRST_STATUS].__name__ if code >= _FIRST_STATUS else f"status {code}"
    return f"status {code}"


def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:  # once without a witness: then every import has happened
        rehearsal = open_store(Path(folder, "models"), lambda _number, call: call())[0]
        rehearsal.acquire(ONE, [lay_out(Path(folder, "one"), V1)], progress=silent, stop=StopEvent())
        source = lay_out(Path(folder, "two"), V2)
        for operation in ("acquire", "verify", "remove"):
            perform(rehearsal, operation, source)
    for line in sys.stdin:
        root, operation, source, *options = line.rstrip("\n").split("\t")
        sys.stdout.write(_traced(Path(root), operation, source, options) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
