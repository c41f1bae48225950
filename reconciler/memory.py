"""What an outcome leaves behind: changes of the journal's memory, as values. Pure.

The journal applies them in the same transaction in which it records the outcome, so that what happened and what is
remembered of it cannot come apart (I7).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from schemas.errors import EngineUnreachable, NoSpace, ReconcileError, ValidationFailed
from schemas.memory import Hold, LastKnownGood, ModelRecord, Rejection
from schemas.plan import (
    ArchiveModel,
    CreateInstance,
    DownloadModel,
    InstallEnvironment,
    PullImage,
    RestoreModel,
    StartInstance,
    ValidateModel,
    VerifyEnvironment,
    VerifyModel,
)
from schemas.receipt import ReceiptSubject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from schemas.memory import Memory, ModelState
    from schemas.observation import Hardware
    from schemas.plan import Action
    from schemas.target import ServingTarget

BACKOFF_FIRST: Final = timedelta(seconds=15)
BACKOFF_LAST: Final = timedelta(hours=1)
"""First and longest wait between attempts; it doubles in between. An hour bounds how long a repaired mirror waits."""

CLOCK_SLACK: Final = timedelta(minutes=10)
"""By which a clock may be set right without anything being proven again because of it."""

RESTART_WINDOW: Final = timedelta(minutes=10)
RESTART_BUDGET: Final = 5
"""Starts of one specification within the window before it counts as crash-looping (Nomad's default is 2 in 30 min;
systemd's 5 in 10 s). Five in ten minutes lets a flaky start recover and stops a loop within the first minutes."""

# --- changes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PutModel:
    """Write a model's record; the journal notes the transition with its cause."""

    record: ModelRecord


@dataclass(frozen=True, slots=True)
class ForgetModel:
    """The model is no longer here."""

    manifest: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Remember a bad subject (I5)."""

    rejection: Rejection


@dataclass(frozen=True, slots=True)
class PutHold:
    """Back off."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class DropHold:
    """The subject worked, or changed."""

    subject: str


@dataclass(frozen=True, slots=True)
class AskCheck:
    """A person wants a model to be hashed."""

    manifest: str
    cause: str


@dataclass(frozen=True, slots=True)
class DropCheck:
    """There is a verdict on a model."""

    manifest: str


@dataclass(frozen=True, slots=True)
class AskRetest:
    """A model's answers are in doubt for a reason that its receipts do not know: a GPU fault."""

    manifest: str
    cause: str


@dataclass(frozen=True, slots=True)
class IssueReceipt:
    """A subject was validated. A `fail` ends what stood for it."""

    subject: ReceiptSubject
    intent: str
    """The instance that answered."""
    evidence: str | None
    """Digest of the evidence; None where nothing was answered."""
    message: str
    """For people: what was checked, and what came of it."""
    strength: str = ""
    """What kind of test it was."""
    outcome: Literal["pass", "fail", "inconclusive"] = "pass"


@dataclass(frozen=True, slots=True)
class VoidReceipts:
    """What was proven of a manifest counts no longer."""

    manifest: str
    cause: str
    subject: str = ""
    """Only what was proven of this subject; empty for every one of the manifest."""


@dataclass(frozen=True, slots=True)
class CommitGood:
    """The target is what this node goes back to from now on."""

    good: LastKnownGood


@dataclass(frozen=True, slots=True)
class CountHeal:
    """What was changed from outside is about to be given back."""

    key: str
    """The same for the same thing whenever it is changed."""


@dataclass(frozen=True, slots=True)
class Note:
    """An event for people and programs."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    subject: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


Change = (
    PutModel
    | ForgetModel
    | Reject
    | PutHold
    | DropHold
    | AskCheck
    | DropCheck
    | AskRetest
    | IssueReceipt
    | VoidReceipts
    | CommitGood
    | CountHeal
    | Note
)


# --- what failures leave ------------------------------------------------------------------------------------------


def backoff(failures: int, now: datetime) -> datetime:
    """When the next attempt may be made after a number of consecutive failures (1 or more)."""
    doublings: int = 2 ** min(max(failures, 1) - 1, 20)
    return now + min(BACKOFF_FIRST * doublings, BACKOFF_LAST)


def as_of(memory: Memory, now: datetime) -> Memory:
    """What is remembered, as far as the present clock allows it.

    A clock that is set back would stretch every wait by as much as it was ahead. No wait is longer than `BACKOFF_LAST`:
    what claims to be was set by another clock, and is over. Nothing was started in the future. What was proven there
    would not be proven again before it comes, which may take years: it is proven now.
    """
    holds = {subject: hold for subject, hold in memory.holds.items() if hold.until <= now + BACKOFF_LAST}
    starts = {spec: tuple(at for at in times if at <= now) for spec, times in memory.recent_starts.items()}
    heals = {key: tuple(at for at in times if at <= now) for key, times in memory.heals.items()}
    newest = {receipt.manifest: receipt for receipt in sorted(memory.receipts, key=lambda item: item.number)}
    ahead = {
        manifest: f"its receipt is of {receipt.issued_at:%Y-%m-%d %H:%M}Z, which is yet to come: the clock was set back"
        for manifest, receipt in newest.items()
        if receipt.issued_at > now + CLOCK_SLACK
    }
    return replace(memory, holds=holds, recent_starts=starts, heals=heals, retests={**ahead, **memory.retests})


def after_failure(
    action: Action,
    error: ReconcileError,
    *,
    memory: Memory,
    hardware: Hardware,
    snapshot: str,
    now: datetime,
    instance: str = "",
) -> tuple[Change, ...]:
    """What is remembered when an action failed.

    Args:
        action: what was tried.
        error: why it failed; its class carries the retry policy.
        memory: what was remembered when the plan was made.
        hardware: the machine, part of a subject.
        snapshot: digest of the snapshot that the plan was made for.
        now: the time of the failure.
        instance: intent of the instance that this plan started; empty for none.
    """
    warning = Note("Warning", error.reason, error.message, subject=action.id)
    if isinstance(action, DownloadModel | RestoreModel | VerifyModel | ArchiveModel):
        return (warning, *_model_failed(action, error, memory, now))
    if isinstance(action, PullImage):
        return (warning, _held(action.image, error, memory, now))
    if isinstance(action, InstallEnvironment):
        return (warning, _held(action.environment, error, memory, now))
    if isinstance(action, VerifyEnvironment):
        # It is gone from the list: what it stood for is installed again, and that has a backoff of its own.
        return (warning,)
    if isinstance(action, CreateInstance | StartInstance | ValidateModel):
        return (warning, *_runtime_failed(action, error, memory, hardware, snapshot, instance, now))
    return (warning, _held(action.id, error, memory, now))


def model_state(
    memory: Memory,
    *,
    manifest: str,
    key: str,
    state: ModelState,
    cause: str,
    size: int,
    now: datetime,
    new_bytes: bool = False,
    proven: bool = False,
) -> PutModel:
    """A record in a state that was reached without failing: failures start from zero again.

    Args:
        memory: what was remembered when the plan was made.
        manifest: the model's identity.
        key: what people call it.
        state: the new state.
        cause: why, for people.
        size: bytes; 0 keeps what is known.
        now: the time.
        new_bytes: its files were written anew: what runs may have others.
        proven: what runs was started from its present files, and has passed its probe: the doubt is over, also one that
            a clock dated into the future.
    """
    before = memory.models.get(manifest)
    doubted = now if new_bytes else before.doubted_at if before is not None and not proven else None
    if before is not None and before.state == state:
        record = replace(before, key=key, failures=0, not_before=None, size=size or before.size, doubted_at=doubted)
    else:
        record = ModelRecord(manifest, key, state, now, cause, size=size, doubted_at=doubted)
    return PutModel(record)


def _model_failed(
    action: DownloadModel | RestoreModel | VerifyModel | ArchiveModel,
    error: ReconcileError,
    memory: Memory,
    now: datetime,
) -> tuple[Change, ...]:
    manifest = action.manifest.digest
    failures = _failures(manifest, memory) + 1
    found_bad = isinstance(action, VerifyModel | ArchiveModel) and error.reason == "ModelCorrupt"
    # Bytes that went bad here say nothing about the sources: the first repair follows at once, the next ones wait.
    until = now if found_bad and failures == 1 else backoff(failures, now)
    hold = PutHold(Hold(manifest, error.reason, error.message, failures, until))
    if error.retry == "operator" or isinstance(error, NoSpace):
        return (hold,)
    if error.reason != "ModelCorrupt":
        # Unreachable mirrors say nothing about the model: its state does not change.
        return (hold,)
    record = ModelRecord(manifest, action.model, "Failed", now, error.message, failures, size=action.size)
    record = replace(record, doubted_at=now)
    return (hold, PutModel(record), VoidReceipts(manifest, error.message), DropCheck(manifest))


def _runtime_failed(
    action: CreateInstance | StartInstance | ValidateModel,
    error: ReconcileError,
    memory: Memory,
    hardware: Hardware,
    snapshot: str,
    instance: str,
    now: datetime,
) -> tuple[Change, ...]:
    target = action.target
    if error.retry == "backoff" and not _counts_as_bad(error, target, memory):
        return (_held(target.spec_digest, error, memory, now),)
    if error.retry == "operator" or (not isinstance(action, ValidateModel) and action.tried_again):
        return (_held(target.spec_digest, error, memory, now),)
    subject = target.subject(hardware.accelerator)
    changes: list[Change] = [Reject(Rejection(subject, target.model, error.reason, error.message, now, snapshot))]
    if isinstance(action, ValidateModel):
        record = ModelRecord(target.manifest, target.model, "Failed", now, error.message, doubted_at=now)
        before = memory.models.get(target.manifest)
        changes.append(PutModel(replace(record, size=before.size if before else 0)))
        spelled = ReceiptSubject.of(target, hardware)
        evidence = error.evidence if isinstance(error, ValidationFailed) else None
        changes.append(IssueReceipt(spelled, instance, evidence, error.message, outcome="fail"))
        changes.append(VoidReceipts(target.manifest, error.message))
    return tuple(changes)


def _counts_as_bad(error: ReconcileError, target: ServingTarget, memory: Memory) -> bool:
    # An engine that stops answering while it is being validated is as bad as a wrong answer, if there is another one
    # to go back to. Without one, trying again is all that is left.
    good = memory.last_known_good
    return isinstance(error, EngineUnreachable) and good is not None and good.target.spec_digest != target.spec_digest


def _held(subject: str, error: ReconcileError, memory: Memory, now: datetime) -> PutHold:
    failures = _failures(subject, memory) + 1
    return PutHold(Hold(subject, error.reason, error.message, failures, backoff(failures, now)))


def _failures(subject: str, memory: Memory) -> int:
    hold = memory.holds.get(subject)
    return hold.failures if hold else 0
