"""EIP-712 signatures. The one place that imports the Ethereum SDK (0.9 s: import this module only when it is needed).

A signature covers typed data (https://eips.ethereum.org/EIPS/eip-712), so that a wallet or a hardware key shows its
holder what is signed: the document's own identity and validity, and the BLAKE3 digest of its exact bytes. The domain is
bound to the network, so that a signature for one network is worth nothing in another.

Signatures are accepted in one form only: 65 bytes, s in the lower half of the curve's order (EIP-2), because the other
half would give every signature a twin that nobody made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.address import is_checksum_address, to_checksum_address
from eth_utils.crypto import keccak

from schemas.digests import PREFIX, digest_bytes
from schemas.refusals import InvalidSignature

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from eth_account.messages import SignableMessage

    from schemas.receipt import ChainHead, ReceiptDocument
    from schemas.snapshot import SnapshotDocument
    from schemas.timestamp import TimestampDocument
    from schemas.trust import TrustDocument

PrimaryType = Literal["Snapshot", "Trust", "Timestamp", "Receipt", "ReceiptHead"]
Fields = tuple[tuple[str, str], ...]

DOMAIN_NAME: Final = "reconcile"
DOMAIN_VERSION: Final = "1"

_DOMAIN: Final[Fields] = (("name", "string"), ("version", "string"), ("salt", "bytes32"))
TYPES: Final[Mapping[PrimaryType, Fields]] = MappingProxyType(
    {
        "Snapshot": (
            ("network", "string"),
            ("epoch", "uint64"),
            ("sequence", "uint64"),
            ("trustVersion", "uint64"),
            ("issuedAt", "uint64"),
            ("expiresAt", "uint64"),
            ("previousBlake3", "bytes32"),
            ("contentBlake3", "bytes32"),
        ),
        "Trust": (
            ("network", "string"),
            ("version", "uint64"),
            ("epoch", "uint64"),
            ("issuedAt", "uint64"),
            ("expiresAt", "uint64"),
            ("previousBlake3", "bytes32"),
            ("contentBlake3", "bytes32"),
        ),
        # "This is the newest snapshot", said daily by an online key.
        "Timestamp": (
            ("network", "string"),
            ("epoch", "uint64"),
            ("sequence", "uint64"),
            ("issuedAt", "uint64"),
            ("expiresAt", "uint64"),
            ("snapshotBlake3", "bytes32"),
            ("contentBlake3", "bytes32"),
        ),
        # A node's word that a subject passed its probe. Chained, so that none can be left out or put in later.
        "Receipt": (
            ("network", "string"),
            ("node", "address"),
            ("number", "uint64"),
            ("issuedAt", "uint64"),
            ("subjectBlake3", "bytes32"),
            ("evidenceBlake3", "bytes32"),
            ("previousBlake3", "bytes32"),
            ("contentBlake3", "bytes32"),
        ),
        # Where the chain ended when somebody took a copy of it.
        "ReceiptHead": (
            ("network", "string"),
            ("node", "address"),
            ("number", "uint64"),
            ("issuedAt", "uint64"),
            ("lastBlake3", "bytes32"),
            ("contentBlake3", "bytes32"),
        ),
    }
)
"""The primary types, field by field in the order that is hashed. Changing one needs another domain version."""

_ZERO: Final = "0x" + "00" * 32
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half of secp256k1's order (SEC 2, section 2.4.1): the largest s accepted (EIP-2)."""
_SIGNATURE: Final = re.compile(r"0x([0-9a-fA-F]{64})([0-9a-fA-F]{64})([0-9a-fA-F]{2})")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_PARITY: Final = {0: 27, 1: 28, 27: 27, 28: 28}
"""v as wallets write it, and what it is normalised to."""


@dataclass(frozen=True, slots=True)
class TypedData:
    """What is signed, before hashing."""

    network: str
    primary_type: PrimaryType
    message: Mapping[str, str | int]
    """The fields of the primary type: times in seconds since 1970, digests as 0x-prefixed hex."""

    def full(self) -> dict[str, Any]:
        """The complete JSON form that any wallet takes (`eth_signTypedData_v4`)."""
        return {
            "types": {
                "EIP712Domain": [{"name": name, "type": kind} for name, kind in _DOMAIN],
                self.primary_type: [{"name": name, "type": kind} for name, kind in TYPES[self.primary_type]],
            },
            "primaryType": self.primary_type,
            "domain": {
                "name": DOMAIN_NAME,
                "version": DOMAIN_VERSION,
                "salt": "0x" + keccak(text=self.network).hex(),
            },
            "message": dict(self.message),
        }


# --- what is signed -----------------------------------------------------------------------------------------------


def snapshot_message(document: SnapshotDocument, content: bytes) -> TypedData:
    """What a signer of a snapshot signs.

    Args:
        document: the snapshot, read from `content`.
        content: the exact bytes of the file.
    """
    metadata = document.metadata
    return _typed(
        metadata.network,
        "Snapshot",
        {
            "epoch": metadata.epoch,
            "sequence": metadata.sequence,
            "trustVersion": metadata.trust_version,
            "issuedAt": _seconds(metadata.issued_at),
            "expiresAt": _seconds(metadata.expires_at),
            "previousBlake3": _bytes32(metadata.previous),
            "contentBlake3": _bytes32(digest_bytes(content)),
        },
    )


