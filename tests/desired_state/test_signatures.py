"""EIP-712: the published example, a second library over independently computed digests, and every form refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from eth_account.messages import encode_typed_data
from eth_keys import keys
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from desired_state import document, signatures
from schemas.digests import digest_bytes, digest_text
from schemas.receipt import ChainHead, ReceiptDocument
from schemas.refusals import InvalidSignature
from schemas.snapshot import SnapshotDocument
from schemas.timestamp import TimestampDocument
from schemas.trust import TrustDocument
from tests.desired_state.network import address, key, snapshot_text, timestamp_text, trust_text, twin

if TYPE_CHECKING:
    from collections.abc import Mapping

SNAPSHOT = snapshot_text(7, previous=b"before", epoch=3, trust_version=2)
TRUST = trust_text(2, previous=trust_text())
TIMESTAMP = timestamp_text(SNAPSHOT)


def snapshot_message(content: bytes = SNAPSHOT) -> signatures.TypedData:
    """What a signer of a snapshot signs."""
    return signatures.snapshot_message(document.load(content, SnapshotDocument, file="s"), content)


def trust_message(content: bytes = TRUST) -> signatures.TypedData:
    """What a signer of a trust document signs."""
    return signatures.trust_message(document.load(content, TrustDocument, file="t"), content)


RECEIPT = (
    b'{"apiVersion":"reconcile/v1alpha1","kind":"Receipt","network":"testnet","node":"%b","number":3,'
    b'"issuedAt":"2026-03-02T12:00:00Z","outcome":"pass","message":"","subjectDigest":"%b","evidence":"%b","agent":"1"}'
) % (address(5).encode(), digest_text("subject").encode(), digest_text("evidence").encode())

HEAD = (
    b'{"apiVersion":"reconcile/v1alpha1","kind":"ReceiptHead","network":"testnet","node":"%b","number":3,'
    b'"digest":"%b","issuedAt":"2026-03-02T12:00:00Z","agent":"1"}'
) % (address(5).encode(), digest_bytes(RECEIPT).encode())


def receipt_message(content: bytes = RECEIPT) -> signatures.TypedData:
    """What a node signs."""
    return signatures.receipt_message(ReceiptDocument.model_validate_json(content), content)


def head_message(content: bytes = HEAD) -> signatures.TypedData:
    """What a node signs when its receipts are exported."""
    return signatures.receipt_head_message(ChainHead.model_validate_json(content), content)


def timestamp_message(content: bytes = TIMESTAMP) -> signatures.TypedData:
    """What the online key signs."""
    return signatures.timestamp_message(document.load_json(content, TimestampDocument, file="t"), content)


MESSAGES = {
    "snapshot": snapshot_message,
    "trust": trust_message,
    "receipt": receipt_message,
    "receipt head": head_message,
    "timestamp": timestamp_message,
}


# --- the published example ----------------------------------------------------------------------------------------

MAIL: dict[str, Any] = {
    "types": {
        "EIP712Domain": [
            {"name": "name", "type": "string"},
            {"name": "version", "type": "string"},
            {"name": "chainId", "type": "uint256"},
            {"name": "verifyingContract", "type": "address"},
        ],
        "Person": [{"name": "name", "type": "string"}, {"name": "wallet", "type": "address"}],
        "Mail": [
            {"name": "from", "type": "Person"},
            {"name": "to", "type": "Person"},
            {"name": "contents", "type": "string"},
        ],
    },
    "primaryType": "Mail",
    "domain": {
        "name": "Ether Mail",
        "version": "1",
        "chainId": 1,
        "verifyingContract": "0xCcCCccccCCCCcCCCCCCcCcCccCcCCCcCcccccccC",
    },
    "message": {
        "from": {"name": "Cow", "wallet": "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"},
        "to": {"name": "Bob", "wallet": "0xbBbBBBBbbBBBbbbBbbBbbbbBBbBbbbbBbBbbBBbB"},
        "contents": "Hello, Bob!",
    },
}
MAIL_SIGNATURE = (
    "0x4355c47d63924e8a72e509b65029052eb6c299d53a04e167c5775fd466751c9d"
    "07299936d304c153f6443dfa05f40ff007d72911b6f72307f996231605b91562"
    "1c"
)
"""https://eips.ethereum.org/EIPS/eip-712, section "Test Cases": v 28, with the private key keccak256("cow")."""


