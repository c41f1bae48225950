"""Maintenance windows. Pure: a window is asked about a moment that is given."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.policy import Window

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HORIZON_DAYS: Final = 8
"""A weekly window opens again within seven days; one more for zones ahead of UTC."""


def is_open(windows: Sequence[Window], now: datetime) -> bool:
    """Whether work may happen now. No windows at all means always."""
    return not windows or any(_opened(window, now) for window in windows)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """When the next window opens, UTC; None when none ever does (an unknown zone)."""
    starts = [start for window in windows for start in _starts(window, now) if start > now]
    return min(starts, default=None)


def _opened(window: Window, now: datetime) -> bool:
    return any(start <= now < start + _length(window) for start in _starts(window, now))


def _length(window: Window) -> timedelta:
    opens, closes = _minutes(window.from_), _minutes(window.to)
    return timedelta(minutes=(closes - opens) % (24 * 60) or 24 * 60)


def _starts(window: Window, now: datetime) -> list[datetime]:
    try:
        zone = ZoneInfo(window.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder of zones, or far too long
        # An unknown zone never opens: doing work at an unexpected hour is worse than waiting for a correction.
        return []
    hour, minute = divmod(_minutes(window.from_), 60)
    local = now.astimezone(zone)
    days = (local.date() + timedelta(days=offset) for offset in range(-1, _HORIZON_DAYS))
    return [
        datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).astimezone(now.tzinfo)
        for day in days
        if _DAYS[day.weekday()] in window.days
    ]


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
