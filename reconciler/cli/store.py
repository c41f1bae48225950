"""The node's commands about stored models: hash them again, remove what is not listed."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli import wiring
from reconciler.cli.console import duration, emit, plural, say, size, table
from reconciler.cli.node import config_option, json_option
from reconciler.verbs import ASKED
from schemas.errors import NotInitialised, StateLocked, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.executor import Execution, Outcome
    from reconciler.journal import Journal
    from reconciler.kinds.storage import Unlisted
    from reconciler.node import Node
    from reconciler.state_dir import StateDir
    from schemas.node import NodeConfig
    from schemas.observation import Observed
    from schemas.plan import Action, Held, VerifyModel

EXIT_CORRUPT: Final = 1
EXIT_HELD: Final = 5


# --- verify -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--all", "everything", is_flag=True, help="Every stored model that the snapshot lists.")
@config_option
@json_option
def verify(models: tuple[str, ...], config_file: str | None, *, everything: bool, as_json: bool) -> None:
    """Hash stored models again: MODEL is NAME:VERSION, or NAME for all its versions.

    A model whose bytes are not its manifest's is quarantined, and its receipt is void; the next pass fetches what is
    bad of it. A running daemon does the work itself.
    """
    if bool(models) == everything:
        raise UsageError("name the models to hash, or say --all")
    config = wiring.load_config(wiring.config_path(config_file))
    state = _state(config)
    try:
        with state.lock():
            verdicts = _verify_here(config, state, models, as_json=as_json)
    except StateLocked:
        verdicts = _verify_there(config, state, models, as_json=as_json)
    if as_json:
        emit({"models": [{"model": key, "good": not said, "message": said} for key, said in verdicts]})
    else:
        rows = [(key, "bad" if said else "good", said) for key, said in verdicts]
        say(*(table(("Model", "Bytes", "What"), rows) if rows else ["No listed model is stored here."]))
    if any(said for _, said in verdicts):
        sys.exit(EXIT_CORRUPT)


def _verify_here(config: NodeConfig, state: StateDir, models: Sequence[str], *, as_json: bool) -> list[tuple[str, str]]:
    """Hash in this process, as a pass would."""
    with closing(wiring.open_journal(state, readonly=False)) as journal:
        node, observed = _look(config, journal)
        actions = _checks(node, observed, models)
        execution = _execute(config, journal, observed, actions, as_json=as_json)
    verdicts = []
    for outcome in execution.outcomes:
        if outcome.status == "cancelled":
            raise click.Abort
        said = f"{outcome.error.reason}: {outcome.error.message}" if outcome.error is not None else ""
        verdicts.append((_key(outcome.action), said))
    return verdicts


def _verify_there(
    config: NodeConfig, state: StateDir, models: Sequence[str], *, as_json: bool
) -> list[tuple[str, str]]:
    """Ask the daemon for a pass that hashes, and read its verdicts off it."""
    from reconciler.cli.passes import pass_there
    from reconciler.watch import Wake
    from schemas.control import Verify
    from schemas.plan import VerifyModel

    wake = Wake()
    wake.on_signals()
    with closing(wiring.open_journal(state, readonly=True)) as journal:
        node, observed = _look(config, journal)
        if observed.memory.suspended:
            click.echo(
                f"Suspended ({observed.memory.suspended}): nothing is hashed before `reconcile resume`.", err=True
            )
            sys.exit(EXIT_HELD)
        asked = {action.manifest.digest: action.model for action in _checks(node, observed, models)}
    if not asked:
        return []
    click.echo(f"The daemon hashes {plural(len(asked), 'model')} now.", err=True)
    result = pass_there(state, Verify(manifests=tuple(asked)), wake, as_json=as_json)
    # What was asked for and not hashed: it went away, or the pass ended before it came to it.
    verdicts = dict.fromkeys(asked.values(), "it was not hashed; `reconcile why` says more")
    for outcome in result.outcomes:
        if isinstance(outcome.action, VerifyModel) and outcome.action.manifest.digest in asked:
            said = f"{outcome.error.reason}: {outcome.error.message}" if outcome.error is not None else ""
            verdicts[outcome.action.model] = said if outcome.status in ("done", "failed") else outcome.status
    return list(verdicts.items())


def _checks(node: Node, observed: Observed, models: Sequence[str]) -> list[VerifyModel]:
    """What there is to hash.

    Raises:
        UsageError: a named model is not stored, or not listed.
    """
    from schemas.observation import Present, StoredModel
    from schemas.plan import VerifyModel

    accepted = node.journal.accepted()
    if accepted is None:
        raise NotInitialised("no snapshot was accepted yet", hint="run `reconcile` once")
    found = []
    known = set()
    for spec in node.documents.snapshot(accepted.digest).spec.models:
        seen = observed.state.models.get(spec.manifest.digest)
        if not isinstance(seen, Present) or not isinstance(seen.value, StoredModel):
            continue
        known |= {spec.key, spec.name}
        if not models or spec.key in models or spec.name in models:
            action = VerifyModel(
                id=f"verify/{spec.key}", cause=ASKED, model=spec.key, manifest=spec.manifest, size=seen.value.size
            )
            found.append(action)
    strange = sorted(set(models) - known)
    if strange:
        raise UsageError(
            f"{strange[0]} is not a listed model that is stored here", hint="`reconcile models` lists them"
        )
    return found


def _key(action: Action) -> str:
    return action.id.partition("/")[2]


# --- gc -----------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, now and later. Changes nothing.")
@config_option
@json_option
def gc(config_file: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Remove what the snapshot no longer lists, once its grace is over, and what an interruption left behind.

    The grace is counted in running time. Nothing is removed on an empty list, or on one that was not verified.
    """
    config = wiring.load_config(wiring.config_path(config_file))
    state = _state(config)
    if dry_run:
        with closing(wiring.open_journal(state, readonly=True)) as journal:
            actions, waiting, held, _ = _garbage(config, journal)
            _show(actions, waiting, held, as_json=as_json, done=False)
        return
    try:
        with state.lock(), closing(wiring.open_journal(state, readonly=False)) as journal:
            actions, waiting, held, observed = _garbage(config, journal)
            outcomes: Sequence[Outcome] = _execute(config, journal, observed, actions, as_json=as_json).outcomes
    except StateLocked:
        actions, waiting, held, outcomes = _collect_there(config, state, as_json=as_json)
    _show(actions, waiting, held, as_json=as_json, done=True)
    if any(outcome.status == "failed" for outcome in outcomes):
        sys.exit(EXIT_CORRUPT)
    if held:
        sys.exit(EXIT_HELD)


