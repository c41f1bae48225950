"""Is this the newest? Pure decisions about the timestamp, the clock, and what an absence of news means.

A valid snapshot can be an old one that somebody keeps showing (a freeze attack). Where trust names the role
`timestamp`, an online key says every few hours which snapshot is the newest (The Update Framework, sections 4.6 and
5.4); a node that no longer hears it, or hears of a snapshot that nobody shows it, suspects a freeze. Nothing here lets
anything be accepted or keeps it from being accepted: an online key is easily stolen, so its word can only raise an
alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from desired_state import document as reader
from desired_state.tally import count, refuse
from desired_state.trust import CLOCK_SKEW, begins_later, check_network
from schemas.base import Address, Count, Digest, Frozen, Positive, Time, format_time
from schemas.digests import digest_bytes, short
from schemas.errors import ClockBehind, ReconcileError
from schemas.refusals import Equivocation, Expired, FreezeSuspected, RollbackAttack, TrustBroken, UnknownSigner
from schemas.timestamp import TimestampDocument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from desired_state.trust import TrustState
    from schemas.trust import Role

NEAR_SHARE: Final = 10
NEAR_MOST: Final = timedelta(days=3)
"""Without a timestamp: expiry is near in the last tenth of a validity, and at most three days before its end. Snapshots
live 30 days unless told otherwise, and `reconcile snapshot lint` asks for a renewal at the same three days."""

_HINT: Final = "the role timestamp renews it: `reconcile snapshot timestamp`; compare with another node"


# --- the timestamp ------------------------------------------------------------------------------------------------


class TimestampMark(Frozen):
    """The newest timestamp that was accepted: no older one ever counts again, and until it expires it speaks."""

    issued_at: Time
    """When it was said."""
    expires_at: Time
    """Until when it may be believed."""
    epoch: Count
    """Epoch of the snapshot that it names."""
    sequence: Positive
    """Its sequence."""
    snapshot: Digest
    """Its content digest."""
    content: Digest
    """Digest of the timestamp itself."""
    signers: tuple[Address, ...]
    """Who signed it: once they no longer hold the role, it says nothing any more."""

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, sequence) of the snapshot that is said to be the newest."""
        return (self.epoch, self.sequence)


def counted(mark: TimestampMark | None, trust: TrustState) -> TimestampMark | None:
    """The mark, as far as current trust lets it speak: None once too few of its signers hold the role.

    So a rotation of the online key undoes what a thief said with it, and nothing else does (The Update Framework,
    section 5.3.11).
    """
    role = trust.roles.timestamp
    if mark is None or role is None:
        return None
    members = {signer.lower() for signer in role.signers}
    return mark if sum(signer.lower() in members for signer in mark.signers) >= role.threshold else None


def newest(copies: Sequence[TimestampMark | None]) -> TimestampMark | None:
    """The newest of several marks; None when there is none. Among equals the first."""
    found = [mark for mark in copies if mark is not None]
    return max(found, key=lambda mark: mark.issued_at) if found else None


def accept_timestamp(
    *,
    content: bytes,
    signatures: Sequence[bytes],
    trust: TrustState,
    mark: TimestampMark | None,
    network: str,
    now: datetime,
    floor: datetime | None = None,
    file: str = "timestamp",
) -> TimestampMark:
    """Decide whether a timestamp may be believed.

    The steps, in order; the first that fails gives the reason:

     1. within limits, readable, of a form that this agent knows: `LimitExceeded`, `MalformedDocument`, `AgentTooOld`
     2. of this network: `WrongNetwork`
     3. not older than the newest accepted, in its own time and in the snapshot that it names: `RollbackAttack`,
        `Equivocation`; the very same is returned as it is
     4. signed by the threshold of distinct current signers of the role: as `accept_snapshot`
     5. valid now: `NotYetValid`, `Expired`
     6. of the epoch that root declared: `TrustBroken`, `RollbackAttack`

    Args:
        content: the exact bytes.
        signatures: raw signature files.
        trust: current trust.
        mark: the newest accepted timestamp that still counts (see `counted`), None before the first.
        network: this node's network.
        now: aware; read once by the caller.
        floor: `issuedAt` of the newest accepted snapshot: a clock that is behind it never loosens a check.
        file: for messages.

    Raises:
        NotTrusted: as above; `UnknownSigner` also where trust has no such role.
    """
    role = trust.roles.timestamp
    if role is None:
        raise UnknownSigner(f"{file}: trust version {trust.version} has no role timestamp")
    tree, positions = reader.parse_json(content, file=file, limit=reader.TIMESTAMP_LIMIT)
    check_network(reader.envelope(tree, positions, file=file), network, file)
    document = reader.validate(tree, positions, TimestampDocument, file=file)
    digest = digest_bytes(content)
    if mark is not None and mark.content == digest:
        return mark
    if mark is not None:
        _check_forward(document, mark, file)
    signers = _check_signatures(document, content, signatures, role, file)
    _check_validity(document, now, floor, file)
    _check_epoch(document, trust, file)
    return TimestampMark(
        issued_at=document.metadata.issued_at,
        expires_at=document.metadata.expires_at,
        epoch=document.snapshot.epoch,
        sequence=document.snapshot.sequence,
        snapshot=document.snapshot.digest,
        content=digest,
        signers=signers,
    )


def _check_forward(document: TimestampDocument, mark: TimestampMark, file: str) -> None:
    issued, named = document.metadata.issued_at, document.snapshot
    if issued < mark.issued_at:
        raise RollbackAttack(
            f"{file} is of {format_time(issued)}, and one of {format_time(mark.issued_at)} was accepted already"
        )
    position = (named.epoch, named.sequence)
    if position < mark.position:
        raise RollbackAttack(
            f"{file} names sequence {named.sequence} of epoch {named.epoch} as the newest, and the timestamp before "
            f"it named sequence {mark.sequence} of epoch {mark.epoch}"
        )
    if issued == mark.issued_at or (position == mark.position and named.digest != mark.snapshot):
        raise Equivocation(
            f"{file} contradicts the timestamp of {format_time(mark.issued_at)}, which named sequence {mark.sequence} "
            f"({short(mark.snapshot)}) as the newest"
        )


