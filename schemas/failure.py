"""A failure on its way from one process to another: its reason and words, and the error that it was again."""

from __future__ import annotations

from schemas.base import Frozen, Text
from schemas.errors import ReconcileError, StateCorrupt
from schemas.reasons import reasons


class Failure(Frozen):
    """Why something failed."""

    reason: Text
    message: Text
    hint: Text = ""


def failure_of(error: Exception) -> Failure:
    """An error in the form in which it travels."""
    if isinstance(error, ReconcileError):
        return Failure(reason=error.reason, message=error.message[:4096], hint=error.hint[:4096])
    return Failure(reason="StateCorrupt", message=str(error)[:4096])


def error_of(failure: Failure) -> ReconcileError:
    """The error that the other process met, of its own class: reason and exit code stay."""
    kind = reasons().get(failure.reason, StateCorrupt)
    return kind(failure.message, hint=failure.hint)
