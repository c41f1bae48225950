"""`make fuzz`: every parser in turn, as many at once as there are processors; `python -m tests.fuzz SECONDS [NAME...]`.

A finding is kept in `.fuzz/` and can be shown again: `python -m tests.fuzz --replay NAME FILE`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".fuzz"
GRACE = 300
"""Seconds beyond the time of fuzzing that a process may take to start and to end, on a busy machine."""


def fuzz(name: str, seconds: int, folder: Path, *, inputs: int = -1) -> tuple[int, str]:
    """Fuzz one target in a process of its own; the number of inputs tried, and what went wrong, empty for nothing.

    Args:
        name: the target.
        seconds: after which it ends.
        folder: for findings and the corpus.
        inputs: after which it ends sooner, so that the same code is tried with the same inputs; -1 for any number.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", name, str(seconds), str(folder), str(inputs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + GRACE,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    tried = re.search(r"number_of_executed_units: ([0-9]+)", done.stderr)
    return int(tried[1]) if tried else 0, "" if done.returncode == 0 else (done.stdout + done.stderr)[-6000:]


def replay(name: str, file: str) -> None:
    """Show a finding again, with its traceback."""
    TARGETS[name](Path(file).read_bytes())


def main(arguments: list[str]) -> int:
    """Fuzz; 1 where anything was found."""
    if arguments[:1] == ["--replay"]:
        replay(*arguments[1:])
        return 0
    seconds = int(arguments[0]) if arguments else 10
    names = arguments[1:] or list(TARGETS)
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (tried, words) in zip(names, pool.map(lambda name: fuzz(name, seconds, FOLDER), names), strict=True):
            failed += bool(words)
            print(f"{name:<22} {tried:>9,} inputs  {'FOUND SOMETHING' if words else 'only typed errors'}", flush=True)
            if words:
                print(words)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
