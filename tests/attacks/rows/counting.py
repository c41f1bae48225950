"""Counting signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state import layout
from tests.attacks.scene import PINNED, SIGNATURES, trust
from tests.attacks.table import attack
from tests.desired_state.network import STRANGER, address, signature, signature_file, twin

if TYPE_CHECKING:
    from tests.attacks.scene import Scene


@attack("SignaturesPending", holds="push access, one signer's key", code=0)
def one_signature(scene: Scene) -> None:
    """A minority of signers goes ahead; no alarm, for it may as well be honest."""
    scene.put(scene.two, (11,))


@attack("SignaturesPending", holds="push access, one signer's key", code=0)
def threshold_by_duplicates(scene: Scene) -> None:
    """One signer's signature in four files, under four names, in both spellings of v and of the address."""
    scene.put(scene.two, (11,))
    text = signature(scene.two, 11)
    scene.sign(scene.two, 11, signer=address(11).lower())
    scene.repository.write(f"{SIGNATURES}/{layout.signature_name(address(11).lower())}", signature_file(scene.two, 11))
    scene.put_signature(
        STRANGER, signature_file(scene.two, 11, signature=text[:130] + f"{int(text[130:], 16) - 27:02x}")
    )
    scene.put_signature(98, signature_file(scene.two, 11))


@attack("InvalidSignature", holds="push access, one signer's key")
def malleable_signature(scene: Scene) -> None:
    """The twin (high s) of a genuine signature, in another signer's name."""
    scene.put(scene.two, (11,))
    scene.sign(scene.two, 12, signature=twin(signature(scene.two, 11)))


@attack("InvalidSignature")
def malleable_signatures_only(scene: Scene) -> None:
    """All signatures genuine, and all in the form (high s) that nobody made."""
    scene.put(scene.two, ())
    for number in (11, 12):
        scene.sign(scene.two, number, signature=twin(signature(scene.two, number)))


@attack("InvalidSignature")
def odd_v(scene: Scene) -> None:
    """Genuine signatures with v written as an Ethereum transaction of some chain would have it."""
    scene.put(scene.two, ())
    for number in (11, 12):
        scene.sign(scene.two, number, signature=signature(scene.two, number)[:130] + "25")


@attack("UnknownSigner")
def strangers(scene: Scene) -> None:
    """As many signatures as one likes, by keys without a role; root's own among them."""
    scene.put(scene.two, (1, 2, 3, 97, 98, STRANGER))


@attack("InvalidSignature")
def claimed_names(scene: Scene) -> None:
    """A stranger's signatures in the names of two signers."""
    scene.put(scene.two, ())
    for number in (11, 12):
        scene.sign(scene.two, number, signature=signature(scene.two, STRANGER))


@attack("ThresholdNotMet")
def unsigned(scene: Scene) -> None:
    """No signatures at all."""
    scene.put(scene.two, ())


@attack("ThresholdNotMet")
def old_signatures(scene: Scene) -> None:
    """The signatures of the snapshot before."""
    scene.repository.write(layout.snapshot_file("testnet"), scene.two)


@attack("Verified", code=0, accepts=True)
def signature_of_a_newer_form(scene: Scene) -> None:
    """A third signature file, in a form that this agent does not know: the two that count suffice."""
    scene.put(scene.two)
    scene.sign(scene.two, 13, apiVersion="reconcile/v1beta7")


@attack("Verified", code=0, accepts=True)
def garbage_among_signatures(scene: Scene) -> None:
    """Two hundred files of garbage beside the two signatures that count."""
    scene.put(scene.two)
    for number in range(200):
        scene.repository.write(f"{SIGNATURES}/0x{number:040x}.json", bytes(range(256)))


@attack("SignaturesPending", holds="push access, revoked keys", code=0, learns=True)
def revoked_signer(scene: Scene) -> None:
    """A signer whom trust 2 no longer names, in a snapshot that claims to need trust 1 only."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, signers=(11, 13, 14)), (1, 2))
    scene.put(scene.two)


@attack("InvalidSignature")
def tampered_signature(scene: Scene) -> None:
    """One digit of one signature is changed."""
    scene.put(scene.two)
    text = signature(scene.two, 12)
    scene.sign(scene.two, 12, signature=text[:40] + ("0" if text[40] != "0" else "1") + text[41:])


@attack("InvalidSignature")
def truncated_signature(scene: Scene) -> None:
    """A signature file that ends in the middle."""
    scene.put(scene.two)
    scene.put_signature(12, signature_file(scene.two, 12)[:150])


@attack("InvalidSignature")
def linked_signature(scene: Scene) -> None:
    """A link where a signature should be: it is not read, whatever it points at, and so does not count."""
    scene.put(scene.two)
    path = scene.path(f"{SIGNATURES}/{layout.signature_name(address(12))}")
    path.unlink()
    path.symlink_to(layout.signature_name(address(11)))
    scene.put_signature(13, b"")
