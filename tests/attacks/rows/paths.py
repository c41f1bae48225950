"""Paths and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state import layout
from schemas.digests import digest_bytes
from tests.attacks.scene import SNAPSHOT
from tests.attacks.table import attack
from tests.desired_state.network import NETWORK, Repository

if TYPE_CHECKING:
    from tests.attacks.scene import Scene

FILE = "path: tiny.gguf"


def _renamed(scene: Scene, *paths: str) -> None:
    """Sign a manifest whose files are called like this, with pieces that fit."""
    text = scene.path(scene.manifest).read_text(encoding="utf-8")
    start = text.index("  files:\n") + len("  files:\n")
    end = text.index("  pieces:")
    entry = text[start:end]
    assert FILE in entry, entry
    files = "".join(entry.replace(FILE, f'path: "{path}"') for path in paths)
    side = scene.path(scene.manifest).with_suffix(".pieces")
    pieces = side.read_bytes()
    tail = text[end:].replace(digest_bytes(pieces), digest_bytes(pieces * len(paths)))
    assert tail != text[end:] or len(paths) == 1
    side.write_bytes(pieces * len(paths))
    scene.approve((text[:start] + files + tail).encode())


@attack("MalformedDocument")
def path_escape(scene: Scene) -> None:
    """A reference that leaves the repository."""
    escaping = scene.two.replace(f'"{scene.manifest}"'.encode(), b'"../../../etc/passwd"')
    scene.repository.write(SNAPSHOT, escaping)


@attack("MalformedDocument")
def look_alike_reference(scene: Scene) -> None:
    """A reference with a Cyrillic letter in it."""
    path = scene.manifest.replace("o", "\u043e", 1)
    scene.repository.write(SNAPSHOT, scene.two.replace(scene.manifest.encode(), path.encode()))


@attack("MissingDocument")
def look_alike_file(scene: Scene) -> None:
    """The snapshot under a name that only looks like it, for a reader that normalises."""
    path = scene.path(SNAPSHOT)
    path.rename(path.with_name(path.name.replace("a", "\u0430", 1)))


@attack("MissingDocument")
def other_case(scene: Scene) -> None:
    """The snapshot under a name of other case, for a reader that folds."""
    path = scene.path(SNAPSHOT)
    path.rename(path.with_name(path.name.upper()))


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_escape(scene: Scene) -> None:
    """A signed manifest whose file would be written outside of the model's folder."""
    _renamed(scene, "../../../../node.yaml")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_hidden(scene: Scene) -> None:
    """A signed manifest with a hidden file."""
    _renamed(scene, ".ssh/authorized_keys")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_look_alike(scene: Scene) -> None:
    """A signed manifest with two files whose names look the same: one has a Cyrillic letter."""
    _renamed(scene, "tiny.gguf", "t\u0456ny.gguf")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_composed(scene: Scene) -> None:
    """A signed manifest with one name in two Unicode normal forms, which some file systems fold into one."""
    _renamed(scene, "e\u0301.gguf", "\u00e9.gguf")


@attack("MalformedDocument", holds="signers who do not look", says="two files have the same path")
def model_files_of_one_name(scene: Scene) -> None:
    """A signed manifest with two names that differ in case only."""
    _renamed(scene, "Tiny.gguf", "tiny.gguf")


@attack("MalformedDocument", holds="signers who do not look", says="differ in case only")
def model_folders_of_one_name(scene: Scene) -> None:
    """A signed manifest with two folders that differ in case only."""
    _renamed(scene, "Parts/a.gguf", "parts/b.gguf")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_with_control(scene: Scene) -> None:
    """A signed manifest with a line break in a file's name."""
    _renamed(scene, "tiny.gguf\\nx.gguf")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_reversed(scene: Scene) -> None:
    """A signed manifest with a name that reads backwards (a bidirectional override)."""
    _renamed(scene, "fugg\\u202ekp.gguf")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_trailing_dot(scene: Scene) -> None:
    """A signed manifest with a name that ends in a dot, which some file systems drop."""
    _renamed(scene, "tiny.gguf", "tiny.gguf.")


@attack("MalformedDocument", holds="signers who do not look", says="spec.files")
def model_file_trailing_space(scene: Scene) -> None:
    """A signed manifest with a name that ends in a space, which nobody sees."""
    _renamed(scene, "tiny.gguf", "tiny.gguf ")


@attack("MissingDocument")
def symlinked_snapshot(scene: Scene) -> None:
    """A link to a genuine snapshot elsewhere."""
    scene.put(scene.two)
    path = scene.path(SNAPSHOT)
    path.rename(path.with_name("real.yaml"))
    path.symlink_to("real.yaml")


@attack("MissingDocument")
def symlinked_folder(scene: Scene) -> None:
    """The whole network behind a link."""
    scene.path("networks").rename(scene.path("elsewhere"))
    scene.path("networks").symlink_to("elsewhere")


@attack("MissingDocument")
def link_to_the_host(scene: Scene) -> None:
    """A manifest that is a link to a file of the node."""
    scene.put(scene.two)
    scene.path(scene.manifest).unlink()
    scene.path(scene.manifest).symlink_to("/etc/passwd")


@attack("MissingDocument")
def submodule(scene: Scene) -> None:
    """A submodule where the models should be."""
    scene.put(scene.two)
    scene.path("models").rename(scene.folder / "gone")
    other = Repository(scene.path("models"))
    other.write(scene.manifest.removeprefix("models/"), (scene.folder / "gone").joinpath("tiny/v1.yaml").read_bytes())
    other.commit()


@attack("MissingDocument")
def folder_for_a_file(scene: Scene) -> None:
    """A folder in the snapshot's place."""
    path = scene.path(layout.snapshot_file(NETWORK))
    path.unlink()
    scene.repository.write(f"{SNAPSHOT}/inside", b"")
