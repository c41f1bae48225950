"""Carries a plan out, action by action. Decides nothing: order, causes and needs are the plan's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from reconciler.kinds.base import Context
from reconciler.kinds.registry import kind_of
from reconciler.memory import after_failure
from schemas.errors import ReconcileError, of_disk
from schemas.plan import CreateInstance, RouteFront, StartFront, StartInstance, StopInstance, ValidateModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.journal import Journal
    from reconciler.kinds.base import Adapters, Changes
    from reconciler.lookout import PassStop
    from schemas.node import NodeConfig
    from schemas.observation import Observed
    from schemas.plan import Action, Plan

INTENT_BYTES = 6
"""Random bytes of an intent id: 48 bits are unique among the thousands that one node makes, and fit into a name."""

Status = Literal["done", "failed", "skipped", "cancelled"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one action ended."""

    action: Action
    status: Status
    error: ReconcileError | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Execution:
    """How a plan ended."""

    outcomes: tuple[Outcome, ...]
    downtime: float
    """Seconds in which nothing served that served before, or would have."""

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Actions that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")


class Reporter(Protocol):
    """Told what happens, for people. Never raises."""

    def started(self, action: Action) -> None:
        """An action begins."""
        ...

    def finished(self, outcome: Outcome) -> None:
        """An action ended, or was skipped."""
        ...


def execute(
    plan: Plan,
    *,
    observed: Observed,
    node: NodeConfig,
    adapters: Adapters,
    journal: Journal,
    sources: Mapping[str, tuple[str, ...]],
    reporter: Reporter,
    stop: PassStop | None = None,
) -> Execution:
    """Carry out a plan.

    Args:
        plan: what to do; never a draft.
        observed: what the plan was made from.
        node: the node's configuration.
        adapters: the outside.
        journal: where intents and outcomes are recorded, before and after.
        sources: by manifest digest, where its files may be fetched from.
        reporter: told what happens.
        stop: ends what this plan does and can still be given up; the agent's own where nothing else may end it.

    Raises:
        ValueError: the plan is a draft.
    """
    if plan.draft:
        raise ValueError("a draft cannot be applied")
    clock = adapters.ports.clock
    number = journal.begin_pass(
        snapshot=plan.snapshot or "",
        sequence=plan.sequence,
        actions=len(plan.actions),
        plan=plan.to_json(),
        now=clock.now(),
    )
    outcomes: list[Outcome] = []
    downtime = _Downtime(plan)
    created = started = ""
    agent = adapters.ports.stop
    if stop is not None:
        adapters = replace(adapters, ports=replace(adapters.ports, stop=stop))
    for action in plan.actions:
        blocked = _blocked(action, outcomes)
        # Leading requests takes no time, and those that wait for it have been proven an answer.
        ends = agent if isinstance(action, StartFront | RouteFront) else adapters.ports.stop
        if blocked or ends.is_set():
            outcomes.append(Outcome(action, "skipped" if blocked else "cancelled"))
            reporter.finished(outcomes[-1])
            continue
        if stop is not None and isinstance(action, StopInstance) and action.drain > 0:
            stop.commit()
        intent = adapters.ports.randomness.token(INTENT_BYTES)
        context = Context(
            adapters=adapters,
            node=node,
            node_id=observed.node_id,
            hardware=observed.state.hardware,
            memory=observed.memory,
            snapshot=plan.snapshot or "",
            sources=sources,
            intent=intent,
            created=created,
            started=started,
        )
        reporter.started(action)
        downtime.before(action, clock.monotonic())
        outcome = _perform(action, context, journal, number, plan.snapshot or "")
        downtime.after(outcome, clock.monotonic())
        if isinstance(action, CreateInstance):
            created = intent
        if isinstance(action, StartInstance):
            started = created or intent
        outcomes.append(outcome)
        reporter.finished(outcome)
    seconds = downtime.total(clock.monotonic())
    _close(journal, number, outcomes, plan, seconds, adapters)
    return Execution(tuple(outcomes), seconds)


def _blocked(action: Action, outcomes: list[Outcome]) -> bool:
    done = {outcome.action.id for outcome in outcomes if outcome.status == "done"}
    return any(need not in done for need in action.needs)


def _perform(action: Action, context: Context, journal: Journal, number: int, snapshot: str) -> Outcome:
    clock = context.adapters.ports.clock
    begun = clock.monotonic()
    spec_digest = action.target.spec_digest if isinstance(action, CreateInstance | StartInstance) else ""
    journal.begin(
        context.intent,
        pass_number=number,
        action=action.to_json(),
        kind=action.kind,
        spec_digest=spec_digest,
        now=clock.now(),
    )
    try:
        changes = _changes(action, context)
    except ReconcileError as error:
        changes = after_failure(
            action,
            error,
            memory=context.memory,
            hardware=context.hardware,
            snapshot=snapshot,
            now=clock.now(),
            instance=context.started,
        )
        text = f"{error.reason}: {error.message}"
        if context.adapters.ports.stop.is_set():
            # It was told to stop: that says nothing about its subject.
            journal.finish(context.intent, outcome="cancelled", error=text, changes=(), now=clock.now())
            return Outcome(action, "cancelled", error, clock.monotonic() - begun)
        journal.finish(context.intent, outcome="failed", error=text, changes=changes, now=clock.now())
        return Outcome(action, "failed", error, clock.monotonic() - begun)
    journal.finish(context.intent, outcome="done", error="", changes=changes, now=clock.now())
    return Outcome(action, "done", None, clock.monotonic() - begun)


def _changes(action: Action, context: Context) -> Changes:
    try:
        return kind_of(action).perform(action, context)
    except OSError as error:
        raise of_disk(error) from error


def _close(
    journal: Journal, number: int, outcomes: list[Outcome], plan: Plan, downtime: float, adapters: Adapters
) -> None:
    statuses = {outcome.status for outcome in outcomes}
    whole = statuses <= {"done"}
    failed = next((outcome for outcome in outcomes if outcome.error is not None), None)
    if failed is not None and failed.error is not None:
        summary = f"{failed.action.id}: {failed.error.reason}: {failed.error.message}"
    else:
        summary = ", ".join(outcome.action.id for outcome in outcomes)
    if plan.outside_window:
        summary = f"{summary} (outside its maintenance window, by hand)"
    journal.finish_pass(
        number,
        outcome="applied" if whole else "cancelled" if "cancelled" in statuses else "failed",
        downtime_ms=round(downtime * 1000),
        summary=summary[:1000],
        applied=(plan.snapshot or "") if whole and not plan.held else "",
        downtime_kind=plan.cost.downtime_kind if whole else "",
        now=adapters.ports.clock.now(),
    )


class _Downtime:
    """From the moment the serving instance is asked to stop until its replacement has passed its probe."""

    def __init__(self, plan: Plan) -> None:
        # Where nothing is started, something else serves, or nothing should; in an overlap the old one serves on.
        self._counts = any(isinstance(item, StartInstance) and item.strategy != "overlap" for item in plan.actions)
        self._since: float | None = None
        self._total = 0.0

    def before(self, action: Action, now: float) -> None:
        if self._counts and isinstance(action, StopInstance | StartInstance) and self._since is None:
            serving = isinstance(action, StartInstance) or action.drain > 0
            self._since = now if serving else None

    def after(self, outcome: Outcome, now: float) -> None:
        if isinstance(outcome.action, ValidateModel) and outcome.status == "done" and self._since is not None:
            self._total += now - self._since
            self._since = None

    def total(self, now: float) -> float:
        return self._total + (now - self._since if self._since is not None else 0.0)
