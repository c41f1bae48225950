"""Whether a snapshot may be believed: a pure decision in numbered steps (I1). No I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state import document as reader
from desired_state.snapshot import SEAL, Snapshot
from desired_state.tally import count, refuse
from desired_state.trust import CLOCK_SKEW, begins_later, check_network
from schemas.base import format_time
from schemas.digests import digest_bytes, short
from schemas.refusals import (
    BrokenChain,
    Equivocation,
    Expired,
    InvalidSignature,
    RollbackAttack,
    TrustBroken,
    UnknownSigner,
)
from schemas.snapshot import SnapshotDocument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from desired_state.tally import Tally
    from desired_state.trust import TrustState
    from desired_state.watermark import Mark


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


def foresee(
    *,
    content: bytes,
    signatures: Sequence[bytes],
    trust: TrustState,
    mark: Mark | None,
    network: str,
    now: datetime,
    agent_version: str,
    file: str = "snapshot",
) -> SnapshotDocument:
    """What would be decided once enough signers have signed: every step of `accept_snapshot` but how many they are.

    Those who signed so far are held to it: where a node would pass over a bad signature beside enough good ones, here
    it is refused, because whoever looks at a change wants to know who put it there.

    Args:
        content: as `accept_snapshot`, like all that follow.
        signatures: raw signature files.
        trust: current trust.
        mark: the high-water mark.
        network: this node's network.
        now: aware.
        agent_version: version of this agent.
        file: for messages.

    Returns:
        The document. It was not verified: no `Snapshot`.

    Raises:
        InvalidSignature: a signature over these bytes is wrong, or a file is none.
        UnknownSigner: somebody signed who has no such role.
        NotTrusted: as `accept_snapshot`.
    """
    document = _read_snapshot(content, network, agent_version, file)
    tally = _tally(document, content, signatures, trust)
    what = f"sequence {document.metadata.sequence}"
    if tally.faults:
        raise InvalidSignature(f"{what} has a bad signature: {'; '.join(tally.faults)}")
    if tally.strangers:
        raise UnknownSigner(f"{what} is signed by {', '.join(tally.strangers)}, who hold no role")
    if mark is None or not _is_at_mark(document, digest_bytes(content), mark):
        _check_validity(document, trust, now, None)
        _check_authority(document, trust)
        if mark is not None:
            _has_gap(document, mark)
    return document


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
    tally = _tally(document, content, signatures, trust)
    if not tally.reached:
        what = f"sequence {document.metadata.sequence} (by the signers of trust version {trust.version})"
        raise refuse(tally, what, pending=mark is not None)
    return tally.signers


def _tally(document: SnapshotDocument, content: bytes, signatures: Sequence[bytes], trust: TrustState) -> Tally:
    from desired_state.signatures import snapshot_message  # noqa: PLC0415 - 0.9 s, for new documents only

    return count(snapshot_message(document, content), digest_bytes(content), signatures, trust.roles.snapshot)


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
