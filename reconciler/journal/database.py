"""The database of the journal: opened, migrated, written in whole transactions; the only importer of sqlite3."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from reconciler.chain import Chain
from reconciler.journal.migrations import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from schemas.errors import DiskFailed, NoSpace, NotInitialised, StateCorrupt, StateLocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemas.errors import ReconcileError

BUSY_SECONDS: Final = 10
"""How long a reader or writer waits for another process's transaction; every one of ours takes milliseconds."""


class Database:
    """The database of one state directory. One writer at a time; readers need no lock."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open the journal.

        Args:
            path: `state.db`.
            readonly: open without the ability to write; nothing is created (I9).

        Raises:
            NotInitialised: read-only, and there is none.
            StateCorrupt: not a journal, or one of a newer agent.
        """
        if readonly and not path.exists():
            raise NotInitialised(f"{path} does not exist", hint="run `reconcile init` first")
        try:
            self._db = self._connect(path, readonly=readonly)
            self._db.execute("PRAGMA foreign_keys = ON")
            if not readonly:
                self._db.execute("PRAGMA journal_mode = WAL")
                # FULL: a commit survives power loss, which is what "journalled" has to mean here.
                self._db.execute("PRAGMA synchronous = FULL")
                self._migrate()
            elif self._format() < SCHEMA_VERSION:
                self._db = self._copy()
                self._migrate()
            self._check_version()
            self.chain = Chain(self._db)
        except sqlite3.DatabaseError as error:
            raise StateCorrupt(f"{path} cannot be used: {error}") from error

    def _connect(self, path: Path, *, readonly: bool) -> sqlite3.Connection:
        """A connection in autocommit: every transaction of ours is explicit. The simulation has another."""
        uri = f"file:{path}?mode={'ro' if readonly else 'rwc'}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def fact(self, name: str) -> str:
        """A named fact; empty when it was never set."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_fact(self, name: str, value: str) -> None:
        """Set a named fact. Unchanged values are not written, so that an idle pass writes nothing."""
        if self.fact(name) != value:
            with self._transaction():
                self._set_fact(name, value)

    def _forget_facts(self, prefix: str) -> int:
        """Drop facts by how their names begin; returns how many there were."""
        return self._db.execute("DELETE FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)).rowcount

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def _facts(self, prefix: str) -> dict[str, str]:
        """Facts of a prefix, by what follows it."""
        rows = self._db.execute("SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
        return {name[len(prefix) :]: value for name, value in rows}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            # A commit that fails leaves the transaction open, in which no other can begin.
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._roll_back()
            raise _refusal(error) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # some failures have ended it already
            self._db.execute("ROLLBACK")

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _copy(self) -> sqlite3.Connection:
        """This journal in memory: an older one is only looked at there, as it will be once a pass has written (I9)."""
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.backup(memory)
        self._db.close()
        return memory

    def _migrate(self) -> None:
        before = self._format()
        if before >= SCHEMA_VERSION:
            return
        with self._transaction():
            if before == 0:
                for statement in SCHEMA:
                    self._db.execute(statement)
            for version in range(max(before, 1) + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[version]:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_version(self) -> None:
        version = self._format()
        if version != SCHEMA_VERSION:
            raise StateCorrupt(
                f"the journal has format {version}, this agent knows {SCHEMA_VERSION}",
                hint="use the agent that wrote it, or a newer one",
            )


def _refusal(error: sqlite3.OperationalError) -> ReconcileError:
    """Why the journal takes nothing now. Nothing is done that it cannot record first."""
    if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return NoSpace(f"the journal cannot be written: {error}", hint="free some space on its disk")
    if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
        return StateLocked(f"another process has kept the journal busy for {BUSY_SECONDS} s")
    return DiskFailed(f"the journal cannot be written: {error}")


def write_time(moment: datetime) -> str:
    """As the journal writes moments."""
    # Microseconds, fixed width: text comparison is time comparison.
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_time(text: str) -> datetime:
    """The moment that `write_time` wrote."""
    return datetime.fromisoformat(text)


def maybe_time(text: str | None) -> datetime | None:
    """The same, None for nothing."""
    return read_time(text) if text else None