def test_the_published_example_recovers() -> None:
    """A signature from the EIP itself recovers, through our encoding path, to the address that the EIP names."""
    recovered = signatures._recover(signatures._encoded(MAIL), MAIL_SIGNATURE)
    assert recovered == "0xCD2a3d9F938E13CD947Ec05AbC7FE734Df8DD826"
    assert signatures.address_of(keccak(text="cow")) == recovered


def test_the_published_hashes_are_ours() -> None:
    """Domain separator, struct hash and digest of the EIP's example, number for number (its Example.sol and test)."""
    encoded = signatures._encoded(MAIL)
    assert encoded.header.hex() == "f2cee375fa42b42143804025fc449deafd50cc031ca257e0b194a650a912090f"
    assert encoded.body.hex() == "c52c0ee5d84264471806290a3f2c4cecfc5490626bf912d01f240d7a274b371e"
    whole = keccak(b"\x19" + encoded.version + encoded.header + encoded.body)
    assert whole.hex() == "be609aee343fb3c4b28e1df9e632fca64fcfaede20f02e86244efddf30957bd2"


# --- an independent encoding, and a second library ----------------------------------------------------------------


def independent_digest(full: Mapping[str, Any]) -> bytes:
    """The digest of flat typed data, computed from the text of EIP-712 and nothing of ours or eth-account's."""

    def word(kind: str, value: Any) -> bytes:
        if kind == "string":
            return bytes(keccak(value.encode()))
        if kind == "bytes32":
            return bytes.fromhex(value.removeprefix("0x"))
        if kind == "address":
            return bytes.fromhex(value.removeprefix("0x")).rjust(32, b"\0")
        assert kind == "uint64"
        return int(value).to_bytes(32, "big")

    def struct(name: str, values: Mapping[str, Any]) -> bytes:
        fields = full["types"][name]
        signature = name + "(" + ",".join(f"{field['type']} {field['name']}" for field in fields) + ")"
        words = b"".join(word(field["type"], values[field["name"]]) for field in fields)
        return bytes(keccak(keccak(signature.encode()) + words))

    body = struct("EIP712Domain", full["domain"]) + struct(full["primaryType"], full["message"])
    return bytes(keccak(b"\x19\x01" + body))


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_foreign_signature_verifies(name: str) -> None:
    """What eth-keys signs over an independently computed digest, we recover."""
    message = MESSAGES[name]()
    foreign = keys.PrivateKey(key(11)).sign_msg_hash(independent_digest(message.full()))
    assert signatures.recover(message, "0x" + foreign.to_bytes().hex()) == address(11)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_our_signature_verifies_elsewhere(name: str) -> None:
    """What we sign, eth-keys recovers over an independently computed digest."""
    message = MESSAGES[name]()
    raw = bytes.fromhex(signatures.sign(message, key(11))[2:])
    foreign = keys.Signature(raw[:64] + bytes([raw[64] - 27]))
    recovered = foreign.recover_public_key_from_msg_hash(independent_digest(message.full()))
    assert recovered.to_checksum_address() == address(11)


