"""`reconcile trust`: who may sign for a network."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli.console import emit, next_steps, paint, plural, relative_time, say, table, warn
from reconciler.cli.lazy import OrderedGroup
from reconciler.cli.operators import (
    Missing,
    address,
    count_signatures,
    missing_lines,
    now,
    read_trust,
    roles_of,
    signer_options,
    unlock_key,
    workspace_options,
    write_schemas,
    write_signature,
)
from reconciler.cli.options import DurationType, json_option, yes_option
from schemas.errors import UsageError
from schemas.refusals import UnknownSigner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from desired_state.authoring import Document
    from desired_state.trust import TrustLink
    from desired_state.workspace import Workspace
    from reconciler.cli.operators import Trust
    from schemas.trust import TrustDocument

ROLES: Final = ("root", "snapshot", "timestamp")
VALID: Final = 365 * 86400
"""Validity of a trust document, seconds: root keys lie in safes, and are taken out once a year."""

valid_option = click.option(
    "--valid", type=DurationType(), default=VALID, show_default="365d", help="Validity from now, e.g. 365d."
)
role_option = click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="The role; repeatable.")


@click.group(cls=OrderedGroup)
def trust() -> None:
    """Say who may sign: roles, thresholds, rotation.

    Every change writes a new version of networks/NAME/trust/<n>.yaml, unsigned. It counts once enough root signers of
    the version before it and of its own have signed it (`reconcile trust sign`).
    """


@trust.command()
@workspace_options
@click.option("--signer", "signers", multiple=True, help="Address or key file, for root and snapshot; repeatable.")
@click.option("--root-signer", "root_signers", multiple=True, help="For root alone; repeatable.")
@click.option("--snapshot-signer", "snapshot_signers", multiple=True, help="For snapshot alone; repeatable.")
@click.option("--timestamp-signer", "timestamp_signers", multiple=True, help="Online key, optional; repeatable.")
@click.option("--threshold", type=click.IntRange(1), help="Signatures needed (default: more than half).")
@click.option("--root-threshold", type=click.IntRange(1), help="The same for root alone.")
@click.option("--snapshot-threshold", type=click.IntRange(1), help="The same for snapshot alone.")
@valid_option
@json_option
def init(workspace: Workspace, valid: int, *, as_json: bool, **given: Any) -> None:
    """Write version 1 of a network's trust."""
    from desired_state.drafting import new_trust
    from desired_state.layout import trust_file
    from schemas.digests import digest_bytes

    roles = {
        "root": _role(given["signers"] + given["root_signers"], given["root_threshold"] or given["threshold"], "root"),
        "snapshot": _role(
            given["signers"] + given["snapshot_signers"], given["snapshot_threshold"] or given["threshold"], "snapshot"
        ),
    }
    if given["timestamp_signers"]:
        roles["timestamp"] = _role(given["timestamp_signers"], 1, "timestamp")
    content = new_trust(workspace.network, roles, issued=now(), valid=timedelta(seconds=valid)).encode()
    _check(content, trust_file(workspace.network, 1))
    path = trust_file(workspace.network, 1)
    workspace.write_new(path, content)
    write_schemas(workspace)
    digest = digest_bytes(content)
    if as_json:
        emit({"network": workspace.network, "path": path, "version": 1, "digest": digest})
        return
    say(f"Wrote {path}", f"Network {workspace.network}: " + _roles_line(roles))
    for name, (threshold, _) in roles.items():
        if threshold == 1 and name != "timestamp":
            warn(f"one stolen key is enough to sign as {name}")
    say("", f"Pin     {paint(digest, 'bold')}")
    say("        Nodes pin this digest: publish it where your node operators trust it, beside the repository.")
    next_steps("reconcile trust sign --key FILE", f"reconcile snapshot new --network {workspace.network}")


@trust.command()
@workspace_options
@click.argument("addresses", nargs=-1, required=True)
@role_option
@valid_option
def add(workspace: Workspace, addresses: tuple[str, ...], roles: tuple[str, ...], valid: int) -> None:
    """Let further ADDRESSES sign, in roles root and snapshot unless told otherwise."""
    version = _next_version(workspace, valid)
    for name in roles or ("root", "snapshot"):
        for signer in map(address, addresses):
            if signer.lower() in {known.lower() for known in version.signers(name)}:
                raise UsageError(f"{signer} holds the role {name} already")
            version.document.insert(("spec", "roles", name, "signers"), signer)
            if version.document.get(("spec", "roles", name, "threshold")) is None:
                version.document.set(("spec", "roles", name, "threshold"), 1)
    version.save()


