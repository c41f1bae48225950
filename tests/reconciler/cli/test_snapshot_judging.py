"""The commands that show, judge and sign a snapshot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from eth_account import Account

from desired_state.signatures import recover, snapshot_message
from reconciler.cli.operators import read_snapshot
from schemas.digests import digest_bytes, digest_text
from schemas.trust import SignatureFile
from tests.desired_state.network import key
from tests.support.operators import NETWORK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operators import Operator


@pytest.fixture
def network(operator: Operator) -> Operator:
    """A complete network that nobody signed yet, not committed."""
    operator.network()
    return operator


def signatures(operator: Operator) -> list[Path]:
    """The snapshot's signature files."""
    return sorted((operator.root / f"networks/{NETWORK}/snapshot.sigs").glob("*.json"))


# --- sign and verify ----------------------------------------------------------------------------------------------


def test_two_of_three_sign_and_a_node_would_accept(network: Operator) -> None:
    """I1: one signature is short of the threshold, two are enough; the error names the reason."""
    network.sign(1)
    refused = network.run("snapshot", "verify", code=3)
    assert "ThresholdNotMet" in refused.stderr
    assert "can still sign" in refused.stderr
    network.sign(2)
    found = network.json("snapshot", "verify")
    assert sorted(found["signers"]) == sorted([network.address(1), network.address(2)])
    assert found["digest"] == digest_bytes(network.snapshot.read_bytes())


def test_a_signature_is_over_these_bytes(network: Operator) -> None:
    """The file names the signer and the content, and its signature recovers to the signer."""
    network.sign(1)
    (path,) = signatures(network)
    found = SignatureFile.model_validate_json(path.read_bytes())
    content = network.snapshot.read_bytes()
    assert (found.signer, found.content) == (network.address(1), digest_bytes(content))
    assert recover(snapshot_message(read_snapshot(content, "x"), content), found.signature) == network.address(1)
    assert path.name == f"{network.address(1)}.json"


def test_what_is_shown_before_signing(network: Operator) -> None:
    """The signer reads what changes and what is signed; the digest of that text goes beside the signature."""
    found = network.run("snapshot", "sign", "--key", network.key_file(1), stdin="y\n")
    assert "+ model tiny:v1" in found.output
    assert digest_bytes(network.snapshot.read_bytes()) in found.output
    shown = SignatureFile.model_validate_json(signatures(network)[0].read_bytes()).shown
    assert shown == digest_text(found.output[: found.output.index("\n\nSign snapshot")])


def test_a_no_is_a_no(network: Operator) -> None:
    """Declining writes nothing."""
    network.run("snapshot", "sign", "--key", network.key_file(1), code=1, stdin="n\n")
    assert signatures(network) == []


def test_a_wallet_signs_without_a_key_file(network: Operator) -> None:
    """What is printed is EIP-712 that a foreign implementation signs; its answer becomes the signature file."""
    data = json.loads(network.run("snapshot", "sign", "--typed-data").stdout)
    made = Account.sign_typed_data(key(2), full_message=data).signature.hex()
    network.run("snapshot", "sign", "--signature", f"0x{made.removeprefix('0x').upper()}", "--yes")
    network.sign(1)
    assert network.address(2) in network.json("snapshot", "verify")["signers"]


def test_a_wallets_signature_over_something_else(network: Operator) -> None:
    """A signature over other data recovers to a stranger, and is told apart from a missing role."""
    data = json.loads(network.run("snapshot", "sign", "--typed-data").stdout)
    data["message"]["sequence"] = 9
    made = "0x" + Account.sign_typed_data(key(2), full_message=data).signature.hex().removeprefix("0x")
    found = network.run("snapshot", "sign", "--signature", made, "--yes", code=3)
    assert "InvalidSignature" in found.stderr
    network.run("snapshot", "sign", "--signature", "0x12", "--yes", code=3)
    network.run("snapshot", "sign", "--signature", made, "--key", network.key_file(1), code=64)
    assert signatures(network) == []


def test_strangers_do_not_sign(network: Operator) -> None:
    """A key without the role is told so, and writes nothing."""
    found = network.run("snapshot", "sign", "--key", network.key_file(9), "--yes", code=3)
    assert "UnknownSigner" in found.stderr
    assert signatures(network) == []


def test_a_changed_snapshot_is_not_signed_under_a_used_sequence(network: Operator) -> None:
    """I1: two signed documents of one sequence are equivocation, so the second is not signed; bump helps."""
    network.sign(1, 2)
    network.commit()
    network.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    found = network.run("snapshot", "sign", "--key", network.key_file(1), "--yes", code=3)
    assert "Equivocation" in found.stderr
    assert "snapshot bump" in found.stderr
    network.run("snapshot", "bump")
    network.sign(1, 2)
    network.run("snapshot", "verify")


