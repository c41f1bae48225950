"""The node's own commands: plans, everything that looks at the node, and an operator's hand on it."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli import wiring
from reconciler.cli.inventory import inventory_option

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from desired_state.files import DocumentFiles
    from reconciler.desired import Desired
    from reconciler.journal import Journal
    from reconciler.state_dir import StateDir
    from schemas.control import Question
    from schemas.node import NodeConfig
    from schemas.observation import Observed
    from schemas.plan import Plan
    from schemas.status import NodeStatus

config_option = click.option(
    "--config",
    "-c",
    "config_file",
    type=click.Path(),
    help="The node's configuration (default: /etc/reconcile/node.yaml).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with a formatVersion.")


# --- plan and apply -----------------------------------------------------------------------------------------------


@click.command()
@config_option
@json_option
@click.option("--out", type=click.Path(dir_okay=False), help="Save the plan for `reconcile apply`.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 when changes are pending.")
@click.option(
    "--snapshot",
    "draft",
    metavar="DIR|REV",
    help="Plan a working copy, or a revision of the one in this folder; signed or not.",
)
@inventory_option
@click.option("--ignore-window", is_flag=True, help="Plan as if every maintenance window were open.")
def plan(
    config_file: str | None,
    as_json: bool,
    out: str | None,
    detailed_exitcode: bool,
    draft: str | None,
    inventory: Path | None,
    ignore_window: bool,
) -> None:
    """Show what would be done, and why. Changes nothing.

    With --inventory: what the working copy in this folder (or --snapshot) would do to each of those nodes; no
    configuration of a node is needed.
    """
    if inventory is not None:
        _plan_fleet(draft or ".", inventory, as_json=as_json)
        return
    config = wiring.load_config(wiring.config_path(config_file))
    made, refusal = make_plan(config, draft, ignore_windows=ignore_window)
    if out is not None:
        Path(out).write_text(made.to_json() + "\n", encoding="utf-8")
    if as_json:
        click.echo(made.to_json())
    else:
        from reconciler.cli.render_plan import plan_text

        click.echo(plan_text(made))
        if out is not None:
            click.echo(f"\nSaved to {out}; run `reconcile apply {out}`.")
    if refusal is not None:
        raise refusal
    pending = {held.reason for held in made.held} & {"Suspended", "OutsideWindow"}
    if detailed_exitcode and (made.actions or pending):
        sys.exit(2 if made.actions else 5)


def _plan_fleet(draft: str, inventory: Path, *, as_json: bool) -> None:
    from desired_state.document import SNAPSHOT_LIMIT
    from reconciler.cli.inventory import fleet_lines, plan_fleet
    from reconciler.cli.operators import now, open_workspace, read_snapshot

    folder = Path(draft)
    workspace = open_workspace(folder if folder.is_dir() else Path(), None)
    files = workspace.files if folder.is_dir() else workspace.revision(draft)
    content = files.read(workspace.snapshot_file, SNAPSHOT_LIMIT)
    made = plan_fleet(files, content, read_snapshot(content, workspace.snapshot_file), inventory, now())
    click.echo(made.to_json() if as_json else "\n".join(fleet_lines(made)))


def make_plan(
    config: NodeConfig,
    draft: str | None,
    *,
    ignore_windows: bool = False,
    looked: Callable[[Desired, Observed], None] = lambda _desired, _observed: None,
) -> tuple[Plan, Exception | None]:
    """A plan as it would be made now, and why the newest snapshot is refused, if it is. Changes nothing (I9).

    Args:
        config: the node's configuration.
        draft: a working copy, or a revision of one; None asks the repositories.
        ignore_windows: as if every maintenance window were open.
        looked: given both arguments of the decision.
    """
    from tempfile import TemporaryDirectory

    from reconciler.planner import plan as make
    from reconciler.preview import preview, preview_files, told

    with closing(wiring.open_journal(_state(config), readonly=True)) as journal:
        ports = wiring.host()
        now = ports.clock.now()
        with TemporaryDirectory(prefix="reconcile-plan-") as scratch:
            if draft is not None:
                seen = preview_files(config, _files(config, draft))
            else:
                git = Path(scratch) / "repo.git"
                seen = preview(config, journal, ports=ports, scratch=git, agent=wiring.agent_version(), now=now)
        node = wiring.build_node(config, journal, ports=ports, progress=_silent, overlay=seen.documents)
        desired, observed = node.look(seen.digest, verified=seen.verified, cleared=seen.cleared)
        looked(desired, observed)
        return told(make(desired, observed, config, now, ignore_windows=ignore_windows), seen), seen.refusal


def _files(config: NodeConfig, draft: str) -> DocumentFiles:
    """A folder, or a revision of the work tree that this folder lies in."""
    from desired_state.files import FolderFiles

    if Path(draft).is_dir():
        return FolderFiles(Path(draft))
    from reconciler.cli.operators import open_workspace

    return open_workspace(Path(), config.network).revision(draft)


def _silent(subject: str, done: int, total: int) -> None:
    pass


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@config_option
@json_option
def apply(file: str, config_file: str | None, as_json: bool) -> None:
    """Carry out a saved plan, if it is still what would be done. A running daemon does so itself."""
    from reconciler.cli.passes import make_pass
    from schemas.control import Apply
    from schemas.errors import StalePlan
    from schemas.plan import Plan

    config = wiring.load_config(wiring.config_path(config_file))
    try:
        expected = Plan.model_validate_json(Path(file).read_bytes())
    except ValueError as error:
        raise StalePlan(f"{file} is not a plan of this version", hint="run `reconcile plan --out FILE`") from error
    if expected.draft:
        raise StalePlan(f"{file} was made from an unsigned working copy: a draft is never applied")
    question = Apply(plan=expected)
    sys.exit(make_pass(config, question, lambda reconciler: reconciler.run_pass(expected=expected), as_json=as_json))


# --- looking ------------------------------------------------------------------------------------------------------


@click.command()
@config_option
@json_option
def status(config_file: str | None, as_json: bool) -> None:
    """Show what the node is, what serves, and why."""
    seen = _with_live_counts(_status(config_file), config_file)
    if as_json:
        click.echo(seen.to_json())
        return
    from reconciler.cli.render_status import status_text

    click.echo(status_text(seen, _now()))
    _warn_of_silence(config_file)


def _warn_of_silence(config_file: str | None) -> None:
    """What is shown is what was said last: a daemon that cannot write, or hangs, has nothing newer to show."""
    from reconciler.published import silence

    config = wiring.load_config(wiring.config_path(config_file))
    state = _state(config)
    if state.holder() is not None and (text := silence(state, config.interval, _now())):
        click.echo(f"warning: the daemon {text}; this may be old: `reconcile doctor`", err=True)


def _with_live_counts(seen: NodeStatus, config_file: str | None) -> NodeStatus:
    """The front's counts as they are now, for whoever may ask it."""
    from reconciler.fronting import live_counts

    config = wiring.load_config(wiring.config_path(config_file))
    front = wiring.build_front(config, _state(config), wiring.host())
    counts = live_counts(front) if front is not None else None
    if seen.front is None or counts is None:
        return seen
    return seen.model_copy(update={"front": seen.front.model_copy(update={"counts": counts})})


