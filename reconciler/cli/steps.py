"""What a node is doing, or did last, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.cli.console import duration, paint, plural, relative_time, size, table

if TYPE_CHECKING:
    from datetime import datetime

    from schemas.status import PlanStatus, StepStatus, WantedStatus

_COLOURS: Final = {"running": "cyan", "done": "green", "failed": "red", "cancelled": "yellow"}


def wanted_line(wanted: WantedStatus | None) -> str:
    """What the snapshot wants here."""
    if wanted is None:
        return "nothing"
    return f"{wanted.model} on {wanted.runtime}" if wanted.runtime else f"{wanted.model}, which cannot run here"


def plan_lines(plan: PlanStatus | None, now: datetime) -> list[str]:
    """The plan that is carried out, or the last one that was, step by step; with an empty line before it."""
    if plan is None:
        return []
    if plan.ended_at is None:
        title = paint(f"Under way, begun {relative_time(plan.begun_at, now)}:", "cyan")
    else:
        title = f"Last plan, {relative_time(plan.begun_at, now)}:"
    rows = [
        (f"  {paint(step.state, _COLOURS.get(step.state, 'dim'))}", step.id, _took(step, now), step.error or step.cause)
        for step in plan.steps
    ]
    more = [f"  and {plural(plan.left_out, 'further step')}"] if plan.left_out else []
    return ["", title, *table(("  State", "Step", "Took", "Why"), rows), *more]


def _took(step: StepStatus, now: datetime) -> str:
    if step.state in ("waiting", "skipped"):
        return "-"
    running = step.state == "running" and step.since is not None
    seconds = max((now - step.since).total_seconds(), 0.0) if running and step.since is not None else step.seconds
    return duration(seconds) + (f", {size(step.done)} of {size(step.total)}" if step.total and running else "")
