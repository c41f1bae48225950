"""The attack table: a hostile repository, real git, real signatures, and the exact reason of each refusal.

Each row starts from a network in good order: trust 1 and snapshot 5 were accepted by the node, snapshot 6 is committed,
signed by two of three. Then the attacker, who may push anything and holds the keys that the row names, changes the
repository. The node looks again, through the same steps as in production: ask, fetch, collect, walk the chain of trust,
accept, load what is bound.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from desired_state import layout
from desired_state.load import load_candidate, load_models, load_probes
from desired_state.trust import TrustState, accept_snapshot, verify_first, walk
from desired_state.watermark import Mark
from schemas.digests import digest_bytes
from schemas.errors import NotTrusted, ReconcileError, RollbackAttack
from tests.desired_state.conftest import git_source
from tests.desired_state.network import (
    AGENT,
    FIRST_TRUST,
    NETWORK,
    NOW,
    PIECES,
    STRANGER,
    Repository,
    address,
    git,
    key,
    manifest_text,
    signature,
    signature_file,
    snapshot_text,
    trust_text,
    twin,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desired_state.snapshot import Snapshot

ONE = snapshot_text(5)
TWO = snapshot_text(6, previous=ONE)
SNAPSHOT = layout.snapshot_file(NETWORK)
SIGS = layout.snapshot_signatures(NETWORK)


@dataclass(frozen=True)
class Node:
    """What a node remembers."""

    trust: TrustState
    mark: Mark

    def look(self, url: str, mirror: Path) -> tuple[Snapshot, TrustState]:
        """Everything between a poll and a snapshot in force, in the order of production."""
        source = git_source(max_bytes=2**22)
        commit = source.fetch(url, "main", mirror)
        files = source.files(mirror, commit)
        candidate = load_candidate(files, NETWORK, trust_version=self.trust.version)
        walked = walk(self.trust, candidate.trust, network=NETWORK, now=NOW)
        snapshot = accept_snapshot(
            content=candidate.content,
            signatures=candidate.signatures,
            trust=walked.trust,
            mark=self.mark,
            network=NETWORK,
            now=NOW,
            agent_version=AGENT,
            file=candidate.file,
        )
        load_models(files, snapshot.document.spec.models)
        load_probes(files, snapshot.document.spec.models)
        return snapshot, walked.trust


@pytest.fixture
def node() -> Node:
    """A node that accepted snapshot 5."""
    trust = verify_first(FIRST_TRUST, digest_bytes(FIRST_TRUST), NETWORK)
    return Node(trust, Mark(epoch=1, sequence=5, digest=digest_bytes(ONE)))


@pytest.fixture
def victim(repository: Repository) -> Repository:
    """The network in good order."""
    replace_snapshot(repository, ONE, (11, 12))
    repository.commit()
    replace_snapshot(repository, TWO, (11, 12))
    repository.commit()
    return repository


def replace_snapshot(repository: Repository, content: bytes, numbers: tuple[int, ...]) -> None:
    """Put another snapshot in place, with exactly these signatures."""
    for path in (repository.folder / SIGS).glob("*"):
        path.unlink()
    repository.put_snapshot(content, numbers)


def put_signature(repository: Repository, number: int, content: bytes) -> None:
    """Put any bytes where a signer's file belongs."""
    repository.write(f"{SIGS}/{layout.signature_name(address(number))}", content)


def test_the_network_in_good_order_is_accepted(node: Node, victim: Repository, mirror: Path) -> None:
    """The baseline, without which no refusal below would mean anything."""
    snapshot, trust = node.look(victim.url, mirror)
    assert (snapshot.content, snapshot.gap, trust.version) == (TWO, False, 1)


# --- the table ----------------------------------------------------------------------------------------------------

ATTACKS: dict[str, tuple[str, Callable[[Repository], object]]] = {}


def attack(reason: str) -> Callable[[Callable[[Repository], object]], Callable[[Repository], object]]:
    """Enter a row into the table: the reason that must be given."""

    def enter(function: Callable[[Repository], object]) -> Callable[[Repository], object]:
        ATTACKS[function.__name__] = (reason, function)
        return function

    return enter


# Replaying and contradicting what was signed.


@attack("RollbackAttack")
def rollback(repository: Repository) -> None:
    """An older snapshot with its genuine signatures."""
    replace_snapshot(repository, snapshot_text(4), (11, 12, 13))


@attack("Equivocation")
def equivocation(repository: Repository) -> None:
    """Another content for the sequence that was accepted, with genuine signatures."""
    replace_snapshot(repository, snapshot_text(5, note="other"), (11, 12))


@attack("BrokenChain")
def broken_chain(repository: Repository) -> None:
    """The next sequence, on top of a snapshot that this node never had."""
    replace_snapshot(repository, snapshot_text(6, previous=b"another one"), (11, 12))