@click.command()
@config_option
@json_option
def models(config_file: str | None, as_json: bool) -> None:
    """List the node's models and their states."""
    seen = _status(config_file)
    if as_json:
        click.echo(json.dumps({"formatVersion": "1", "models": json.loads(seen.to_json())["models"]}))
        return
    from reconciler.cli.render_status import models_text

    click.echo(models_text(seen, _now()))


@click.command()
@config_option
@json_option
@click.option("--limit", type=click.IntRange(1, 2000), default=20, show_default=True)
def history(config_file: str | None, as_json: bool, limit: int) -> None:
    """List the passes that had something to do, newest first."""
    with _journal(config_file) as journal:
        passes = journal.history(limit=limit)
    if as_json:
        click.echo(json.dumps({"formatVersion": "1", "passes": [_as_json(item) for item in passes]}))
        return
    from reconciler.cli.render_status import history_text

    click.echo(history_text(passes, _now()))


@click.command()
@config_option
@json_option
@click.option("--follow", "-f", is_flag=True, help="Go on as they happen.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def events(config_file: str | None, as_json: bool, follow: bool, limit: int) -> None:
    """List what happened, oldest first."""
    from reconciler.cli.render_status import event_line
    from reconciler.watch import Wake

    wake = Wake()
    if follow:
        wake.on_signals()
    with _journal(config_file) as journal:
        newest = 0
        while True:
            for event in journal.events(after=newest, limit=limit):
                newest = event.number
                click.echo(json.dumps({"formatVersion": "1", **_as_json(event)}) if as_json else event_line(event))
            if not follow or wake.wait(0.5):
                return


# --- an operator's hand -------------------------------------------------------------------------------------------


@click.command()
@click.argument("reason", default="suspended by hand")
@config_option
def suspend(reason: str, config_file: str | None) -> None:
    """Hold every change but a withdrawal, until `resume`."""
    from schemas.control import Suspend

    _change(config_file, Suspend(why=reason))
    click.echo("Suspended: changes are held until `reconcile resume`.")


@click.command()
@config_option
def resume(config_file: str | None) -> None:
    """Let changes be applied again."""
    from schemas.control import Resume

    _change(config_file, Resume())
    click.echo("Resumed. `reconcile` applies what has been waiting; a daemon does so now.")


@click.command()
@config_option
@click.option("--reload", is_flag=True, help="Have it read its configuration again, too.")
def notify(config_file: str | None, *, reload: bool) -> None:
    """Tell a running daemon to look at once; for webhooks and post-receive hooks."""
    from reconciler.asking import ask
    from schemas.control import Notify, Reload

    ask(_state(wiring.load_config(wiring.config_path(config_file))), Reload() if reload else Notify())
    click.echo("The daemon looks now.")


@click.command()
@click.argument("subjects", nargs=-1)
@config_option
def retry(subjects: tuple[str, ...], config_file: str | None) -> None:
    """Forget remembered failures: of the named subjects, or all."""
    from schemas.control import Retry

    count = _change(config_file, Retry(subjects=subjects))
    click.echo(f"{count} remembered failures were cleared." if count else "There was nothing to clear.")


# --- inside -------------------------------------------------------------------------------------------------------


def _state(config: NodeConfig) -> StateDir:
    from reconciler.state_dir import StateDir

    return StateDir(Path(config.state_dir))


def _status(config_file: str | None) -> NodeStatus:
    from reconciler.published import read_status
    from schemas.errors import NotInitialised

    state = _state(wiring.load_config(wiring.config_path(config_file)))
    seen = read_status(state)
    if seen is None:
        raise NotInitialised(f"{state.status} does not exist yet", hint="run `reconcile` once")
    return seen


def _journal(config_file: str | None) -> closing[Journal]:
    config = wiring.load_config(wiring.config_path(config_file))
    return closing(wiring.open_journal(_state(config), readonly=True))


def _change(config_file: str | None, question: Question) -> int:
    """Have a daemon record what an operator wants, and act on it at once; without one, record it here."""
    from reconciler.asking import ask
    from reconciler.verbs import record
    from schemas.errors import DaemonUnreachable

    config = wiring.load_config(wiring.config_path(config_file))
    state = _state(config)
    try:
        return ask(state, question).count
    except DaemonUnreachable:
        if (holder := state.holder()) is not None:
            text = f"process {holder} works on this node and does not answer: it counts from its next pass on"
            click.echo(f"warning: {text} (`reconcile doctor`)", err=True)
        # Read-only first: a journal must exist, it is not made here.
        wiring.open_journal(state, readonly=True).close()
        with closing(wiring.open_journal(state, readonly=False)) as journal:
            return record(question, journal, _now())


def _now() -> datetime:
    from runtime.host import SystemClock

    return SystemClock().now()


def _as_json(item: object) -> dict[str, object]:
    from dataclasses import asdict
    from datetime import datetime

    fields = asdict(item)  # type: ignore[call-overload]
    return {
        _camel(name): value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in fields.items()
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
