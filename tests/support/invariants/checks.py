"""The invariants, as far as one look from outside can tell. Pure: a sight in, violations out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from reconciler.journal import KEPT_EVENTS, KEPT_PASSES
from reconciler.memory import BACKOFF_LAST
from reconciler.target import withdrawn
from schemas.digests import short
from schemas.node import HealPolicy
from schemas.observation import Present
from tests.support.invariants.sight import digest_of, parse_trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from schemas.status import ConditionType, NodeStatus
    from schemas.target import ServingTarget
    from tests.support.invariants.sight import AcceptedRow, Record, Sight

SKEW: Final = timedelta(seconds=5)
"""By how much two clocks of one machine may differ here."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be."""

    invariant: str
    """I1 to I11."""
    message: str

    def __str__(self) -> str:
        """As a person reads it."""
        return f"{self.invariant}: {self.message}"


def check(sight: Sight) -> list[Violation]:
    """Everything that one look shows to be wrong."""
    return [violation for rule in RULES for violation in rule(sight)]


# --- I1 -----------------------------------------------------------------------------------------------------------


def authentic(sight: Sight) -> Iterator[Violation]:
    """I1: what is in force rose step by step, and each step is of this network, in time, and signed by enough."""
    record = sight.record
    before: AcceptedRow | None = None
    for row in record.accepted:
        if before is not None and (row.epoch, row.sequence) <= (before.epoch, before.sequence):
            yield Violation("I1", f"sequence {row.sequence} was accepted after sequence {before.sequence}")
        if row.accepted_at >= row.expires_at:
            yield Violation("I1", f"sequence {row.sequence} had expired when it was accepted")
        before = row
    for digest, (kind, content) in record.documents.items():
        if digest_of(content) != digest:
            yield Violation("I1", f"the {kind} kept as {short(digest)} has other bytes")
    if record.in_force is not None:
        yield from _authentic(record, record.in_force, sight.network)
        yield from _marked(sight, record.in_force)


def _authentic(record: Record, row: AcceptedRow, network: str) -> Iterator[Violation]:
    document = record.snapshot()
    if document is None:
        yield Violation("I1", f"the bytes of what is in force, {short(row.digest)}, are not kept")
        return
    metadata = document.metadata
    if not row.signers and row.number == record.accepted[0].number:
        return  # the journal was lost, and the mark vouches for these very bytes: who signed is no longer known
    if metadata.network != network:
        yield Violation("I1", f"what is in force is of the network {metadata.network}")
    if (metadata.epoch, metadata.sequence) != (row.epoch, row.sequence):
        yield Violation("I1", f"what is in force calls itself sequence {metadata.sequence}, not {row.sequence}")
    trusts = [parse_trust(content) for kind, content in record.documents.values() if kind == "trust"]
    for trust in trusts:
        role = trust.spec.roles.snapshot
        if trust.metadata.version == row.trust_version:
            members = {signer.lower() for signer in role.signers}
            if len({signer.lower() for signer in row.signers} & members) < role.threshold:
                yield Violation("I1", f"sequence {row.sequence} was signed by fewer than {role.threshold}")


def _marked(sight: Sight, row: AcceptedRow) -> Iterator[Violation]:
    copy = sight.mark
    if copy is not None and copy.position == (row.epoch, row.sequence) and copy.digest != row.digest:
        yield Violation("I1", f"the copies of the mark disagree on sequence {row.sequence}")
    if sight.settled and (copy is None or copy.position < (row.epoch, row.sequence)):
        yield Violation("I1", f"sequence {row.sequence} is in force, and the second copy of the mark does not say so")


# --- I2 -----------------------------------------------------------------------------------------------------------


def verified(sight: Sight) -> Iterator[Violation]:
    """I2: only a receipt makes a model Active, and clients are led only to what holds one."""
    record = sight.record
    proven = {row.manifest for row in record.receipts if not row.voided}
    for manifest, (key, state, _) in sorted(record.models.items()):
        if state == "Active" and manifest not in proven:
            yield Violation("I2", f"{key} is Active without a receipt")
    previous = ""
    for row in record.receipts:
        if row.previous != previous:
            yield Violation("I2", f"receipt {row.number} does not follow the one before it")
        previous = row.digest
    front = sight.front
    if not sight.settled or sight.blind or not isinstance(front, Present) or front.value.state != "serving":
        return
    # What serves goes on while an engine that cannot be asked now keeps it from being proven again, and says so (I6).
    excused = _is_held(sight, "front") or _is_held(sight, "validation")
    if front.value.intent not in record.proofs() and not excused:
        yield Violation("I2", f"clients are led to the instance of {front.value.intent}, which holds no receipt")


# --- I3 -----------------------------------------------------------------------------------------------------------


def alone(sight: Sight) -> Iterator[Violation]:
    """I3: one runtime, and the front leads to that one."""
    running = sight.running()
    if len(running) > (2 if sight.overlap else 1):
        yield Violation("I3", f"{', '.join(item.name for item in running)} run at the same time")
    front = sight.front
    if sight.settled and not sight.blind and isinstance(front, Present) and front.value.state == "serving":
        there = {item.intent for item in running}
        # Who suspends a node wants its route to stay, too; the front itself refuses to lead to whoever is not there.
        suspended = sight.status is not None and _is_true(sight.status, "Suspended")
        if front.value.intent not in there and not suspended and not _is_held(sight, "front"):
            yield Violation("I3", f"clients are led to the instance of {front.value.intent}, which does not run")


# --- I5, I6 -------------------------------------------------------------------------------------------------------


