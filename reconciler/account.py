"""What a node says about itself: made out of a pass, published for readers, while things are done and when they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from reconciler.fronting import front_status
from reconciler.published import read_status
from reconciler.signing import LOCKED
from reconciler.status import Finding, exit_code, summarise, with_receipts
from reconciler.target import choose
from reconciler.tempo import Next, retests
from reconciler.underway import planned
from schemas.status import ReceiptsStatus, WantedStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reconciler.desired import Desired
    from reconciler.executor import Outcome
    from reconciler.journal import Accepted
    from reconciler.node import Node
    from reconciler.status import SourceReport
    from reconciler.target import Choice
    from reconciler.tempo import Tempo
    from reconciler.underway import Underway
    from schemas.observation import Observed
    from schemas.plan import Drift, Plan
    from schemas.status import NodeStatus, PlanStatus

STATUS_REFRESH_SECONDS: Final = 60
"""An unchanged status is written again after this time, so that readers can tell a live node from a dead one."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a pass: what was looked at, and what was decided."""

    report: SourceReport
    accepted: Accepted | None
    desired: Desired
    observed: Observed
    plan: Plan
    drift: tuple[Drift, ...]
    """What the pass found that no snapshot changed."""


class Account:
    """Says how a node is. Its only memory is what it said last."""

    def __init__(self, node: Node, underway: Underway, *, tempo: Tempo | None, config_error: str) -> None:
        """Nothing is said yet.

        Args:
            node: whose account it is.
            underway: keeps how far what is being done has come.
            tempo: says when a daemon looks next; None for a pass on its own.
            config_error: why the configuration that was written since is not the one in force; empty when it is.
        """
        self._node, self._underway, self._tempo, self._config_error = node, underway, tempo, config_error
        self._published: NodeStatus | None = None
        self.seen: Callable[[NodeStatus], None] = lambda _: None
        """Told of what is published in the middle of a pass; its end has a result, for whoever wants to know."""
        underway.publishes(self.publish, node.adapters.ports.clock)

    def signed(self, status: NodeStatus, *, signed: bool) -> NodeStatus:
        """Publish a status again, after receipts may have been signed.

        Args:
            status: as the pass left it.
            signed: whether any was.
        """
        status = with_receipts(status, self._receipts(), signed=signed)
        self.publish(status)
        return status

    def _receipts(self) -> ReceiptsStatus:
        journal = self._node.journal
        return ReceiptsStatus(
            statements=journal.chain.last_number(), pending=journal.chain.pending(), locked=journal.fact(LOCKED)[:4096]
        )

    def begin(self, seen: Round) -> None:
        """Say what is about to be done. It is published with the first step that takes its time."""
        now = self._node.adapters.ports.clock.now()
        carried = planned(seen.plan, now)
        finding = self._finding(seen, choose(seen.desired, seen.observed, self._node.config, now), ())
        self._underway.begin(summarise(replace(finding, carried=carried)))

    def conclude(self, seen: Round, outcomes: Sequence[Outcome]) -> tuple[NodeStatus, int, Next | None]:
        """Say how a pass ended, and publish it.

        Args:
            seen: its last round.
            outcomes: of everything that it did.

        Returns:
            The status, the exit code of the pass, and when a daemon looks again.
        """
        node = self._node
        now = node.adapters.ports.clock.now()
        carried = self._underway.end(now)
        choice = choose(seen.desired, seen.observed, node.config, now)
        finding = self._finding(seen, choice, outcomes)
        if not seen.plan.actions and not seen.plan.held and finding.role == "desired":
            node.journal.set_fact("applied", seen.plan.snapshot or "")
        finding = replace(
            finding,
            carried=carried or finding.carried,
            next=self._next(seen.report, seen.plan, seen.accepted, self._due(seen.observed, choice)),
        )
        status = summarise(finding)
        self.publish(status)
        return status, exit_code(finding, status), finding.next

    def _finding(self, seen: Round, choice: Choice, outcomes: Sequence[Outcome]) -> Finding:
        """What a status is made from; the plan in it is the last one that was carried out."""
        node = self._node
        backend = node.adapters.backends.get(choice.target.backend) if choice.target else None
        previous = self.previous()
        return Finding(
            node=node.config,
            agent=node.agent,
            observed=seen.observed,
            plan=seen.plan,
            role=choice.role,
            target=choice.target,
            accepted=seen.accepted,
            source=seen.report,
            failed=tuple(outcome for outcome in outcomes if outcome.status == "failed"),
            drift=seen.drift,
            not_enforced=backend.not_enforced() if backend else (),
            run_folder=node.state.run,
            previous=previous,
            now=node.adapters.ports.clock.now(),
            front=front_status(node.adapters.front, seen.observed.state.front),
            receipts=self._receipts(),
            every={spec.manifest.digest: spec.validation.every for spec in choice.serve},
            config_error=self._config_error,
            wanted=_wanted(choice),
            carried=_over(previous.plan) if previous is not None and previous.plan is not None else None,
        )

    def _next(self, report: SourceReport, plan: Plan, accepted: Accepted | None, others: Sequence[Next]) -> Next | None:
        if self._tempo is None:
            return None
        expires = accepted.expires_at if accepted is not None else None
        return self._tempo.after(self._node.adapters.ports.clock.now(), report.error, plan, expires, others)

    def _due(self, observed: Observed, choice: Choice) -> list[Next]:
        """What comes at a known time without anything having moved: retests, and the scrub."""
        if self._tempo is None:
            return []
        found = retests(observed, choice)
        settings = self._node.config.models.scrub
        scrub = self._node.adapters.store.scrub_due(every=settings.every) if settings.rate else None
        return [*found, *([Next(scrub[1], f"the scrub looks through {scrub[0]}")] if scrub is not None else [])]

    def previous(self) -> NodeStatus | None:
        """What was said last, also by an agent before this one."""
        if self._published is None:
            self._published = read_status(self._node.state)
        return self._published

    def publish(self, status: NodeStatus) -> None:
        """Write a status for readers, unless it lies there already.

        Raises:
            OSError: it cannot be written.
        """
        if status.plan is not None and status.plan.ended_at is None:
            self.seen(status)
        before = self._published
        fresh = before is not None and (status.updated_at - before.updated_at).total_seconds() < STATUS_REFRESH_SECONDS
        if before is not None and fresh and _without_times(before) == _without_times(status) and self._is_there():
            return
        self._node.adapters.ports.files.write(self._node.state.status, status.to_json().encode() + b"\n", mode=0o644)
        self._published = status

    def _is_there(self) -> bool:
        """Whether the published status still is: somebody may have removed it."""
        return self._node.state.status.exists()


