"""`reconcile trust`: versions are written, signed by both sides, and judged as a node judges them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from desired_state.load import load_trust
from desired_state.trust import verify_first, walk
from runtime.host import SystemClock
from schemas.digests import digest_bytes
from tests.support.operators import NETWORK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operators import Operator


def trust_file(operator: Operator, version: int) -> Path:
    """A trust document's file."""
    return operator.root / f"networks/{NETWORK}/trust/{version}.yaml"


def sign(operator: Operator, *numbers: int) -> str:
    """Sign the newest version; what the last signer was told."""
    return [operator.run("trust", "sign", "--key", operator.key_file(number), "--yes").stdout for number in numbers][-1]


def test_init_writes_a_document_that_a_node_would_pin(operator: Operator) -> None:
    """The digest that is printed is the one that pins the document; thresholds default to more than half."""
    named = [part for number in (1, 2, 3) for part in ("--signer", operator.address(number))]
    found = operator.json("trust", "init", "--network", NETWORK, *named)
    content = trust_file(operator, 1).read_bytes()
    assert found["digest"] == digest_bytes(content)
    state = verify_first(content, found["digest"], NETWORK)
    assert (state.roles.root.threshold, len(state.roles.snapshot.signers)) == (2, 3)
    assert content.startswith(b"# yaml-language-server: $schema=../../../.schemas/trust.v1alpha1.json\n")
    schema = json.loads((operator.root / ".schemas/trust.v1alpha1.json").read_text())
    assert schema["title"] == "TrustDocument"


def test_init_for_roles_of_their_own(operator: Operator) -> None:
    """Roles may have different signers and thresholds, and an online key for timestamps."""
    operator.run(
        "trust", "init", "--network", NETWORK, "--root-signer", operator.address(1), "--root-signer",
        operator.address(2), "--root-threshold", "2", "--snapshot-signer", operator.key_file(3),
        "--timestamp-signer", operator.address(4),
    )  # fmt: skip
    roles = operator.json("trust", "show")["inForce"]["roles"]
    assert roles["root"]["threshold"] == 2
    assert roles["snapshot"] == {"threshold": 1, "signers": [operator.address(3)]}
    assert roles["timestamp"]["signers"] == [operator.address(4)]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--signer", "nowhere.json"],
        ["--signer", "0x12"],
        ["--signer", "0xd3cdA913deB6f67967B99D67aCDFa1712C293601"],
        ["--signer", "0x" + "1" * 40, "--threshold", "2"],
    ],
)
def test_init_refuses_what_cannot_work(operator: Operator, arguments: list[str]) -> None:
    """No signer, a mistyped address (ERC-55), a threshold out of reach: nothing is written."""
    found = operator.run("trust", "init", "--network", NETWORK, *arguments, code=64)
    assert "error: UsageError" in found.stderr
    assert not trust_file(operator, 1).exists()


def test_names_are_checked_before_anything_is_written(operator: Operator) -> None:
    """A network's name cannot lead out of its folder."""
    for name in ("../evil", "UPPER", "a/b", ""):
        operator.run("trust", "init", "--network", name, "--signer", operator.address(1), code=64)
    assert sorted(path.name for path in operator.root.iterdir()) == [".git"]


def test_a_second_init_changes_nothing(operator: Operator) -> None:
    """What nodes pin is never overwritten."""
    operator.trust()
    before = trust_file(operator, 1).read_bytes()
    operator.run("trust", "init", "--network", NETWORK, "--signer", operator.address(4), code=64)
    assert trust_file(operator, 1).read_bytes() == before


def test_rotation_needs_both_thresholds(operator: Operator) -> None:
    """I1: a version counts once the signers before and its own have signed; the chain holds for a node."""
    operator.trust()
    sign(operator, 1, 2)
    operator.run("trust", "rotate", operator.address(1), operator.address(4))
    assert operator.json("trust", "show")["inForce"]["version"] == 1
    assert "1 of 2 needed; can still sign" in sign(operator, 2)
    told = sign(operator, 4)
    assert f"root of version 1: 1 of 2 needed; can still sign:\n    {operator.address(1)}" in told
    assert "root of version 2: 2 of 2 needed, complete" in told
    assert operator.json("trust", "show")["newest"]["pending"] == "SignaturesPending"
    assert "commit networks/" in sign(operator, 3)
    seen = operator.json("trust", "show")
    assert (seen["inForce"]["version"], seen["newest"]["pending"]) == (2, None)
    from desired_state.files import FolderFiles

    links = load_trust(FolderFiles(operator.root), NETWORK, above=0)
    first = verify_first(links[0].content, digest_bytes(links[0].content), NETWORK)
    assert walk(first, links[1:], network=NETWORK, now=SystemClock().now()).trust.version == 2


