"""What a repository came to when it was last examined, so that one that has not moved is not examined again.

A poll without news is one question to each repository, also where its answer is refused. A verdict holds for one commit
and for what it was judged by; time alone undoes it only where a document begins later, or where the clock went back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from schemas.base import Digest, Frozen, Text, Time
from schemas.digests import digest_text
from schemas.reasons import reasons
from schemas.refusals import NotTrusted, NotYetValid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from desired_state.freshness import TimestampMark
    from desired_state.trust import TrustState
    from desired_state.watermark import Mark
    from schemas.errors import ReconcileError
    from schemas.node import NodeConfig

_LONGEST: Final = 4096
"""Characters kept of a message or a hint."""


class Refusal(Frozen):
    """An error, as it is kept."""

    reason: Text
    message: Text
    hint: Text = ""

    @classmethod
    def of(cls, error: ReconcileError) -> Refusal:
        """What is kept of an error."""
        return cls(reason=error.reason, message=error.message[:_LONGEST], hint=error.hint[:_LONGEST])

    def error(self) -> ReconcileError:
        """The error again, of its own class."""
        found = reasons().get(self.reason, NotTrusted)
        return found(self.message, hint=self.hint)


class Verdict(Frozen):
    """What one repository came to at one commit."""

    commit: Text
    basis: Digest
    """What it was judged by (see `basis`)."""
    at: Time
    """When it was judged."""
    until: Time | None = None
    """When time alone may change it; None when it does not."""
    refusal: Refusal | None = None
    """Why its snapshot was refused; None when it has the one that is in force."""
    timestamp: Refusal | None = None
    """What is wrong with its timestamp; None when nothing is, or when none is asked for."""

    def holds(self, commit: str, basis_now: str, now: datetime) -> bool:
        """Whether the same would be found now, so that nobody need look."""
        return (
            (self.commit, self.basis) == (commit, basis_now)
            # Judged by a clock that was ahead: what had expired then may not have.
            and self.at <= now
            and (self.until is None or now < self.until)
        )


_ALL: Final = TypeAdapter(dict[str, Verdict])


def basis(
    config: NodeConfig, *, agent: str, trust: TrustState | None, mark: Mark | None, timestamp: TimestampMark | None
) -> str:
    """Digest of everything but the commit and the time that a verdict follows from.

    Args:
        config: the node's configuration.
        agent: version of the agent.
        trust: trust that the documents are held against.
        mark: the high-water mark.
        timestamp: the newest timestamp that counts. Only whether there is one matters: a later one of another
            repository makes this repository's no worse.
    """
    parts = (
        "verdict/1",
        config.network,
        config.branch,
        config.trust.digest,
        config.max_repository,
        agent,
        trust.digest if trust is not None else "",
        mark.to_json() if mark is not None else "",
        timestamp is not None,
    )
    return digest_text(json.dumps(parts))


def begins(*errors: ReconcileError | None) -> datetime | None:
    """When the first of the documents that begin later begins; None where none does."""
    times = [error.begins for error in errors if isinstance(error, NotYetValid) and error.begins is not None]
    return min(times, default=None)


def read(text: str) -> dict[str, Verdict]:
    """Verdicts by repository. What cannot be read is nothing: then everything is examined again."""
    try:
        return _ALL.validate_json(text or "{}", strict=False)
    except ValidationError:
        return {}


def write(verdicts: Mapping[str, Verdict]) -> str:
    """The text that `read` reads."""
    kept = dict(sorted(verdicts.items()))
    return _ALL.dump_json(kept, by_alias=True, exclude_none=True).decode()
