"""What the commands of network operators share: the working copy, keys, the trust in force, missing signatures."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from reconciler.cli.console import paint, warn
from schemas.errors import ConfigError, KeyLocked, UsageError
from schemas.refusals import DocumentError, NotTrusted, TrustBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from desired_state.authoring import Document
    from desired_state.drafting import Base
    from desired_state.trust import TrustLink, TrustState
    from desired_state.workspace import Workspace
    from schemas.ports import Ports
    from schemas.snapshot import SnapshotDocument
    from schemas.trust import Role, RoleName, TrustDocument

F = TypeVar("F", bound="Callable[..., Any]")

PASSWORD: Final = "RECONCILE_KEY_PASSWORD"  # noqa: S105 - the name of a variable, not a password
VALID: Final = timedelta(days=30)
"""Validity of a snapshot: long enough for holidays, short enough that a frozen mirror shows."""


# --- the working copy ---------------------------------------------------------------------------------------------


def workspace_options(function: F) -> F:
    """Add `--repo` and `--network`, and give the command a `Workspace` for them.

    A network that does not exist yet must be named; where one exists it is found.
    """

    @click.option(
        "--repo",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=".",
        show_default="this folder",
        help="Working copy of the network's repository.",
    )
    @click.option("--network", metavar="NAME", help="The network (default: the only one in the repository).")
    @functools.wraps(function)
    def wrapped(*args: Any, repo: Path, network: str | None, **named: Any) -> Any:
        return function(*args, workspace=open_workspace(repo, network), **named)

    return wrapped  # type: ignore[return-value] # functools.wraps keeps what click asks about


def open_workspace(repo: Path, network: str | None) -> Workspace:
    """A working copy.

    Raises:
        UsageError: not a network's name, or none was given where there is not exactly one.
    """
    from pydantic import TypeAdapter, ValidationError

    from desired_state.workspace import Workspace, networks
    from schemas.base import Name

    root = repo.absolute()
    if network is None:
        known = networks(root)
        if len(known) != 1:
            found = f"it has {', '.join(known)}" if known else "it has no networks/ yet"
            raise UsageError(f"which network of {root}? {found}", hint="name it with --network; the folder with --repo")
        network = known[0]
    try:
        TypeAdapter[str](Name).validate_python(network)
    except ValidationError as error:
        raise UsageError(f"{network!r} is not a name: lower-case letters, digits and -, at most 63") from error
    return Workspace(root, network, ports=ports(), env=os.environ)


@functools.cache
def ports() -> Ports:
    """The real outside."""
    from reconciler.cli.wiring import host

    return host()


def now() -> datetime:
    """The time, in whole seconds: documents know no finer."""
    return ports().clock.now().replace(microsecond=0)


# --- keys ---------------------------------------------------------------------------------------------------------


def password_options(function: F) -> F:
    """Add `--password-file`."""
    return click.option(
        "--password-file",
        type=click.Path(path_type=Path),
        help=f"File with the key's password on its first line (default: {PASSWORD}, then a prompt).",
    )(function)


def signer_options(function: F) -> F:
    """Add `--key` and `--password-file`."""
    option = click.option("--key", "key_file", type=click.Path(path_type=Path), help="Key file of the signer.")
    return option(password_options(function))


def password(file: Path | None, *, confirm: bool = False) -> str:
    """The password, from a file, the environment or a prompt; never from the command line.

    Raises:
        KeyLocked: there is nobody to ask.
    """
    from desired_state.keys import read_password_file

    if file is not None:
        return read_password_file(file)
    given = os.environ.get(PASSWORD)
    if given:
        return given
    if not sys.stdin.isatty():
        raise KeyLocked(
            "the key needs a password, and nobody is there to type it", hint=f"give --password-file, or set {PASSWORD}"
        )
    entered: str = click.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True)
    return entered


def unlock_key(key_file: Path, password_file: Path | None) -> bytes:
    """The private key of a key file.

    Raises:
        KeyLocked, ConfigError: as `desired_state.keys.load_key`.
    """
    from desired_state.keys import load_key

    return load_key(key_file, lambda: password(password_file), processes=ports().processes)


def address(text: str) -> str:
    """An address, checksummed, from an address or from a key file.

    Raises:
        UsageError: neither.
    """
    from desired_state.keys import read_key_file
    from desired_state.signatures import checksum

    if text.startswith("0x"):
        try:
            return checksum(text)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if not Path(text).exists():
        raise UsageError(f"{text!r} is neither an address (0x...) nor a key file")
    found = read_key_file(Path(text)).address
    if not found:
        raise UsageError(f"{text} does not say its address; give the address itself")
    return found


# --- trust --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trust:
    """The trust documents of a working copy."""

    state: TrustState
    """The newest version that is in force."""
    newest: TrustLink
    """The newest version that is written, in force or not."""
    document: TrustDocument
    """The newest version, read."""
    pending: NotTrusted | None
    """Why the newest is not in force yet."""
    pin: str
    """Digest of version 1."""


def read_trust(workspace: Workspace, *, pin: str | None = None) -> Trust:
    """Follow the trust documents of a working copy, exactly as a node would.

    Args:
        workspace: the working copy.
        pin: digest of version 1; what lies there is taken for it when absent.

    Raises:
        TrustBroken: there is none, or the chain cannot be followed.
        NotTrusted: a version that is not pending cannot be believed.
    """
    from desired_state import document as reader
    from desired_state.load import load_trust
    from desired_state.trust import verify_first, walk
    from schemas.digests import digest_bytes
    from schemas.trust import TrustDocument

    links = load_trust(workspace.files, workspace.network, above=0)
    if not links or links[0].version != 1:
        raise TrustBroken(
            f"networks/{workspace.network}/trust/1.yaml does not exist", hint="`reconcile trust init` writes it"
        )
    first = digest_bytes(links[0].content)
    state = verify_first(links[0].content, pin or first, workspace.network, file=links[0].file)
    walked = walk(state, links[1:], network=workspace.network, now=now())
    newest = links[-1]
    document = reader.load(newest.content, TrustDocument, file=newest.file, limit=reader.TRUST_LIMIT)
    return Trust(walked.trust, newest, document, walked.pending, first)


def try_trust(workspace: Workspace) -> Trust | None:
    """The trust of a working copy; None, with a warning, where there is none that can be followed."""
    try:
        return read_trust(workspace)
    except NotTrusted as error:
        warn(f"trust: {error.reason}: {error.message}")
        return None


@dataclass(frozen=True, slots=True)
class Missing:
    """How a document stands with one set of signers."""

    what: str
    signed: tuple[str, ...]
    threshold: int
    open: tuple[str, ...]
    """Signers who have not signed."""
    not_counted: tuple[str, ...] = ()
    """What is wrong with files over these bytes that count for nobody."""

    @property
    def needed(self) -> int:
        """Signatures that are still needed."""
        return max(0, self.threshold - len(self.signed))


def count_signatures(
    message: Any, content: bytes, signatures: Sequence[bytes], role: Role, what: str, *, beside: Role | None = None
) -> Missing:
    """Who of a role signed, and who has not.

    Args:
        message: what must have been signed.
        content: its bytes.
        signatures: raw signature files.
        role: whose signatures count.
        what: what was to be signed, for people.
        beside: another role whose signers sign the same bytes.
    """
    from desired_state.tally import count
    from schemas.digests import digest_bytes

    tally = count(message, digest_bytes(content), signatures, role)
    signed = {signer.lower() for signer in tally.signers}
    still = tuple(signer for signer in role.signers if signer.lower() not in signed)
    expected = {signer.lower() for signer in beside.signers} if beside is not None else set()
    strangers = [signer for signer in tally.strangers if signer.lower() not in expected]
    not_counted = (*tally.faults, *(f"{signer} signed, and holds no such role" for signer in strangers))
    return Missing(what, tally.signers, role.threshold, still, not_counted)


def missing_lines(counts: Sequence[Missing]) -> list[str]:
    """What signatures are there, and which are missing, for people."""
    lines = []
    for one in counts:
        if not one.needed:
            lines.append(f"  {one.what}: {len(one.signed)} of {one.threshold} needed, complete")
        else:
            lines.append(f"  {one.what}: {len(one.signed)} of {one.threshold} needed; can still sign:")
            lines += [f"    {signer}" for signer in one.open]
        lines += [paint(f"    not counted: {fault}", "red") for fault in one.not_counted]
    return lines


def write_signature(workspace: Workspace, folder: str, content: bytes, signature: str, signer: str, shown: str) -> str:
    """Write a signer's file; returns its path."""
    import json

    from desired_state.layout import signature_name
    from schemas.digests import digest_bytes, digest_text

    document = {
        "apiVersion": "reconcile/v1alpha1",
        "kind": "Signature",
        "signer": signer,
        "content": digest_bytes(content),
        "signature": signature,
        "shown": digest_text(shown),
    }
    path = f"{folder}/{signature_name(signer)}"
    workspace.write(path, json.dumps(document, indent=2).encode() + b"\n")
    return path


