"""What an operator's hand leaves in the journal. The same for a daemon that is asked and for a command on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.memory import AskCheck, Note, Reject
from reconciler.rollback import REASON
from schemas.control import Resume, Retry, Rollback, Suspend, Verify
from schemas.memory import Rejection

if TYPE_CHECKING:
    from datetime import datetime

    from reconciler.journal import Journal
    from schemas.control import Question

ASKED: Final = "asked for by `reconcile verify`"
"""The cause of a check that a person wants."""


def record(question: Question, journal: Journal, now: datetime) -> int:
    """Record what is wanted, for the next look at the journal.

    Args:
        question: what an operator wants; what leaves nothing behind is fine.
        journal: open for writing; one transaction, which a pass that runs elsewhere sees.
        now: the time.

    Returns:
        How many things changed.
    """
    if isinstance(question, Suspend):
        journal.set_fact("suspended", question.why)
        journal.apply((Note("Normal", "Suspended", f"changes are held: {question.why}"),), now)
        return 1
    if isinstance(question, Resume):
        journal.set_fact("suspended", "")
        journal.apply((Note("Normal", "Resumed", "changes are applied again"),), now)
        return 1
    if isinstance(question, Retry):
        note = Note("Normal", "RetryAsked", "remembered failures were cleared by hand")
        return journal.forget_rejections(question.subjects or None, note, now)
    if isinstance(question, Rollback):
        return _roll_back(question, journal, now)
    if isinstance(question, Verify):
        journal.apply([AskCheck(digest, ASKED) for digest in question.manifests], now)
        return len(question.manifests)
    return 0


def _roll_back(question: Rollback, journal: Journal, now: datetime) -> int:
    message = f"{question.to} is wanted back: {question.why or 'by hand'}"
    rejections = [
        Reject(Rejection(left.subject, left.model, REASON, message, now, left.snapshot)) for left in question.leave
    ]
    journal.apply([*rejections, Note("Warning", "RollbackAsked", message)], now)
    return len(rejections)