def test_an_open_version_is_rewritten_and_its_signatures_go(operator: Operator) -> None:
    """Several changes before the signatures make one version; a change after the first signature drops it, loudly."""
    operator.trust()
    sign(operator, 1)
    operator.run("trust", "add", operator.address(4))
    sign(operator, 1)
    found = operator.run("trust", "threshold", "root", "3")
    assert "Rewrote" in found.stdout
    assert "Removed 1 signature over its earlier text." in found.stdout
    assert not trust_file(operator, 3).exists()
    assert operator.json("trust", "show")["newest"]["version"] == 2
    assert trust_file(operator, 2).read_text().count(operator.address(4)) == 2


def test_the_first_version_is_open_until_somebody_may_have_pinned_it(operator: Operator) -> None:
    """Before a signature or a commit, changes go into version 1, and the new pin is told."""
    operator.trust()
    found = operator.run("trust", "add", "--role", "root", operator.address(4))
    assert digest_bytes(trust_file(operator, 1).read_bytes()) in found.stdout
    operator.commit()
    operator.run("trust", "remove", operator.address(4))
    assert trust_file(operator, 2).exists()


def test_comments_survive_a_new_version(operator: Operator) -> None:
    """What operators wrote into a version is in the next one."""
    operator.trust()
    path = trust_file(operator, 1)
    path.write_text(path.read_text().replace("  roles:", "  # Alice, Bob, Carol\n  roles:"))
    sign(operator, 1)
    operator.run("trust", "rotate", "--raise-epoch")
    text = trust_file(operator, 2).read_text()
    assert "  # Alice, Bob, Carol\n" in text
    assert "epoch: 2 # raised by root only" in text


def test_changes_that_make_no_sense_are_refused(operator: Operator) -> None:
    """Unknown signers, doubles, thresholds out of reach: nothing is written."""
    operator.trust()
    sign(operator, 1)
    for arguments in (
        ["add", operator.address(1)],
        ["remove", operator.address(9)],
        ["threshold", "root", "4"],
        ["threshold", "timestamp", "1"],
        ["rotate", operator.address(9), operator.address(4)],
        ["rotate", operator.address(1)],
        ["rotate", operator.address(1), operator.address(2)],
        ["remove", operator.address(1), operator.address(2)],
    ):
        operator.run("trust", *arguments, code=64)
    assert not trust_file(operator, 2).exists()


def test_the_optional_role_comes_and_goes(operator: Operator) -> None:
    """The role `timestamp` is added with its first signer and removed with its last."""
    operator.trust()
    operator.run("trust", "add", "--role", "timestamp", operator.address(5))
    assert operator.json("trust", "show")["inForce"]["roles"]["timestamp"]["threshold"] == 1
    operator.run("trust", "remove", operator.address(5))
    assert "timestamp" not in operator.json("trust", "show")["inForce"]["roles"]


def test_only_root_signers_sign(operator: Operator) -> None:
    """A key that holds no root role in either version is told so, and writes nothing."""
    operator.trust()
    found = operator.run("trust", "sign", "--key", operator.key_file(9), "--yes", code=3)
    assert "UnknownSigner" in found.stderr
    assert not (operator.root / f"networks/{NETWORK}/trust/1.sigs").exists()
    operator.run("trust", "sign", code=64)


def test_signing_asks_first(operator: Operator) -> None:
    """What will be signed is shown, and a no is a no."""
    operator.trust()
    found = operator.run("trust", "sign", "--key", operator.key_file(1), code=1, stdin="n\n")
    assert "Sign version 1 as" in found.output
    assert digest_bytes(trust_file(operator, 1).read_bytes()) in found.output
    assert not (operator.root / f"networks/{NETWORK}/trust/1.sigs").exists()
    operator.run("trust", "sign", "--key", operator.key_file(1), stdin="y\n")


def test_a_broken_chain_is_told(operator: Operator) -> None:
    """A version that was changed after the next one named it breaks the chain, with the stable reason (I11)."""
    operator.trust()
    sign(operator, 1, 2)
    operator.run("trust", "rotate")
    sign(operator, 1, 2)
    trust_file(operator, 1).write_text(trust_file(operator, 1).read_text() + "# later\n")
    assert "TrustBroken" in operator.run("trust", "show", code=3).stderr


def test_show_says_who_is_missing(operator: Operator) -> None:
    """A person reads who may sign, what is in force, and who can still sign."""
    operator.trust()
    sign(operator, 2)
    operator.run("trust", "rotate")
    shown = operator.run("trust", "show").stdout
    assert "In force  version 1, epoch 1, expires in 365 d" in shown
    assert "Version 2 is written and not in force:" in shown
    assert shown.count(operator.address(3)) == 6