def serving(sight: Sight) -> Iterator[Violation]:
    """I5, I6: what is withdrawn does not run once a pass is over, and nothing serves silently."""
    document, good = sight.record.snapshot(), sight.record.good
    if not sight.settled or sight.blind or document is None or _is_held(sight, "runtime"):
        return
    for item in sight.running():
        if good is not None and item.spec_digest == good.spec_digest and withdrawn(document, good):
            yield Violation("I6", f"{item.name} runs what is withdrawn: {withdrawn(document, good)}")
    status = sight.status
    if status is None or sight.running():
        return
    excused = status.held or _is_true(status, "Stalled") or _is_true(status, "Suspended")
    if good is not None and not withdrawn(document, good) and not excused:
        yield Violation("I5", f"nothing runs, {good.model} was good, and nothing says why it does not run")


# --- I7 -----------------------------------------------------------------------------------------------------------


def whole(sight: Sight) -> Iterator[Violation]:
    """I7: after a pass nothing is half done, and no intent had two effects."""
    intents = [item.intent for item in sight.ours()]
    for intent in sorted({item for item in intents if intents.count(item) > 1}):
        yield Violation("I7", f"intent {intent} made {intents.count(intent)} instances")
    if not sight.settled:
        return
    if sight.record.running_passes:
        yield Violation("I7", "a pass is said to be under way, and none is")
    for row in sight.record.intents.values():
        if row.outcome == "running":
            yield Violation("I7", f"intent {row.id} ({row.kind}) is said to be under way, and none is")
    for name in sight.strays:
        yield Violation("I7", f"{name} lies in the state directory, and belongs to nothing")
    known = sight.record.intents
    held = sight.status is not None and (sight.status.held or sight.record.facts.get("suspended"))
    for item in sight.ours():
        if item.intent in known and item.status == "created" and not held and not sight.blind:
            yield Violation("I7", f"{item.name} was created and never started, and nobody removes it")


# --- I8 -----------------------------------------------------------------------------------------------------------


def own(sight: Sight) -> Iterator[Violation]:
    """I8: what the snapshot lists and this node has proven is there (what else is removed, a witness sees)."""
    good, models = sight.record.good, sight.models
    if not sight.settled or models is None or good is None:
        return
    runs = any(item.spec_digest == good.spec_digest for item in sight.running())
    if good.manifest not in models and good.manifest not in sight.record.models and not runs:
        yield Violation("I8", f"{good.model}, the last known good, was forgotten and removed")


# --- I11 ----------------------------------------------------------------------------------------------------------


def loud(sight: Sight) -> Iterator[Violation]:
    """I11: no refusal, no failure and no wait without its reason; every record and every wait has a bound."""
    record = sight.record
    for row in record.intents.values():
        if row.outcome == "failed" and not row.error:
            yield Violation("I11", f"{row.kind} failed, and nothing says why")
    if record.events > KEPT_EVENTS + 1 or record.passes > KEPT_PASSES + 1:
        yield Violation("I11", f"the journal keeps {record.events} events and {record.passes} passes")
    if sight.settled and sight.status is None:
        yield Violation("I11", "a pass has ended, and there is no status")
    elif sight.settled and sight.status is not None:
        yield from _reported(sight, sight.status)


def _reported(sight: Sight, status: NodeStatus) -> Iterator[Violation]:
    for condition in status.conditions:
        if not condition.reason:
            yield Violation("I11", f"{condition.type} is {condition.status} for no reason")
    for item in status.held:
        if not item.reason or not item.message:
            yield Violation("I11", f"{item.subject} is held back for no reason")
        if item.reason != "OutsideWindow" and item.until is not None and item.until > sight.at + BACKOFF_LAST + SKEW:
            yield Violation("I11", f"{item.subject} waits until {item.until}, longer than anything may wait")
    proven = [item for item in sight.running() if item.intent in sight.record.proofs()]
    if _is_true(status, "Ready") and not sight.blind and not proven:
        yield Violation("I11", "the node calls itself Ready, and nothing that has passed its probe runs")


def _is_true(status: NodeStatus, type_: ConditionType) -> bool:
    condition = status.condition(type_)
    return condition is not None and condition.status == "True"


def _is_held(sight: Sight, subject: str) -> bool:
    """Whether the node says that it could not do anything about it."""
    return sight.status is not None and any(
        item.subject == subject or item.reason in ("BackendUnavailable", "Suspended") for item in sight.status.held
    )


def allowed(target: ServingTarget, unenforced: frozenset[str], by_owner: frozenset[str]) -> Iterator[Violation]:
    """I10: what a backend does not enforce was allowed by the network and by the node's owner."""
    for name in sorted(unenforced - (by_owner & frozenset(target.isolation.allow_unenforced))):
        yield Violation("I10", f"{target.backend} runs {target.model} without {name}, which not both have allowed")


def healed(sight: Sight) -> Iterator[Violation]:
    """I11: nothing is given back more often within the window than the owner wants."""
    policy = HealPolicy()
    for name, value in sight.record.facts.items():
        if name.startswith("heal/"):
            times = sorted(map(datetime.fromisoformat, value.split()))
            for first, last in zip(times, times[policy.repairs :], strict=False):
                if last - first < timedelta(seconds=policy.window):
                    yield Violation(
                        "I11", f"{name[5:]} was given back {policy.repairs + 1} times from {first} to {last}"
                    )


RULES: Final[tuple[Callable[[Sight], Iterator[Violation]], ...]] = (
    authentic,
    verified,
    alone,
    serving,
    whole,
    own,
    loud,
    healed,
)
