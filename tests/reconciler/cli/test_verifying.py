"""What a reviewer is told about a change that was not signed yet: `reconcile snapshot verify --since --pending`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.operators import NETWORK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operators import Operator


@pytest.fixture
def network(operator: Operator) -> Operator:
    """A network whose first snapshot was signed by two of three, and published."""
    operator.network()
    operator.sign(1)
    operator.sign(2)
    operator.commit()
    return operator


def change(network: Operator) -> None:
    """The next snapshot, unsigned."""
    network.run("snapshot", "set", "spec.policy.gc.grace", "1h")
    network.run("snapshot", "bump")


def signature(network: Operator, number: int) -> Path:
    """A signer's file."""
    return network.root / f"networks/{NETWORK}/snapshot.sigs" / f"{network.address(number)}.json"


def test_missing_signatures_are_told_and_refuse_nothing(network: Operator) -> None:
    """Reviewers see who can still sign; as soon as two have, a node that has the one before accepts it too (I1)."""
    change(network)
    seen = network.json("snapshot", "verify", "--since", "HEAD", "--pending")
    assert (seen["sequence"], seen["signers"], seen["needed"]) == (2, [], 2)
    network.sign(1)
    shown = network.run("snapshot", "verify", "--since", "HEAD", "--pending").stdout
    assert "Acceptable: snapshot 2" in shown
    assert "1 of 2 needed; can still sign" in shown
    network.run("snapshot", "verify", "--since", "HEAD", code=3)
    network.sign(2)
    assert "Accepted: snapshot 2" in network.run("snapshot", "verify", "--since", "HEAD").stdout


def test_a_bad_signature_is_refused_before_anybody_misses_one(network: Operator) -> None:
    """What a node passes over beside enough good ones stops a review: somebody put it there (I1)."""
    change(network)
    network.sign(1)
    network.sign(2)
    network.sign(3)
    document = json.loads(signature(network, 3).read_text())
    document["signature"] = json.loads(signature(network, 1).read_text())["signature"][:-4] + "ab1b"
    signature(network, 3).write_text(json.dumps(document))
    assert "Accepted" in network.run("snapshot", "verify", "--since", "HEAD").stdout
    refused = network.run("snapshot", "verify", "--since", "HEAD", "--pending", code=3).stderr
    assert refused.startswith("error: InvalidSignature")
    assert "not counted: " in network.run("snapshot", "show").stdout


def test_a_strangers_signature_is_named(network: Operator) -> None:
    """A file by somebody without a role does no harm, and is not merged without a word (I1)."""
    change(network)
    network.sign(3)
    content = (network.root / f"networks/{NETWORK}/trust/1.yaml").read_text()
    assert content.count(network.address(3)) == 2
    lines = [line for line in content.splitlines(keepends=True) if network.address(3) not in line]
    (network.root / f"networks/{NETWORK}/trust/1.yaml").write_text("".join(lines))
    network.commit()
    refused = network.run("snapshot", "verify", "--pending", code=3).stderr
    assert f"error: UnknownSigner: sequence 2 is signed by {network.address(3)}, who hold no role" in refused


def test_a_change_under_a_used_sequence_is_refused(network: Operator) -> None:
    """I1: nodes that have the one before would call it equivocation; a lower one, a way back."""
    network.run("snapshot", "set", "spec.policy.gc.grace", "1h")
    arguments = ("snapshot", "verify", "--since", "HEAD", "--pending")
    assert "error: Equivocation" in network.run(*arguments, code=3).stderr
    network.run("snapshot", "bump")
    network.commit()
    network.run("snapshot", "set", "metadata.sequence", "1")
    assert "error: RollbackAttack" in network.run(*arguments, code=3).stderr


def test_the_chain_is_held_against_what_was_published(network: Operator) -> None:
    """I1: a successor names the one before it; a leap is taken by nodes, and told to reviewers."""
    change(network)
    arguments = ("snapshot", "verify", "--since", "HEAD", "--pending")
    network.run("snapshot", "set", "metadata.sequence", "40")
    assert "the sequence leaps from 1 to 40: 38 are left out for good" in network.run(*arguments).stderr
    network.run("snapshot", "set", "metadata.sequence", "2")
    network.run("snapshot", "set", "metadata.previous", "blake3:" + "0" * 64)
    assert "error: BrokenChain" in network.run(*arguments, code=3).stderr


def test_published_trust_is_never_changed(network: Operator) -> None:
    """I1: who may sign is changed by a new version; another version 1 would be another network to every new node."""
    path = network.root / f"networks/{NETWORK}/trust/1.yaml"
    before = path.read_text()
    path.write_text(before + "# nothing\n")
    arguments = ("snapshot", "verify", "--since", "HEAD")
    refused = network.run(*arguments, code=3).stderr
    assert f"error: TrustBroken: networks/{NETWORK}/trust/1.yaml is not what HEAD has: nodes hold" in refused
    path.unlink()
    assert "trust/1.yaml is gone, and HEAD has it" in network.run(*arguments, code=3).stderr
    path.write_text(before)
    network.run(*arguments)


def test_what_is_the_same_is_judged_as_well(network: Operator) -> None:
    """A change of other files leaves the snapshot as it was; its signatures are looked at none the less (I1)."""
    for options in ((), ("--pending",)):
        network.run("snapshot", "verify", "--since", "HEAD", *options)
    signature(network, 1).unlink()
    network.run("snapshot", "verify", "--since", "HEAD", code=3)
    network.run("snapshot", "verify", "--since", "no-such", code=64)