@trust.command()
@workspace_options
@click.argument("addresses", nargs=-1, required=True)
@role_option
@valid_option
def remove(workspace: Workspace, addresses: tuple[str, ...], roles: tuple[str, ...], valid: int) -> None:
    """Take the right to sign from ADDRESSES, in every role they hold unless told otherwise."""
    version = _next_version(workspace, valid)
    for signer in map(address, addresses):
        held = [name for name in roles or ROLES if signer.lower() in map(str.lower, version.signers(name))]
        if not held:
            raise UsageError(f"{signer} holds no such role")
        for name in held:
            version.drop(name, signer)
    version.save()


@trust.command()
@workspace_options
@click.argument("role", type=click.Choice(ROLES))
@click.argument("count", type=click.IntRange(1))
@valid_option
def threshold(workspace: Workspace, role: str, count: int, valid: int) -> None:
    """Say how many signers of ROLE must sign."""
    version = _next_version(workspace, valid)
    if not version.signers(role):
        raise UsageError(f"there is no role {role}")
    version.document.set(("spec", "roles", role, "threshold"), count)
    version.save()


@trust.command()
@workspace_options
@click.argument("old", required=False)
@click.argument("new", required=False)
@role_option
@click.option("--raise-epoch", is_flag=True, help="Begin a new epoch: undoes a snapshot with an absurd sequence.")
@valid_option
def rotate(
    workspace: Workspace, old: str | None, new: str | None, roles: tuple[str, ...], valid: int, *, raise_epoch: bool
) -> None:
    """Replace the signer OLD by NEW; without them, renew the validity alone."""
    if (old is None) != (new is None):
        raise click.UsageError("give both OLD and NEW, or neither")
    version = _next_version(workspace, valid)
    if old is not None and new is not None:
        gone, comes = address(old), address(new)
        held = [name for name in roles or ROLES if gone.lower() in map(str.lower, version.signers(name))]
        if not held:
            raise UsageError(f"{gone} holds no such role")
        for name in held:
            position = [signer.lower() for signer in version.signers(name)].index(gone.lower())
            version.document.set(("spec", "roles", name, "signers", position), comes)
    if raise_epoch:
        epoch = version.document.get(("metadata", "epoch"))
        version.document.set(("metadata", "epoch"), (epoch if isinstance(epoch, int) else 1) + 1)
    version.save()


@trust.command()
@workspace_options
@signer_options
@yes_option
def sign(workspace: Workspace, key_file: Path | None, password_file: Path | None, *, yes: bool) -> None:
    """Sign the newest version, after showing it."""
    from desired_state.layout import trust_signatures
    from desired_state.signatures import address_of, trust_message
    from desired_state.signatures import sign as make

    if key_file is None:
        raise click.UsageError("Missing option '--key'.")
    seen = read_trust(workspace)
    shown = _shown(workspace, seen)
    say(*shown)
    private_key = unlock_key(key_file, password_file)
    signer = address_of(private_key)
    _check_may_sign(workspace, seen, signer)
    if not yes:
        click.confirm(f"Sign version {seen.newest.version} as {signer}?", abort=True)
    content = seen.newest.content
    signature = make(trust_message(seen.document, content), private_key)
    folder = trust_signatures(workspace.network, seen.newest.version)
    path = write_signature(workspace, folder, content, signature, signer, "\n".join(shown))
    say("", f"Wrote {path}")
    _tell_missing(workspace)


@trust.command()
@workspace_options
@json_option
def show(workspace: Workspace, *, as_json: bool) -> None:
    """Show who may sign, which version is in force, and who still has to sign."""
    seen = read_trust(workspace)
    counts = _counts(workspace, seen)
    if as_json:
        emit(_as_json(workspace, seen, counts))
        return
    metadata = seen.state.document.metadata
    say(
        f"Network   {workspace.network}",
        f"Pin       {seen.pin}",
        f"In force  version {seen.state.version}, epoch {seen.state.epoch}, "
        f"expires {relative_time(metadata.expires_at, now())}",
        "",
        *_role_table(seen.state.document),
    )
    if seen.newest.version > seen.state.version:
        say("", f"Version {seen.newest.version} is written and not in force:", *_role_table(seen.document))
    say("", f"Signatures of version {seen.newest.version}:", *missing_lines(counts))