@attack("TrustBroken")
def epoch_by_snapshot_signers(repository: Repository) -> None:
    """Snapshot signers start a new epoch, which only root may."""
    replace_snapshot(repository, snapshot_text(1, epoch=2), (11, 12, 13))


@attack("RollbackAttack")
def ended_epoch(repository: Repository) -> None:
    """A snapshot of the epoch that root has just ended: the fast-forward that was undone, played again."""
    repository.put_trust(2, trust_text(2, previous=FIRST_TRUST, epoch=2), (1, 2))
    replace_snapshot(repository, snapshot_text(900), (11, 12))


@attack("TrustBroken")
def withheld_trust(repository: Repository) -> None:
    """The snapshot asks for a trust version that the repository hides."""
    replace_snapshot(repository, snapshot_text(6, previous=ONE, trust_version=2), (11, 12))


# Time.


@attack("Expired")
def expired(repository: Repository) -> None:
    """A genuine snapshot whose time has passed."""
    replace_snapshot(repository, snapshot_text(6, previous=ONE, issued=-20, expires=-1), (11, 12))


@attack("NotYetValid")
def predated(repository: Repository) -> None:
    """A genuine snapshot that begins tomorrow."""
    replace_snapshot(repository, snapshot_text(6, previous=ONE, issued=1), (11, 12))


@attack("Expired")
def expired_trust(repository: Repository) -> None:
    """Trust that was left to expire: its signers' word no longer counts for anything new."""
    repository.put_trust(2, trust_text(2, previous=FIRST_TRUST, issued=-20, expires=-1), (1, 2))


# Other networks, other domains.


@attack("WrongNetwork")
def wrong_network(repository: Repository) -> None:
    """A snapshot of another network, signed by the same people."""
    replace_snapshot(repository, snapshot_text(6, previous=ONE, network="othernet"), (11, 12))


@attack("InvalidSignature")
def wrong_domain(repository: Repository) -> None:
    """Signatures that the same people gave to the same text in another network."""
    from eth_account import Account
    from eth_account.messages import encode_typed_data

    from desired_state import document, signatures
    from schemas.snapshot import SnapshotDocument

    message = signatures.snapshot_message(document.load(TWO, SnapshotDocument, file="s"), TWO)
    full = message.full()
    full["domain"]["salt"] = replace(message, network="othernet").full()["domain"]["salt"]
    for number in (11, 12):
        raw = Account.sign_message(encode_typed_data(full_message=full), key(number)).signature
        put_signature(repository, number, signature_file(TWO, number, signature="0x" + bytes(raw).hex()))


# Counting.


@attack("SignaturesPending")
def one_signature(repository: Repository) -> None:
    """A minority of signers goes ahead; no alarm, for it may as well be honest."""
    replace_snapshot(repository, TWO, (11,))


@attack("SignaturesPending")
def threshold_by_duplicates(repository: Repository) -> None:
    """One signer's signature in three files, under three names, in both of its spellings."""
    replace_snapshot(repository, TWO, (11,))
    text = signature(TWO, 11)
    other_v = text[:130] + f"{int(text[130:], 16) - 27:02x}"
    put_signature(repository, STRANGER, signature_file(TWO, 11, signature=other_v))
    put_signature(repository, 98, signature_file(TWO, 11))


@attack("InvalidSignature")
def malleable_signature(repository: Repository) -> None:
    """The twin of a genuine signature, in another signer's name."""
    replace_snapshot(repository, TWO, (11,))
    put_signature(repository, 12, signature_file(TWO, 12, signature=twin(signature(TWO, 11))))


@attack("InvalidSignature")
def malleable_signatures_only(repository: Repository) -> None:
    """All signatures genuine, and all in the form that nobody made."""
    replace_snapshot(repository, TWO, ())
    for number in (11, 12):
        put_signature(repository, number, signature_file(TWO, number, signature=twin(signature(TWO, number))))


@attack("UnknownSigner")
def strangers(repository: Repository) -> None:
    """As many signatures as one likes, by keys without a role; root's own among them."""
    replace_snapshot(repository, TWO, (1, 2, 3, 97, 98, STRANGER))


@attack("ThresholdNotMet")
def unsigned(repository: Repository) -> None:
    """No signatures at all."""
    replace_snapshot(repository, TWO, ())


@attack("ThresholdNotMet")
def old_signatures(repository: Repository) -> None:
    """The signatures of the snapshot before."""
    replace_snapshot(repository, ONE, (11, 12, 13))
    repository.write(SNAPSHOT, TWO)


@attack("SignaturesPending")
def revoked_signer(repository: Repository) -> None:
    """A signer whom trust 2 no longer names, in a snapshot that claims to need trust 1 only."""
    repository.put_trust(2, trust_text(2, previous=FIRST_TRUST, signers=(11, 13, 14)), (1, 2))


