"""Documents that are not what they must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attacks.scene import SNAPSHOT
from tests.attacks.table import attack

if TYPE_CHECKING:
    from tests.attacks.scene import Scene


@attack("MalformedDocument")
def truncated_snapshot(scene: Scene) -> None:
    """A snapshot that ends in the middle."""
    scene.put(scene.two)
    scene.repository.write(SNAPSHOT, scene.two[:-40])


@attack("ThresholdNotMet")
def extended_snapshot(scene: Scene) -> None:
    """A snapshot with a comment more than what was signed."""
    scene.put(scene.two)
    scene.repository.write(SNAPSHOT, scene.two + b"# harmless\n")


@attack("LimitExceeded")
def oversized_snapshot(scene: Scene) -> None:
    """Seventeen megabytes of comment, which compress to nothing on the way."""
    scene.put(scene.two)
    scene.repository.write(SNAPSHOT, scene.two + b"#" * 17 * 2**20)


@attack("MalformedDocument")
def alias_bomb(scene: Scene) -> None:
    """A document that grows tenfold with every line (a billion laughs)."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    scene.repository.write(SNAPSHOT, "\n".join(lines).encode())


@attack("LimitExceeded")
def deep_nesting(scene: Scene) -> None:
    """A million brackets."""
    scene.repository.write(SNAPSHOT, b"[" * 1_000_000)


@attack("LimitExceeded")
def too_many_values(scene: Scene) -> None:
    """Two million values in a file of allowed size."""
    scene.repository.write(SNAPSHOT, b"[" + b"1," * 2_000_000 + b"1]")


@attack("InvalidSignature")
def deep_signature(scene: Scene) -> None:
    """A signature file that is nothing but brackets."""
    scene.put(scene.two)
    scene.put_signature(12, b"[" * 10_000)


@attack("MalformedDocument")
def duplicate_keys(scene: Scene) -> None:
    """Two networks in one document, one for each kind of reader."""
    scene.put(scene.two)
    doubled = scene.two.replace(b'"network": "testnet"', b'"network": "othernet", "network": "testnet"')
    scene.repository.write(SNAPSHOT, doubled)


@attack("MalformedDocument")
def constructed_object(scene: Scene) -> None:
    """A tag that would run a command in a careless reader."""
    scene.repository.write(SNAPSHOT, f"apiVersion: !!python/object/apply:os.system [touch {scene.trap}]\n".encode())


@attack("MalformedDocument")
def hidden_text(scene: Scene) -> None:
    """A bidirectional override, which makes a reviewer read another text than the node (CVE-2021-42574)."""
    scene.repository.write(SNAPSHOT, scene.two + "# nothing \u202e gnihtyreve\n".encode())


@attack("MalformedDocument")
def other_encoding(scene: Scene) -> None:
    """The same document in UTF-16."""
    scene.repository.write(SNAPSHOT, scene.two.decode().encode("utf-16"))


@attack("AgentTooOld")
def newer_form(scene: Scene) -> None:
    """A form that this agent does not know: said as what it is, though nothing in it can be checked."""
    scene.repository.write(SNAPSHOT, scene.two.replace(b"reconcile/v1alpha1", b"reconcile/v1beta7"))


@attack("AgentTooOld")
def newer_agent(scene: Scene) -> None:
    """A genuine snapshot for agents that are newer than this one."""
    scene.put(scene.snapshot(previous=scene.one, requires=">=99"))


@attack("MissingDocument")
def missing_snapshot(scene: Scene) -> None:
    """No snapshot at all."""
    scene.path(SNAPSHOT).unlink()


@attack("MissingDocument")
def missing_manifest(scene: Scene) -> None:
    """A genuine snapshot whose manifest is withheld."""
    scene.put(scene.two)
    scene.path(scene.manifest).unlink()


@attack("DigestMismatch")
def mix_and_match(scene: Scene) -> None:
    """A genuine snapshot with a manifest of another version in its place."""
    scene.put(scene.two)
    path = scene.path(scene.manifest)
    path.write_bytes(path.read_bytes().replace(b"v1", b"v2"))


@attack("DigestMismatch")
def swapped_pieces(scene: Scene) -> None:
    """Other hashes for the same manifest."""
    scene.put(scene.two)
    path = scene.path(scene.manifest).with_suffix(".pieces")
    path.write_bytes(bytes(path.stat().st_size))


@attack("LimitExceeded")
def extended_pieces(scene: Scene) -> None:
    """More hashes than the manifest has pieces."""
    scene.put(scene.two)
    path = scene.path(scene.manifest).with_suffix(".pieces")
    path.write_bytes(path.read_bytes() + bytes(32))


@attack("DigestMismatch")
def weaker_probe(scene: Scene) -> None:
    """A probe that proves less than the one that was signed for."""
    scene.put(scene.two)
    path = scene.path(scene.probe)
    path.write_bytes(path.read_bytes()[:-2] + b"\n")
