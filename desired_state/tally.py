"""Counting signatures: who of a role signed exactly these bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from desired_state import document as reader
from schemas.refusals import (
    AgentTooOld,
    DocumentError,
    InvalidSignature,
    SignaturesPending,
    ThresholdNotMet,
    UnknownSigner,
)
from schemas.trust import SignatureFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desired_state.signatures import TypedData
    from schemas.refusals import NotTrusted
    from schemas.trust import Role

MAX_SIGNATURES: Final = 256
"""Signature files that are looked at for one document: four times the signers a role can have; each costs 10 ms."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a set of signature files amounts to for one role."""

    threshold: int
    signers: tuple[str, ...] = ()
    """Checksummed addresses of the role's signers who signed, distinct, sorted."""
    strangers: tuple[str, ...] = ()
    """Addresses that signed these bytes and hold no such role, distinct, sorted."""
    faults: tuple[str, ...] = ()
    """What is wrong with files that cannot be read, or that claim one of the role's signers and are not theirs."""

    @property
    def reached(self) -> bool:
        """Whether enough distinct signers signed."""
        return len(self.signers) >= self.threshold

    @property
    def seen(self) -> bool:
        """Whether anybody tried to sign these bytes."""
        return bool(self.signers or self.strangers or self.faults)


def count(message: TypedData, digest: str, signatures: Sequence[bytes], role: Role) -> Tally:
    """Count the signatures of a role.

    Args:
        message: what must have been signed.
        digest: content digest of the document: files over other bytes are outdated, and not looked at.
        signatures: raw signature files, at most `MAX_SIGNATURES` of which are looked at.
        role: whose signatures count, and how many are needed.
    """
    members = {signer.lower() for signer in role.signers}
    signers: set[str] = set()
    strangers: set[str] = set()
    faults: list[str] = []
    for content in signatures[:MAX_SIGNATURES]:
        try:
            claimed, address = _recovered(message, digest, content)
        except (DocumentError, AgentTooOld, InvalidSignature) as error:
            # Also one in a newer form: whoever can add a file must not stop a threshold that is reached without it.
            faults.append(error.message)
            continue
        if address is None:
            continue
        if address.lower() in members:
            signers.add(address)
        elif claimed.lower() in members:
            faults.append(f"the signature in the name of {claimed} is not over this document")
        else:
            strangers.add(address)
    return Tally(role.threshold, tuple(sorted(signers)), tuple(sorted(strangers)), tuple(faults))


def _recovered(message: TypedData, digest: str, content: bytes) -> tuple[str, str | None]:
    """Who a signature file names and who really signed; no signer where it is about other bytes."""
    from desired_state.signatures import recover  # noqa: PLC0415 - 0.9 s, for new documents only

    found = reader.load_json(content, SignatureFile, file="signature")
    if found.content != digest:
        return found.signer, None
    try:
        return found.signer, recover(message, found.signature)
    except InvalidSignature as error:
        raise InvalidSignature(f"{error.message} (in the name of {found.signer})") from error


def refuse(tally: Tally, what: str, *, pending: bool) -> NotTrusted:
    """The error for a threshold that was not reached.

    Args:
        tally: the count.
        what: what was to be signed, for the message.
        pending: whether further signatures may be on their way.
    """
    progress = f"{len(tally.signers)} of {tally.threshold} needed signatures"
    if tally.faults:
        more = f" (and {len(tally.faults) - 1} more)" if len(tally.faults) > 1 else ""
        return InvalidSignature(f"{what} has {progress}, and a bad one: {tally.faults[0]}{more}")
    if tally.signers and pending:
        return SignaturesPending(
            f"{what} has {progress}, by {', '.join(tally.signers)}",
            hint="it is accepted as soon as the others have signed: `reconcile snapshot sign`",
        )
    if tally.strangers and not tally.signers:
        return UnknownSigner(f"{what} is signed only by {', '.join(tally.strangers)}, who hold no role")
    return ThresholdNotMet(f"{what} has {progress}")