def test_an_unsigned_draft_may_be_committed_and_changed(network: Operator) -> None:
    """What was committed without any signature binds nobody: it may still change."""
    network.commit()
    network.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    network.sign(1)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("metadata.network", "other", "WrongNetwork"),
        ("metadata.expiresAt", "2020-01-01T00:00:00Z", "MalformedDocument"),
        ("metadata.trustVersion", "5", "TrustNotInForce"),
        ("metadata.epoch", "2", "WrongEpoch"),
        ("spec.policy.modes", "[container]", "ModeNotAllowed"),
        ("spec.models[tiny].manifest.path", "models/tiny/v9.yaml", "MissingDocument"),
        ("spec.models[tiny].validation.probe.digest", "blake3:" + "0" * 64, "DigestMismatch"),
    ],
)
def test_nobody_signs_what_nodes_refuse(network: Operator, path: str, value: str, reason: str) -> None:
    """What every node would refuse is not signed, and the reason is told (I11)."""
    network.run("snapshot", "set", path, value)
    runner = network.run("snapshot", "sign", "--key", network.key_file(1), "--yes", code=64 if reason in LINT else 3)
    assert reason in runner.output
    assert signatures(network) == []


LINT = ("TrustNotInForce", "WrongEpoch", "ModeNotAllowed")


def test_signing_removes_signatures_over_other_bytes(network: Operator) -> None:
    """Outdated files do not pile up: the first signer of a new text removes those over the old one."""
    network.sign(1)
    network.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    network.sign(2)
    assert [path.name for path in signatures(network)] == [f"{network.address(2)}.json"]


def test_a_tampered_snapshot_is_refused(network: Operator) -> None:
    """I1: one changed byte, and no signature counts any more."""
    network.sign(1, 2)
    network.run("snapshot", "verify")
    network.snapshot.write_text(network.text + "# tampered\n")
    network.run("snapshot", "verify", code=3)


def test_a_tampered_file_is_refused(network: Operator) -> None:
    """I1: the signatures bind every file that the snapshot names: another probe is refused."""
    network.sign(1, 2)
    path = network.root / "probes/tiny-v1.yaml"
    path.write_text(path.read_text() + "# tampered\n")
    assert "DigestMismatch: probes/tiny-v1.yaml" in network.run("snapshot", "verify", code=3).stderr


def test_a_tampered_signature_is_refused(network: Operator) -> None:
    """I1: a signature with a flipped digit is malformed or somebody else's, and the error says it is bad."""
    network.sign(1, 2)
    path = signatures(network)[0]
    document = json.loads(path.read_text())
    flipped = "1" if document["signature"][10] != "1" else "2"
    document["signature"] = document["signature"][:10] + flipped + document["signature"][11:]
    path.write_text(json.dumps(document))
    assert "InvalidSignature" in network.run("snapshot", "verify", code=3).stderr


def test_the_pin_is_checked_where_it_is_given(network: Operator) -> None:
    """Against a published pin, a replaced first trust document is refused."""
    network.sign(1, 2)
    pin = network.json("trust", "show")["pin"]
    network.run("snapshot", "verify", "--trust", pin)
    assert "TrustBroken" in network.run("snapshot", "verify", "--trust", "blake3:" + "0" * 64, code=3).stderr


def test_errors_of_verification_as_json(network: Operator) -> None:
    """A program reads the reason and the exit code."""
    found = network.json("snapshot", "verify", code=3)
    assert found["error"]["reason"] == "ThresholdNotMet"
    assert found["error"]["exitCode"] == 3


# --- show, diff, validate -----------------------------------------------------------------------------------------


def test_show_for_people_and_programs(network: Operator) -> None:
    """A person sees what is served where and who can still sign; a program gets the document."""
    network.sign(1)
    shown = network.run("snapshot", "show").stdout
    for words in ("tiny:v1  active  4 KiB", "every node  tiny:v1  main", "1 of 2 needed", network.address(3)):
        assert words in shown
    found = network.json("snapshot", "show")
    assert found["digest"] == digest_bytes(network.snapshot.read_bytes())
    assert found["snapshot"]["spec"]["models"][0]["name"] == "tiny"


def test_diff_from_the_last_commit(network: Operator) -> None:
    """What a change means: signs, fields, bytes to fetch, and who has to sign."""
    network.commit()
    network.model("tiny", "v2", seed=2)
    network.run("snapshot", "serve", "tiny:v2", "--runtime", "main")
    network.run("model", "set-state", "tiny:v1", "archived")
    network.run("runtime", "set", "main", "--arg", "contextSize=512")
    shown = network.run("snapshot", "diff").stdout
    for words in (
        "+ model tiny:v2",
        "~ model tiny:v1",
        "state: active -> archived",
        "engineArgs.contextSize: 2048 -> 512",
        "serve: [tiny:v1] -> [tiny:v2]",
        "1 to add, 3 to change, 0 to remove.",
        "4 KiB to fetch",
        "0 of 2 needed",
    ):
        assert words in shown, shown
    found = network.json("snapshot", "diff")
    assert found["fetch"] == 4096
    assert [change["sign"] for change in found["changes"]] == ["~", "+", "~", "~"]


