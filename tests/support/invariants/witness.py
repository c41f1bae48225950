"""Sees what an agent does, as it does it, and remembers what was served when: what no single look can tell (I3 to I8).

Whoever stands between an agent and its node (a simulation, a recording backend) tells the witness of each effect at the
moment of the effect. Whoever can only look from time to time calls `looked`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from reconciler.target import withdrawn
from schemas.digests import short
from schemas.observation import StoredModel
from tests.support.invariants.checks import Violation, allowed, check

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from schemas.observation import Instance, ModelSeen
    from schemas.target import ServingTarget
    from tests.support.invariants.sight import IntentRow, Record, Sight


@dataclass(frozen=True, slots=True)
class Served:
    """A change of what runs."""

    at: datetime
    what: str
    """`start`, `stop`, `remove`, `lead`."""
    instance: str


LONGEST_WAIT: Final = timedelta(minutes=5, seconds=30)
"""Before a restart of what ended by itself: the longest interval, and what chance adds to it."""

MAKING: Final = ("create-instance", "start-instance")
"""Actions whose intent an instance bears."""


def _is_being_started(row: IntentRow, record: Record) -> bool:
    """Whether the journal says that what this intent made is being started now; it may have been made ahead."""
    if row.kind == "start-instance" or row.outcome == "running":
        return row.outcome == "running"
    return any(other.kind == "start-instance" and other.outcome == "running" for other in record.intents.values())


@dataclass(slots=True)
class Witness:
    """One node's witness, over all its agents."""

    violations: list[Violation] = field(default_factory=list)
    log: list[Served] = field(default_factory=list)
    """What was served when."""
    names: set[str] = field(default_factory=set)
    """Every instance that ever was started."""
    legitimate: Callable[[str], bool] = lambda _digest: True
    """Whether the network really signed a snapshot of this digest, as only who plays the network can know."""
    _highest: tuple[int, int] = (0, 0)
    _forgotten: str = ""

    # --- looks ----------------------------------------------------------------------------------------------------

    def looked(self, sight: Sight) -> list[Violation]:
        """Judge one look, with all that was seen before; what is new and wrong."""
        found = check(sight)
        row = sight.record.in_force
        if row is not None:
            if not self.legitimate(row.digest):
                found.append(Violation("I1", f"{short(row.digest)} was accepted, and the network never signed it"))
            if (row.epoch, row.sequence) < self._highest:
                found.append(Violation("I1", f"the node went back from {self._highest} to sequence {row.sequence}"))
            self._highest = max(self._highest, (row.epoch, row.sequence))
        if sight.mark is not None:
            self._highest = max(self._highest, sight.mark.position)
        self.violations += found
        return found

    def mark_given_up(self) -> None:
        """A person gave the mark up: from here on an older snapshot may come."""
        self._highest = (0, 0)

    # --- effects --------------------------------------------------------------------------------------------------

    def starts(
        self,
        name: str,
        intent: str,
        target: ServingTarget,
        *,
        at: datetime,
        record: Record,
        models: Mapping[str, ModelSeen],
        running: tuple[Instance, ...],
        blind: tuple[str, ...],
        accelerator: str,
        unenforced: frozenset[str] = frozenset(),
        by_owner: frozenset[str] = frozenset(),
        overlap: bool = False,
        gpus: Mapping[str, str] = MappingProxyType({}),
        busy: Collection[str] = (),
    ) -> None:
        """An instance is about to run.

        Args:
            name: the instance.
            intent: what made it.
            target: what it is.
            at: the time.
            record: the journal at this moment.
            models: the store at this moment.
            running: what runs at this moment with this node's marks.
            blind: backends that cannot be seen at this moment.
            accelerator: what computes here.
            unenforced: restrictions that its backend does not enforce.
            by_owner: those that the node's owner can do without.
            overlap: whether a second one may run.
            gpus: by UUID: the GPUs that it gets, with why one of them computes nothing.
            busy: GPUs on which something is listed that has ended.
        """
        self.log.append(Served(at, "start", name))
        self.names.add(name)
        others = [item.name for item in running if item.name != name]
        if others and not overlap:
            self._say("I3", f"{name} is started while {', '.join(others)} runs")
        self._starts_on(name, gpus, busy)
        if blind:
            self._say("I3", f"{name} is started while {', '.join(blind)} cannot be seen")
        row = record.intents.get(intent)
        if row is None or row.kind not in MAKING:
            self._say("I7", f"{name} is started, and the journal knows no such intent")
        elif not _is_being_started(row, record):
            self._say("I7", f"{name} is started by an intent that is {row.outcome}")
        seen = models.get(target.manifest)
        if not isinstance(seen, StoredModel) or not seen.intact:
            self._say("I2", f"{name} is started from bytes of {target.model} that were not verified since they changed")
        if target.subject(accelerator) in record.rejections:
            self._say("I5", f"{name} is started, and {target.model} is remembered as bad")
        self._due(name, target, at, record)
        self._wanted(name, target, record)
        self.violations += allowed(target, unenforced, by_owner)

    def _due(self, name: str, target: ServingTarget, at: datetime, record: Record) -> None:
        wait = record.holds.get(f"restart/{target.spec_digest}")
        # A longer one was set by another clock.
        if wait is not None and at < wait <= at + LONGEST_WAIT:
            self._say("I11", f"{name} is started {(wait - at).total_seconds():.0f} s before its restart is due")

    def _starts_on(self, name: str, gpus: Mapping[str, str], busy: Collection[str]) -> None:
        for uuid, fault in gpus.items():
            if fault:
                self._say("I4", f"{name} is started on {uuid}, and {fault}")
            if uuid in busy:
                self._say("I4", f"{name} is started on {uuid}, which has not given back what ended on it")

    def _wanted(self, name: str, target: ServingTarget, record: Record) -> None:
        document, good = record.snapshot(), record.good
        if document is None:
            self._say("I1", f"{name} is started before any snapshot was accepted")
            return
        listed = {spec.manifest.digest for spec in document.spec.models}
        proven = {known.manifest for known in (good, record.earlier) if known is not None}
        if target.manifest not in listed | proven:
            self._say("I1", f"{name} is started with {target.model}, which nobody signed for")
        if withdrawn(document, target):
            self._say("I6", f"{name} is started, and {target.model} is withdrawn")

    def stops(
        self,
        item: Instance,
        *,
        at: datetime,
        record: Record,
        models: Mapping[str, ModelSeen],
        images: frozenset[str],
        running: tuple[Instance, ...],
    ) -> None:
        """The agent is about to stop an instance.

        Args:
            item: the instance as it is.
            at: the time.
            record: the journal at this moment.
            models: the store at this moment.
            images: images that are here.
            running: what runs with this node's marks.
        """
        self.log.append(Served(at, "stop", item.name))
        self._ours(item, record)
        if item.status != "running" or item.health == "unhealthy" or item.intent not in record.proofs():
            return
        document, good = record.snapshot(), record.good
        is_good = good is not None and good.spec_digest == item.spec_digest
        if document is not None and good is not None and is_good and withdrawn(document, good):
            return
        others = [other for other in running if other.name != item.name and other.intent in record.proofs()]
        starts = record.planned_starts()
        if others:
            return
        if not starts:
            self._say("I6", f"{item.name} serves and is stopped, and nothing is to come in its place")
        for start in starts:
            target = start["target"]
            seen = models.get(target["manifest"])
            if not isinstance(seen, StoredModel) or not seen.intact:
                self._say("I4", f"{item.name} serves and is stopped before the bytes of {target['model']} are here")
            if target.get("image") and target["image"] not in images:
                self._say("I4", f"{item.name} serves and is stopped before the image of {target['model']} is here")

    def removes(self, item: Instance, *, at: datetime, record: Record) -> None:
        """The agent is about to remove an instance."""
        self.log.append(Served(at, "remove", item.name))
        self._ours(item, record)

    def _ours(self, item: Instance, record: Record) -> None:
        known = {row.id for row in record.intents.values() if row.kind in MAKING}
        if item.intent not in known | {row.intent for row in record.receipts}:
            self._say("I8", f"{item.name} is touched, and the journal does not know that it is ours")

    def removes_model(self, manifest: str, *, record: Record, seen: ModelSeen | None, serving: frozenset[str]) -> None:
        """The agent is about to remove a model.

        Args:
            manifest: which.
            record: the journal at this moment.
            seen: what there is of it.
            serving: manifests of what runs.
        """
        document = record.snapshot()
        if seen is None:
            return
        if document is None:
            self._say("I8", f"{short(manifest)} is removed before any snapshot was accepted")
            return
        if not document.spec.models and not document.spec.policy.gc.allow_empty:
            self._say("I8", f"{short(manifest)} is removed on an empty list")
        if manifest in {spec.manifest.digest for spec in document.spec.models}:
            self._say("I8", f"{short(manifest)} is removed, and is listed")
        if manifest in serving or (record.good is not None and record.good.manifest == manifest):
            self._say("I8", f"{short(manifest)} is removed, and is needed")
        if record.unlisted(manifest) < document.spec.policy.gc.grace:
            spent = record.unlisted(manifest)
            self._say("I8", f"{short(manifest)} is removed after {spent:.0f} of {document.spec.policy.gc.grace} s")

    def leads(self, instance: str, intent: str, *, at: datetime, record: Record) -> None:
        """Clients are about to be led to an instance."""
        self.log.append(Served(at, "lead", instance))
        if intent not in record.proofs():
            self._say("I2", f"clients are led to {instance}, which holds no receipt")

    def looked_only(self, before: object, after: object) -> None:
        """A dry run was made: what there was before and after it."""
        if before != after:
            self._say("I9", "a dry run changed something")

    def _say(self, invariant: str, message: str) -> None:
        self.violations.append(Violation(invariant, message))
