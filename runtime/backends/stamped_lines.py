"""Lines that a container engine stamped with their times: which of them are new."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Moment = tuple[int, int]
"""Seconds since 1970, and nanoseconds."""


class Place:
    """How far a log has been read. Several lines can have one time: those that were seen are counted."""

    def __init__(self) -> None:
        self._last: Moment = (0, 0)
        self._seen = 0

    @property
    def second(self) -> int:
        """Seconds since 1970 from which there may be news; 0 before the first line."""
        return self._last[0]

    def news(self, text: bytes, *, whole: bool = True) -> Iterator[bytes]:
        """The lines that were not told yet, without their stamps.

        Args:
            text: stamped lines from some earlier place on, complete from there.
            whole: whether nothing more comes. Otherwise a last line without an end is still being written: it is left
                for the next look, which would take the whole of it for known.
        """
        at_last = 0
        for line in text.splitlines(keepends=True):
            if not (whole or line.endswith(b"\n")):
                return
            stamp, _, content = line.partition(b" ")
            moment = _moment(stamp)
            if moment is None or moment < self._last:
                continue
            if moment == self._last:
                at_last += 1
                if at_last <= self._seen:
                    continue
                self._seen = at_last
            else:
                self._last, self._seen, at_last = moment, 1, 1
            yield content


def _moment(stamp: bytes) -> Moment | None:
    """RFC 3339 with up to nine digits of a second, in any zone; None for what is no stamp."""
    head, _, rest = stamp.decode(errors="replace").partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        second = datetime.fromisoformat(head + rest[len(digits) :] if rest else head)
    except ValueError:
        return None
    if second.tzinfo is None:
        second = second.replace(tzinfo=UTC)
    return int(second.timestamp()), int(digits.ljust(9, "0")[:9] or 0)