def test_diff_between_revisions_folders_and_files(network: Operator, tmp_path: Path) -> None:
    """Any two of them can be compared, in both directions; the same is no change."""
    first = network.commit()
    network.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    network.commit()
    assert "gc.grace: 1d -> 2d" in network.run("snapshot", "diff", first, "HEAD").stdout
    assert "gc.grace: 2d -> 1d" in network.run("snapshot", "diff", "HEAD", first).stdout
    assert "gc.grace" in network.run("snapshot", "diff", first, str(network.root)).stdout
    copy = tmp_path / "copy.yaml"
    copy.write_text(network.text)
    assert "No changes." in network.run("snapshot", "diff", str(copy), "HEAD").stdout
    network.run("snapshot", "diff", "nonsense", code=64)


def test_diff_before_the_first_commit(network: Operator) -> None:
    """Where nothing was committed, everything is new."""
    assert "From nothing to snapshot 1:" in network.run("snapshot", "diff").stdout


def test_validate_checks_every_file(network: Operator) -> None:
    """A missing file, other bytes, and a manifest of another model are each named."""
    assert network.json("snapshot", "validate")["bytes"] == 4096
    pieces = network.root / "models/tiny/v1.pieces"
    content = pieces.read_bytes()
    pieces.unlink()
    assert "models/tiny/v1.pieces" in network.run("snapshot", "validate", code=3).stderr
    pieces.write_bytes(content[:-1] + b"x")
    assert "DigestMismatch" in network.run("snapshot", "validate", code=3).stderr
    pieces.write_bytes(content)
    network.run("snapshot", "validate")


# --- lint ---------------------------------------------------------------------------------------------------------


def codes(operator: Operator, *arguments: str, code: int = 0) -> set[str]:
    """Codes of the findings."""
    return {one["code"] for one in operator.json("snapshot", "lint", *arguments, code=code)["findings"]}


def test_lint_finds_nothing_in_a_careful_snapshot(network: Operator) -> None:
    """A network with a spare signer, a default assignment and a sane validity has no traps."""
    assert network.run("snapshot", "lint").stdout == "Nothing found.\n"


def test_lint_exits_by_severity(network: Operator) -> None:
    """Errors exit 1; warnings only with --strict."""
    network.run("snapshot", "set", "spec.models[tiny].sources", "[]")
    assert codes(network) == {"NoSource"}
    network.run("snapshot", "lint", "--strict", code=1)
    network.run("snapshot", "set", "spec.policy.modes", "[container]")
    shown = network.run("snapshot", "lint", code=1).stdout
    assert shown.startswith("error: spec.runtimes[0]")
    assert "reconcile snapshot set spec.policy.modes" in shown


def test_lint_against_an_inventory(network: Operator) -> None:
    """A selector that matches none of the known nodes is a trap, and so is a node without an assignment."""
    network.run("snapshot", "serve", "tiny:v1", "--runtime", "main", "--match", "gpu=h100")
    network.run("snapshot", "unset", "spec.assignments[1]")
    inventory = network.keys / "inventory"
    inventory.mkdir()
    assert "holds no node's status" in network.run("snapshot", "lint", "--inventory", str(inventory), code=64).stderr
    status = node_status(labels={"gpu": "a100"})
    (inventory / "a.json").write_text(json.dumps(status))
    assert {"MatchesNothing", "NodeWithoutAssignment"} <= codes(network, "--inventory", str(inventory))
    (inventory / "a.json").write_text(json.dumps(node_status(labels={"gpu": "h100"})))
    assert not {"MatchesNothing", "NodeWithoutAssignment"} & codes(network, "--inventory", str(inventory))
    (inventory / "b.json").write_text("{}")
    network.run("snapshot", "lint", "--inventory", str(inventory), code=64)


def node_status(*, labels: dict[str, str]) -> dict[str, object]:
    """What a node says of itself, as far as selectors care."""
    return {
        "formatVersion": "1",
        "kind": "NodeStatus",
        "network": NETWORK,
        "node": "0x" + "1" * 40,
        "account": None,
        "labels": labels,
        "agent": "0.1.0",
        "updatedAt": "2026-01-01T00:00:00Z",
        "conditions": [],
        "snapshot": None,
        "serving": None,
        "models": [],
        "held": [],
        "engines": [],
        "hardware": {
            "platform": "linux/amd64",
            "processor": "cpu",
            "cpus": 2,
            "memory": "1GiB",
            "disk": "1GiB",
            "diskFree": "1GiB",
            "gpus": [],
        },
    }
