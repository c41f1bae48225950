"""Has the node's statements signed, when nothing waits for it: after a pass, or while the daemon rests.

A statement counts on this node from the moment in which it is recorded: what a signature adds is for others. So a key
that cannot be used stops nothing (I6). It is said, and tried again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from desired_state.receipt_signing import BATCH, sign_statements
from reconciler.identity import unlock_identity
from reconciler.memory import Note
from schemas.errors import ConfigError, KeyLocked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reconciler.journal import Journal
    from reconciler.state_dir import StateDir
    from schemas.node import IdentityConfig
    from schemas.ports import Ports, Stop

LOCKED: Final = "receipts.locked"
"""The fact that says why the identity could not be used."""

FIRST_WAIT: Final = 60.0
LAST_WAIT: Final = 3600.0
"""Seconds between attempts with a key that could not be used: deriving one costs a second and 300 MiB."""


class ReceiptSigner:
    """Signs what waits for it."""

    def __init__(
        self, state: StateDir, identity: IdentityConfig, *, node_id: str, journal: Journal, ports: Ports
    ) -> None:
        self._state = state
        self._identity = identity
        self._node_id = node_id
        self._journal = journal
        self._ports = ports
        self._failures = 0
        self._not_before = 0.0
        self._tried: tuple[object, ...] = ()

    def run(self, stop: Stop) -> bool:
        """Sign everything that waits, in a child; whether anything was signed. Never raises for a key.

        Args:
            stop: ends it early; what is left is signed another time.
        """
        signed = False
        while not stop.is_set():
            waiting = self._journal.chain.unsigned(limit=BATCH)
            if not waiting or not self._may_try():
                break
            try:
                signatures = self.sign([content for _, content in waiting], stop)
            except InterruptedError:
                break
            except (ConfigError, KeyLocked) as error:
                self._failed(f"{error.reason}: {error.message}", len(waiting))
                break
            self._succeeded(dict(zip((number for number, _ in waiting), signatures, strict=True)))
            signed = True
        return signed

    def sign(self, statements: Sequence[str], stop: Stop) -> tuple[str, ...]:
        """Signatures of at most `BATCH` statements.

        Raises:
            KeyLocked: the identity is locked.
            ConfigError: it cannot be used, or the child failed.
            InterruptedError: stopping was requested.
        """
        key = unlock_identity(self._state, self._identity, ports=self._ports)
        return sign_statements(
            statements, node=self._node_id, private_key=key, processes=self._ports.processes, stop=stop
        )

    def _may_try(self) -> bool:
        """Not before its time, unless somebody has touched the key or its password."""
        return self._seen() != self._tried or self._ports.clock.monotonic() >= self._not_before

    def _seen(self) -> tuple[object, ...]:
        password = self._identity.password_file
        return (_stamp(self._state.identity), _stamp(self._state.identity.parent / password) if password else None)

    def _failed(self, why: str, waiting: int) -> None:
        self._failures += 1
        self._tried = self._seen()
        self._not_before = self._ports.clock.monotonic() + min(FIRST_WAIT * 2 ** (self._failures - 1), LAST_WAIT)
        if self._journal.fact(LOCKED) != why:
            self._journal.set_fact(LOCKED, why)
            message = f"{waiting} receipts wait for their signature: {why}"
            self._journal.apply((Note("Warning", "ReceiptsUnsigned", message),), self._ports.clock.now())

    def _succeeded(self, signatures: dict[int, str]) -> None:
        self._failures, self._not_before, self._tried = 0, 0.0, ()
        note = None
        if self._journal.fact(LOCKED):
            note = Note("Normal", "ReceiptsSigned", "the identity can be used again: receipts are signed")
        self._journal.put_signatures(signatures, note, self._ports.clock.now())
        self._journal.set_fact(LOCKED, "")


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
