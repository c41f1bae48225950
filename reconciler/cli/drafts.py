"""The commands of `reconcile snapshot` that write."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import diff_lines, next_steps, say, warn
from reconciler.cli.operators import (
    VALID,
    edit_snapshot,
    incomplete,
    now,
    read_trust,
    save_snapshot,
    workspace_options,
    write_schemas,
)
from reconciler.cli.options import DurationType
from schemas.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desired_state.authoring import Document
    from desired_state.paths import Steps
    from desired_state.workspace import Workspace

valid_option = click.option(
    "--valid",
    type=DurationType(),
    default=int(VALID.total_seconds()),
    show_default="30d",
    help="Validity from now, e.g. 30d.",
)


@click.command()
@workspace_options
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(["container", "native"]),
    default=["container"],
    show_default=True,
    help="How the network allows engines to be run; repeatable.",
)
@valid_option
def new(workspace: Workspace, modes: tuple[str, ...], valid: int) -> None:
    """Write the first snapshot of a network: empty, with a comment on everything."""
    from desired_state.drafting import new_snapshot

    trust = read_trust(workspace)
    content = new_snapshot(
        workspace.network,
        epoch=trust.state.epoch,
        trust_version=trust.state.version,
        modes=modes,
        issued=now(),
        valid=timedelta(seconds=valid),
    )
    workspace.write_new(workspace.snapshot_file, content.encode())
    write_schemas(workspace)
    say(f"Wrote {workspace.snapshot_file}")
    say("Its first line lets editors with a YAML language server complete and check it, from .schemas/.")
    next_steps(
        "reconcile runtime set NAME --engine llamacpp ...", "reconcile model add PATH --name NAME --version VERSION"
    )


_EXAMPLES = """\b
Examples:
  reconcile snapshot set spec.policy.gc.grace 48h
  reconcile snapshot set 'spec.models[mistral:v1].state' archived
  reconcile snapshot set spec.policy.modes '[container, native]'
