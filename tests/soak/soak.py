"""A real daemon over hundreds of swaps and thousands of passes, looked at from outside: what of it grows.

The network, its repository, its signatures, the mirror, the engines and the front are the demo's, all real. Nothing is
asked of the agent but what any client asks.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from model_server import serving
from telling import RECONCILE

from reconciler.asking import ask
from reconciler.published import read_status
from reconciler.state_dir import StateDir
from schemas.control import Reconcile
from schemas.errors import DaemonUnreachable
from tests.support.front import eventually
from tests.support.quiet_demo import QuietDemo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.status import ServingStatus

CONTEXT = 512
CONTEXTS = 250
"""Tokens of the context, and how many values it takes in turn: another value is another spec, so that the instance has
to be replaced, and none comes again so soon that its starts would look like a loop of crashes."""
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOKS = 20


@dataclass(frozen=True, slots=True)
class Look:
    """What a daemon holds at rest."""

    swaps: int
    passes: int
    memory: float
    """MiB that are its own: resident, not backed by a file."""
    descriptors: int
    threads: int
    engines: int
    """Instances of which a process lives."""
    mounts: int
    files: int
    """Files and folders below the state directory."""
    disk: int
    """KiB below the state directory, without the models."""
    database: int
    """KiB of the journal and what belongs to it."""
    receipts: int
    """Statements of the chain, which is kept whole."""
    rows: int
    """Rows of all other tables."""
    status: int
    """Bytes of the published status."""


class Soak:
    """A node that a daemon looks after."""

    def __init__(self, demo: QuietDemo, daemon: subprocess.Popen[bytes]) -> None:
        self._demo = demo
        self._daemon = daemon
        self._state = StateDir(demo.folder / "node")
        self.swaps = 0
        self.passes = 0

    def swap(self) -> None:
        """Sign another runtime, and wait until it serves with a receipt."""
        self.swaps += 1
        before = self._serving()
        wanted = f"contextSize={CONTEXT + 8 * (self.swaps % CONTEXTS)}"
        self._demo.operate("runtime", "set", "main", "--engine", "llamacpp", "--arg", wanted)
        self._demo.publish(f"swap {self.swaps}")
        # The commit wakes the daemon as well: whichever pass comes first makes the swap.
        self.look()
        after = self._serving()
        assert after.instance != before.instance
        assert after.receipt is not None

    def _serving(self) -> ServingStatus:
        status = read_status(self._state)
        assert status is not None
        assert status.serving is not None, status
        return status.serving

    def listens(self) -> bool:
        """Whether the daemon takes questions, after which its first pass is made."""
        assert self._daemon.poll() is None, "the daemon ended"
        try:
            self.look()
        except DaemonUnreachable:
            return False
        return True

    def look(self) -> None:
        """Have the daemon make a pass, which must come to nothing that is wrong."""
        done = ask(self._state, Reconcile())
        assert done.result is not None
        assert done.result.exit_code == 0, done
        self.passes += 1

    def cost(self, passes: int) -> float:
        """Processor seconds of one pass with nothing to do, as it is asked for."""
        before = self._cpu()
        for _ in range(passes):
            self.look()
        return (self._cpu() - before) / passes

    def _cpu(self) -> float:
        """Processor seconds that the daemon and the children that it waited for have taken so far."""
        ticks = Path(f"/proc/{self._daemon.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, ticks)) / _TICKS

    def measure(self) -> Look:
        """What it holds now, at rest: a commit wakes it once more than it was asked, and receipts are signed after.

        Engines and front are no children of its: it rests once it has none.
        """
        process = Path(f"/proc/{self._daemon.pid}")
        eventually(lambda: not self._children(), "it rests")
        lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        below = list(self._below())
        with closing(sqlite3.connect(f"file:{self._state.journal}?mode=ro", uri=True, timeout=30)) as database:
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            rows = {name: database.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in tables}
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return Look(
            swaps=self.swaps,
            passes=self.passes,
            memory=int(lines["RssAnon"].split()[0]) / 1024,
            descriptors=_least(process / "fd"),
            threads=_least(process / "task"),
            engines=len(self._demo.engines()),
            mounts=sum(str(self._demo.folder) in line for line in mounts),
            files=len(below),
            disk=sum(_size(path) for path in below if self._state.models not in path.parents) // 1024,
            database=sum(_size(path) for path in self._state.root.glob("state.db*")) // 1024,
            receipts=rows.pop("receipts"),
            rows=sum(rows.values()),
            status=self._state.status.stat().st_size,
        )

    def _children(self) -> list[str]:
        threads = Path(f"/proc/{self._daemon.pid}/task").glob("*/children")
        return [child for thread in threads for child in thread.read_text().split()]

    def _below(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self._state.root):
            yield Path(folder)
            yield from (Path(folder, name) for name in names)


def _least(folder: Path) -> int:
    """The fewest entries that a folder of the kernel has within a second.

    A request that is being answered, or a pass that a commit woke, holds some for a moment; what leaks stays.
    """
    found = []
    for _ in range(_LOOKS):
        found.append(sum(1 for _ in folder.iterdir()))
        time.sleep(1 / _LOOKS)
    return min(found)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0  # it was on its way out


@contextmanager
def soaking(folder: Path) -> Iterator[Soak]:
    """A network of one model, and a daemon that serves it."""
    demo = QuietDemo(folder, "native")
    demo.make_models()
    with serving(folder / "mirror") as demo.mirror:
        try:
            demo.found()
            command = [str(RECONCILE), "--watch", "--interval", "1h", "--config", str(demo.config)]
            with (folder / "daemon.log").open("ab") as log, subprocess.Popen(command, stderr=log) as daemon:
                try:
                    made = Soak(demo, daemon)
                    eventually(made.listens, "the daemon listens")
                    yield made
                    assert daemon.poll() is None, "the daemon ended"
                finally:
                    daemon.send_signal(signal.SIGTERM)
                    daemon.wait(60)
        finally:
            demo.stop_runtime()


def grown(before: Look, after: Look) -> dict[str, float]:
    """By what was measured: how much more it is."""
    return {item.name: getattr(after, item.name) - getattr(before, item.name) for item in fields(Look)}


BOUNDS = {"memory": 8.0, "descriptors": 2, "threads": 1, "engines": 0, "mounts": 0}
"""How much more of each there may be, however long it goes on: a library's cache, a connection that is kept."""