def trust_message(document: TrustDocument, content: bytes) -> TypedData:
    """What a signer of a trust document signs.

    Args:
        document: the trust document, read from `content`.
        content: the exact bytes of the file.
    """
    metadata = document.metadata
    return _typed(
        metadata.network,
        "Trust",
        {
            "version": metadata.version,
            "epoch": metadata.epoch,
            "issuedAt": _seconds(metadata.issued_at),
            "expiresAt": _seconds(metadata.expires_at),
            "previousBlake3": _bytes32(metadata.previous),
            "contentBlake3": _bytes32(digest_bytes(content)),
        },
    )


def timestamp_message(document: TimestampDocument, content: bytes) -> TypedData:
    """What the online key signs: that a snapshot is the newest, until a time.

    Args:
        document: the timestamp, read from `content`.
        content: the exact bytes of the file.
    """
    metadata, newest = document.metadata, document.snapshot
    return _typed(
        metadata.network,
        "Timestamp",
        {
            "epoch": newest.epoch,
            "sequence": newest.sequence,
            "issuedAt": _seconds(metadata.issued_at),
            "expiresAt": _seconds(metadata.expires_at),
            "snapshotBlake3": _bytes32(newest.digest),
            "contentBlake3": _bytes32(digest_bytes(content)),
        },
    )


def receipt_message(document: ReceiptDocument, content: bytes) -> TypedData:
    """What a node signs when a subject passed its probe, failed it, or counts no longer.

    Args:
        document: the statement, read from `content`.
        content: its exact bytes.

    Raises:
        ValueError: its node is not a checksummed address.
    """
    return _typed(
        document.network,
        "Receipt",
        {
            "node": checksum(document.node),
            "number": document.number,
            "issuedAt": _seconds(document.issued_at),
            "subjectBlake3": _bytes32(document.subject_digest),
            "evidenceBlake3": _bytes32(document.evidence),
            "previousBlake3": _bytes32(document.previous),
            "contentBlake3": _bytes32(digest_bytes(content)),
        },
    )


def receipt_head_message(document: ChainHead, content: bytes) -> TypedData:
    """What a node signs when its chain is exported.

    Args:
        document: where the chain ends, read from `content`.
        content: its exact bytes.

    Raises:
        ValueError: its node is not a checksummed address.
    """
    return _typed(
        document.network,
        "ReceiptHead",
        {
            "node": checksum(document.node),
            "number": document.number,
            "issuedAt": _seconds(document.issued_at),
            "lastBlake3": _bytes32(document.digest),
            "contentBlake3": _bytes32(digest_bytes(content)),
        },
    )


def _typed(network: str, primary_type: PrimaryType, message: dict[str, str | int]) -> TypedData:
    return TypedData(network, primary_type, MappingProxyType({"network": network, **message}))


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _bytes32(digest: str | None) -> str:
    return _ZERO if digest is None else "0x" + digest.removeprefix(PREFIX)


# --- signing and recovering ---------------------------------------------------------------------------------------


def sign(message: TypedData, private_key: bytes) -> str:
    """Sign typed data (deterministic, RFC 6979).

    Args:
        message: what is signed.
        private_key: 32 bytes.

    Returns:
        r, s, v as 0x and 130 lowercase hex digits; s low, v 27 or 28.

    Raises:
        ValueError: not a private key of the curve.
    """
    signature = Account.sign_message(_encoded(message.full()), private_key).signature
    return "0x" + bytes(signature).hex()


def recover(message: TypedData, signature: str) -> str:
    """The address whose key made a signature over exactly this message.

    Any well-formed signature recovers to some address: what counts is whether that address holds a role.

    Args:
        message: what was signed.
        signature: 0x and 130 hex digits.

    Returns:
        The checksummed address.

    Raises:
        InvalidSignature: malformed, malleable (high s), r or s out of range, an unknown v, or not on the curve.
    """
    return _recover(_encoded(message.full()), signature)


def _recover(encoded: SignableMessage, signature: str) -> str:
    match = _SIGNATURE.fullmatch(signature)
    if match is None:
        raise InvalidSignature("a signature is 0x and 130 hex digits")
    r, s, v = (int(part, 16) for part in match.groups())
    if v not in _PARITY:
        raise InvalidSignature(f"the signature's v is {v}; 27 and 28 are allowed")
    if not r or not s:
        raise InvalidSignature("the signature's r or s is zero")
    if s > _HALF_ORDER:
        raise InvalidSignature("the signature is malleable: its s lies in the upper half (EIP-2)")
    try:
        return str(Account.recover_message(encoded, vrs=(_PARITY[v], r, s)))
    except Exception as error:  # the SDK raises several unrelated classes for values that are not on the curve
        raise InvalidSignature("the signature is not one of the curve secp256k1") from error


def _encoded(full: dict[str, Any]) -> SignableMessage:
    return encode_typed_data(full_message=full)


def address_of(private_key: bytes) -> str:
    """The checksummed address of a private key of 32 bytes.

    Raises:
        ValueError: not a private key of the curve.
    """
    try:
        return str(Account.from_key(private_key).address)
    except Exception as error:  # the SDK raises several unrelated classes; none of them may show the key
        raise ValueError("not a private key of the curve secp256k1") from error


def checksum(address: str) -> str:
    """The checksummed form of an address (ERC-55).

    Args:
        address: 0x and 40 hex digits: all lower case, all upper case, or mixed with the right checksum.

    Raises:
        ValueError: not an address, or mixed case with a wrong checksum: a typing error.
    """
    if not _ADDRESS.fullmatch(address):
        raise ValueError("an address is 0x and 40 hex digits")
    digits = address[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(address):
        raise ValueError(f"{address} has a wrong checksum: a digit or a letter's case is mistyped")
    return str(to_checksum_address(address))