"""


@click.command("set", epilog=_EXAMPLES)
@workspace_options
@click.argument("path")
@click.argument("value")
def set_(workspace: Workspace, path: str, value: str) -> None:
    """Set the field at PATH to VALUE, which is YAML.

    PATH names fields with dots and items with brackets; an item is called by its number or its name.
    """
    from desired_state.paths import find

    document = edit_snapshot(workspace)
    before = document.text
    where = find(document.tree, path)
    document.set(where, _meant(document, where, value))
    finish(workspace, document, before)


@click.command()
@workspace_options
@click.argument("path")
def unset(workspace: Workspace, path: str) -> None:
    """Remove the field or item at PATH."""
    from desired_state.paths import find

    document = edit_snapshot(workspace)
    before = document.text
    document.remove(find(document.tree, path))
    finish(workspace, document, before)


@click.command()
@workspace_options
@click.argument("models", nargs=-1, required=True, metavar="MODEL:VERSION...")
@click.option("--runtime", required=True, help="Name of the runtime that serves.")
@click.option(
    "--match", "labels", multiple=True, metavar="KEY=VALUE", help="Only on nodes with this label; repeatable."
)
@click.option("--percent", type=click.IntRange(0, 100), help="Only on this share of them; the others fall through.")
@click.option("--wave", metavar="NAME", help="Instead of --percent: on the nodes up to this wave (spec.waves).")
@click.option("--rollout", metavar="KEY", help="Name of the share: those inside stay inside as it grows.")
def serve(
    workspace: Workspace,
    models: tuple[str, ...],
    runtime: str,
    labels: tuple[str, ...],
    percent: int | None,
    wave: str | None,
    rollout: str | None,
) -> None:
    """Serve MODEL:VERSION on the nodes that match; the first of several is loaded.

    An assignment for the same nodes is changed, otherwise a new one is put before the more general ones.
    """
    if (percent is None and wave is None) != (rollout is None) or (percent is not None and wave is not None):
        raise click.UsageError("--rollout goes with one of --percent and --wave")
    document = edit_snapshot(workspace)
    before = document.text
    for model in models:
        _listed(document, model)
    if runtime not in _names(document, "runtimes"):
        raise UsageError(f"there is no runtime {runtime!r}", hint="`reconcile runtime set` adds one")
    if wave is not None and wave not in _names(document, "waves"):
        hint = f"""reconcile snapshot set spec.waves '[{{"name": "{wave}", "percent": "5%"}}]'"""
        raise UsageError(f"there is no wave {wave!r}", hint=hint)
    selector = {"matchLabels": dict(_pair(label) for label in labels)} if labels else {}
    reached = {"wave": wave} if wave is not None else {"percent": f"{percent}%"}
    share = {**reached, "key": rollout} if rollout is not None else None
    place = _assignment(document, selector, rollout)
    if place is None:
        item = {
            **({"selector": selector} if selector else {}),
            **({"rollout": share} if share else {}),
            "runtime": runtime,
            "serve": list(models),
        }
        # The first match wins, so what is special comes before what is general.
        document.insert(("spec", "assignments"), item, 0 if selector or share else None)
    else:
        where: Steps = ("spec", "assignments", place)
        document.set_all({(*where, "runtime"): runtime, (*where, "serve"): list(models)})
        if share:
            document.set((*where, "rollout"), share)
    finish(workspace, document, before)


@click.command()
@workspace_options
@click.argument("thing", metavar="MODEL:VERSION|DIGEST|IMAGE")
@click.option("--reason", default="", help="For people, shown by every node.")
def withdraw(workspace: Workspace, thing: str, reason: str) -> None:
    """Stop a model or an image everywhere, at once, even if nothing then serves."""
    document = edit_snapshot(workspace)
    before = document.text
    if "@sha256:" in thing:
        digest = thing.rpartition("@")[2]
    elif thing.startswith(("blake3:", "sha256:")):
        digest = thing
    else:
        found = document.get((*_listed(document, thing), "manifest", "digest"))
        digest = str(found)
    entry = {"digest": digest, **({"reason": reason} if reason else {})}
    document.insert(("spec", "withdrawn"), entry)
    finish(workspace, document, before)
    if not thing.startswith(("blake3:", "sha256:")) and "@" not in thing:
        say(f"{thing} is still listed; to keep nodes from holding it: reconcile model remove {thing}")


@click.command()
@workspace_options
def pin(workspace: Workspace) -> None:
    """Bind every file that the snapshot names to the digest that it has now."""
    from desired_state.document import PROBE_LIMIT
    from schemas.digests import digest_bytes

    document = edit_snapshot(workspace)
    before = document.text
    changes: dict[Steps, Any] = {}
    for where, path, digest in file_refs(document.tree):
        found = digest_bytes(workspace.files.read(path, max(PROBE_LIMIT, 2**24)))
        if found != digest:
            changes[*where, "digest"] = found
    if not changes:
        say("Every file has the digest that the snapshot binds. Nothing to do.")
        return
    document.set_all(changes)
    finish(workspace, document, before)


# --- shared -------------------------------------------------------------------------------------------------------


def finish(workspace: Workspace, document: Document, before: str) -> None:
    """Write an edited snapshot, show the difference, and say what is next."""
    from desired_state.authoring import unified

    difference = unified(before, document.text, file=workspace.snapshot_file)
    if not difference:
        say("Nothing to change: it says so already.")
        return
    save_snapshot(workspace, document)
    say(*diff_lines(difference), "", f"Wrote {workspace.snapshot_file}")
    problem = incomplete(document, workspace.snapshot_file)
    if problem is not None:
        warn(f"the snapshot is not complete yet: {problem.message}")
    else:
        next_steps("reconcile snapshot bump, then reconcile snapshot sign --key FILE")


def file_refs(tree: Any, path: Steps = ()) -> Iterator[tuple[Steps, str, str]]:
    """Every reference to a file of the repository: where it stands, the path, and the digest it binds."""
    if isinstance(tree, dict):
        name, digest = tree.get("path"), tree.get("digest")
        if isinstance(name, str) and isinstance(digest, str):
            yield path, name, digest
        for key, item in tree.items():
            yield from file_refs(item, (*path, key))
    elif isinstance(tree, tuple):
        for index, item in enumerate(tree):
            yield from file_refs(item, (*path, index))


def _meant(document: Document, where: Steps, text: str) -> Any:
    """What VALUE means: YAML, unless only its text fits the field (a version of 0.32, a name of digits)."""
    from desired_state.document import parse
    from schemas.refusals import MalformedDocument

    try:
        tree, _ = parse(f"value: {text}\n".encode(), file="VALUE")
        value = tree.get("value") if isinstance(tree, dict) and "\n" not in text else text
    except MalformedDocument:
        return text
    if isinstance(value, str | dict | tuple):
        return value
    return text if _complaints(document, where, value) > _complaints(document, where, text) else value


def _complaints(document: Document, where: Steps, value: Any) -> int:
    """How often the schema complains about exactly this value."""
    from pydantic import ValidationError

    from desired_state.paths import changed
    from schemas.snapshot import SnapshotDocument

    try:
        SnapshotDocument.model_validate(changed(document.tree, where, value), by_alias=True, by_name=False)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        return sum(type(problem["input"]) is type(value) and problem["input"] == value for problem in problems)
    return 0


def _listed(document: Document, model: str) -> Steps:
    """Where a model stands in the snapshot."""
    from desired_state.paths import select

    items = document.get(("spec", "models"))
    index = select(items if isinstance(items, tuple) else (), model, where="spec.models")
    return ("spec", "models", index)


def _names(document: Document, kind: str) -> list[Any]:
    items = document.get(("spec", kind))
    return [item.get("name") for item in items if isinstance(item, dict)] if isinstance(items, tuple) else []


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not equals:
        raise click.BadParameter(f"{label!r} is not KEY=VALUE", param_hint="--match")
    return key, value


def _assignment(document: Document, selector: dict[str, Any], rollout: str | None) -> int | None:
    """The assignment for exactly these nodes."""
    items = document.get(("spec", "assignments"))
    for index, item in enumerate(items if isinstance(items, tuple) else ()):
        if not isinstance(item, dict):
            continue
        share = item.get("rollout")
        key = share.get("key") if isinstance(share, dict) else None
        if (item.get("selector") or {}) == selector and key == rollout:
            return index
    return None