# --- the snapshot that is being written ---------------------------------------------------------------------------


def edit_snapshot(workspace: Workspace) -> Document:
    """The snapshot, for editing."""
    from desired_state.authoring import Document

    return Document(workspace.snapshot().decode(), file=workspace.snapshot_file)


def save_snapshot(workspace: Workspace, document: Document) -> None:
    """Write an edited snapshot."""
    workspace.write(workspace.snapshot_file, document.text.encode())


def incomplete(document: Document, file: str) -> DocumentError | None:
    """What still keeps an edited snapshot from being one; None when nothing does."""
    from desired_state.document import SNAPSHOT_LIMIT, load
    from schemas.snapshot import SnapshotDocument

    try:
        load(document.text.encode(), SnapshotDocument, file=file, limit=SNAPSHOT_LIMIT)
    except DocumentError as error:
        return error
    return None


def published(workspace: Workspace, document: Mapping[str, Any]) -> Base | None:
    """What was published before: the last commit's snapshot; outside git, what the signatures beside it are about.

    Args:
        workspace: the working copy.
        document: the snapshot as it lies there now, read.
    """
    from desired_state.document import SNAPSHOT_LIMIT, parse
    from schemas.digests import digest_bytes

    committed = workspace.committed(workspace.snapshot_file)
    if committed is not None:
        tree, _ = parse(committed, file="HEAD", limit=SNAPSHOT_LIMIT)
        metadata = tree.get("metadata") if isinstance(tree, dict) else None
        return _base(digest_bytes(committed), metadata)
    if workspace.in_git:
        return None
    digests = [file.content for file in workspace.signatures(workspace.snapshot_signatures).values()]
    if not digests:
        return None
    return _base(max(sorted(set(digests)), key=digests.count), document.get("metadata"))


