"""Whom to believe: pure decisions over bytes, signatures and time. No I/O, no clock.

Trust documents say who may sign; version 1 is pinned by its digest, every later one is signed by the thresholds of its
predecessor and of itself (The Update Framework, section 5.3). Every refusal is a typed error of `schemas.refusals`, and
its class is its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from desired_state import document as reader
from desired_state.tally import count, refuse
from schemas.base import format_time
from schemas.digests import digest_bytes, short
from schemas.refusals import (
    MalformedDocument,
    NotTrusted,
    NotYetValid,
    SignaturesPending,
    TrustBroken,
    WrongNetwork,
)
from schemas.trust import TrustDocument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from schemas.trust import Roles

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far `issuedAt` may lie ahead of this node's clock: what clocks kept by NTP never reach (Kerberos' tolerance,
RFC 4120, section 1.6). Never granted to `expiresAt`."""


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


def check_network(found: reader.Envelope, network: str, file: str) -> None:
    """Whether a document belongs to a network.

    Raises:
        WrongNetwork: it does not.
    """
    if found.network != network:
        raise WrongNetwork(f"{file} is of the network {found.network!r}, and this node belongs to {network!r}")


def begins_later(what: str, issued_at: datetime) -> NotYetValid:
    """The error for a document whose `issuedAt` lies further ahead than clocks may differ."""
    return NotYetValid(
        f"{what} begins at {format_time(issued_at)}",
        begins=issued_at - CLOCK_SKEW,
        hint="if that is in the past, this node's clock is wrong",
    )