@attack("InvalidSignature")
def tampered_signature(repository: Repository) -> None:
    """One digit of one signature is changed."""
    text = signature(TWO, 12)
    put_signature(
        repository, 12, signature_file(TWO, 12, signature=text[:40] + ("0" if text[40] != "0" else "1") + text[41:])
    )


@attack("InvalidSignature")
def truncated_signature(repository: Repository) -> None:
    """A signature file that ends in the middle."""
    put_signature(repository, 12, signature_file(TWO, 12)[:150])


@attack("InvalidSignature")
def linked_signature(repository: Repository) -> None:
    """A link where a signature should be: it is not read, whatever it points at, and so does not count."""
    path = repository.folder / SIGS / layout.signature_name(address(12))
    path.unlink()
    path.symlink_to(layout.signature_name(address(11)))
    put_signature(repository, 13, b"")


# Rotation.

ROTATED = trust_text(2, previous=FIRST_TRUST, roots=(7, 8, 9), signers=(17, 18, 19))
THIRD = trust_text(3, previous=ROTATED, roots=(7, 8, 9), signers=(17, 18, 19))


@attack("TrustBroken")
def skipped_rotation(repository: Repository) -> None:
    """Version 3 without version 2, signed by everybody whom version 1 or 3 names."""
    repository.put_trust(3, THIRD, (1, 2, 3, 7, 8, 9))


@attack("UnknownSigner")
def rotation_by_the_new_side(repository: Repository) -> None:
    """Those who would take over sign; those who would have to hand over do not."""
    repository.put_trust(2, ROTATED, (7, 8, 9))
    replace_snapshot(repository, TWO, (17, 18))


@attack("UnknownSigner")
def rotation_by_the_old_side(repository: Repository) -> None:
    """Those who hand over sign alone: the rotation is not in force, and the new signers are strangers."""
    repository.put_trust(2, ROTATED, (1, 2, 3))
    replace_snapshot(repository, TWO, (17, 18))


@attack("TrustBroken")
def rotation_of_another_chain(repository: Repository) -> None:
    """A genuine document of the same network that does not follow the pinned one."""
    repository.put_trust(2, trust_text(2, previous=b"another first"), (1, 2, 3))


@attack("TrustBroken")
def trust_with_a_lower_epoch(repository: Repository) -> None:
    """Even root cannot lower the epoch."""
    repository.put_trust(2, trust_text(2, previous=FIRST_TRUST, epoch=0), (1, 2, 3))


@attack("WrongNetwork")
def trust_of_another_network(repository: Repository) -> None:
    """Another network's trust in this network's folder."""
    content = trust_text(2, previous=FIRST_TRUST, network="othernet")
    repository.put_trust(2, content, (1, 2, 3))


# Files.


@attack("MalformedDocument")
def truncated_snapshot(repository: Repository) -> None:
    """A snapshot that ends in the middle."""
    repository.write(SNAPSHOT, TWO[:-40])


@attack("ThresholdNotMet")
def extended_snapshot(repository: Repository) -> None:
    """A snapshot with a comment more than what was signed."""
    repository.write(SNAPSHOT, TWO + b"# harmless\n")


@attack("LimitExceeded")
def oversized_snapshot(repository: Repository) -> None:
    """Seventeen megabytes of comment, which compress to nothing on the way."""
    repository.write(SNAPSHOT, TWO + b"#" * 17 * 2**20)


@attack("MalformedDocument")
def alias_bomb(repository: Repository) -> None:
    """A document that grows a thousandfold with every line."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    repository.write(SNAPSHOT, "\n".join(lines).encode())


@attack("LimitExceeded")
def deep_nesting(repository: Repository) -> None:
    """A million brackets."""
    repository.write(SNAPSHOT, b"[" * 1_000_000)


@attack("MalformedDocument")
def duplicate_keys(repository: Repository) -> None:
    """Two networks in one document, one for each kind of reader."""
    doubled = TWO.replace(b'"network": "testnet"', b'"network": "othernet", "network": "testnet"')
    replace_snapshot(repository, TWO, (11, 12))
    repository.write(SNAPSHOT, doubled)


@attack("MalformedDocument")
def constructed_object(repository: Repository) -> None:
    """A tag that would run a command in a careless reader."""
    repository.write(SNAPSHOT, b"apiVersion: !!python/object/apply:os.system [touch /tmp/pwned]\n")


@attack("MissingDocument")
def symlinked_snapshot(repository: Repository) -> None:
    """A link to a genuine snapshot elsewhere."""
    path = repository.folder / SNAPSHOT
    path.rename(path.with_name("real.yaml"))
    path.symlink_to("real.yaml")


@attack("MissingDocument")
def symlinked_folder(repository: Repository) -> None:
    """The whole network behind a link."""
    (repository.folder / "networks").rename(repository.folder / "elsewhere")
    (repository.folder / "networks").symlink_to("elsewhere")


@attack("MissingDocument")
def submodule(repository: Repository) -> None:
    """A submodule where the models should be."""
    (repository.folder / "models").rename(repository.folder / "gone")
    other = Repository(repository.folder / "models")
    other.write("m/v1.yaml", manifest_text())
    other.commit()


@attack("MissingDocument")
def missing_snapshot(repository: Repository) -> None:
    """No snapshot at all."""
    (repository.folder / SNAPSHOT).unlink()


@attack("DigestMismatch")
def mix_and_match(repository: Repository) -> None:
    """A genuine manifest of another version in this one's place."""
    repository.write("models/m/v1.yaml", manifest_text(version="v2"))


