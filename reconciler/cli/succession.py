"""`reconcile snapshot bump` and `revert`: from a draft to the successor of what was published."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.console import diff_lines, next_steps, paint, plural, relative_time, say, warn
from reconciler.cli.drafts import file_refs, valid_option
from reconciler.cli.operators import (
    edit_snapshot,
    incomplete,
    now,
    published,
    read_snapshot,
    read_trust,
    save_snapshot,
    try_trust,
    workspace_options,
)
from schemas.errors import UsageError
from schemas.refusals import DocumentError, MissingDocument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desired_state.authoring import Document
    from desired_state.workspace import Workspace
    from schemas.base import FileRef


@click.command()
@workspace_options
@valid_option
def bump(workspace: Workspace, valid: int) -> None:
    """Make the snapshot the successor of what was published.

    Raises the sequence above the last commit's, names that snapshot as `previous`, renews the validity, and removes
    signatures over earlier text. Doing it twice is the same as doing it once.
    """
    document = edit_snapshot(workspace)
    before = document.text
    _bump(workspace, document, valid)
    save_snapshot(workspace, document)
    _finish_bump(workspace, document, before)


@click.command()
@workspace_options
@click.argument("revision")
@valid_option
def revert(workspace: Workspace, revision: str, valid: int) -> None:
    """Go back to the content of REVISION (of git, or a file), as a new and higher snapshot.

    Nodes refuse older snapshots, so `git revert` alone would only give them a RollbackAttack. What was withdrawn
    since stays so: going back is no reason to run what must not run.
    """
    from desired_state.authoring import Document

    before = edit_snapshot(workspace)
    old = _older(workspace, revision)
    document = Document(old.decode(), file=workspace.snapshot_file)
    read_snapshot(old, f"{workspace.snapshot_file} of {revision}")
    restored = _restore(workspace, revision, document)
    kept = _keep_withdrawn(before, document)
    _bump(workspace, document, valid, reference=before)
    save_snapshot(workspace, document)
    for path in restored:
        say(f"Restored {path}")
    for digest in kept:
        say(f"Still withdrawn: {digest}")
    _finish_bump(workspace, document, before.text)


def _keep_withdrawn(before: Document, document: Document) -> list[str]:
    """Withdraw in an older content what is withdrawn by now; the digests that it did not name."""
    older, newer = (
        [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, tuple) else []
        for entries in (one.get(("spec", "withdrawn")) for one in (document, before))
    )
    known = {entry.get("digest") for entry in older}
    kept = [entry for entry in newer if entry.get("digest") not in known]
    for entry in kept:
        document.insert(("spec", "withdrawn"), entry)
    return [str(entry.get("digest")) for entry in kept]


# --- bump and revert ----------------------------------------------------------------------------------------------


def _bump(workspace: Workspace, document: Document, valid: int, *, reference: Document | None = None) -> None:
    """Make a document the successor of what was published, which is read from `reference` outside git."""
    from desired_state.drafting import bump as succeed

    trust = read_trust(workspace)
    current = (reference or document).tree
    base = published(workspace, current if isinstance(current, dict) else {})
    if base is not None and base.epoch > trust.state.epoch:
        raise UsageError(f"the published snapshot is of epoch {base.epoch}, and root declared {trust.state.epoch}")
    if base is None and reference is not None:
        raise UsageError("nothing was published yet, so there is nothing to go back from")
    succeed(
        document,
        base,
        epoch=trust.state.epoch,
        trust_version=trust.state.version,
        issued=now(),
        valid=timedelta(seconds=valid),
    )


def _finish_bump(workspace: Workspace, document: Document, before: str) -> None:
    from desired_state.authoring import unified
    from schemas.digests import digest_bytes

    say(*diff_lines(unified(before, document.text, file=workspace.snapshot_file)))
    dropped = workspace.drop_signatures(workspace.snapshot_signatures, digest_bytes(document.text.encode()))
    if dropped:
        say("", f"Removed {plural(len(dropped), 'signature')} over earlier text.")
    problem = incomplete(document, workspace.snapshot_file)
    if problem is not None:
        warn(f"the snapshot is not complete yet: {problem.message}")
        return
    metadata = read_snapshot(document.text.encode(), workspace.snapshot_file).metadata
    say(
        "",
        f"Snapshot {paint(str(metadata.sequence), 'bold')} of epoch {metadata.epoch}, "
        f"expires {relative_time(metadata.expires_at, now())}",
    )
    trust = try_trust(workspace)
    needed = f"   ({trust.state.roles.snapshot.threshold} signers)" if trust is not None else ""
    next_steps(f"reconcile snapshot sign --key FILE{needed}")


def _older(workspace: Workspace, revision: str) -> bytes:
    from desired_state.document import SNAPSHOT_LIMIT

    if workspace.has_revision(revision):
        content = workspace.at(revision, workspace.snapshot_file, limit=SNAPSHOT_LIMIT)
        if content is None:
            raise MissingDocument(f"is not in {revision}", file=workspace.snapshot_file)
        return content
    path = Path(revision)
    if path.is_file() and path.stat().st_size <= SNAPSHOT_LIMIT:
        return path.read_bytes()
    raise UsageError(f"{revision!r} is neither a revision of git nor a snapshot file")


def _restore(workspace: Workspace, revision: str, document: Document) -> Sequence[str]:
    """Bring back the files that an older snapshot names, where they are gone or have changed since."""
    restored: list[str] = []
    waiting = [(path, digest) for _, path, digest in file_refs(document.tree)]
    for path, digest in waiting:  # grows by what manifests name
        content = _bound(workspace, path, digest)
        if content is None:
            content = _from_history(workspace, revision, path, digest)
            workspace.write(path, content)
            restored.append(path)
        waiting += _named_by(content, path)
    return restored


def _bound(workspace: Workspace, path: str, digest: str) -> bytes | None:
    from schemas.digests import digest_bytes

    content = workspace.read(path, 2**25)
    return content if content is not None and digest_bytes(content) == digest else None


def _from_history(workspace: Workspace, revision: str, path: str, digest: str) -> bytes:
    from schemas.digests import digest_bytes

    content = workspace.at(revision, path, limit=2**25) if workspace.has_revision(revision) else None
    if content is None or digest_bytes(content) != digest:
        raise MissingDocument(
            f"the older snapshot binds {digest[:20]}..., and neither the working copy nor {revision} has it", file=path
        )
    return content


def _named_by(content: bytes, path: str) -> list[tuple[str, str]]:
    """The pieces file that a manifest names; nothing for any other file."""
    from desired_state.load import parse_manifest

    if not path.startswith("models/") or not path.endswith(".yaml"):
        return []
    try:
        pieces: FileRef = parse_manifest(content, file=path).spec.pieces
    except DocumentError:
        return []
    return [(pieces.path, pieces.digest)]
