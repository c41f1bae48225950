"""Whom to believe: pure decisions over bytes, signatures, trust, mark and time. No I/O, no clock.

Two chains meet here. Trust documents say who may sign; version 1 is pinned by its digest, every later one is signed by
the thresholds of its predecessor and of itself (The Update Framework, section 5.3). Snapshots are signed by current
signers, and only ever move forward. Every refusal is a typed error of `schemas.refusals`, and its class is its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from desired_state import document as reader
from desired_state.snapshot import SEAL, Snapshot
from desired_state.tally import count, refuse
from schemas.base import format_time
from schemas.digests import digest_bytes, short
from schemas.refusals import (
    BrokenChain,
    Equivocation,
    Expired,
    MalformedDocument,
    NotTrusted,
    NotYetValid,
    RollbackAttack,
    SignaturesPending,
    TrustBroken,
    WrongNetwork,
)
from schemas.snapshot import SnapshotDocument
from schemas.trust import TrustDocument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from desired_state.watermark import Mark
    from schemas.trust import Roles

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far `issuedAt` may lie ahead of this node's clock: what clocks kept by NTP never reach (Kerberos' tolerance,
RFC 4120, section 1.6). Never granted to `expiresAt`."""


# --- trust --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrustState:
    """The trust document that counts now, verified."""

    document: TrustDocument
    digest: str

    @property
    def version(self) -> int:
        """Version of the document."""
        return self.document.metadata.version

    @property
    def epoch(self) -> int:
        """The epoch that root has declared."""
        return self.document.metadata.epoch

    @property
    def roles(self) -> Roles:
        """Who may sign what."""
        return self.document.spec.roles


@dataclass(frozen=True, slots=True)
class TrustLink:
    """One later trust document, as a repository offers it."""

    version: int
    """The version that its file name promises."""
    content: bytes
    signatures: tuple[bytes, ...]
    """Raw signature files."""
    file: str
    """For messages."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How far a chain could be followed."""

    trust: TrustState
    pending: NotTrusted | None = None
    """Why the next version does not count yet: it collects signatures, or begins later. No alarm."""


def verify_first(content: bytes, pin_digest: str, network: str, *, file: str = "trust/1.yaml") -> TrustState:
    """Accept the pinned trust document.

    Args:
        content: the exact bytes.
        pin_digest: the digest that was pinned at `reconcile init`.
        network: this node's network.
        file: for messages.

    Raises:
        TrustBroken: other bytes than the pinned ones, or not version 1.
        WrongNetwork: the document is another network's.
        MalformedDocument, LimitExceeded: it is not a trust document.
    """
    state = recall(content, pin_digest, network, file=file)
    if state.version != 1:
        raise TrustBroken(f"{file} is version {state.version}; a node pins version 1")
    _check_addresses(state.document, file)
    return state


def recall(content: bytes, digest: str, network: str, *, file: str = "trust") -> TrustState:
    """Trust that this node verified before, from its own record. No signature is computed again.

    Args:
        content: the exact bytes.
        digest: what they must hash to, from a place that only this node writes.
        network: this node's network.
        file: for messages.

    Raises:
        TrustBroken: other bytes.
        WrongNetwork: the document is another network's.
        MalformedDocument, LimitExceeded: it is not a trust document.
    """
    found = digest_bytes(content)
    if found != digest:
        raise TrustBroken(
            f"{file} is {short(found)}, and this node trusts {short(digest)}",
            hint="the pinned document was replaced, or the node was initialised for another network",
        )
    return TrustState(_read_trust(content, network, file), digest)


def advance(
    trust: TrustState, content: bytes, signatures: Sequence[bytes], *, network: str, now: datetime, file: str = "trust"
) -> TrustState:
    """Take one step in the chain of trust.

    An expired document is a fine step, since it may be followed by one that is not; only the last is held against the
    clock, and only when a new snapshot is to be accepted.

    Args:
        trust: the current trust.
        content: the exact bytes of the next version.
        signatures: raw signature files.
        network: this node's network.
        now: aware.
        file: for messages.

    Raises:
        TrustBroken: not the next version, not chained to the current one, or of a lower epoch.
        WrongNetwork: the document is another network's.
        NotYetValid: it begins later.
        SignaturesPending: some root signers signed, and some are still to come.
        InvalidSignature, UnknownSigner, ThresholdNotMet: those who signed may not.
        MalformedDocument, LimitExceeded: it is not a trust document.
    """
    document = _read_trust(content, network, file)
    metadata = document.metadata
    if metadata.version != trust.version + 1:
        raise TrustBroken(f"{file} is version {metadata.version}, and version {trust.version + 1} comes next")
    if metadata.previous != trust.digest:
        raise TrustBroken(f"{file} does not follow the trust document {short(trust.digest)} that this node holds")
    if metadata.epoch < trust.epoch:
        raise TrustBroken(f"{file} lowers the epoch from {trust.epoch} to {metadata.epoch}")
    _check_addresses(document, file)
    _check_rotation(trust, document, content, signatures, file)
    if metadata.issued_at > now + CLOCK_SKEW:
        raise begins_later(file, metadata.issued_at)
    return TrustState(document, digest_bytes(content))