MOST_STATUS = 64 * 1024
"""Bytes of the published status: the starts of the last ten minutes are told in it."""

MOST_FILES = 1_000
"""Files and folders below the state directory: the mirror's packs and loose refs up to its next cleaning, what is kept
of sixteen instances that are gone, and what runs."""
MOST_DISK = 64 * 1024
"""KiB of all of them without the models."""
DATABASE_PER_SWAP = 24
"""KiB of the journal for each swap until its tables are full; 4 MiB besides, to which its log grows before it is
written back."""
DATABASE_ANYWAY = 4 * 1024
ROWS_PER_SWAP = 40


def check(before: Look, after: Look) -> None:
    """Nothing has grown beyond its bound."""
    more = grown(before, after)
    swaps = more["swaps"]
    over = {name: more[name] for name, bound in BOUNDS.items() if more[name] > bound}
    assert not over, (over, before, after)
    assert after.engines == 1, after
    assert after.files < MOST_FILES, after
    assert after.status < MOST_STATUS, after
    assert after.disk < MOST_DISK, after
    assert more["database"] <= DATABASE_PER_SWAP * swaps + DATABASE_ANYWAY, (before, after)
    assert more["rows"] <= ROWS_PER_SWAP * swaps, (before, after)
    # One for what serves now, and one that says that what served before does no longer.
    assert more["receipts"] <= 2 * swaps, (before, after)
