"""What a source of model bytes is: addresses behind one protocol, one adapter per scheme, none of them trusted.

A source promises nothing: whatever it sends is hashed. Its errors say what may still be expected of it, and
`runtime.models.health` draws the consequences.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from runtime.models.layout import open_regular

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from runtime.models.reach import Reach
    from schemas.node import SourcePolicy
    from schemas.ports import Clock


class SourceError(Exception):
    """A source did not deliver. The message is for people and completes "<source>: "."""


class Refused(SourceError):
    """The node's policy does not allow this source, or what it leads to: not asked again."""


class Unsuitable(SourceError):
    """The source does not have this file, or serves it in a way that cannot be used: not asked for this file again."""


class WrongContent(Unsuitable):
    """The source has something else under this file's name."""


class WholeOnly(SourceError):
    """The source sends files from their first byte only: it may be asked, by one reader at a time, in order."""


class Interrupted(SourceError):
    """A failure that may pass: refused connection, reset, silence, overload."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which the source asked to be tried again."""


class Watch:
    """How a running transfer is seen, and ended, by another thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None
        self.cause = ""
        """Why the transfer was ended from outside; empty while it was not."""
        self.started = clock.monotonic()
        self.received = 0
        """Bytes of content so far."""
        self._window = (self.started, 0)

    def receive(self, count: int) -> None:
        """Content arrived. Called by the transfer's own thread only."""
        self.received += count

    def attach(self, connection: socket.socket) -> None:
        """The transfer now waits on this connection: ending it ends the wait.

        Raises:
            Interrupted: the transfer was ended already.
        """
        # The plain socket's shutdown: an SSL socket's own one would take its state away under the reading thread.
        import socket  # noqa: PLC0415 - only network sources need it

        def end() -> None:
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                return  # closed already: then nobody waits

        with self._lock:
            self._end = end
            if self.cause:
                end()
                raise Interrupted(self.cause)

    def abort(self, cause: str) -> None:
        """End the transfer, from another thread."""
        with self._lock:
            self.cause = self.cause or cause
            if self._end is not None:
                self._end()

    def detach(self) -> None:
        """The transfer is over: its connection must not be ended any more, others may use it next."""
        with self._lock:
            self._end = None

    def received_over(self, seconds: float) -> int | None:
        """Bytes received in the last whole stretch of `seconds`, None until such a stretch is over.

        Each stretch is reported once; a next one then begins.
        """
        now = self._clock.monotonic()
        since, before = self._window
        if now - since < seconds:
            return None
        self._window = (now, self.received)
        return self.received - before


class Session(Protocol):
    """One reader's use of a source: keeps its connection. Used by one thread at a time."""

    def open(self, path: str, size: int, start: int, length: int, *, whole: bool, watch: Watch) -> None:
        """Ask for bytes of a file.

        Args:
            path: the file, relative to the source's base address.
            size: bytes of the whole file, as the manifest says.
            start: first byte wanted.
            length: bytes wanted, at least 1.
            whole: whether reading, and throwing away, everything before `start` is acceptable.
            watch: told of what arrives; may end the transfer.

        Raises:
            Refused, Unsuitable, WrongContent, WholeOnly, Interrupted.
        """
        ...

    def readinto(self, view: memoryview) -> int:
        """The next bytes, at most as many as asked for; 0 when no more come.

        Raises:
            Interrupted.
        """
        ...

    def measure(self, path: str, watch: Watch) -> int:
        """Bytes of a file, where no manifest says it: of an archive. A "" path is the base address itself.

        Raises:
            Refused, Unsuitable, Interrupted.
        """
        ...

    def finish(self) -> None:
        """All bytes that were asked for have been read."""
        ...

    def drop(self) -> None:
        """Give up the transfer and its connection."""
        ...


class Source(Protocol):
    """A base address below which the files of a model lie. Shared by threads; each has a session of its own."""

    shown: str
    """The address for people, without secrets."""

    def session(self) -> Session:
        """A reader."""
        ...


def some(session: Session, view: memoryview) -> int:
    """Read at least one byte.

    Raises:
        Interrupted: no more come.
    """
    count = session.readinto(view)
    if not count:
        raise Interrupted("the answer ended early")
    return count


# --- file:// ------------------------------------------------------------------------------------------------------


class FolderSource:
    """A folder of this machine, or mounted on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = f"file://{folder}"

    def session(self) -> FolderSession:
        """A reader."""
        return FolderSession(self.folder)


class FolderSession:
    """Reads from a folder; follows no link below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: tuple[str, int] | None = None
        self._position = 0
        self._end = 0
        self._watch: Watch | None = None

    def open(self, path: str, size: int, start: int, length: int, *, whole: bool, watch: Watch) -> None:  # noqa: ARG002
        """See `Session.open`."""
        if self._open is None or self._open[0] != path:
            self.drop()
            try:
                self._open = (path, open_regular(self._folder, path))
            except OSError as error:
                raise Unsuitable(f"{path}: {error.strerror or error}") from error
        if os.fstat(self._open[1]).st_size != size:
            raise WrongContent(f"{path} has {os.fstat(self._open[1]).st_size} bytes where the manifest has {size}")
        self._position = start
        self._end = start + length
        self._watch = watch

    def readinto(self, view: memoryview) -> int:
        """See `Session.readinto`."""
        if self._open is None or self._watch is None:
            return 0
        if self._watch.cause:
            raise Interrupted(self._watch.cause)
        try:
            count = os.preadv(self._open[1], [view[: self._end - self._position]], self._position)
        except OSError as error:
            raise Interrupted(f"{self._open[0]}: {error.strerror or error}") from error
        self._position += count
        self._watch.receive(count)
        return count

    def measure(self, path: str, watch: Watch) -> int:  # noqa: ARG002 - a disk is not waited for
        """See `Session.measure`."""
        try:
            descriptor = open_regular(self._folder, path)
        except OSError as error:
            raise Unsuitable(f"{path}: {error.strerror or error}") from error
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """See `Session.finish`."""

    def drop(self) -> None:
        """See `Session.drop`."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


# --- choosing an adapter ------------------------------------------------------------------------------------------


def open_source(
    address: str, policy: SourcePolicy, *, stall: float, clock: Clock, reach: Reach | None = None
) -> Source:
    """The adapter for an address.

    Args:
        address: base address of a source.
        policy: what the node allows.
        stall: seconds of silence that are borne.
        clock: the time, for `Retry-After` given as a date.
        reach: how the outside is reached, beyond the policy.

    Raises:
        Refused: the policy does not allow it, what it needs is not here, or nothing here speaks its scheme.
    """
    scheme = address.partition("://")[0].lower()
    if scheme == "file":
        return _folder_source(address, policy)
    from runtime.models.remote import open_remote  # noqa: PLC0415 - http and TLS cost 30 ms to import

    return open_remote(address, policy, stall=stall, clock=clock, reach=reach)


def _folder_source(address: str, policy: SourcePolicy) -> FolderSource:
    if not policy.allow_file:
        raise Refused("file:// is not allowed by this node's policy (policy.sources.allowFile)")
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or "\0" in unquote(parts.path):
        raise Refused("a file:// address has the form file:///folder")
    return FolderSource(Path(unquote(parts.path)))


def shown(address: str) -> str:
    """An address for people, without user, password and query, whether or not it can be used."""
    scheme, _, rest = address.partition("://")
    authority, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    if scheme == "hf":  # where @ begins a revision
        return f"{scheme}://{authority}{slash}{path}"
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