def _collect_there(
    config: NodeConfig, state: StateDir, *, as_json: bool
) -> tuple[list[Action], list[tuple[Unlisted, float]], tuple[Held, ...], Sequence[Outcome]]:
    """Ask the daemon for a pass, which removes what is due; what it removed, what still waits, what is held."""
    from reconciler.cli.passes import pass_there
    from reconciler.watch import Wake
    from schemas.control import CollectGarbage
    from schemas.plan import RemoveLeftover, RemoveModel, SweepStore

    wake = Wake()
    wake.on_signals()
    result = pass_there(state, CollectGarbage(), wake, as_json=as_json)
    outcomes = [item for item in result.outcomes if isinstance(item.action, RemoveModel | RemoveLeftover | SweepStore)]
    with closing(wiring.open_journal(state, readonly=True)) as journal:
        _, waiting, held, _ = _garbage(config, journal)
    return [item.action for item in outcomes if item.status == "done"], waiting, held, outcomes


def _garbage(
    config: NodeConfig, journal: Journal
) -> tuple[list[Action], list[tuple[Unlisted, float]], tuple[Held, ...], Observed]:
    """What is due, what waits with the seconds that are left of its grace, and what is held back."""
    from reconciler.kinds.storage import in_use, unlisted
    from reconciler.planner import plan
    from reconciler.target import choose
    from schemas.plan import RemoveLeftover, RemoveModel, SweepStore

    accepted = journal.accepted()
    node = _node(config, journal)
    desired, observed = node.look(accepted.digest if accepted is not None else "")
    made = plan(desired, observed, config, node.adapters.ports.clock.now())
    due: list[Action] = [item for item in made.actions if isinstance(item, RemoveModel | RemoveLeftover | SweepStore)]
    grace = desired.document.spec.policy.gc.grace if desired.document is not None else 0
    names = {_key(action) for action in due}
    kept = in_use(choose(desired, observed, config), observed)
    waiting = [
        (item, max(0.0, grace - item.seconds)) for item in unlisted(desired, observed, kept) if item.name not in names
    ]
    return due, waiting, tuple(item for item in made.held if item.reason == "Suspended"), observed


