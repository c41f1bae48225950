"""Several repositories, one answer: the highest valid snapshot wins. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from desired_state.git_safety import scrub
from schemas.digests import short
from schemas.errors import ReconcileError, SourceUnreachable
from schemas.refusals import Equivocation, NotTrusted, RollbackAttack, SignaturesPending, StaleSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desired_state.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class RepositoryResult:
    """What came of asking one repository."""

    url: str
    """As configured; messages show it without credentials."""
    commit: str = ""
    """The commit that was looked at; empty when it did not get that far."""
    snapshot: Snapshot | None = None
    """The verified snapshot; None when there is an error."""
    error: ReconcileError | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer, and what is worth knowing about the others."""

    snapshot: Snapshot
    url: str
    commit: str
    others: tuple[tuple[str, ReconcileError], ...] = ()
    """By address, in the order asked: why each other repository did not count. `StaleSource` for a lagging one."""


def choose(results: Sequence[RepositoryResult]) -> Choice:
    """Choose among the repositories of a network.

    Args:
        results: one for each repository, in the order of the configuration: among equals the first wins.

    Returns:
        The highest valid snapshot.

    Raises:
        Equivocation: two repositories offer different snapshots, both validly signed, for one position.
        NotTrusted: no repository offers a valid one, and this one's reason is the most serious.
        SourceUnreachable: no repository answered.
    """
    offered = [(result, result.snapshot) for result in results if result.snapshot is not None]
    if not offered:
        raise _most_serious([result.error for result in results if result.error is not None])
    winner, highest = max(offered, key=lambda offer: offer[1].position)  # the first of the highest
    for result, snapshot in offered:
        if snapshot.position == highest.position and snapshot.digest != highest.digest:
            both = f"{scrub(winner.url)} and {scrub(result.url)}"
            raise Equivocation(
                f"{both} offer different snapshots of sequence {highest.position[1]}, both validly signed: "
                f"{short(highest.digest)} and {short(snapshot.digest)}"
            )
    others = [(result.url, _complaint(result, highest)) for result in results if result is not winner]
    return Choice(highest, winner.url, winner.commit, tuple((url, error) for url, error in others if error is not None))


def beside(results: Sequence[RepositoryResult]) -> tuple[ReconcileError, ...]:
    """What is wrong with repositories that have no valid snapshot, beside one that shows what is in force already."""
    return tuple(lagging(result.url, result.error) for result in results if result.error is not None)


def _complaint(result: RepositoryResult, highest: Snapshot) -> ReconcileError | None:
    """What is wrong with a repository that did not win, None if nothing is."""
    if result.snapshot is not None:
        if result.snapshot.position == highest.position:
            return None
        return _stale(result.url, result.snapshot.position[1], highest)
    return lagging(result.url, result.error) if result.error is not None else None


def lagging(url: str, error: ReconcileError) -> ReconcileError:
    """An error of one repository, as it looks beside another one that is up to date.

    Alone a rollback would be an attack; beside a repository that is up to date it is a mirror that is not.
    """
    if not isinstance(error, RollbackAttack):
        return error
    stale = StaleSource(f"{scrub(url)} lags behind: {error.message}")
    stale.__cause__ = error
    return stale


def _stale(url: str, sequence: int, highest: Snapshot) -> StaleSource:
    return StaleSource(f"{scrub(url)} lags behind: it offers sequence {sequence}, the newest is {highest.position[1]}")


def _most_serious(errors: Sequence[ReconcileError]) -> ReconcileError:
    """The error that people should hear: a refusal over silence, an alarm over a wait; the first of its kind."""
    if not errors:
        return SourceUnreachable("no repository was asked")

    def gravity(error: ReconcileError) -> int:
        if isinstance(error, Equivocation):
            return 3
        if isinstance(error, SignaturesPending):
            return 1
        return 2 if isinstance(error, NotTrusted) else 0

    return max(errors, key=gravity)