@attack("DigestMismatch")
def swapped_pieces(repository: Repository) -> None:
    """Other hashes for the same manifest."""
    repository.write("models/m/v1.pieces", bytes(len(PIECES)))


@attack("DigestMismatch")
def weaker_probe(repository: Repository) -> None:
    """A probe that proves less."""
    path = repository.folder / "probes/m.yaml"
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))


@attack("MalformedDocument")
def path_escape(repository: Repository) -> None:
    """A signed reference that leaves the repository."""
    escaping = TWO.replace(b'"models/m/v1.yaml"', b'"../../../etc/passwd"')
    repository.write(SNAPSHOT, escaping)


@attack("MalformedDocument")
def look_alike_path(repository: Repository) -> None:
    """A reference with a Cyrillic letter in it."""
    repository.write(SNAPSHOT, TWO.replace(b'"models/m/v1.yaml"', '"m\u043edels/m/v1.yaml"'.encode()))


@attack("LimitExceeded")
def pack_bomb(repository: Repository) -> None:
    """More bytes than a repository of documents ever has."""
    repository.write("ballast", os.urandom(5 * 2**20))


@attack("AgentTooOld")
def newer_form(repository: Repository) -> None:
    """A form that this agent does not know: said as what it is, though nothing in it can be checked."""
    repository.write(SNAPSHOT, TWO.replace(b"reconcile/v1alpha1", b"reconcile/v1beta7"))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_is_refused_for_its_reason(name: str, node: Node, victim: Repository, mirror: Path) -> None:
    """I1: the exact reason for each row, exit code 3, and the good snapshot is still accepted afterwards."""
    reason, change = ATTACKS[name]
    good = git(victim.folder, "rev-parse", "HEAD")
    change(victim)
    victim.commit()
    with pytest.raises(ReconcileError) as caught:
        node.look(victim.url, mirror)
    assert caught.value.reason == reason, caught.value.message
    assert isinstance(caught.value, NotTrusted)
    assert caught.value.exit_code == 3
    git(victim.folder, "update-ref", "refs/heads/main", good)
    assert node.look(victim.url, mirror)[0].content == TWO


def test_every_row_says_what_it_is() -> None:
    """The table can be printed: each row has a sentence."""
    assert all(change.__doc__ for _, change in ATTACKS.values())
    assert len(ATTACKS) >= 40


def test_a_git_revert_is_told_what_to_do(node: Node, victim: Repository, mirror: Path) -> None:
    """I1: going back in git is going back for everybody; the error names the command that does what was meant."""
    ahead = replace(node, mark=Mark(epoch=1, sequence=6, digest=digest_bytes(TWO)))
    git(victim.folder, "revert", "--no-edit", "HEAD")
    with pytest.raises(RollbackAttack) as caught:
        ahead.look(victim.url, mirror)
    assert "reconcile snapshot revert" in caught.value.hint


def test_a_fast_forward_is_repaired_by_root(node: Node, victim: Repository, mirror: Path) -> None:
    """Signers who lost their keys once signed the highest sequence there is; root raises the epoch, and it goes on."""
    far = snapshot_text(2**53 - 1)
    replace_snapshot(victim, far, (11, 12))
    victim.commit()
    snapshot, _ = node.look(victim.url, mirror)
    lost = replace(node, mark=Mark(epoch=1, sequence=2**53 - 1, digest=snapshot.digest))
    second = trust_text(2, previous=FIRST_TRUST, epoch=2, signers=(14, 15, 16))
    victim.put_trust(2, second, (1, 3))
    repaired = snapshot_text(1, epoch=2, trust_version=2)
    replace_snapshot(victim, repaired, (14, 16))
    victim.commit()
    snapshot, trust = lost.look(victim.url, mirror)
    assert (snapshot.content, trust.version, trust.epoch) == (repaired, 2, 2)
