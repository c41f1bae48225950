"""Replaying and contradicting what was signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attacks.scene import IN_FORCE, PINNED, trust
from tests.attacks.table import attack
from tests.desired_state.network import git, signature_file

if TYPE_CHECKING:
    from tests.attacks.scene import Scene


@attack("RollbackAttack")
def rollback(scene: Scene) -> None:
    """An older snapshot with its genuine signatures."""
    scene.put(scene.snapshot(IN_FORCE - 1), (11, 12, 13))


@attack("RollbackAttack", accepts=True, says="reconcile snapshot revert")
def git_revert(scene: Scene) -> None:
    """No attack but a `git revert`: refused all the same, and told which command does what was meant."""
    scene.put(scene.two)
    scene.repository.commit()
    scene.look()
    git(scene.repository.folder, "revert", "--no-edit", "HEAD")


@attack("Equivocation")
def equivocation(scene: Scene) -> None:
    """Another content for the sequence that is in force, genuinely signed."""
    scene.put(scene.snapshot(IN_FORCE, note="other"))


@attack("BrokenChain")
def broken_chain(scene: Scene) -> None:
    """The next sequence, on top of a snapshot that this node never had."""
    scene.put(scene.snapshot(previous=b"another one"))


@attack("BrokenChain")
def no_chain(scene: Scene) -> None:
    """The next sequence, on top of nothing."""
    scene.put(scene.snapshot())


@attack("TrustBroken", holds="push access, a threshold of signers' keys")
def epoch_by_snapshot_signers(scene: Scene) -> None:
    """Snapshot signers start a new epoch, which only root may."""
    scene.put(scene.snapshot(1, epoch=2), (11, 12, 13))


@attack("Verified", holds="push access, a threshold of signers' keys", code=0, accepts=True)
def fast_forward(scene: Scene) -> None:
    """The highest sequence there is: genuinely signed, so it comes in force, and its signers can never go on."""
    scene.put(scene.snapshot(2**53 - 1))


@attack("Verified", holds="push access, a threshold of signers' keys", code=0, accepts=True)
def fast_forward_repaired(scene: Scene) -> None:
    """After a fast-forward, root raises the epoch and names new signers: sequence 1 of the new epoch comes in force."""
    scene.put(scene.snapshot(2**53 - 1))
    scene.repository.commit()
    scene.look()
    scene.repository.put_trust(2, trust(2, previous=PINNED, epoch=2, signers=(14, 15, 16)), (1, 3))
    scene.put(scene.snapshot(1, epoch=2, trust_version=2), (14, 16))


@attack("RollbackAttack", holds="push access, revoked keys", learns=True)
def ended_epoch(scene: Scene) -> None:
    """The fast-forward that root undid, played again."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, epoch=2), (1, 2))
    scene.put(scene.snapshot(900))


@attack("TrustBroken")
def withheld_trust(scene: Scene) -> None:
    """The snapshot asks for a trust version that the repository hides."""
    scene.put(scene.snapshot(previous=scene.one, trust_version=2))


@attack("WrongNetwork")
def wrong_network(scene: Scene) -> None:
    """A snapshot of another network, signed by the same people."""
    scene.put(scene.snapshot(previous=scene.one, network="othernet"))


@attack("InvalidSignature")
def wrong_domain(scene: Scene) -> None:
    """Signatures that the same people gave to the same text in another network."""
    from dataclasses import replace

    from desired_state import document, signatures
    from schemas.snapshot import SnapshotDocument
    from tests.desired_state.network import key

    message = signatures.snapshot_message(document.load(scene.two, SnapshotDocument, file="s"), scene.two)
    elsewhere = replace(message, network="othernet")
    scene.put(scene.two, ())
    for number in (11, 12):
        scene.put_signature(
            number, signature_file(scene.two, number, signature=signatures.sign(elsewhere, key(number)))
        )


@attack("Verified", code=0)
def rewritten_history(scene: Scene) -> None:
    """A force-push of an unrelated history with the very same snapshot: content counts, history does not."""
    git(scene.repository.folder, "checkout", "--quiet", "--orphan", "another")
    scene.repository.write("README", b"Nothing of what was before is left.\n")
    scene.repository.commit()
    git(scene.repository.folder, "branch", "--quiet", "--force", "main", "another")
    git(scene.repository.folder, "checkout", "--quiet", "main")
