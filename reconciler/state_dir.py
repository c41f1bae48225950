"""The folder in which a node keeps everything, and the lock that makes one reconciler its only writer."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.errors import NotInitialised, StateLocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class StateDir:
    """Paths below a state directory."""

    root: Path

    @property
    def journal(self) -> Path:
        """The SQLite database."""
        return self.root / "state.db"

    @property
    def mark(self) -> Path:
        """Second copy of the high-water mark."""
        return self.root / "mark"

    @property
    def timestamp(self) -> Path:
        """Second copy of the newest accepted timestamp."""
        return self.root / "timestamp"

    @property
    def status(self) -> Path:
        """Published status, readable without rights on the journal."""
        return self.root / "status.json"

    @property
    def identity(self) -> Path:
        """The node's key."""
        return self.root / "identity.json"

    @property
    def mirror(self) -> Path:
        """Bare git mirror of the network's repository."""
        return self.root / "repo.git"

    @property
    def imported(self) -> Path:
        """The bare repository that imported bundles fill: one more of the node's repositories, where it is there."""
        return self.root / "imported.git"

    @property
    def notifications(self) -> Path:
        """What was told of events, and to whom."""
        return self.root / "notifications.json"

    @property
    def imports(self) -> Path:
        """What is asked for, and half-done, of bundles."""
        return self.root / "imports"

    @property
    def images(self) -> Path:
        """Manifests of images that came by file."""
        return self.root / "images"

    @property
    def models(self) -> Path:
        """The model store."""
        return self.root / "models"

    @property
    def runtimes(self) -> Path:
        """Native environments of their own."""
        return self.root / "runtimes"

    @property
    def run(self) -> Path:
        """Sockets and instances."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """Captured output, one folder per instance."""
        return self.root / "logs"

    @property
    def lock_file(self) -> Path:
        """Locked by the one reconciler that may write."""
        return self.root / "lock"

    def holder(self) -> str | None:
        """The process that holds the state directory, as it wrote its number; None while nobody does. Changes nothing.

        Raises:
            OSError: it cannot be asked.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        else:
            return None
        finally:
            os.close(descriptor)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the state directory; the kernel lets go when the process dies, however it dies.

        Raises:
            NotInitialised: there is no node here.
            StateLocked: another reconciler holds it.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError as error:
            raise NotInitialised(f"{self.root} is not a node's folder", hint="run `reconcile init` first") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(descriptor, 32).decode(errors="replace").strip()
                raise StateLocked(
                    f"another reconciler{f' (process {holder})' if holder else ''} works on {self.root}",
                    hint="wait until it is done",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)