# --- a new version ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Version:
    """A version that is being written."""

    workspace: Workspace
    number: int
    document: Document
    revised: bool
    """Whether it replaces a version that nobody has accepted yet."""

    def signers(self, role: str) -> tuple[str, ...]:
        """Signers of a role; empty where there is no such role."""
        found = self.document.get(("spec", "roles", role, "signers"))
        return tuple(str(signer) for signer in found) if isinstance(found, tuple) else ()

    def drop(self, role: str, signer: str) -> None:
        """Take a role from a signer, and the optional role itself with its last one."""
        position = [known.lower() for known in self.signers(role)].index(signer.lower())
        if role == "timestamp" and len(self.signers(role)) == 1:
            self.document.remove(("spec", "roles", role))
            return
        self.document.remove(("spec", "roles", role, "signers", position))

    def save(self) -> None:
        """Write it, unsigned, and say what is next."""
        from desired_state.layout import trust_file, trust_signatures

        path = trust_file(self.workspace.network, self.number)
        content = self.document.text.encode()
        _check(content, path)
        self.workspace.write(path, content)
        dropped = self.workspace.drop_signatures(trust_signatures(self.workspace.network, self.number))
        say(f"{'Rewrote' if self.revised else 'Wrote'} {path}")
        if dropped:
            say(f"Removed {plural(len(dropped), 'signature')} over its earlier text.")
        if self.number == 1:
            from schemas.digests import digest_bytes

            say(f"Pin {paint(digest_bytes(content), 'bold')} (changed: it is version 1 that nodes pin)")
        _tell_missing(self.workspace)


def _next_version(workspace: Workspace, valid: int) -> _Version:
    """The version to change: a new one, or the newest as long as it counts for nobody."""
    from desired_state.drafting import next_trust

    seen = read_trust(workspace)
    current = seen.newest
    revised = _is_open(workspace, seen)
    previous: str | None
    if revised:
        number, previous = current.version, seen.document.metadata.previous
    else:
        from schemas.digests import digest_bytes

        number, previous = current.version + 1, digest_bytes(current.content)
    document = next_trust(
        current.content.decode(), version=number, previous=previous, issued=now(), valid=timedelta(seconds=valid)
    )
    return _Version(workspace, number, document, revised)


def _is_open(workspace: Workspace, seen: Trust) -> bool:
    """Whether the newest version can still be rewritten: no node can have taken it for its own."""
    from desired_state.layout import trust_signatures

    if seen.newest.version > 1:
        return seen.pending is not None
    # Version 1 needs no signature: it counts from the moment somebody pins it.
    signed = bool(workspace.signatures(trust_signatures(workspace.network, 1)))
    return not signed and workspace.committed(seen.newest.file) is None


def _role(signers: Sequence[str], wanted: int | None, name: str) -> tuple[int, tuple[str, ...]]:
    """Threshold and addresses of a role."""
    addresses = tuple(dict.fromkeys(map(address, signers)))
    if not addresses:
        raise UsageError(f"the role {name} has no signer", hint="name some with --signer ADDRESS")
    if wanted is not None and wanted > len(addresses):
        raise UsageError(f"{name}: {wanted} signatures are asked for, and there are {plural(len(addresses), 'signer')}")
    return wanted or len(addresses) // 2 + 1, addresses


def _check(content: bytes, file: str) -> TrustDocument:
    """What is written must be a trust document, and its thresholds within reach."""
    from desired_state.document import TRUST_LIMIT, load
    from schemas.refusals import MalformedDocument
    from schemas.trust import TrustDocument

    try:
        return load(content, TrustDocument, file=file, limit=TRUST_LIMIT)
    except MalformedDocument as error:
        raise UsageError(f"that would not be a trust document: {error.message}") from error


# --- showing and signing ------------------------------------------------------------------------------------------


