"""The operations in which an agent dies. Each follows on what the one before left: one node lives through them all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reconciler.cli import wiring
from runtime.host import host_ports
from tests.crashes.world import Docker, Goal, World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

A, B, EXTRA = "a:v1", "b:v1", "extra:v1"


class Scene:
    """A world, in which one operation is begun again and again."""

    def __init__(self, folder: Path, docker: Docker | None = None) -> None:
        """A node that serves a:v1.

        Args:
            folder: for everything.
            docker: where its instances are containers; None where they are processes.
        """
        self.world = World(folder, docker=docker)
        self.rounds = 0
        for seed, key in enumerate((A, B, EXTRA), 1):
            self.world.network.approve(key, seed)

    def install(self) -> Goal:
        """A node that knows nothing joins."""
        self.world.join()
        self.world.network.publish([A], (A,))
        return Goal(A, (A,))

    def swap(self) -> Goal:
        """The other model of two serves."""
        key, other = (A, B) if self.rounds % 2 else (B, A)
        self.world.network.publish([key, other], (A, B))
        return Goal(key, (A, B))

    def rollback(self) -> Goal:
        """A model that does not pass its probe; a new one each time, since a node remembers what failed."""
        key = f"bad:v{self.rounds}"
        self.world.network.approve(key, 100 + self.rounds, spoiled=True)
        self.world.network.publish([key], (A, key))
        return Goal(A, (A, key), rejected=key)

    def rotation(self) -> Goal:
        """Other signers, and a snapshot that they sign."""
        self.world.network.rotate()
        self.world.network.publish([A], (A,))
        return Goal(A, (A,))

    def gc(self) -> Goal:
        """A model is listed no longer, or again."""
        listed = (A,) if self.rounds % 2 else (A, EXTRA)
        self.world.network.publish(listed, listed)
        return Goal(A, listed)

    def scrub(self) -> Goal:
        """Nothing is to be done, and a scrub is due; every second time it finds a flipped bit."""
        if self.rounds % 2:
            self._rot()
        if self.rounds == 0:
            self.world.network.publish((A, EXTRA), (A, EXTRA))
        return Goal(A, (A, EXTRA))

    def _rot(self) -> None:
        """One bit of the model that does not serve, as a disk would change it: its time of change stays."""
        digest = self.world.network.manifests[EXTRA]
        path = wiring.build_store(self.world.config, host_ports()).folder(digest) / "model.gguf"
        before = path.stat()
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(content)
        path.chmod(before.st_mode & 0o777)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


SCENES: Mapping[str, Callable[[Scene], Goal]] = {
    "install": Scene.install,
    "swap": Scene.swap,
    "rollback": Scene.rollback,
    "rotation": Scene.rotation,
    "gc": Scene.gc,
    "scrub": Scene.scrub,
    "signing": Scene.swap,
}
