"""Several repositories, and what the network itself takes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attacks.scene import IN_FORCE, SNAPSHOT
from tests.attacks.table import attack

if TYPE_CHECKING:
    from tests.attacks.scene import Scene
    from tests.desired_state.network import Repository


def _put(scene: Scene, repository: Repository, content: bytes, numbers: tuple[int, ...] = (11, 12)) -> None:
    """Commit a snapshot in one of the repositories."""
    own, scene.repository = scene.repository, repository
    scene.put(content, numbers)
    repository.commit()
    scene.repository = own


@attack("StaleSource", holds="one of two repositories", code=0)
def lagging_mirror(scene: Scene) -> None:
    """A mirror that shows the snapshot before, with its genuine signatures."""
    _put(scene, scene.mirror(), scene.snapshot(IN_FORCE - 1))


@attack("StaleSource", holds="one of two repositories", code=0, accepts=True)
def lagging_mirror_of_a_change(scene: Scene) -> None:
    """A mirror that stays behind while the other repository moves on: the newest comes in force."""
    scene.mirror()
    scene.put(scene.two)


@attack("ThresholdNotMet", holds="one of two repositories", code=0)
def hostile_mirror(scene: Scene) -> None:
    """A mirror that offers a snapshot nobody signed."""
    _put(scene, scene.mirror(), scene.two, ())


@attack("Equivocation", holds="one of two repositories", code=0)
def contradicting_mirror(scene: Scene) -> None:
    """A mirror that offers another content for the sequence in force, genuinely signed."""
    _put(scene, scene.mirror(), scene.snapshot(IN_FORCE, note="other"))


@attack("Equivocation", holds="push access, a threshold of signers' keys")
def split_view(scene: Scene) -> None:
    """Two repositories that offer different next snapshots, both genuinely signed."""
    mirror = scene.mirror()
    scene.put(scene.two)
    _put(scene, mirror, scene.snapshot(previous=scene.one, note="other"))


@attack("SourceUnreachable", holds="one of two repositories", code=0)
def vanished_mirror(scene: Scene) -> None:
    """A mirror that is gone."""
    scene.mirror()
    scene.config["repositories"][1]["url"] += ".gone"


@attack("MalformedDocument", holds="one of two repositories", code=0, accepts=True)
def broken_mirror(scene: Scene) -> None:
    """A mirror that offers garbage while the other repository moves on: the newest comes in force."""
    mirror = scene.mirror()
    mirror.write(SNAPSHOT, b"%PDF-1.7\n")
    mirror.commit()
    scene.put(scene.two)


@attack("DigestMismatch", holds="one of two repositories", code=0, accepts=True)
def mirror_with_other_models(scene: Scene) -> None:
    """The first repository shows the newest snapshot beside another manifest: the second one's comes in force."""
    mirror = scene.mirror()
    scene.config["repositories"].reverse()
    mirror.write(scene.manifest, b"another\n")
    _put(scene, mirror, scene.two)
    scene.put(scene.two)


@attack("DigestMismatch", holds="one of two repositories", code=0)
def mirror_without_models(scene: Scene) -> None:
    """A mirror that shows a genuine next snapshot beside another manifest, while the other stays where it is."""
    mirror = scene.mirror()
    mirror.write(scene.manifest, b"another\n")
    _put(scene, mirror, scene.two)


@attack("Withdrawn", condition="Ready", holds="signers who do not look", code=6, serves=False, accepts=True)
def withdrawn_model(scene: Scene) -> None:
    """The model that serves is bad, and the network withdraws it: stopped at once, though nothing is left to serve."""
    digest = scene.model["manifest"]["digest"]
    scene.put(scene.snapshot(previous=scene.one, spec={"withdrawn": [{"digest": digest, "reason": "poisoned"}]}))