def _base(digest: str, metadata: Any) -> Base:
    from desired_state.drafting import Base

    epoch = metadata.get("epoch", 1) if isinstance(metadata, dict) else 1
    sequence = metadata.get("sequence") if isinstance(metadata, dict) else None
    if not isinstance(epoch, int) or not isinstance(sequence, int):
        raise ConfigError("the snapshot that was published has no readable epoch and sequence")
    return Base(digest, epoch, sequence)


def read_snapshot(content: bytes, file: str) -> SnapshotDocument:
    """A snapshot's bytes as a document.

    Raises:
        DocumentError: it is not one.
    """
    from desired_state.document import SNAPSHOT_LIMIT, load
    from schemas.snapshot import SnapshotDocument

    return load(content, SnapshotDocument, file=file, limit=SNAPSHOT_LIMIT)


def roles_of(document: TrustDocument) -> dict[RoleName, Role]:
    """The roles that a trust document has, by name."""
    roles = document.spec.roles
    found: dict[RoleName, Role] = {"root": roles.root, "snapshot": roles.snapshot}
    return found if roles.timestamp is None else {**found, "timestamp": roles.timestamp}


def write_schemas(workspace: Workspace) -> None:
    """Write the JSON Schemas that the documents' modelines name, so that editors complete and check them offline."""
    from importlib.resources import files

    from desired_state.drafting import SCHEMA_FOLDER

    target = workspace.root / SCHEMA_FOLDER
    ports().files.make_folder(target)
    for kind in ("snapshot", "trust", "manifest", "probe"):
        name = f"{kind}.v1alpha1.json"
        content = files("schemas").joinpath("published", name).read_bytes()
        path = target / name
        if not path.exists() or path.read_bytes() != content:
            ports().files.write(path, content)
