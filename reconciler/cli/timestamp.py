"""`reconcile snapshot timestamp`: an online key says that the snapshot is the newest. And what others show of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli.console import emit, next_steps, paint, plural, relative_time, say
from reconciler.cli.operators import (
    count_signatures,
    missing_lines,
    now,
    read_trust,
    signer_options,
    unlock_key,
    workspace_options,
    write_signature,
)
from reconciler.cli.options import DurationType, json_option
from schemas.base import format_time
from schemas.errors import ClockBehind, UsageError
from schemas.refusals import DocumentError, MissingDocument, NotTrusted, RollbackAttack, UnknownSigner

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from desired_state.drafting import Base
    from desired_state.freshness import TimestampMark
    from desired_state.trust import TrustState
    from desired_state.workspace import Workspace
    from schemas.timestamp import TimestampDocument

VALID: Final = 25 * 3600
"""Seconds: said once a day, with an hour for a job that starts late."""
LONGEST: Final = 30 * 86400
"""Seconds: a word that is good for a month is no better than the snapshot's own expiry."""


_CRON: Final = """\b
A job that runs daily, in a working copy:
  git pull --quiet &&
  reconcile snapshot timestamp --key FILE --password-file FILE &&
  git add networks && git commit --quiet --message timestamp && git push --quiet"""


@click.command(epilog=_CRON)
@workspace_options
@signer_options
@click.option(
    "--valid", type=DurationType(), default=VALID, show_default="25h", help="For how long it may be believed."
)
@json_option
def timestamp(
    workspace: Workspace, key_file: Path | None, password_file: Path | None, valid: int, *, as_json: bool
) -> None:
    """Say with an online key that the snapshot is the newest, for a day. Asks nothing: made for cron.

    Writes networks/NAME/timestamp.json anew and signs it; where several keys must sign, the others add their signature
    to the same file. The snapshot itself must be one that nodes accept.
    """
    from desired_state.load import load_signatures
    from desired_state.signatures import address_of, timestamp_message
    from desired_state.signatures import sign as make

    if key_file is None:
        raise click.UsageError("Missing option '--key'.")
    if not 0 < valid <= LONGEST:
        raise click.BadParameter("between a second and 30 days", param_hint="--valid")
    trust = read_trust(workspace).state
    newest = _newest(workspace, trust)
    private_key = unlock_key(key_file, password_file)
    signer = address_of(private_key)
    _check_may_sign(trust, signer)
    content, document = _document(workspace, trust, newest, signer, valid)
    message = timestamp_message(document, content)
    folder = workspace.timestamp_signatures
    from schemas.digests import digest_bytes

    workspace.write(workspace.timestamp_file, content)
    workspace.drop_signatures(folder, digest_bytes(content))
    shown = f"sequence {newest.sequence} of epoch {newest.epoch} ({newest.digest}) is the newest"
    write_signature(workspace, folder, content, make(message, private_key), signer, shown)
    role = trust.roles.timestamp
    assert role is not None  # noqa: S101 - `_check_may_sign` found the signer in it
    counted = count_signatures(message, content, load_signatures(workspace.files, folder), role, "timestamp")
    if as_json:
        emit({"path": workspace.timestamp_file, **_as_json(document), "missing": counted.needed})
        return
    say(
        f"Wrote {workspace.timestamp_file}: sequence {newest.sequence} is the newest, believed until "
        f"{document.metadata.expires_at:%Y-%m-%d %H:%M} UTC."
    )
    if counted.needed:
        say(*missing_lines([counted]))
        next_steps(
            f"{plural(counted.needed, 'more signer')}: `reconcile snapshot timestamp --key FILE`, on these files"
        )
    else:
        next_steps("commit networks/, and push")


def _newest(workspace: Workspace, trust: TrustState) -> Base:
    """The snapshot of the working copy, as far as nodes would accept it: an online key vouches for nothing else."""
    from desired_state.acceptance import accept_snapshot
    from desired_state.drafting import Base
    from desired_state.load import load_candidate
    from reconciler.cli.wiring import agent_version

    found = load_candidate(workspace.files, workspace.network, trust_version=0)
    accepted = accept_snapshot(
        content=found.content,
        signatures=found.signatures,
        trust=trust,
        mark=None,
        network=workspace.network,
        now=now(),
        agent_version=agent_version(),
        file=found.file,
    )
    return Base(accepted.digest, *accepted.position)


def _check_may_sign(trust: TrustState, signer: str) -> None:
    role = trust.roles.timestamp
    if role is None:
        raise UsageError(
            f"trust version {trust.version} has no role timestamp, so no node would read it",
            hint="`reconcile trust add ADDRESS --role timestamp`, then `reconcile trust sign`",
        )
    if signer.lower() not in {known.lower() for known in role.signers}:
        raise UnknownSigner(
            f"{signer} does not hold the role timestamp in trust version {trust.version}",
            hint="`reconcile trust show` lists who does",
        )


