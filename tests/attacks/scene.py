"""What an attacker finds: a network in good order, with a node that serves its snapshot 5 and will look again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from desired_state import layout
from schemas.digests import digest_bytes
from tests.desired_state.network import (
    NETWORK,
    Repository,
    address,
    git,
    signature_file,
    snapshot_text,
    trust_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.attacks.victim import Seen

ISSUED, EXPIRES = -700, 36_500
"""Days around the tests' own present: documents that are in time whenever this runs."""
IN_FORCE = 5
"""Sequence of the snapshot that the node serves."""
SNAPSHOT = layout.snapshot_file(NETWORK)
SIGNATURES = layout.snapshot_signatures(NETWORK)


def trust(version: int = 1, **fields: Any) -> bytes:
    """A trust document, in time."""
    return trust_text(version, **{"issued": ISSUED, "expires": EXPIRES, **fields})


PINNED = trust()
"""The trust document that the node was given."""


@dataclass
class Scene:
    """Everything that a row of the table may change before the node looks again."""

    folder: Path
    """Where this row may write."""
    repository: Repository
    """The network's repository: snapshot 5 is committed, signed by two of three."""
    spec: Mapping[str, Any]
    """What the network serves: the content of every genuine snapshot."""
    config: dict[str, Any]
    """The node's configuration."""
    look: Callable[[], Seen]
    """Lets the node look at the repository as it is, before the attack goes on."""
    environment: dict[str, str] = field(default_factory=dict)
    """What is added to the environment of the node's processes."""
    planted: bool = False
    """Whether the branch already shows what it shall: otherwise what changed in the working copy is committed."""

    # --- genuine documents ----------------------------------------------------------------------------------------

    def snapshot(self, sequence: int = IN_FORCE + 1, **fields: Any) -> bytes:
        """A snapshot of what the network serves, in time; `spec` in `fields` changes parts of the content."""
        spec = {**self.spec, **fields.pop("spec", {})}
        return snapshot_text(sequence, **{"issued": ISSUED, "expires": EXPIRES, **fields}, spec=spec)

    @cached_property
    def one(self) -> bytes:
        """The snapshot in force."""
        return self.snapshot(IN_FORCE)

    @cached_property
    def two(self) -> bytes:
        """The snapshot that honest signers would sign next."""
        return self.snapshot(previous=self.one)

    # --- changing the repository ----------------------------------------------------------------------------------

    def put(self, content: bytes, numbers: Sequence[int] = (11, 12)) -> None:
        """Put a snapshot in place, with exactly these signatures."""
        for path in (self.repository.folder / SIGNATURES).glob("*"):
            path.unlink()
        self.repository.put_snapshot(content, numbers)

    def put_signature(self, number: int, content: bytes) -> None:
        """Put any bytes where a signer's file belongs."""
        self.repository.write(f"{SIGNATURES}/{layout.signature_name(address(number))}", content)

    def sign(self, content: bytes, number: int, **changes: Any) -> None:
        """Put a signer's file, with fields changed."""
        self.put_signature(number, signature_file(content, number, **changes))

    def path(self, path: str) -> Path:
        """A file of the working copy."""
        return self.repository.folder / path

    @property
    def model(self) -> dict[str, Any]:
        """The entry of the served model; a copy."""
        (entry,) = json.loads(json.dumps(self.spec["models"]))
        return dict(entry)

    @property
    def manifest(self) -> str:
        """Path of the served model's manifest."""
        return str(self.model["manifest"]["path"])

    @property
    def probe(self) -> str:
        """Path of the served model's probe."""
        return str(self.model["validation"]["probe"]["path"])

    def approve(self, manifest: bytes) -> None:
        """Sign a next snapshot in which the model has another manifest, as signers do who do not look."""
        self.repository.write(self.manifest, manifest)
        entry = self.model
        entry["manifest"]["digest"] = digest_bytes(manifest)
        self.put(self.snapshot(previous=self.one, spec={"models": [entry]}))

    # --- the surroundings -----------------------------------------------------------------------------------------

    @property
    def trap(self) -> Path:
        """A file that exists only if the attacker's code ran."""
        return self.folder / "trap"

    def mirror(self) -> Repository:
        """A second repository of the network, as it is now; the node asks both."""
        target = self.folder / "mirror"
        shutil.copytree(self.repository.folder, target, symlinks=True)
        made = Repository(target)
        self.config["repositories"] = [{"url": self.repository.url}, {"url": made.url}]
        return made

    def plant(self, tree: str) -> None:
        """Let the branch show a tree, however it came to be."""
        commit = git(self.repository.folder, "commit-tree", "-m", "planted", tree)
        git(self.repository.folder, "update-ref", "refs/heads/main", commit)
        self.planted = True