def _show(
    actions: Sequence[Action],
    waiting: Sequence[tuple[Unlisted, float]],
    held: Sequence[Held],
    *,
    as_json: bool,
    done: bool,
) -> None:
    from schemas.plan import RemoveLeftover, RemoveModel, SweepStore

    due = [
        (_key(action), action.size, action.cause)
        for action in actions
        if isinstance(action, RemoveModel | RemoveLeftover | SweepStore)
    ]
    later = [(item.name, item.size, f"{item.what}, {duration(left)} of its grace left") for item, left in waiting]
    if as_json:
        emit(
            {
                "removed" if done else "due": [{"name": n, "bytes": b, "cause": c} for n, b, c in due],
                "waiting": [
                    {"name": item.name, "bytes": item.size, "what": item.what, "seconds": left}
                    for item, left in waiting
                ],
                "held": [item.message for item in held],
            }
        )
        return
    for title, rows in (("Removed" if done else "Would be removed now", due), ("Kept for now", later)):
        if rows:
            say(f"{title}, {size(sum(count for _, count, _ in rows))}:")
            say(*table(("What", "Size", "Why"), [(name, size(count), why) for name, count, why in rows]), "")
    for item in held:
        say(f"Held: {item.message}")
    if not due and not later:
        say("Nothing to remove: everything in the store is listed, or in use.")


# --- inside -------------------------------------------------------------------------------------------------------


def _state(config: NodeConfig) -> StateDir:
    from reconciler.state_dir import StateDir

    return StateDir(Path(config.state_dir))


def _silent(subject: str, done: int, total: int) -> None:
    pass


def _node(config: NodeConfig, journal: Journal) -> Node:
    return wiring.build_node(config, journal, ports=wiring.host(), progress=_silent)


def _look(config: NodeConfig, journal: Journal) -> tuple[Node, Observed]:
    node = _node(config, journal)
    accepted = journal.accepted()
    _, observed = node.look(accepted.digest if accepted is not None else "")
    return node, observed


def _execute(
    config: NodeConfig, journal: Journal, observed: Observed, actions: Sequence[Action], *, as_json: bool
) -> Execution:
    """Carry out actions that a person asked for, and nothing else; recorded as a pass of their own."""
    from reconciler.cli.progress import display
    from reconciler.executor import Execution, execute
    from reconciler.fingerprint import fingerprint
    from reconciler.watch import Wake
    from schemas.plan import Plan

    if not actions:
        return Execution((), 0.0)
    wake = Wake()
    wake.on_signals()
    ports = wiring.host(wake)
    journal.close_interrupted(ports.clock.now())
    with display(as_json=as_json) as shown:
        node = wiring.build_node(config, journal, ports=ports, progress=shown.advance)
        made = Plan(
            network=config.network,
            node=observed.node_id,
            observation=fingerprint(observed),
            actions=tuple(actions),
            made_at=ports.clock.now().replace(microsecond=0),
        )
        return execute(
            made,
            observed=observed,
            node=config,
            adapters=node.adapters,
            journal=journal,
            sources={},
            reporter=shown,
        )
