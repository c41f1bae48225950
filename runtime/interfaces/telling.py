"""Told about long work."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about long work; called from any thread, cheap, never raises."""

    def __call__(self, subject: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `subject` (a file of a model, an image) are secured."""
        ...