def walk(trust: TrustState, links: Sequence[TrustLink], *, network: str, now: datetime) -> Walk:
    """Follow a chain of trust documents as far as it goes.

    Args:
        trust: where this node stands.
        links: later versions in ascending order; those that the node has already are passed over.
        network: this node's network.
        now: aware.

    Raises:
        NotTrusted: a later version is there and cannot be believed; nothing after it counts, and nothing is accepted.
    """
    for link in links:
        if link.version <= trust.version:
            continue
        try:
            trust = advance(trust, link.content, link.signatures, network=network, now=now, file=link.file)
        except (SignaturesPending, NotYetValid) as error:
            return Walk(trust, error)
    return Walk(trust)


def _read_trust(content: bytes, network: str, file: str) -> TrustDocument:
    tree, positions = reader.parse(content, file=file, limit=reader.TRUST_LIMIT)
    check_network(reader.envelope(tree, positions, file=file), network, file)
    return reader.validate(tree, positions, TrustDocument, file=file)


def _check_addresses(document: TrustDocument, file: str) -> None:
    """A mistyped address would be a signer that nobody is: its checksum (ERC-55) must be right."""
    from desired_state.signatures import checksum  # noqa: PLC0415 - 0.9 s, for new documents only

    roles = document.spec.roles
    for name, role in (("root", roles.root), ("snapshot", roles.snapshot), ("timestamp", roles.timestamp)):
        for index, signer in enumerate(role.signers if role is not None else ()):
            try:
                checksum(signer)
            except ValueError as error:
                field = f"spec.roles.{name}.signers[{index}]"
                raise MalformedDocument(str(error), file=file, field=field) from error


def _check_rotation(
    trust: TrustState, document: TrustDocument, content: bytes, signatures: Sequence[bytes], file: str
) -> None:
    """Version n+1 carries both thresholds: those who hand over agree, and those who take over can sign."""
    from desired_state.signatures import trust_message  # noqa: PLC0415 - 0.9 s, for new documents only

    message = trust_message(document, content)
    old = count(message, digest_bytes(content), signatures, trust.roles.root)
    new = count(message, digest_bytes(content), signatures, document.spec.roles.root)
    what = f"trust version {document.metadata.version}"
    if not old.seen:
        raise SignaturesPending(f"{file}: nobody signed {what} yet; {old.threshold} root signers must")
    if not old.reached:
        # Once one of the present signers agreed, the others may be on their way; strangers alone are not.
        raise refuse(old, f"{what} (by the signers of version {trust.version})", pending=bool(old.signers))
    if not new.reached:
        raise refuse(new, f"{what} (by its own signers)", pending=True)


# --- snapshots ----------------------------------------------------------------------------------------------------


def accept_snapshot(
    *,
    content: bytes,
    signatures: Sequence[bytes],
    trust: TrustState,
    mark: Mark | None,
    network: str,
    now: datetime,
    agent_version: str,
    floor: datetime | None = None,
    file: str = "snapshot",
) -> Snapshot:
    """Decide whether a snapshot may be believed (I1).

    The steps, in order; the first that fails gives the reason:

     1. within limits and readable: `LimitExceeded`, `MalformedDocument`
     2. of this network: `WrongNetwork`
     3. for an agent like this one: `AgentTooOld`
     4. well-formed: `MalformedDocument`
     5. above the mark: `RollbackAttack`, `Equivocation`; equal to it: returned as it is, nothing more to decide
     6. signed by the threshold of distinct current signers: `InvalidSignature`, `UnknownSigner`,
        `SignaturesPending`, `ThresholdNotMet`
     7. valid now: `NotYetValid`, `Expired`; and so is the trust by which it is judged: `Expired`
     8. of a trust version that this node has, and of the epoch that root declared: `TrustBroken`, `RollbackAttack`
     9. chained to the mark where it follows directly: `BrokenChain`; else the gap is recorded

    Args:
        content: the exact bytes of the snapshot.
        signatures: raw signature files. Those over other bytes are ignored, duplicates count once, and malformed ones
            do not stand in the way of a threshold that is reached without them.
        trust: current trust: revoked signers stop counting at once.
        mark: the high-water mark, None before the first acceptance.
        network: this node's network.
        now: aware; read once by the caller.
        agent_version: version of this agent.
        floor: `issuedAt` of the newest accepted snapshot: a clock that is behind it never loosens a check.
        file: for messages.

    Returns:
        The verified snapshot.
    """
    document = _read_snapshot(content, network, agent_version, file)
    digest = digest_bytes(content)
    if mark is not None and _is_at_mark(document, digest, mark):
        return _sealed(document, content, digest, signers=(), trust=trust, gap=False)
    signers = _check_signatures(document, content, signatures, trust, mark)
    _check_validity(document, trust, now, floor)
    _check_authority(document, trust)
    gap = mark is not None and _has_gap(document, mark)
    return _sealed(document, content, digest, signers=signers, trust=trust, gap=gap)