# --- a wallet in another language ---------------------------------------------------------------------------------

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "ethers.json").read_text())
"""What ethers, a JavaScript wallet library, made of our typed data (`vectors/wallet.cjs`)."""
WALLET = Path(__file__).parent / "vectors" / "wallet.cjs"


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_what_a_javascript_wallet_signed_verifies(name: str) -> None:
    """Recorded once: the same typed data, the same digest, and its signature recovers here; both are deterministic."""
    vector = VECTORS["vectors"][name]
    fields = vector["typed"]["message"]
    message = signatures.TypedData(fields["network"], vector["typed"]["primaryType"], MappingProxyType(fields))
    assert message.full() == vector["typed"]
    assert "0x" + independent_digest(message.full()).hex() == vector["digest"]
    assert signatures.recover(message, vector["signature"]) == VECTORS["address"] == address(11)
    assert signatures.sign(message, key(11)) == vector["signature"]


def test_a_javascript_wallet_agrees_today() -> None:
    """Live, both ways: ethers recovers what we sign, and we recover what it signs."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('ethers')"], capture_output=True, check=False).returncode:
        pytest.skip("node with the package ethers is not here (npm install ethers; NODE_PATH)")
    messages = [MESSAGES[name]() for name in sorted(MESSAGES)]
    ours = [signatures.sign(message, key(11)) for message in messages]
    asked = {"key": "0x" + key(11).hex(), "typed": [one.full() for one in messages], "signatures": ours}
    done = subprocess.run([node, str(WALLET)], input=json.dumps(asked).encode(), capture_output=True, check=True)
    for message, answer in zip(messages, json.loads(done.stdout)["answers"], strict=True):
        assert answer["recovered"] == address(11)
        assert signatures.recover(message, answer["signature"]) == address(11)


def test_wallets_get_everything_they_need() -> None:
    """The full form is complete: types, domain with the network's salt, and the document's own fields."""
    full = snapshot_message().full()
    assert full["domain"] == {"name": "reconcile", "version": "1", "salt": "0x" + keccak(b"testnet").hex()}
    assert full["message"] == {
        "network": "testnet",
        "epoch": 3,
        "sequence": 7,
        "trustVersion": 2,
        "issuedAt": 1772366400,
        "expiresAt": 1775044800,
        "previousBlake3": "0x" + digest_bytes(b"before").removeprefix("blake3:"),
        "contentBlake3": "0x" + digest_bytes(SNAPSHOT).removeprefix("blake3:"),
    }
    assert encode_typed_data(full_message=full).version == b"\x01"


def test_absent_previous_is_zero() -> None:
    """The first snapshot has no predecessor: zeros, as the contract says."""
    assert snapshot_message(snapshot_text()).message["previousBlake3"] == "0x" + "00" * 32


# --- what a signature binds ---------------------------------------------------------------------------------------


def test_signing_is_deterministic_and_canonical() -> None:
    """RFC 6979: the same message and key give the same bytes, low s, v 27 or 28, lowercase."""
    first = signatures.sign(snapshot_message(), key(11))
    assert first == signatures.sign(snapshot_message(), key(11)) == first.lower()
    assert len(first) == 132
    assert int(first[66:130], 16) <= signatures._HALF_ORDER
    assert first[130:] in {"1b", "1c"}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_every_field_and_the_domain_are_bound(name: str) -> None:
    """I1: a change of any field, of the type or of the network makes it somebody else's signature."""
    message = MESSAGES[name]()
    text = signatures.sign(message, key(11))
    for field, value in message.message.items():
        other: str | int = value + 1 if isinstance(value, int) else value[:-1] + ("1" if value[-1] != "1" else "2")
        changed = replace(message, message=MappingProxyType({**message.message, field: other}))
        assert signatures.recover(changed, text) != address(11), field
    assert signatures.recover(replace(message, network="othernet"), text) != address(11)


def test_a_snapshot_signature_is_no_trust_signature() -> None:
    """Types do not stand in for one another, even where they share every field."""
    message = trust_message()
    same_fields = signatures.TYPES["Trust"]
    assert same_fields != signatures.TYPES["Snapshot"]
    full = message.full()
    full["types"]["Snapshot"] = full["types"].pop("Trust")
    full["primaryType"] = "Snapshot"
    text = signatures.sign(message, key(1))
    assert signatures._recover(signatures._encoded(full), text) != address(1)


