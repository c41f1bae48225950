"""One pass, and the loop around it: refresh, then observe, plan and execute until nothing is left to do.

Level-triggered: every round starts from what is there. A rollback is not a special path: the failed subject is
remembered, and the next round's plan leads to the last known good.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol

from reconciler.account import Account, Round
from reconciler.drift import counted
from reconciler.ending import stop_instances
from reconciler.executor import execute
from reconciler.gpu_watch import FACT, watched
from reconciler.memory import CountHeal, DropCheck, Note, VoidReceipts
from reconciler.planner import plan as make_plan
from reconciler.signing import ReceiptSigner
from reconciler.suspension import until_it_serves
from reconciler.tracing import NO_TRACES, TracedActions
from reconciler.underway import Told, Underway
from schemas.errors import StalePlan, of_disk
from schemas.observation import Present, StoredModel, Unknown
from schemas.refusals import MissingDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from reconciler.desired import Desired
    from reconciler.executor import Execution, Outcome, Reporter
    from reconciler.journal import Accepted
    from reconciler.lookout import Lookout
    from reconciler.node import Node
    from reconciler.status import SourceReport
    from reconciler.tempo import Next, Tempo
    from reconciler.tracing import Tracer
    from schemas.errors import ReconcileError
    from schemas.observation import Observed
    from schemas.plan import Action, Drift, Plan
    from schemas.ports import Stop
    from schemas.snapshot import SnapshotDocument
    from schemas.status import NodeStatus

MAX_ROUNDS: Final = 12
"""Rounds of one pass. A swap with its way back takes three; more than this is a fault of ours, and ends the pass."""

MAX_COUNTED_GAP: Final = 120.0
"""Seconds between two passes that count as running time; longer gaps were not spent running (I8)."""


class SourceKeeper(Protocol):
    """Asks the repositories, and accepts what may be believed."""

    def refresh(self, now: datetime) -> SourceReport:
        """Look for a newer snapshot, verify it, and put it in force. Never raises for what a repository did."""
        ...


@dataclass(frozen=True, slots=True)
class PassResult:
    """How a pass ended."""

    status: NodeStatus
    exit_code: int
    outcomes: tuple[Outcome, ...]
    plan: Plan
    """What would still be done."""
    drift: tuple[Drift, ...] = ()
    """What it found that no snapshot changed."""
    downtime: float = 0.0
    """Seconds in which nothing served that served before, or would have."""
    next: Next | None = None
    """When a daemon looks again; None where there is none."""


class Reconciler:
    """Runs passes over one node. Holds no knowledge between them but caches."""

    def __init__(
        self,
        node: Node,
        source: SourceKeeper,
        reporter: Reporter,
        lookout: Lookout | None = None,
        *,
        tempo: Tempo | None = None,
        config_error: str = "",
        tracer: Tracer = NO_TRACES,
        underway: Underway | None = None,
    ) -> None:
        """Wire the loop; nothing happens yet.

        Args:
            node: what is brought to its desired state.
            source: where that comes from.
            reporter: told what happens.
            lookout: looks for newer snapshots while one is carried out; None where a pass is all that was asked for.
            tempo: says when a daemon looks next; None for a pass on its own.
            config_error: why the configuration that was written since is not the one in force; empty when it is.
            tracer: told where passes spend their time.
            underway: keeps and publishes what is being done; whoever gives it tells it of bytes.
        """
        self._node = node
        self._tracer = tracer
        self._lookout = lookout
        self._source = source
        underway = underway or Underway()
        self._account = Account(node, underway, tempo=tempo, config_error=config_error)
        told = Told(underway, reporter)
        self._reporter = told if tracer is NO_TRACES else TracedActions(told, tracer)
        self._last_pass: datetime | None = None
        ports = node.adapters.ports
        self._signer = ReceiptSigner(
            node.state, node.config.identity, node_id=node.node_id, journal=node.journal, ports=ports
        )
        self._broken_off = False
        """Whether the last pass ended by an error, and may have left the journal in the middle of it."""

    def shows(self, seen: Callable[[NodeStatus], None]) -> None:
        """Have somebody told of the statuses that are published in the middle of a pass."""
        self._account.seen = seen

    def run_pass(self, *, expected: Plan | None = None, ignore_windows: bool = False) -> PassResult:
        """Bring the node to its desired state, as far as it can be done now.

        Args:
            expected: a saved plan: the first round's plan must be the same. What it was allowed, this pass is.
            ignore_windows: a person wants changes now, whatever the maintenance windows say.

        Raises:
            StalePlan: it is not.
            NoSpace, DiskFailed: the state directory cannot be written. What serves goes on.
        """
        if self._broken_off:
            self._node.journal.close_interrupted(self._node.adapters.ports.clock.now())
        self._broken_off = True
        try:
            with self._tracer.span("pass") as span:
                result = self._run_pass(expected, ignore_windows=ignore_windows)
                sequence = result.status.snapshot.sequence if result.status.snapshot is not None else 0
                span.put(
                    **{
                        "reconcile.exit_code": result.exit_code,
                        "reconcile.sequence": sequence,
                        "reconcile.actions": len(result.outcomes),
                        "reconcile.drift": len(result.drift),
                        "reconcile.downtime_seconds": result.downtime,
                    }
                )
        except OSError as error:
            raise of_disk(error) from error
        self._broken_off = False
        return result

    def _run_pass(self, expected: Plan | None, *, ignore_windows: bool) -> PassResult:
        node = self._node
        ports = node.adapters.ports
        now = ports.clock.now()
        if self._lookout is not None:
            self._lookout.forget()
        with self._tracer.span("refresh") as span:
            report = self._source.refresh(now)
            span.put(**{"reconcile.source": report.reason})
        accepted = node.journal.accepted()
        outcomes: list[Outcome] = []
        drift: tuple[Drift, ...] = ()
        downtime = 0.0
        tried: tuple[Action, ...] = ()
        ignore_windows = ignore_windows or (expected is not None and expected.outside_window)
        for round_number in range(MAX_ROUNDS):
            desired, observed, suspended = self._look(accepted, outcomes)
            self._void_what_is_stale(observed)
            plan = self._plan(desired, observed, ignore_windows=ignore_windows)
            if round_number == 0:
                self._count_running_time(now, observed)
                drift = plan.drift
                self._note_drift(drift, observed)
            self._drop_idle_checks(observed)
            if expected is not None and round_number == 0 and plan.identity != expected.identity:
                raise StalePlan(
                    "the saved plan is not what would be done now", hint="run `reconcile plan --out FILE` again"
                )
            if not plan.actions or ports.stop.is_set():
                break
            if plan.outside_window:
                note = Note("Warning", "WindowIgnored", "changes are made outside their maintenance window, by hand")
                node.journal.apply((note,), ports.clock.now())
            self._account.begin(Round(report, accepted, desired, observed, plan, drift))
            execution, ended = self._execute(plan, desired, observed, suspended=suspended)
            outcomes.extend(execution.outcomes)
            downtime += execution.downtime
            if ended == "superseded":
                # The next pass puts it in force, and starts from what is there then.
                break
            if ended == "by hand":
                tried = ()
                continue
            if not any(outcome.status == "done" for outcome in execution.outcomes) and plan.actions == tried:
                # The same plan failed twice without moving anything: time, not another round, has to change something.
                break
            tried = plan.actions
        else:
            note = Note("Warning", "NotConverging", f"still not converged after {MAX_ROUNDS} rounds")
            node.journal.apply((note,), ports.clock.now())
        last = Round(report, accepted, desired, observed, plan, drift)
        status, code, coming = self._account.conclude(last, outcomes)
        return PassResult(status, code, tuple(outcomes), plan, drift, downtime, coming)

    def _plan(self, desired: Desired, observed: Observed, *, ignore_windows: bool) -> Plan:
        node = self._node
        with self._tracer.span("plan") as span:
            now = node.adapters.ports.clock.now()
            plan = make_plan(desired, observed, node.config, now, ignore_windows=ignore_windows)
            span.put(**{"reconcile.actions": len(plan.actions), "reconcile.held": len(plan.held)})
        return plan

    def _look(self, accepted: Accepted | None, outcomes: list[Outcome]) -> tuple[Desired, Observed, bool]:
        """Both arguments of a round's decision, and whether a person has suspended changes."""
        if self._lookout is not None:
            self._lookout.read()
        digest = accepted.digest if accepted else ""
        with self._tracer.span("observe"):
            desired, observed = self._node.look(digest)
            if self._note_gpus(observed):
                # What was just asked for is part of what is decided now.
                desired, observed = self._node.look(digest)
        done = [item.action for item in outcomes if item.status == "done"]
        return desired, until_it_serves(observed, done), bool(observed.memory.suspended)

    def _note_drift(self, drift: Sequence[Drift], observed: Observed) -> None:
        """Record what was changed from outside: that it was, unless that is known, and that it is given back."""
        before = self._account.previous()
        known = {(item.key, item.found, item.where) for item in before.drift} if before is not None else set()
        notes = [
            Note("Warning", "DriftFound", item.said[:4096], subject=item.subject)
            for item in drift
            if item.repaired or (item.key, item.found, item.where) not in known
        ]
        now = self._node.adapters.ports.clock.now()
        keys = counted(drift, observed.memory, self._node.config.policy.heal, now)
        self._node.journal.apply([*notes, *map(CountHeal, keys)], now)

    def _note_gpus(self, observed: Observed) -> bool:
        """Record what happened to GPUs; whether anything that is remembered has changed by it."""
        journal = self._node.journal
        before, now = journal.fact(FACT), self._node.adapters.ports.clock.now()
        seen = watched(observed, before, now)
        if seen.fact == before:
            return False
        journal.apply(seen.changes, now)
        # After the changes: what a crash repeats is said twice, and nothing is left unsaid.
        journal.set_fact(FACT, seen.fact)
        return bool(seen.changes)

    def _void_what_is_stale(self, observed: Observed) -> None:
        """Record what the look has found: proof of what has changed since counts no longer, whatever is done next."""
        void = [VoidReceipts(item.manifest, item.cause, item.subject) for item in observed.memory.stale]
        self._node.journal.apply(void, self._node.adapters.ports.clock.now())

    def _execute(
        self, plan: Plan, desired: Desired, observed: Observed, *, suspended: bool
    ) -> tuple[Execution, Literal["", "superseded", "by hand"]]:
        """Carry a plan out; why the rest of it was given up, if it was."""
        node = self._node
        stop = node.adapters.ports.stop
        look = self._lookout
        beside = look.beside(desired.digest, stop, suspended=suspended) if look is not None else nullcontext(None)
        with beside as pass_stop:
            execution = execute(
                plan,
                observed=observed,
                node=node.config,
                adapters=node.adapters,
                journal=node.journal,
                sources=self._sources(desired, observed),
                reporter=self._reporter,
                stop=pass_stop,
            )
        if pass_stop is None or not (pass_stop.superseded or pass_stop.by_hand):
            return execution, ""
        left = [outcome.action.id for outcome in execution.outcomes if outcome.status in ("cancelled", "skipped")]
        if left:
            event, who = (
                ("Superseded", "a newer snapshot wants something else of this node")
                if pass_stop.superseded
                else ("Interrupted", "a person wants something else of this node")
            )
            note = Note("Normal", event, f"{who}: gave up {', '.join(left)}"[:1000])
            node.journal.apply((note,), node.adapters.ports.clock.now())
        return execution, "superseded" if pass_stop.superseded else "by hand"

    def stop_runtime(self) -> list[ReconcileError]:
        """Stop what runs here; what could not be stopped, and why."""
        return stop_instances(self._node, self._reporter)

    def _drop_idle_checks(self, observed: Observed) -> None:
        """Forget that somebody wants a model to be hashed that is no longer stored: there is nothing to hash."""
        stored = {
            digest
            for digest, seen in observed.state.models.items()
            if isinstance(seen, Unknown) or (isinstance(seen, Present) and isinstance(seen.value, StoredModel))
        }
        gone = sorted(observed.memory.checks.keys() - stored)
        self._node.journal.apply([DropCheck(digest) for digest in gone], self._node.adapters.ports.clock.now())

    def idle(self, stop: Stop) -> bool:
        """Spend time in which nothing is due on signing receipts, then on looking for bit rot.

        Args:
            stop: ends it soon.

        Returns:
            Whether there is something that a pass has to look at, or to publish.

        Raises:
            DownloadFailed: the disk failed.
        """
        if self._signer.run(stop):
            return True
        node = self._node
        settings = node.config.models.scrub
        while settings.rate and not stop.is_set():
            found = node.adapters.store.scrub(rate=settings.rate, every=settings.every, stop=stop)
            if found is None:
                return False
            if found.bad:
                note = Note("Warning", "BitRotFound", f"{found.model}: {found.bad}", subject=found.model)
            else:
                note = Note("Normal", "ModelScrubbed", f"{found.model} was looked through: nothing rots")
            node.journal.apply((note,), node.adapters.ports.clock.now())
            if found.bad:
                return True
        return False

    def sign(self, result: PassResult, stop: Stop) -> PassResult:
        """Sign the receipts of a pass that no other will follow soon, and publish that they are.

        Args:
            result: how the pass ended.
            stop: ends it early.
        """
        signed = self._signer.run(stop)
        return replace(result, status=self._account.signed(result.status, signed=signed))

    def _sources(self, desired: Desired, observed: Observed) -> Mapping[str, tuple[str, ...]]:
        """Where each model may be fetched from. The store adds the node's own fallback list after these."""
        sources = _sources(desired.document)
        good = observed.memory.last_known_good
        if good is None or good.target.manifest in sources:
            return sources
        # What this node would go back to may be repaired after the network has ceased to list it (I5).
        try:
            return {**_sources(self._node.documents.snapshot(good.snapshot)), **sources}
        except MissingDocument:
            return sources

    def _count_running_time(self, now: datetime, observed: Observed) -> None:
        """Count running time for what is not listed. What it comes to is for the next pass."""
        node = self._node
        accepted = node.journal.accepted()
        if accepted is None:
            return
        # Where each pass is a process of its own, as under a timer, the journal knows when the last one was.
        before = self._last_pass or node.journal.counted_at()
        spent = (now - before).total_seconds() if before is not None else 0.0
        self._last_pass = now
        document = node.documents.snapshot(accepted.digest)
        listed = frozenset(spec.manifest.digest for spec in document.spec.models)
        models = observed.state.models
        unknown = any(isinstance(seen, Unknown) for seen in models.values())
        there = frozenset(digest for digest, seen in models.items() if isinstance(seen, Present))
        # A clock that was set back counts for nothing.
        seconds = min(max(spent, 0.0), MAX_COUNTED_GAP)
        node.journal.count_unlisted(listed, seconds, None if unknown else there, now=now)


def _sources(document: SnapshotDocument | None) -> Mapping[str, tuple[str, ...]]:
    """Where a snapshot says that each of its models may be fetched from."""
    return {spec.manifest.digest: spec.sources for spec in document.spec.models} if document is not None else {}
