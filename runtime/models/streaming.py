"""A model file that is read over the network once, in order, by whoever describes it.

The same addresses, redirects and refusals as for downloads, because it is the same adapter that asks.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from runtime.models.sources import Interrupted, Refused, SourceError, Watch, open_source, shown
from schemas.errors import DownloadFailed, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.models.sources import Session
    from schemas.node import SourcePolicy
    from schemas.ports import Ports

STALL_SECONDS: Final = 30
ATTEMPTS: Final = 6
"""Failures in a row after which a source is given up; one after some gain begins the count anew."""
PAUSE_SECONDS: Final = 0.5
"""Before the second attempt; doubles from one to the next."""
HEAD: Final = 2**27
"""Bytes at the beginning of a file in which its header lies: safetensors allows 100 MB, large vocabularies take 20."""


class RemoteFile:
    """The bytes of a remote file in order; a transfer that breaks goes on where it broke. Used by one thread."""

    def __init__(self, session: Session, name: str, address: str, ports: Ports, keep: int, keep_bytes: int) -> None:
        self._session = session
        self._name = name
        self._address = address
        self._ports = ports
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._watch = Watch(ports.clock)
        self._open = False
        self._done = 0
        self.size = 0

    def begin(self, limit: int) -> None:
        """Find out how large the file is.

        Raises:
            LimitExceeded: larger than any manifest describes.
            DownloadFailed: see `streamed`.
        """
        self.size = self._patiently(lambda: self._session.measure(self._name, self._watch))
        if self.size > limit:
            raise LimitExceeded(f"{self._address} has {self.size} bytes, and at most {limit} make a model's file")
        os.truncate(self._keep, self.size)

    def readinto(self, view: memoryview, /) -> int:
        """The next bytes; 0 at the end."""
        if self._done == self.size:
            return 0
        if self._ports.stop.is_set():
            raise DownloadFailed(f"reading {self._address} was stopped")
        count = self._patiently(lambda: self._some(view))
        part = view[: max(0, min(count, self._keep_bytes - self._done))]
        written = 0
        while written < len(part):
            written += os.pwrite(self._keep, part[written:], self._done + written)
        self._done += count
        return count

    def _some(self, view: memoryview) -> int:
        if not self._open:
            rest = self.size - self._done
            self._session.open(self._name, self.size, self._done, rest, whole=True, watch=self._watch)
            self._open = True
        count = self._session.readinto(view)
        if not count:
            raise Interrupted("the answer ended early")
        return count

    def _patiently(self, step: Callable[[], int]) -> int:
        pause = PAUSE_SECONDS
        for attempt in range(ATTEMPTS):
            try:
                return step()
            except Interrupted as error:
                self._session.drop()
                self._open = False
                last = attempt == ATTEMPTS - 1
                wait = pause if error.retry_after is None else min(error.retry_after, 60)
                if last or self._ports.stop.wait(wait):
                    raise DownloadFailed(f"{self._address}: {error}") from error
                pause *= 2
            except Refused as error:
                hint = "--allow-http and --allow-private allow what is refused by default"
                raise DownloadFailed(f"{self._address}: {error}", hint=hint) from error
            except SourceError as error:
                raise DownloadFailed(f"{self._address}: {error}") from error
        raise DownloadFailed(f"{self._address} gives nothing")  # pragma: no cover - the loop always ends before


@contextmanager
def streamed(
    base: str, name: str, policy: SourcePolicy, ports: Ports, *, keep: Path, whole: bool
) -> Iterator[RemoteFile]:
    """A remote file, open for one reading.

    Args:
        base: address below which it lies.
        name: its name there.
        policy: what may be asked.
        ports: clock and stop.
        keep: a file that is made and gets what is kept: of the file's size, with holes for what is not.
        whole: whether all of it is kept, or only where headers are.

    Raises:
        DownloadFailed: refused by the policy, not there, or not to be had now.
    """
    address = f"{shown(base)}/{name}"
    try:
        session = open_source(base, policy, stall=STALL_SECONDS, clock=ports.clock).session()
    except Refused as error:
        hint = "--allow-http and --allow-private allow what is refused by default"
        raise DownloadFailed(f"{address}: {error}", hint=hint) from error
    descriptor = os.open(keep, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        yield RemoteFile(session, name, address, ports, descriptor, 2**62 if whole else HEAD)
        if whole:
            os.fsync(descriptor)
    finally:
        session.drop()
        os.close(descriptor)