def _document(
    workspace: Workspace, trust: TrustState, newest: Base, signer: str, valid: int
) -> tuple[bytes, TimestampDocument]:
    """The document to sign: the one that is there, where it still collects signatures, or a new one."""
    from desired_state.document import TIMESTAMP_LIMIT, load_json
    from desired_state.drafting import timestamp as draft
    from schemas.timestamp import TimestampDocument

    path, role = workspace.timestamp_file, trust.roles.timestamp
    before = workspace.read(path, TIMESTAMP_LIMIT)
    try:
        there = load_json(before, TimestampDocument, file=path) if before is not None else None
    except DocumentError:
        there = None  # whatever it is, no node has accepted it
    if before is not None and there is not None:
        named = (there.snapshot.epoch, there.snapshot.sequence)
        if named > (newest.epoch, newest.sequence):
            raise RollbackAttack(
                f"{path} names sequence {named[1]} of epoch {named[0]} as the newest, and the snapshot here is "
                f"sequence {newest.sequence}",
                hint="this working copy is behind: `git pull`",
            )
        signed = {file.signer.lower() for file in workspace.signatures(workspace.timestamp_signatures).values()}
        collecting = role is not None and 0 < len(signed) < role.threshold and signer.lower() not in signed
        if collecting and there.snapshot.digest == newest.digest and there.metadata.expires_at > now():
            return before, there
    issued = _issue(there.metadata.issued_at if there is not None else None)
    content = draft(workspace.network, newest, issued=issued, valid=timedelta(seconds=valid))
    return content, load_json(content, TimestampDocument, file=path)


def _issue(before: datetime | None) -> datetime:
    """Now, and later than the timestamp before: nodes take none that is not."""
    from desired_state.trust import CLOCK_SKEW

    moment = now()
    if before is None or moment > before:
        return moment
    if before - moment > CLOCK_SKEW:
        raise ClockBehind(
            f"the timestamp before is of {before:%Y-%m-%d %H:%M:%S} UTC, and this machine's clock shows "
            f"{moment:%Y-%m-%d %H:%M:%S} UTC",
            hint="set the clock",
        )
    return before + timedelta(seconds=1)


def _as_json(document: TimestampDocument) -> dict[str, Any]:
    newest = document.snapshot
    return {
        "epoch": newest.epoch,
        "sequence": newest.sequence,
        "digest": newest.digest,
        "issuedAt": format_time(document.metadata.issued_at),
        "expiresAt": format_time(document.metadata.expires_at),
    }


# --- for `show`, `verify` and `lint` ------------------------------------------------------------------------------


def seen_timestamp(workspace: Workspace, trust: TrustState) -> TimestampMark | NotTrusted | None:
    """What a node would make of the timestamp that lies in the working copy; None where trust has no such role."""
    from desired_state.freshness import accept_timestamp
    from desired_state.load import load_timestamp

    if trust.roles.timestamp is None:
        return None
    found = load_timestamp(workspace.files, workspace.network)
    if found.error is not None:
        return found.error
    try:
        return accept_timestamp(
            content=found.content,
            signatures=found.signatures,
            trust=trust,
            mark=None,
            network=workspace.network,
            now=now(),
            file=found.file,
        )
    except NotTrusted as error:
        return error


def timestamp_line(seen: TimestampMark | NotTrusted, digest: str) -> str:
    """One line about a timestamp.

    Args:
        seen: what a node would make of it.
        digest: content digest of the snapshot beside it.
    """
    if isinstance(seen, MissingDocument):
        return paint("is missing, and nodes will suspect a freeze: `reconcile snapshot timestamp` makes one", "yellow")
    if isinstance(seen, NotTrusted):
        return paint(f"does not count: {seen.reason}: {seen.message}", "yellow")
    what = (
        "this snapshot" if seen.snapshot == digest else paint(f"another snapshot, sequence {seen.sequence}", "yellow")
    )
    return f"names {what} as the newest, expires {relative_time(seen.expires_at, now())}"


def timestamp_json(seen: TimestampMark | NotTrusted | None) -> dict[str, Any] | None:
    """The same for programs; None where trust has no such role."""
    if seen is None:
        return None
    if isinstance(seen, NotTrusted):
        return {"valid": False, "reason": seen.reason, "message": seen.message}
    expires = format_time(seen.expires_at)
    return {"valid": True, "sequence": seen.sequence, "digest": seen.snapshot, "expiresAt": expires}