def _without_times(status: NodeStatus) -> NodeStatus:
    # What is free, and how warm it is, moves with every look; errors and faults do not.
    still = {"memory_free": 0, "temperature": None, "processes": None}
    gpus = tuple(gpu.model_copy(update=still) for gpu in status.hardware.gpus)
    hardware = status.hardware.model_copy(update={"disk_free": 0, "gpus": gpus})
    front = status.front.model_copy(update={"counts": None}) if status.front is not None else None
    # When a daemon looks next moves with every pass; what it looks for does not.
    following = status.next.model_copy(update={"at": None, "coming": ()}) if status.next is not None else None
    return status.model_copy(update={"updated_at": None, "hardware": hardware, "front": front, "next": following})


def _wanted(choice: Choice) -> WantedStatus | None:
    if not choice.serve:
        return None
    model, target = choice.serve[0], choice.wanted
    runtime = f"{target.engine} {target.version} ({target.backend})" if target is not None else ""
    return WantedStatus(model=model.key, manifest=model.manifest.digest, runtime=runtime)


def _over(plan: PlanStatus) -> PlanStatus:
    """What an earlier pass was doing is not being done any more, however that pass ended."""
    return plan if plan.ended_at is not None else plan.model_copy(update={"ended_at": plan.begun_at})
