"""A disk that forgets what was not synced, and a journal on it that comes back as it was last committed."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from reconciler.journal import Journal
from runtime.host import DurableFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.simulation.faults import Faults

_SYNCED: Final = 2
"""`PRAGMA synchronous`: FULL. Less, and a commit is not on the disk when it returns."""


@contextmanager
def recorded_syncs() -> Iterator[set[int]]:
    """Inodes that are synced meanwhile. Nothing is really synced: a simulated power loss takes what is not named."""
    synced: set[int] = set()
    real = os.fsync

    def fsync(descriptor: Any) -> None:
        synced.add(os.fstat(descriptor).st_ino)

    os.fsync = fsync  # type: ignore[assignment]
    try:
        yield synced
    finally:
        os.fsync = real


class SimulatedFiles:
    """`Files` by the agent's own code, on a disk that may be full, lose power, or lose what was not synced."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._inner = DurableFiles()
        self._volatile: dict[Path, bytes | None] = {}
        """Files that a power loss takes back to what they were."""

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """See `Files`."""
        self._enter("write", path, lambda: path.with_name(f".{path.name}.new").write_bytes(data[: len(data) // 2]))
        before = path.read_bytes() if path.exists() else None
        with recorded_syncs() as synced:
            self._inner.write(path, data, mode=mode)
        if {path.stat().st_ino, path.parent.stat().st_ino} <= synced:
            self._volatile.pop(path, None)
        else:
            self._volatile.setdefault(path, before)
        self._faults.point(f"files.write {path.name} done")

    def make_folder(self, path: Path, *, mode: int = 0o755) -> None:
        """See `Files`."""
        self._enter("make_folder", path)
        with recorded_syncs():
            self._inner.make_folder(path, mode=mode)

    def sync_file(self, path: Path) -> None:
        """See `Files`."""
        self._enter("sync_file", path)

    def sync_folder(self, path: Path) -> None:
        """See `Files`."""
        self._enter("sync_folder", path)

    def rename(self, source: Path, target: Path) -> None:
        """See `Files`."""
        self._enter("rename", target)
        with recorded_syncs():
            self._inner.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """See `Files`."""
        self._enter("link", target)
        with recorded_syncs():
            self._inner.link(source, target)

    def remove(self, path: Path) -> None:
        """See `Files`."""
        self._faults.point(f"files.remove {path.name}")
        with recorded_syncs():
            self._inner.remove(path)
        self._volatile.pop(path, None)
        self._faults.point(f"files.remove {path.name} done")

    def _enter(self, what: str, path: Path, half: Callable[[], object] | None = None) -> None:
        name = f"files.{what} {path.name}"
        self._faults.point(name, half)
        if self._faults.strikes(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def lose_power(self) -> None:
        """Take back what was never synced."""
        for path, content in self._volatile.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        self._volatile.clear()


class _Connection(sqlite3.Connection):
    """A connection that may be full, or die, at each transaction."""

    faults: Faults

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        faults = getattr(self, "faults", None)
        if faults is None or sql not in ("BEGIN IMMEDIATE", "COMMIT"):
            return super().execute(sql, parameters)
        faults.point(f"journal {sql.partition(' ')[0].lower()}")
        if faults.strikes("journal"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        cursor = super().execute(sql, parameters)
        if sql == "COMMIT":
            faults.point("journal committed")
        return cursor


class SimulatedJournal(Journal):
    """The agent's own journal, in memory, and what a crash leaves of it."""

    def __init__(self, path: Path, image: bytes, faults: Faults) -> None:
        """Open it.

        Args:
            path: where it would lie.
            image: what a crash left of it; empty for nothing.
            faults: what happens to it.
        """
        self._image = image
        self._older = image
        super().__init__(path)
        self._db.faults = faults  # type: ignore[attr-defined] # a connection of the class below

    def _connect(self, path: Path, *, readonly: bool) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_Connection)
        if self._image:
            db.deserialize(self._image)
        return db

    def begin_step(self) -> None:
        """From here on a commit that is not synced may be lost."""
        if self._synced() < _SYNCED:
            self._older = self._db.serialize()

    def left(self, *, power: bool) -> bytes:
        """What a crash leaves: all that was committed, as far as it was synced where power is lost."""
        if self._db.in_transaction:
            sqlite3.Connection.execute(self._db, "ROLLBACK")
        return self._older if power and self._synced() < _SYNCED else self._db.serialize()

    def _synced(self) -> int:
        return int(sqlite3.Connection.execute(self._db, "PRAGMA synchronous").fetchone()[0])
