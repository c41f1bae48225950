"""What is being done right now, published while it is done: a download of hours is not the time to show the past."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from schemas.errors import ReconcileError
from schemas.plan import (
    ArchiveModel,
    DownloadModel,
    InstallEnvironment,
    PullImage,
    RestoreModel,
    RouteFront,
    StartInstance,
    StopInstance,
    ValidateModel,
    VerifyEnvironment,
    VerifyModel,
)
from schemas.status import Condition, PlanStatus, StepStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from reconciler.executor import Outcome, Reporter
    from schemas.plan import Action, Plan
    from schemas.ports import Clock
    from schemas.status import NodeStatus

LOG = logging.getLogger("reconcile")

MOST_STEPS: Final = 64
"""Steps of a plan that a status lists; a clean-up of a thousand models is one sort of step."""

ADVANCE_SECONDS: Final = 5.0
"""Between two published counts of bytes: often enough for whoever waits, seldom enough for the disk."""

_LONG: Final = (
    *(ArchiveModel, DownloadModel, InstallEnvironment, PullImage, RestoreModel, StartInstance, StopInstance),
    *(ValidateModel, VerifyEnvironment, VerifyModel),
)
"""What may take more than moments. What is done at once is published with whatever comes after it."""

_ROUTE: Final = RouteFront.model_fields["kind"].default


@dataclass(slots=True)
class _Carried:
    """A plan that is carried out."""

    status: NodeStatus
    plan: PlanStatus
    current: Action | None = None


class Underway:
    """Keeps how far a plan has come, and publishes it. Told as a reporter, and of bytes; decides nothing."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._publish: Callable[[NodeStatus], None] = lambda _: None
        self._clock: Clock | None = None
        self._carried: _Carried | None = None
        self._published_at = 0.0
        self._lock = threading.Lock()

    def publishes(self, publish: Callable[[NodeStatus], None], clock: Clock) -> None:
        """Say where to.

        Args:
            publish: writes the status for readers; what keeps it from that is no reason to end what is under way.
            clock: when things began, and how often bytes are worth a word.
        """
        self._publish, self._clock = publish, clock

    def begin(self, status: NodeStatus) -> None:
        """A plan is about to be carried out.

        Args:
            status: the node's report from before, with the plan in it.
        """
        with self._lock:
            if status.plan is not None:
                self._carried = _Carried(status, status.plan)

    def end(self, now: datetime) -> PlanStatus | None:
        """The plan was carried out, or given up: how far it came."""
        with self._lock:
            carried, self._carried = self._carried, None
        return carried.plan.model_copy(update={"ended_at": now.replace(microsecond=0)}) if carried is not None else None

    # --- told -----------------------------------------------------------------------------------------------------

    def started(self, action: Action) -> None:
        """An action begins."""
        with self._lock:
            if self._carried is None or self._clock is None:
                return
            self._carried.current = action
            self._put(action.id, state="running", since=self._clock.now().replace(microsecond=0))
            self._interrupted(action)
            if isinstance(action, _LONG):
                self._tell()

    def finished(self, outcome: Outcome) -> None:
        """An action ended, or was skipped."""
        with self._lock:
            if self._carried is None:
                return
            error = f"{outcome.error.reason}: {outcome.error.message}"[:4096] if outcome.error is not None else ""
            self._put(outcome.action.id, state=outcome.status, seconds=round(outcome.seconds, 3), error=error)
            self._carried.current = None

    def advance(self, _subject: str, done: int, total: int) -> None:
        """Bytes of what is under way are secured; called by any thread."""
        with self._lock:
            if self._carried is None or self._carried.current is None or self._clock is None:
                return
            self._put(self._carried.current.id, done=done, total=max(total, done))
            if self._clock.monotonic() - self._published_at >= ADVANCE_SECONDS:
                self._tell()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _put(self, action: str, **update: object) -> None:
        carried = self._carried
        assert carried is not None  # noqa: S101 - whoever calls has looked
        steps = tuple(step.model_copy(update=update) if step.id == action else step for step in carried.plan.steps)
        carried.plan = carried.plan.model_copy(update={"steps": steps})

    def _interrupted(self, action: Action) -> None:
        """What serves is about to stop, and nothing else serves yet: nobody is told otherwise."""
        carried = self._carried
        if carried is None or carried.status.serving is None or not isinstance(action, StopInstance):
            return
        routed = any(step.kind == _ROUTE for step in carried.plan.steps if step.state == "done")
        if action.instance != carried.status.serving.instance or routed:
            return
        now = carried.status.updated_at if self._clock is None else self._clock.now().replace(microsecond=0)
        conditions = tuple(
            _not_ready(item, now) if item.type == "Ready" else item for item in carried.status.conditions
        )
        models = tuple(item.model_copy(update={"loaded": False}) for item in carried.status.models)
        front = carried.status.front
        if front is not None and front.state == "serving":
            front = front.model_copy(update={"state": "holding"})
        update = {"serving": None, "conditions": conditions, "models": models, "front": front}
        carried.status = carried.status.model_copy(update=update)

    def _tell(self) -> None:
        carried, clock = self._carried, self._clock
        assert carried is not None  # noqa: S101 - whoever calls has looked
        assert clock is not None  # noqa: S101 - as above
        self._published_at = clock.monotonic()
        now = clock.now().replace(microsecond=0)
        try:
            self._publish(carried.status.model_copy(update={"plan": carried.plan, "updated_at": now}))
        except (OSError, ReconcileError) as error:
            # The end of the pass says it again, and fails if it still cannot be said.
            LOG.debug("what is under way cannot be published: %s", error)


def _not_ready(ready: Condition, now: datetime) -> Condition:
    since = now if ready.status != "False" else ready.since
    message = "what served is stopped, and its replacement does not serve yet"
    return Condition(type="Ready", status="False", reason="Swapping", message=message, since=since)


def planned(plan: Plan, now: datetime) -> PlanStatus:
    """A plan as a status shows it, before its first step. Pure."""
    shown = plan.actions[:MOST_STEPS]
    return PlanStatus(
        snapshot=plan.snapshot,
        begun_at=now.replace(microsecond=0),
        steps=tuple(StepStatus(id=item.id, kind=item.kind, cause=item.cause[:4096]) for item in shown),
        left_out=len(plan.actions) - len(shown),
    )


class Told:
    """A reporter that tells another, and `Underway` before it."""

    def __init__(self, underway: Underway, reporter: Reporter) -> None:
        self._underway, self._reporter = underway, reporter

    def started(self, action: Action) -> None:
        """An action begins."""
        self._underway.started(action)
        self._reporter.started(action)

    def finished(self, outcome: Outcome) -> None:
        """An action ended, or was skipped."""
        self._underway.finished(outcome)
        self._reporter.finished(outcome)