def _counts(workspace: Workspace, seen: Trust) -> list[Missing]:
    """Signatures over the newest version: by its own root, and by the root of the version before."""
    from desired_state.signatures import trust_message

    link, message = seen.newest, trust_message(seen.document, seen.newest.content)
    before = _predecessor(workspace, link)
    roots = {seen.document.metadata.version: seen.document.spec.roles.root}
    if before is not None:
        roots = {before.metadata.version: before.spec.roles.root, **roots}
    return [
        count_signatures(
            *(message, link.content, link.signatures, root, f"root of version {version}"),
            beside=next((other for other in roots.values() if other is not root), None),
        )
        for version, root in roots.items()
    ]


def _predecessor(workspace: Workspace, link: TrustLink) -> TrustDocument | None:
    from desired_state.document import TRUST_LIMIT
    from desired_state.layout import trust_file

    if link.version == 1:
        return None
    path = trust_file(workspace.network, link.version - 1)
    return _check(workspace.files.read(path, TRUST_LIMIT), path)


def _shown(workspace: Workspace, seen: Trust) -> list[str]:
    """What a signer is shown."""
    from desired_state.authoring import unified
    from desired_state.document import TRUST_LIMIT
    from desired_state.layout import trust_file
    from schemas.digests import digest_bytes

    metadata = seen.document.metadata
    lines = [
        f"Trust of {metadata.network}, version {metadata.version}, epoch {metadata.epoch}",
        f"Valid   {metadata.issued_at:%Y-%m-%d %H:%M} to {metadata.expires_at:%Y-%m-%d %H:%M} UTC",
        f"Digest  {digest_bytes(seen.newest.content)}",
        *_role_table(seen.document),
    ]
    if seen.newest.version > 1:
        path = trust_file(workspace.network, seen.newest.version - 1)
        before = workspace.files.read(path, TRUST_LIMIT).decode()
        lines += ["", *unified(before, seen.newest.content.decode(), file=f"trust/{seen.newest.version}.yaml")]
    return lines


def _check_may_sign(workspace: Workspace, seen: Trust, signer: str) -> None:
    roots = list(seen.document.spec.roles.root.signers)
    before = _predecessor(workspace, seen.newest)
    roots += before.spec.roles.root.signers if before is not None else ()
    if signer.lower() not in {root.lower() for root in roots}:
        raise UnknownSigner(
            f"{signer} is no root signer of version {seen.newest.version}, nor of the one before",
            hint="`reconcile trust show` lists who is",
        )


def _tell_missing(workspace: Workspace) -> None:
    seen = read_trust(workspace)
    counts = _counts(workspace, seen)
    say("", f"Signatures of version {seen.newest.version}:", *missing_lines(counts))
    if any(one.needed for one in counts):
        next_steps("reconcile trust sign --key FILE   (each of them, on the same files)")
    else:
        next_steps("commit networks/, and push", "reconcile snapshot bump   (snapshots name the trust they need)")


def _role_table(document: TrustDocument) -> list[str]:
    rows = []
    for name, role in roles_of(document).items():
        for number, signer in enumerate(role.signers):
            need = f"{role.threshold} of {len(role.signers)}" if number == 0 else ""
            rows.append((name if number == 0 else "", need, signer))
    return table(("Role", "Needs", "Signers"), rows)


def _roles_line(roles: dict[str, tuple[int, tuple[str, ...]]]) -> str:
    return ", ".join(f"{name} {count} of {len(signers)}" for name, (count, signers) in roles.items())


def _as_json(workspace: Workspace, seen: Trust, counts: Sequence[Missing]) -> dict[str, Any]:
    return {
        "network": workspace.network,
        "pin": seen.pin,
        "inForce": {
            "version": seen.state.version,
            "epoch": seen.state.epoch,
            "digest": seen.state.digest,
            "roles": {
                name: {"threshold": role.threshold, "signers": list(role.signers)}
                for name, role in roles_of(seen.state.document).items()
            },
        },
        "newest": {
            "version": seen.newest.version,
            "pending": seen.pending.reason if seen.pending is not None else None,
            "signatures": [
                {"by": one.what, "signed": list(one.signed), "threshold": one.threshold, "open": list(one.open)}
                for one in counts
            ],
        },
    }
