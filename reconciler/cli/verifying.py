"""`reconcile snapshot verify`: what a node would decide, or what it would once enough signers have signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import emit, next_steps, paint, relative_time, say, warn
from reconciler.cli.judging import check_files, count
from reconciler.cli.operators import missing_lines, now, read_snapshot, read_trust, workspace_options
from reconciler.cli.options import json_option
from reconciler.cli.timestamp import seen_timestamp, timestamp_json, timestamp_line
from schemas.digests import digest_bytes
from schemas.refusals import SignaturesPending, ThresholdNotMet, TrustBroken

if TYPE_CHECKING:
    from desired_state.snapshot import Snapshot
    from desired_state.watermark import Mark
    from desired_state.workspace import Workspace
    from reconciler.cli.operators import Trust


@click.command()
@workspace_options
@click.option("--trust", "pin", metavar="DIGEST", help="Digest of trust/1.yaml, as a node pins it.")
@click.option("--since", metavar="REV", help="As a node that has accepted what this revision of git has.")
@click.option("--pending", is_flag=True, help="Missing signatures are no refusal: they may still come. Bad ones are.")
@json_option
def verify(workspace: Workspace, pin: str | None, since: str | None, *, pending: bool, as_json: bool) -> None:
    """Decide as a node would: trust, signatures, validity, and every file that the snapshot names.

    With --since also what a change may not do: reuse or lower the sequence, break the chain, replace trust that was
    published. Exits 3, with the reason, where a node would refuse.
    """
    mark = _published(workspace, since) if since is not None else None
    trust = read_trust(workspace, pin=pin)
    if mark is not None:
        _warn_of_gap(workspace, mark)
    if pending:
        _foresee(workspace, trust, mark, as_json=as_json)
    else:
        _accept(workspace, trust, mark, pinned=pin is not None, as_json=as_json)


def _published(workspace: Workspace, revision: str) -> Mark | None:
    """Where a node stands that has accepted a revision; None where that has no snapshot.

    Raises:
        UsageError: git does not know the revision.
        TrustBroken: trust that it has is not the same any more.
    """
    from desired_state.document import SNAPSHOT_LIMIT
    from desired_state.load import load_trust
    from desired_state.watermark import Mark

    files = workspace.revision(revision)
    here = {link.version: link for link in load_trust(workspace.files, workspace.network, above=0)}
    for link in load_trust(files, workspace.network, above=0):
        if link.version not in here or here[link.version].content != link.content:
            what = f"gone, and {revision} has it" if link.version not in here else f"not what {revision} has"
            raise TrustBroken(
                f"{link.file} is {what}: nodes hold what was published",
                hint="put it back; `reconcile trust` writes changes as a new version",
            )
    content = workspace.at(revision, workspace.snapshot_file, limit=SNAPSHOT_LIMIT)
    if content is None:
        return None
    metadata = read_snapshot(content, f"{revision}:{workspace.snapshot_file}").metadata
    return Mark(epoch=metadata.epoch, sequence=metadata.sequence, digest=digest_bytes(content))


def _warn_of_gap(workspace: Workspace, mark: Mark) -> None:
    """Sequences that are left out are lost: nodes take the leap, and nothing below it ever again."""
    metadata = read_snapshot(workspace.snapshot(), workspace.snapshot_file).metadata
    left_out = metadata.sequence - mark.sequence - 1
    if metadata.epoch == mark.epoch and left_out > 0:
        warn(f"the sequence leaps from {mark.sequence} to {metadata.sequence}: {left_out} are left out for good")


def _judged(workspace: Workspace, trust: Trust) -> dict[str, Any]:
    """What is judged, and by what."""
    from desired_state.load import load_candidate
    from reconciler.cli.wiring import agent_version

    found = load_candidate(workspace.files, workspace.network, trust_version=0)
    return {
        "content": found.content,
        "signatures": found.signatures,
        "trust": trust.state,
        "network": workspace.network,
        "now": now(),
        "agent_version": agent_version(),
        "file": found.file,
    }


def _foresee(workspace: Workspace, trust: Trust, mark: Mark | None, *, as_json: bool) -> None:
    from desired_state.acceptance import foresee

    document = foresee(**_judged(workspace, trust), mark=mark)
    check_files(workspace, document)
    content = workspace.snapshot()
    counted = count(workspace, trust, document, content)
    epoch, sequence = document.metadata.epoch, document.metadata.sequence
    if as_json:
        stands = {"signers": list(counted.signed), "needed": counted.needed, "open": list(counted.open)}
        position = {"digest": digest_bytes(content), "epoch": epoch, "sequence": sequence}
        emit({**position, **stands, "pin": trust.pin})
        return
    by = f"by trust version {trust.state.version}"
    say(
        f"{paint('Acceptable', 'green')}: snapshot {sequence} of epoch {epoch}, {by}, once enough have signed.",
        f"Digest   {digest_bytes(content)}",
        "Signatures:",
        *missing_lines([counted]),
    )


def _accept(workspace: Workspace, trust: Trust, mark: Mark | None, *, pinned: bool, as_json: bool) -> None:
    accepted = _accepted(workspace, trust, mark)
    check_files(workspace, accepted.document)
    epoch, sequence = accepted.position
    said = seen_timestamp(workspace, trust.state)
    if as_json:
        signers = list(accepted.signers)
        found_json = {"digest": accepted.digest, "epoch": epoch, "sequence": sequence, "signers": signers}
        emit({**found_json, "pin": trust.pin, "timestamp": timestamp_json(said)})
        return
    say(
        f"{paint('Accepted', 'green')}: snapshot {sequence} of epoch {epoch}, by trust version {trust.state.version}.",
        f"Digest   {accepted.digest}",
        f"Signers  {', '.join(accepted.signers)}",
        f"Expires  {relative_time(accepted.document.metadata.expires_at, now())}",
    )
    if said is not None:
        say(f"Newest   the timestamp {timestamp_line(said, accepted.digest)}")
    if not pinned:
        say(f"Pin      {trust.pin} (taken from the working copy; --trust checks against a published one)")
    next_steps("commit networks/, models/ and probes/, and push: nodes take it from there")


def _accepted(workspace: Workspace, trust: Trust, mark: Mark | None) -> Snapshot:
    from desired_state.acceptance import accept_snapshot

    judged = _judged(workspace, trust)
    if mark is not None and mark.digest == digest_bytes(judged["content"]):
        mark = None  # nothing new, which a node would take as it is: here it is judged once more
    try:
        return accept_snapshot(**judged, mark=mark)
    except (ThresholdNotMet, SignaturesPending) as error:
        error.hint = "`reconcile snapshot show` lists who can still sign"
        raise