def _sealed(
    document: SnapshotDocument, content: bytes, digest: str, *, signers: tuple[str, ...], trust: TrustState, gap: bool
) -> Snapshot:
    return Snapshot(document, content, digest, signers, trust.version, gap, SEAL)


def _read_snapshot(content: bytes, network: str, agent_version: str, file: str) -> SnapshotDocument:
    """Steps 1 to 4."""
    tree, positions = reader.parse(content, file=file, limit=reader.SNAPSHOT_LIMIT)
    found = reader.envelope(tree, positions, file=file)
    check_network(found, network, file)
    reader.check_agent(found, agent_version, file=file)
    return reader.validate(tree, positions, SnapshotDocument, file=file)


def check_network(found: reader.Envelope, network: str, file: str) -> None:
    """Whether a document belongs to a network.

    Raises:
        WrongNetwork: it does not.
    """
    if found.network != network:
        raise WrongNetwork(f"{file} is of the network {found.network!r}, and this node belongs to {network!r}")


def _is_at_mark(document: SnapshotDocument, digest: str, mark: Mark) -> bool:
    """Step 5: False above the mark, True for the very snapshot at the mark."""
    metadata = document.metadata
    if (metadata.epoch, metadata.sequence) > mark.position:
        return False
    where = f"epoch {metadata.epoch}, sequence {metadata.sequence}"
    if (metadata.epoch, metadata.sequence) < mark.position:
        raise RollbackAttack(
            f"the snapshot is older ({where}) than the newest accepted one (epoch {mark.epoch}, "
            f"sequence {mark.sequence})",
            hint="to go back to an older content, sign it as a new snapshot: `reconcile snapshot revert`",
        )
    if digest != mark.digest:
        raise Equivocation(
            f"two snapshots claim {where}: {short(mark.digest)} was accepted, {short(digest)} is offered",
            hint="a changed snapshot needs a higher sequence: `reconcile snapshot bump`",
        )
    return True


def _check_signatures(
    document: SnapshotDocument, content: bytes, signatures: Sequence[bytes], trust: TrustState, mark: Mark | None
) -> tuple[str, ...]:
    """Step 6."""
    from desired_state.signatures import snapshot_message  # noqa: PLC0415 - 0.9 s, for new documents only

    tally = count(snapshot_message(document, content), digest_bytes(content), signatures, trust.roles.snapshot)
    if not tally.reached:
        what = f"sequence {document.metadata.sequence} (by the signers of trust version {trust.version})"
        raise refuse(tally, what, pending=mark is not None)
    return tally.signers


def begins_later(what: str, issued_at: datetime) -> NotYetValid:
    """The error for a document whose `issuedAt` lies further ahead than clocks may differ."""
    return NotYetValid(
        f"{what} begins at {format_time(issued_at)}",
        begins=issued_at - CLOCK_SKEW,
        hint="if that is in the past, this node's clock is wrong",
    )


def _check_validity(document: SnapshotDocument, trust: TrustState, now: datetime, floor: datetime | None) -> None:
    """Step 7. Something was accepted at `floor`, so that now cannot be earlier, whatever the clock says."""
    metadata = document.metadata
    latest = now if floor is None else max(now, floor)
    if metadata.issued_at > now + CLOCK_SKEW:
        raise begins_later("the snapshot", metadata.issued_at)
    if metadata.expires_at <= latest:
        raise Expired(
            f"the snapshot expired at {format_time(metadata.expires_at)}",
            hint="its signers renew it: `reconcile snapshot bump`",
        )
    if trust.document.metadata.expires_at <= latest:
        raise Expired(
            f"trust version {trust.version} expired at {format_time(trust.document.metadata.expires_at)}",
            hint="the root signers renew it: `reconcile trust rotate`",
        )


def _check_authority(document: SnapshotDocument, trust: TrustState) -> None:
    """Step 8."""
    metadata = document.metadata
    if metadata.trust_version > trust.version:
        raise TrustBroken(
            f"the snapshot asks for trust version {metadata.trust_version}, and the chain ends at {trust.version}"
        )
    if metadata.epoch > trust.epoch:
        raise TrustBroken(f"the snapshot claims epoch {metadata.epoch}, and root declared {trust.epoch}")
    if metadata.epoch < trust.epoch:
        raise RollbackAttack(
            f"the snapshot is of epoch {metadata.epoch}, which root ended: the epoch is {trust.epoch} now",
            hint="make a snapshot of the new epoch: `reconcile snapshot bump`",
        )


def _has_gap(document: SnapshotDocument, mark: Mark) -> bool:
    """Step 9: whether `previous` could not be checked."""
    metadata = document.metadata
    if (metadata.epoch, metadata.sequence) != (mark.epoch, mark.sequence + 1):
        return True
    if metadata.previous != mark.digest:
        found = "names none" if metadata.previous is None else f"names {short(metadata.previous)}"
        raise BrokenChain(f"the snapshot follows {short(mark.digest)} by its sequence, but its `previous` {found}")
    return False