def _check_signatures(
    document: TimestampDocument, content: bytes, signatures: Sequence[bytes], role: Role, file: str
) -> tuple[str, ...]:
    from desired_state.signatures import timestamp_message  # noqa: PLC0415 - 0.9 s, for new documents only

    tally = count(timestamp_message(document, content), digest_bytes(content), signatures, role)
    if not tally.reached:
        raise refuse(tally, file, pending=True)
    return tally.signers


def _check_validity(document: TimestampDocument, now: datetime, floor: datetime | None, file: str) -> None:
    metadata = document.metadata
    if metadata.issued_at > now + CLOCK_SKEW:
        raise begins_later(file, metadata.issued_at)
    if metadata.expires_at <= (now if floor is None else max(now, floor)):
        raise Expired(f"{file} expired at {format_time(metadata.expires_at)}", hint=_HINT)


def _check_epoch(document: TimestampDocument, trust: TrustState, file: str) -> None:
    named = document.snapshot.epoch
    if named > trust.epoch:
        raise TrustBroken(f"{file} names epoch {named}, and root declared {trust.epoch}")
    if named < trust.epoch:
        raise RollbackAttack(f"{file} names epoch {named}, which root ended: the epoch is {trust.epoch} now")


# --- what follows from it -----------------------------------------------------------------------------------------


class InForce(Protocol):
    """The snapshot that is in force, as far as its age is concerned."""

    @property
    def digest(self) -> str:
        """Content digest."""
        ...

    @property
    def epoch(self) -> int:
        """Its epoch."""
        ...

    @property
    def sequence(self) -> int:
        """Its sequence."""
        ...

    @property
    def issued_at(self) -> datetime:
        """Beginning of its validity."""
        ...

    @property
    def expires_at(self) -> datetime:
        """End of its validity."""
        ...


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the snapshot in force may not be the newest. It serves on, whatever this says (I6)."""

    error: ReconcileError
    """`FreezeSuspected`, or `Equivocation` where the timestamp names another snapshot for the same position."""
    promised: bool
    """Whether the network promised to say which is the newest, and that is not kept. Otherwise it is a guess."""


def doubt(
    in_force: InForce,
    *,
    trust: TrustState,
    mark: TimestampMark | None,
    problem: ReconcileError | None,
    now: datetime,
) -> Doubt | None:
    """Whether newer snapshots may be withheld from this node.

    Args:
        in_force: what will be in force after this look.
        trust: current trust.
        mark: the newest accepted timestamp that still counts.
        problem: what is wrong with the timestamps that the repositories show now; None if nothing is.
        now: aware.
    """
    if trust.roles.timestamp is None:
        return _expiring(in_force, now)
    also = f" ({problem.reason}: {problem.message})" if problem is not None else ""
    if mark is None:
        text = f"trust version {trust.version} has a role timestamp, and no repository shows a valid timestamp{also}"
        return Doubt(FreezeSuspected(text, hint=_HINT), promised=True)
    # What is in force was signed by then, whatever the clock says.
    if mark.expires_at <= max(now, in_force.issued_at):
        text = (
            f"nobody says any more which snapshot is the newest: the timestamp of {format_time(mark.issued_at)} "
            f"expired at {format_time(mark.expires_at)}{also}"
        )
        return Doubt(FreezeSuspected(text, hint=_HINT), promised=True)
    position = (in_force.epoch, in_force.sequence)
    stated = f"the timestamp of {format_time(mark.issued_at)} names sequence {mark.sequence} of epoch {mark.epoch}"
    if mark.position > position:
        text = f"{stated} as the newest, and no repository shows it: sequence {in_force.sequence} is in force"
        return Doubt(FreezeSuspected(text, hint="a mirror lags, or newer snapshots are withheld"), promised=True)
    if mark.position == position and mark.snapshot != in_force.digest:
        text = f"{stated} with the digest {short(mark.snapshot)}, and {short(in_force.digest)} is in force"
        return Doubt(
            Equivocation(text, hint="compare with another node, and with the network's signers"), promised=True
        )
    return None


def _expiring(in_force: InForce, now: datetime) -> Doubt | None:
    """Without a timestamp only this is left: a network that is alive renews its snapshot before it ends."""
    near = min((in_force.expires_at - in_force.issued_at) / NEAR_SHARE, NEAR_MOST)
    if not in_force.expires_at - near <= now < in_force.expires_at:
        return None
    text = (
        f"nothing newer than sequence {in_force.sequence} was ever shown, and it expires at "
        f"{format_time(in_force.expires_at)}"
    )
    hint = "its signers renew it with `reconcile snapshot bump`; if they did, newer snapshots are withheld"
    return Doubt(FreezeSuspected(text, hint=hint), promised=False)


def clock_behind(now: datetime, latest: datetime | None) -> ClockBehind | None:
    """Whether this machine's clock is wrong for certain: behind what was signed before it was accepted here.

    Args:
        now: this machine's time.
        latest: the latest `issuedAt` of what was accepted; None before the first.
    """
    if latest is None or now + CLOCK_SKEW >= latest:
        return None
    behind = int((latest - now).total_seconds())
    return ClockBehind(
        f"this machine's clock shows {format_time(now)}, at least {behind} seconds behind what was accepted already "
        f"(issued at {format_time(latest)})",
        hint="set the clock (NTP); no check is loosened by it",
    )
