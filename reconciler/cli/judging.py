"""The commands of `reconcile snapshot` that show and judge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import emit, next_steps, paint, plural, relative_time, say, size, table
from reconciler.cli.inventory import fleet_lines, inventory_option, plan_fleet, read_inventory
from reconciler.cli.operators import (
    count_signatures,
    missing_lines,
    now,
    read_snapshot,
    read_trust,
    try_trust,
    workspace_options,
)
from reconciler.cli.options import json_option
from reconciler.cli.timestamp import seen_timestamp, timestamp_line
from schemas.errors import UsageError
from schemas.refusals import DocumentError, NotTrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desired_state.compare import Comparison
    from desired_state.files import DocumentFiles
    from desired_state.lint import Finding
    from desired_state.workspace import Workspace
    from reconciler.cli.operators import Missing, Trust
    from schemas.snapshot import SnapshotDocument

# --- show and diff ------------------------------------------------------------------------------------------------


@click.command()
@workspace_options
@json_option
def show(workspace: Workspace, *, as_json: bool) -> None:
    """Show what the snapshot says, and who signed it."""
    from desired_state.compare import model_states, selector_text
    from schemas.digests import digest_bytes

    content = workspace.snapshot()
    document = read_snapshot(content, workspace.snapshot_file)
    if as_json:
        emit({"digest": digest_bytes(content), "snapshot": json.loads(document.to_json())})
        return
    metadata, spec = document.metadata, document.spec
    sizes = sizes_of(workspace.files, document)
    say(
        f"Snapshot  {paint(str(metadata.sequence), 'bold')} of {metadata.network}, epoch {metadata.epoch}",
        f"Digest    {digest_bytes(content)}",
        f"Previous  {metadata.previous or 'none'}",
        f"Valid     {metadata.issued_at:%Y-%m-%d %H:%M} to {metadata.expires_at:%Y-%m-%d %H:%M} UTC "
        f"({relative_time(metadata.expires_at, now())})",
        f"Models    {model_states(spec.models)}",
        "",
    )
    models = [
        (model.key, model.state, size(sizes[model.manifest.digest]) if model.manifest.digest in sizes else "?")
        for model in spec.models
    ]
    runtimes = [(item.name, f"{item.engine} {item.version}", ", ".join(item.modes)) for item in spec.runtimes]
    assigned = [(selector_text(item), ", ".join(item.serve), item.runtime) for item in spec.assignments]
    say(*table(("Model", "State", "Size"), models), "")
    say(*table(("Runtime", "Engine", "Modes"), runtimes), "")
    say(*table(("Nodes", "Serve", "Runtime"), assigned))
    if spec.withdrawn:
        say("", *table(("Withdrawn", "Reason"), [(entry.digest, entry.reason) for entry in spec.withdrawn]))
    trust = try_trust(workspace)
    if trust is not None:
        say("", "Signatures:", *missing_lines([count(workspace, trust, document, content)]))
        said = seen_timestamp(workspace, trust.state)
        if said is not None:
            say("", f"Timestamp: {timestamp_line(said, digest_bytes(content))}")


@click.command()
@workspace_options
@click.argument("before", default="HEAD")
@click.argument("after", default="")
@inventory_option
@json_option
def diff(workspace: Workspace, before: str, after: str, inventory: Path | None, *, as_json: bool) -> None:
    """Show what changes from BEFORE to AFTER: revisions of git, folders or files.

    Without them: from the last commit to the working copy. With --inventory, also what AFTER would do to each node.
    """
    from desired_state.compare import compare

    old = _version(workspace, before)
    new = _version(workspace, after) if after else _Version(workspace.snapshot(), workspace.files)
    if new is None:
        raise UsageError(f"{after!r} has no snapshot of {workspace.network}")
    old_document = read_snapshot(old.content, before) if old is not None else None
    new_document = read_snapshot(new.content, after or workspace.snapshot_file)
    found = compare(old_document, new_document, sizes_of(new.files or workspace.files, new_document))
    reach = None
    if inventory is not None and new.files is not None:
        reach = plan_fleet(new.files, new.content, new_document, inventory, now())
    elif inventory is not None:
        raise UsageError("an inventory needs the manifests of AFTER too: name a folder or a revision, not a file")
    if as_json:
        emit(
            _comparison_json(found, old_document, new_document)
            | ({"fleet": json.loads(reach.to_json())} if reach is not None else {})
        )
        return
    say(*comparison_lines(found, old_document, new_document))
    if reach is not None:
        say("", *fleet_lines(reach))
    if not after:
        trust = try_trust(workspace)
        if trust is not None:
            say("", "Signatures:", *missing_lines([count(workspace, trust, new_document, new.content)]))


@dataclass(frozen=True, slots=True)
class _Version:
    """A snapshot from somewhere, and what lies around it: nothing around a single file."""

    content: bytes
    files: DocumentFiles | None = None


def _version(workspace: Workspace, name: str) -> _Version | None:
    """A snapshot by revision, folder or file; None where a revision has none."""
    from desired_state.document import SNAPSHOT_LIMIT

    path = Path(name)
    if workspace.has_revision(name):
        content = workspace.at(name, workspace.snapshot_file, limit=SNAPSHOT_LIMIT)
        return _Version(content, workspace.revision(name)) if content is not None else None
    if path.is_dir():
        from reconciler.cli.operators import open_workspace

        other = open_workspace(path, workspace.network)
        return _Version(other.snapshot(), other.files)
    if path.is_file() and path.stat().st_size <= SNAPSHOT_LIMIT:
        return _Version(path.read_bytes())
    if name == "HEAD":
        return None  # before the first commit, or outside git: everything is new
    raise UsageError(f"{name!r} is neither a revision of git, nor a folder, nor a file")


def comparison_lines(found: Comparison, before: SnapshotDocument | None, after: SnapshotDocument) -> list[str]:
    """A comparison as people read it: signs as in a plan, and what it costs."""
    colours = {"+": "green", "~": "yellow", "-": "red"}
    origin = f"snapshot {before.metadata.sequence}" if before is not None else "nothing"
    lines = [f"From {origin} to snapshot {after.metadata.sequence}:"]
    for change in found.changes:
        lines.append(paint(f"  {change.sign} {change.kind} {change.name}", colours[change.sign]))
        lines += [f"      {detail}" for detail in change.details]
    if not found.changes:
        return [*lines, "  No changes."]
    lines += ["", f"{found.count('+')} to add, {found.count('~')} to change, {found.count('-')} to remove."]
    if found.fetch or found.unknown:
        more = f", and {', '.join(found.unknown)} of unknown size" if found.unknown else ""
        lines.append(f"New models: {size(found.fetch)} to fetch on a node that serves them all{more}.")
    return lines


def _comparison_json(found: Comparison, before: SnapshotDocument | None, after: SnapshotDocument) -> dict[str, Any]:
    return {
        "from": before.metadata.sequence if before is not None else None,
        "to": after.metadata.sequence,
        "changes": [
            {"sign": change.sign, "kind": change.kind, "name": change.name, "details": list(change.details)}
            for change in found.changes
        ],
        "fetch": found.fetch,
        "unknown": list(found.unknown),
    }


# --- judge --------------------------------------------------------------------------------------------------------


@click.command()
@workspace_options
@json_option
def validate(workspace: Workspace, *, as_json: bool) -> None:
    """Check the snapshot and every file it names. Signatures are left out."""
    from schemas.digests import digest_bytes

    content = workspace.snapshot()
    document = read_snapshot(content, workspace.snapshot_file)
    check_network(workspace, document)
    total = check_files(workspace, document)
    if as_json:
        emit({"valid": True, "digest": digest_bytes(content), "models": len(document.spec.models), "bytes": total})
        return
    say(
        f"{workspace.snapshot_file} is a snapshot, and every file it names is there and has its digest: "
        f"{plural(len(document.spec.models), 'model')}, {size(total)}."
    )
    next_steps("reconcile snapshot lint", "reconcile snapshot sign --key FILE")


@click.command()
@workspace_options
@inventory_option
@click.option("--strict", is_flag=True, help="Exit 1 on warnings too.")
@json_option
def lint(workspace: Workspace, inventory: Path | None, *, strict: bool, as_json: bool) -> None:
    """Find traps: what is well-formed and still not what anybody wants. Exits 1 on errors."""
    document = read_snapshot(workspace.snapshot(), workspace.snapshot_file)
    found = findings(workspace, document, inventory)
    if as_json:
        emit(
            {
                "findings": [
                    {"severity": one.severity, "code": one.code, "where": one.where, "message": one.message}
                    for one in found
                ]
            }
        )
    else:
        say(*finding_lines(found) or ["Nothing found."])
    if any(one.severity == "error" or strict for one in found):
        raise click.exceptions.Exit(1)


# --- shared -------------------------------------------------------------------------------------------------------


def check_files(workspace: Workspace, document: SnapshotDocument) -> int:
    """Every file that a snapshot names; returns the bytes of all models.

    Raises:
        DocumentError: one is missing, is another, or is not what it must be.
    """
    from desired_state.load import load_locks, load_models, load_probes
    from schemas.refusals import DigestMismatch, MissingDocument

    try:
        models = load_models(workspace.files, document.spec.models)
        load_probes(workspace.files, document.spec.models)
        load_locks(workspace.files, document)
    except DigestMismatch as error:
        error.hint = "if it was changed on purpose, `reconcile snapshot pin` binds what it is now"
        raise
    except MissingDocument as error:
        error.hint = (
            "`reconcile model add` writes manifests, `reconcile probe record` probes, `reconcile runtime set` locks"
        )
        raise
    return sum(model.manifest.size for model in models.values())


def sizes_of(files: DocumentFiles, document: SnapshotDocument) -> dict[str, int]:
    """Bytes of the models whose manifests are there, by manifest digest."""
    from desired_state.document import MANIFEST_LIMIT
    from desired_state.load import parse_manifest, read_bound

    sizes = {}
    for model in document.spec.models:
        try:
            content = read_bound(files, model.manifest, MANIFEST_LIMIT)
            sizes[model.manifest.digest] = parse_manifest(content, file=model.manifest.path).size
        except DocumentError:
            continue  # `validate` says what is wrong with it
    return sizes


def check_network(workspace: Workspace, document: SnapshotDocument) -> None:
    """A snapshot in a network's folder must be that network's.

    Raises:
        WrongNetwork: it says otherwise.
    """
    from schemas.refusals import WrongNetwork

    if document.metadata.network != workspace.network:
        raise WrongNetwork(
            f"{workspace.snapshot_file} says it is of the network {document.metadata.network!r}",
            hint=f"reconcile snapshot set metadata.network {workspace.network}",
        )


def count(workspace: Workspace, trust: Trust, document: SnapshotDocument, content: bytes) -> Missing:
    """Who of the current signers signed the snapshot, and who has not."""
    from desired_state.load import load_signatures
    from desired_state.signatures import snapshot_message

    signatures = load_signatures(workspace.files, workspace.snapshot_signatures)
    what = f"snapshot {document.metadata.sequence}"
    message = snapshot_message(document, content)
    return count_signatures(message, content, signatures, trust.state.roles.snapshot, what)


def findings(workspace: Workspace, document: SnapshotDocument, inventory: Path | None) -> tuple[Finding, ...]:
    """Every trap, judged against the trust of the working copy and the nodes of an inventory."""
    from desired_state.lint import InventoryNode, Surroundings, lint
    from reconciler.inventory import labels_of
    from reconciler.selectors import matches

    try:
        trust = read_trust(workspace).state
    except NotTrusted:
        trust = None
    statuses = read_inventory(inventory) if inventory is not None else ()
    nodes = tuple(InventoryNode(status.node, labels_of(status)) for status in statuses)
    said = seen_timestamp(workspace, trust) if trust is not None else None
    return lint(document, Surroundings(now=now(), trust=trust, timestamp=said, inventory=nodes, matches=matches))


def finding_lines(found: Sequence[Finding]) -> list[str]:
    """Findings for people."""
    lines = []
    for one in found:
        mark = paint(one.severity, "red" if one.severity == "error" else "yellow")
        lines.append(f"{mark}: {one.where}: {one.message} [{one.code}]")
        if one.hint:
            lines.append(f"    {paint(one.hint, 'dim')}")
    return lines
