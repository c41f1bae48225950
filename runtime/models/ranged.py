"""A file that lies with a source, read like one on the disk: in any order, over one connection at a time.

For what is not fetched by pieces because nobody has hashed it: an archive's own bytes. A transfer that breaks is
continued where it broke.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from runtime.models.sources import Interrupted, Unsuitable, Watch, WholeOnly, some

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.models.sources import Source
    from schemas.ports import Clock, Stop

MAX_READ: Final = 2**26
"""Bytes of one read: an archive's list of contents, at most. What asks for more was told a lie."""

_BUFFER: Final = 2**16
_LEAP: Final = 2**20
"""Bytes ahead that are rather read and thrown away than asked for anew: about a round trip's worth."""

_ATTEMPTS: Final = 6
"""Failures in a row, without a byte between them, after which it is given up."""

_FIRST_PAUSE: Final = 0.25
_LONGEST_WAIT: Final = 60.0
"""Seconds between attempts: doubling from the first; and the longest `Retry-After` that is waited for."""


class RangedFile(io.RawIOBase):
    """Read-only and seekable. Used by one thread; another one may look at `watch`, and end what it watches."""

    def __init__(self, source: Source, path: str, *, clock: Clock, stop: Stop) -> None:
        """Name it; nothing is asked yet."""
        super().__init__()
        self._session = source.session()
        self._path = path
        self._clock = clock
        self._stop = stop
        self._whole = False
        self._open = False
        self._failures = 0
        self._position = 0  # of the reader
        self._buffer = b""
        self._ahead = 0  # of the transfer: the buffer ends here
        self.watch = Watch(clock)
        self._measured: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the file, asked for once.

        Raises:
            Refused, Unsuitable, Interrupted: it cannot be had.
        """
        if self._measured is None:
            self._measured = self._retried(lambda: self._session.measure(self._path, self.watch))
        return self._measured

    @property
    def ranges(self) -> bool:
        """Whether any part can be asked for; else going back means reading again from the beginning."""
        return not self._whole

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes before the next one read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere; nothing is asked for yet."""
        base = self.size if whence == io.SEEK_END else self._position if whence == io.SEEK_CUR else 0
        if base + offset < 0:
            raise Unsuitable("is not a sound archive: it leads to before its beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; fewer at the end only.

        Raises:
            Refused, Unsuitable, Interrupted.
        """
        left = max(0, self.size - self._position)
        asked = left if size is None or size < 0 else size
        if asked > MAX_READ:
            raise Unsuitable(f"is not a sound archive: it claims {asked} bytes at once")
        wanted = min(asked, left)
        parts = bytearray()
        while len(parts) < wanted:
            parts += self._some(wanted - len(parts))
        return bytes(parts)

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        """As many bytes as come at once; 0 at the end.

        Raises:
            Refused, Unsuitable, Interrupted.
        """
        if self._position >= self.size or not view:
            return 0
        if self._buffered():
            data = self._some(len(view))
            view[: len(data)] = data
            return len(data)
        count = self._retried(lambda: self._receive(view))
        self._position = self._ahead
        self._buffer = b""
        return count

    def close(self) -> None:
        """Let go of the connection."""
        self._session.drop()
        super().close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _buffered(self) -> int:
        """Bytes of the buffer from the reader's position on."""
        left = self._ahead - self._position
        return left if 0 < left <= len(self._buffer) else 0

    def _some(self, wanted: int) -> bytes:
        left = self._buffered()
        if not left:
            view = memoryview(bytearray(_BUFFER))
            count = self._retried(lambda: self._receive(view))
            self._buffer = bytes(view[:count])
            left = count
        start = len(self._buffer) - left
        data = self._buffer[start : start + wanted]
        self._position += len(data)
        return data

    def _receive(self, view: memoryview) -> int:
        """At least one byte from the reader's position on."""
        if not self._open or not 0 <= self._position - self._ahead <= _LEAP:
            self._session.drop()
            self._ask()
        while self._ahead < self._position:
            waste = memoryview(bytearray(min(_BUFFER, self._position - self._ahead)))
            self._ahead += self._read(waste)
        count = self._read(view)
        self._ahead += count
        return count

    def _ask(self) -> None:
        start = self._position
        try:
            self._session.open(self._path, self.size, start, self.size - start, whole=self._whole, watch=self.watch)
        except WholeOnly:
            self._whole = True
            self._session.open(self._path, self.size, start, self.size - start, whole=True, watch=self.watch)
        self._open = True
        self._ahead = start

    def _read(self, view: memoryview) -> int:
        count = some(self._session, view)
        self._failures = 0
        return count

    def _retried(self, action: Callable[[], int]) -> int:
        while True:
            try:
                return action()
            except Interrupted as error:
                self._session.drop()
                self._open = False
                self._failures += 1
                pause = max(_FIRST_PAUSE * 2 ** (self._failures - 1), error.retry_after or 0.0)
                if self._stop.is_set() or self._failures >= _ATTEMPTS or pause > _LONGEST_WAIT:
                    raise
                self._stop.wait(pause)
                self.watch = Watch(self._clock)