# --- forms --------------------------------------------------------------------------------------------------------

GOOD = signatures.sign(snapshot_message(), key(11))


@pytest.mark.parametrize("v", [0, 1])
def test_v_is_normalised(v: int) -> None:
    """Wallets write v as 0 and 1 or as 27 and 28; both mean the same."""
    wanted = int(GOOD[130:], 16) - 27
    recovered = signatures.recover(snapshot_message(), f"{GOOD[:130]}{v:02x}")
    assert (recovered == address(11)) == (v == wanted)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(twin(GOOD), "malleable", id="high-s"),
        pytest.param(GOOD[:130] + "1d", "v is 29", id="v-29"),
        pytest.param(GOOD[:130] + "25", "v is 37", id="v-with-chain"),
        pytest.param("0x" + "0" * 64 + GOOD[66:], "zero", id="zero-r"),
        pytest.param(GOOD[:66] + "0" * 64 + GOOD[130:], "zero", id="zero-s"),
        pytest.param("0x" + "f" * 64 + GOOD[66:], "curve", id="r-beyond-the-curve"),
        pytest.param(GOOD[:-2], "130 hex digits", id="short"),
        pytest.param(GOOD + "00", "130 hex digits", id="long"),
        pytest.param(GOOD[2:], "130 hex digits", id="no-prefix"),
        pytest.param(GOOD + "\n", "130 hex digits", id="trailing-line-break"),
        pytest.param("0x" + "g" * 130, "130 hex digits", id="not-hex"),
        pytest.param("", "130 hex digits", id="empty"),
    ],
)
def test_malformed_and_malleable_signatures_are_refused(text: str, reason: str) -> None:
    """I1: one form only; the high-s twin that nobody made is refused though the curve would accept it."""
    with pytest.raises(InvalidSignature, match=reason):
        signatures.recover(snapshot_message(), text)


def test_the_twin_would_be_valid_without_our_check() -> None:
    """The malleability is real: eth-account itself recovers the twin to the same address."""
    raw = bytes.fromhex(twin(GOOD)[2:])
    public = keys.Signature(raw[:64] + bytes([raw[64] - 27])).recover_public_key_from_msg_hash(
        independent_digest(snapshot_message().full())
    )
    assert public.to_checksum_address() == address(11)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=65, max_size=65))
def test_any_bytes_recover_or_are_refused(raw: bytes) -> None:
    """Whatever a signature file holds: an address that is not ours, or `InvalidSignature`."""
    with suppress(InvalidSignature):
        assert signatures.recover(snapshot_message(), "0x" + raw.hex()) != address(11)


# --- keys and addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [b"", b"\0" * 32, b"\xff" * 32, b"x" * 31])
def test_bad_private_keys_are_refused_without_showing_them(secret: bytes) -> None:
    """A key out of range is a `ValueError` that repeats nothing of it."""
    with pytest.raises(ValueError, match="not a private key") as caught:
        signatures.address_of(secret)
    assert secret.hex() not in str(caught.value) or not secret


# https://eips.ethereum.org/EIPS/eip-55, section "Test Cases".
PUBLISHED = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


@pytest.mark.parametrize("published", PUBLISHED)
def test_checksums_are_erc_55(published: str) -> None:
    """The published addresses keep their form, from any uniform case."""
    assert signatures.checksum(published) == published
    assert signatures.checksum(published.lower()) == published
    assert signatures.checksum("0x" + published[2:].upper()) == published


@pytest.mark.parametrize("wrong", ["0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", "0x12", "", "5" * 42, "0x" + "g" * 40])
def test_mistyped_addresses_are_refused(wrong: str) -> None:
    """A wrong case somewhere is a typing error, and a typing error is a signer that nobody is."""
    with pytest.raises(ValueError, match=r"address|checksum"):
        signatures.checksum(wrong)
