"""Plans, drift and decisions as people read them. Text in, text out; the terminal is `console`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.cli.console import duration, paint, size
from schemas.digests import short
from schemas.plan import (
    CRASH_LOOPING,
    RESTARTING,
    Action,
    ArchiveModel,
    Cost,
    CreateInstance,
    DownloadModel,
    Drift,
    Explanation,
    Held,
    InstallEnvironment,
    MendInstance,
    Plan,
    PullImage,
    RemoveEnvironment,
    RemoveLeftover,
    RemoveModel,
    RestoreModel,
    RouteFront,
    SetModelState,
    StartFront,
    StartInstance,
    StopInstance,
    SweepStore,
    ValidateModel,
    VerifyEnvironment,
    VerifyModel,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_SIGNS: Final[dict[type[Action], tuple[str, str]]] = {
    DownloadModel: ("+", "download"),
    RestoreModel: ("+", "restore"),
    PullImage: ("+", "pull"),
    InstallEnvironment: ("+", "install"),
    VerifyEnvironment: ("~", "verify"),
    RemoveEnvironment: ("-", "remove"),
    VerifyModel: ("~", "verify"),
    ArchiveModel: ("~", "archive"),
    SetModelState: ("~", "state"),
    StopInstance: ("-", "stop"),
    MendInstance: ("~", "mend"),
    CreateInstance: ("~", "create"),
    StartInstance: ("+", "start"),
    ValidateModel: ("~", "validate"),
    RemoveModel: ("-", "remove"),
    RemoveLeftover: ("-", "remove"),
    SweepStore: ("-", "sweep"),
    StartFront: ("+", "front"),
    RouteFront: ("~", "route"),
}
_COLOURS: Final = {"+": "green", "~": "yellow", "-": "red", "-/+": "magenta"}


def action_line(action: Action, *, replaces: bool = False) -> str:
    """One action: sign, verb, what it is about, and why."""
    sign, verb = _SIGNS[type(action)]
    if replaces:
        sign = "-/+"
    what = paint(f"{sign:>3} {verb:<9}", _COLOURS[sign])
    return f"{what} {_about(action)}  {paint('(' + action.cause + ')', 'dim')}"


def _about(action: Action) -> str:
    if isinstance(action, StartFront | RouteFront):
        return _about_front(action)
    if isinstance(action, StopInstance):
        drain = f", drained for at most {action.drain} s" if action.drain else ""
        return f"{action.instance}  ({action.backend}{drain})"
    if isinstance(action, MendInstance):
        return f"{action.instance}  {', '.join(action.fields)}  ({action.backend})"
    if isinstance(action, CreateInstance | StartInstance | ValidateModel):
        target = action.target
        return f"{target.model}  on {target.engine} {target.version} ({target.backend})"
    if isinstance(action, InstallEnvironment | VerifyEnvironment | RemoveEnvironment):
        brings = f"  {action.engine} {action.version}" if isinstance(action, InstallEnvironment) else ""
        return f"environment {short(action.environment)}{brings}"
    return _about_bytes(action)


def _about_front(action: StartFront | RouteFront) -> str:
    if isinstance(action, StartFront):
        return "the address of this node's clients"
    return f"requests to {action.target.model if action.target is not None else 'nothing'}"


def _about_bytes(
    action: DownloadModel
    | RestoreModel
    | ArchiveModel
    | VerifyModel
    | RemoveModel
    | RemoveLeftover
    | SweepStore
    | SetModelState
    | PullImage,
) -> str:
    if isinstance(action, DownloadModel):
        hosts = f"from {len(action.sources)} source{'s' if len(action.sources) != 1 else ''}"
        return f"{action.model}  {size(action.to_fetch)} of {size(action.size)} {hosts}"
    if isinstance(action, RestoreModel | ArchiveModel | VerifyModel | RemoveModel | RemoveLeftover | SweepStore):
        return f"{_stored(action)}  {size(action.size)}"
    if isinstance(action, SetModelState):
        return f"{action.model}  {action.before} -> {action.after}"
    return f"{action.image}  ({action.backend})"


def _stored(action: RestoreModel | ArchiveModel | VerifyModel | RemoveModel | RemoveLeftover | SweepStore) -> str:
    if isinstance(action, SweepStore):
        return "the model store"
    return short(action.manifest) if isinstance(action, RemoveLeftover) else action.model


def plan_text(plan: Plan) -> str:
    """A plan as people expect it: actions with signs and reasons, a count, what it costs, what is held back."""
    lines = [_plan_header(plan), "", *drift_lines(plan.drift)]
    swap = {"StartInstance", "StopInstance"} <= {type(action).__name__ for action in plan.actions}
    lines += [
        action_line(action, replaces=swap and isinstance(action, StartInstance | StopInstance))
        for action in plan.actions
    ]
    if not plan.actions:
        lines.append("No changes." if not plan.held else "No changes now.")
    else:
        lines += ["", _count(plan, swap=swap), *_costs(plan)]
        if plan.outside_window:
            lines.append(paint("Outside its maintenance window: applied only because a person says so.", "yellow"))
    lines += held_lines(plan.held)
    lines += [""] if plan.notices else []
    lines += [f"{paint('Note:', 'yellow')} {item.reason}: {item.message}" for item in plan.notices]
    if plan.draft:
        lines += ["", paint("A draft: the snapshot was not verified. It can be read, never applied.", "yellow")]
    return "\n".join(lines)


def drift_lines(drift: Sequence[Drift]) -> list[str]:
    """What somebody else has changed, field by field; with an empty line after it."""
    if not drift:
        return []
    rows = []
    for item in drift:
        where = f" of {item.where}" if item.where else ""
        repaired = "" if item.repaired else paint("  (not repaired now)", "dim")
        rows.append(f"    {item.subject}: {item.field}{where}: {item.expected} -> {item.found}{repaired}")
    return [paint("Changed outside:", "yellow"), *rows, ""]


def held_lines(held: Sequence[Held], now: datetime | None = None) -> list[str]:
    """What waits, for what, and until when; with an empty line before it."""
    lines = ["", "Held back:"] if held else []
    for item in held:
        until = f" (until {item.until:%Y-%m-%d %H:%M:%SZ})" if item.until else ""
        if item.until and now is not None and item.reason in (RESTARTING, CRASH_LOOPING):
            left = (item.until - now).total_seconds()
            until = f" (next restart {f'in {duration(left)}' if left >= 1 else 'due'})"
        lines.append(f"  {item.subject}: {paint(item.reason, 'yellow')}: {item.message}{until}")
        if item.token is not None:
            lines.append(paint(f"    not tried again until it changes, or: reconcile retry {item.token}", "dim"))
    return lines


def _plan_header(plan: Plan) -> str:
    snapshot = f"snapshot {plan.sequence} ({short(plan.snapshot)})" if plan.snapshot else "no snapshot yet"
    return f"Node {plan.node}, network {plan.network}, {snapshot}"


def _count(plan: Plan, *, swap: bool) -> str:
    signs = [_SIGNS[type(action)][0] for action in plan.actions]
    add, change, remove = (signs.count(sign) for sign in ("+", "~", "-"))
    text = f"Plan: {add} to add, {change} to change, {remove} to remove."
    return paint(text, "bold") + (" One swap of the runtime." if swap else "")


def _costs(plan: Plan) -> list[str]:
    cost = plan.cost
    lines = []
    if cost.fetch:
        lines.append(f"Fetches {size(cost.fetch)}; disk +{size(cost.disk)} of {size(cost.disk_free)} free.")
    downtime = {
        "none": "Serving is not interrupted.",
        "swap": "Serving is interrupted by one swap, after everything else has been secured.",
        "start": "Nothing serves before; the runtime is started.",
    }
    strategies = {
        "overlap": "The replacement starts beside what serves: ",
        "replace": "What serves is stopped before its replacement starts: ",
    }
    lines += [
        f"{strategies[action.strategy]}{action.strategy_reason}."
        for action in plan.actions
        if isinstance(action, StartInstance) and action.strategy != "first"
    ]
    back = " What is stopped comes back afterwards: a second swap." if cost.back else ""
    return [*lines, downtime[cost.downtime] + back, *_prediction(cost)]


def _prediction(cost: Cost) -> list[str]:
    if not cost.downtime_kind:
        return []
    if cost.downtime_ms is None:
        return ["How long that takes here was not measured yet."]
    times = f"{cost.downtime_measured} time{'s' if cost.downtime_measured != 1 else ''}"
    return [f"Predicted downtime {duration(cost.downtime_ms / 1000)}: the median of what it took here, {times}."]


def why_text(steps: Sequence[Explanation], held: Sequence[Held], actions: Sequence[Action], thing: str) -> str:
    """The decision's trace, then what came of it."""
    if not (steps or held or actions):
        return f"Nothing was decided about {thing!r}. `reconcile why` alone shows every step."
    lines = [f"{step.subject}: {step.decision}" for step in steps]
    if actions:
        lines += ["", "Would be done:", *(action_line(action) for action in actions)]
    lines += held_lines(held)
    return "\n".join(lines)
