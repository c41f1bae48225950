"""`reconcile snapshot sign`: shows what changes, asks, and signs with a key file or for a wallet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from reconciler.cli.console import next_steps, plural, say
from reconciler.cli.inventory import fleet_lines, inventory_option, plan_fleet
from reconciler.cli.judging import (
    check_files,
    check_network,
    comparison_lines,
    count,
    finding_lines,
    findings,
    sizes_of,
)
from reconciler.cli.operators import (
    missing_lines,
    now,
    read_snapshot,
    read_trust,
    signer_options,
    unlock_key,
    workspace_options,
    write_signature,
)
from reconciler.cli.options import yes_option
from schemas.errors import UsageError
from schemas.refusals import DocumentError, Equivocation, InvalidSignature, UnknownSigner

if TYPE_CHECKING:
    from pathlib import Path

    from desired_state.workspace import Workspace
    from reconciler.cli.operators import Trust
    from schemas.snapshot import SnapshotDocument


@click.command()
@workspace_options
@signer_options
@inventory_option
@click.option("--typed-data", is_flag=True, help="Print what a wallet must sign (EIP-712 JSON), and sign nothing.")
@click.option("--signature", metavar="HEX", help="Take a signature that a wallet made, instead of a key.")
@yes_option
def sign(
    workspace: Workspace,
    key_file: Path | None,
    password_file: Path | None,
    signature: str | None,
    inventory: Path | None,
    *,
    typed_data: bool,
    yes: bool,
) -> None:
    """Sign the snapshot, after showing what changes.

    With --inventory, also what it would do to each node; the digest of what was shown goes beside the signature.

    With a key file; or with any wallet that signs EIP-712 typed data: --typed-data prints it, --signature takes the
    answer.
    """
    from desired_state.signatures import address_of, recover, snapshot_message
    from desired_state.signatures import sign as make

    content = workspace.snapshot()
    document = read_snapshot(content, workspace.snapshot_file)
    message = snapshot_message(document, content)
    trust = read_trust(workspace)
    _check_signable(workspace, document, content)
    if typed_data:
        click.echo(json.dumps(message.full()))
        return
    if (key_file is None) == (signature is None):
        raise click.UsageError("sign with --key FILE, or give a wallet's --signature")
    shown = _shown(workspace, document, content, inventory)
    say(*shown, "")
    if signature is not None:
        made, signer = signature.lower(), recover(message, signature)
    else:
        assert key_file is not None  # noqa: S101 - one of the two was given
        private_key = unlock_key(key_file, password_file)
        signer, made = address_of(private_key), ""
    _check_may_sign(trust, signer, wallet=signature is not None)
    if not yes:
        click.confirm(f"Sign snapshot {document.metadata.sequence} as {signer}?", abort=True)
    if not made:
        made = make(message, private_key)
    folder = workspace.snapshot_signatures
    from schemas.digests import digest_bytes

    workspace.drop_signatures(folder, digest_bytes(content))
    path = write_signature(workspace, folder, content, made, signer, "\n".join(shown))
    counted = count(workspace, trust, document, content)
    say(f"Wrote {path}", "", "Signatures:", *missing_lines([counted]))
    if counted.needed:
        more = plural(counted.needed, "more signer")
        next_steps(f"{more}: commit and push, or pass the files on; they run `reconcile snapshot sign --key FILE`")
    else:
        next_steps("reconcile snapshot verify", "commit networks/, models/ and probes/, and push")


def _check_signable(workspace: Workspace, document: SnapshotDocument, content: bytes) -> None:
    """What no signer should put a name under: what every node would refuse, or what would contradict itself."""
    check_network(workspace, document)
    check_files(workspace, document)
    errors = [one for one in findings(workspace, document, None) if one.severity == "error"]
    if errors:
        say(*finding_lines(errors))
        raise UsageError(
            f"not signed: {plural(len(errors), 'error')}, for which nodes would refuse it or could not follow it",
            hint=errors[0].hint or "`reconcile snapshot lint` says more",
        )
    committed = workspace.committed(workspace.snapshot_file)
    if committed is None or committed == content:
        return
    position = (document.metadata.epoch, document.metadata.sequence)
    try:
        before = read_snapshot(committed, "HEAD").metadata
    except DocumentError:
        return  # what was committed is no snapshot, so nobody can have accepted it
    if (before.epoch, before.sequence) == position and workspace.was_committed_with_signatures(committed):
        raise Equivocation(
            f"another snapshot with epoch {position[0]} and sequence {position[1]} was signed and committed",
            hint="`reconcile snapshot bump` makes this one its successor",
        )


def _check_may_sign(trust: Trust, signer: str, *, wallet: bool) -> None:
    signers = {known.lower() for known in trust.state.roles.snapshot.signers}
    if signer.lower() in signers:
        return
    if wallet:
        raise InvalidSignature(
            f"the signature is not by a snapshot signer: it recovers to {signer}",
            hint="was it made over other data, or before the snapshot changed? `--typed-data` prints what to sign",
        )
    raise UnknownSigner(
        f"{signer} is no snapshot signer of trust version {trust.state.version}",
        hint="`reconcile trust show` lists who is",
    )


def _shown(workspace: Workspace, document: SnapshotDocument, content: bytes, inventory: Path | None) -> list[str]:
    """What a signer is shown; its digest goes beside the signature."""
    from desired_state.compare import compare
    from schemas.digests import digest_bytes

    committed = workspace.committed(workspace.snapshot_file)
    try:
        before = read_snapshot(committed, "HEAD") if committed is not None and committed != content else None
    except DocumentError:
        before = None
    metadata = document.metadata
    found = compare(before, document, sizes_of(workspace.files, document))
    reach = plan_fleet(workspace.files, content, document, inventory, now()) if inventory is not None else None
    return [
        *comparison_lines(found, before, document),
        "",
        *([*fleet_lines(reach), ""] if reach is not None else []),
        "To be signed:",
        f"  network   {metadata.network}",
        f"  position  epoch {metadata.epoch}, sequence {metadata.sequence}, trust version {metadata.trust_version}",
        f"  valid     {metadata.issued_at:%Y-%m-%d %H:%M:%S} to {metadata.expires_at:%Y-%m-%d %H:%M:%S} UTC",
        f"  previous  {metadata.previous or 'none'}",
        f"  content   {digest_bytes(content)}",
    ]
