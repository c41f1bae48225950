"""The node under attack: the command `reconcile`, git, and llama.cpp with a tiny model, all real.

What the node remembers is put back after each row, so that every row begins in the very same state; the engine goes on
running through all of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from model_server import serving
from telling import RECONCILE
from tiny_model import write_tiny_model

from desired_state import document
from schemas.digests import digest_bytes
from tests.attacks.scene import IN_FORCE, PINNED, Scene
from tests.desired_state.network import NETWORK, Repository, git
from tests.support.quiet_demo import QuietDemo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

REMEMBERED = ("state.db", "state.db-wal", "state.db-shm", "mark", "timestamp", "status.json", "repo.git")
"""What a node knows about its network, in its state directory."""
OFTEN = 8
"""Rows after which the node is shown a good snapshot, with all that it remembers of them."""
PATIENCE = 240
"""Seconds for one pass: a hundred times what it takes."""


@dataclass(frozen=True)
class Seen:
    """What one pass of the node came to."""

    code: int
    report: Mapping[str, Any]
    """What `reconcile --json` printed."""

    def reason(self, condition: str) -> str:
        """The reason of a condition, or of the error where there was no pass."""
        if "error" in self.report:
            return str(self.report["error"]["reason"])
        return str(self._condition(condition).get("reason", ""))

    def message(self, condition: str) -> str:
        """What it says to people."""
        if "error" in self.report:
            return str(self.report["error"]["message"])
        return str(self._condition(condition).get("message", ""))

    def _condition(self, name: str) -> Mapping[str, Any]:
        return next((item for item in self.report["conditions"] if item["type"] == name), {})

    @property
    def serving(self) -> Mapping[str, Any]:
        """What serves."""
        return self.report.get("serving") or {}

    @property
    def accepts(self) -> bool:
        """Whether another snapshot came in force; False where there was no pass."""
        found = self.report.get("snapshot") or {}
        return (found.get("epoch", 1), found.get("sequence", IN_FORCE)) != (1, IN_FORCE)


class Victim(QuietDemo):
    """A node that serves snapshot 5 of the tests' network."""

    rows = 0
    """Attacks that it has seen."""

    @property
    def network(self) -> Path:
        """The network's repository."""
        return self.folder / "testnet"

    @property
    def remembered(self) -> Path:
        """The node's state directory."""
        return self.folder / "node"

    def make_models(self) -> None:
        """One version is enough."""
        folder = self.folder / "models" / "v1"
        folder.mkdir(parents=True)
        write_tiny_model(folder / "tiny.gguf", seed=1, name="tiny-v1")
        shutil.copytree(self.folder / "models", self.folder / "mirror")

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What the network serves, as the operators' commands wrote it."""
        path = self.repo / "networks/demo/snapshot.v1alpha1.yaml"
        tree, _ = document.parse(path.read_bytes(), file=path.name, limit=document.SNAPSHOT_LIMIT)
        return dict(json.loads(json.dumps(tree))["spec"])

    def found(self) -> None:
        """Let the operators' commands approve a model; serve it in a network whose keys the tests hold."""
        self.found_network()
        network = Repository(self.network)
        for part in ("models", "probes"):
            shutil.copytree(self.repo / part, self.network / part)
        network.put_trust(1, PINNED, (1, 2))
        network.put_snapshot(Scene(self.folder, network, self.spec, {}, self.look).one)
        network.commit()
        self.join("--network", NETWORK, "--repository", network.url, "--trust", digest_bytes(PINNED))
        self.own_config = self.config.read_bytes()
        tree, _ = document.parse(self.own_config, file="node.yaml", limit=document.DEFAULT_LIMIT)
        self.own_settings = json.loads(json.dumps(tree))
        first = self.look()
        assert (first.code, first.accepts) == (0, False), first
        self.instance = first.serving["instance"]
        self.answer = self.completion(first)
        _copy(self.network, self.folder / "pristine")
        self.remember()

    # --- one row --------------------------------------------------------------------------------------------------

    def scene(self, folder: Path) -> Scene:
        """What the attacker finds."""
        return Scene(folder, Repository(self.network), self.spec, json.loads(json.dumps(self.own_settings)), self.look)

    def enter(self, scene: Scene) -> Seen:
        """Show the node what became of the scene, and let it look."""
        if not scene.planted and git(self.network, "status", "--porcelain"):
            scene.repository.commit()
        # JSON is YAML.
        self.config.write_text(json.dumps(scene.config), encoding="utf-8")
        return self.look(scene.environment)

    def leave(self) -> None:
        """Put the repository and the configuration in order again."""
        shutil.rmtree(self.network)
        _copy(self.folder / "pristine", self.network)
        self.config.write_bytes(self.own_config)

    def goes_on(self) -> None:
        """Now and then, see that nothing of what the node was shown keeps it from the next good snapshot."""
        self.rows += 1
        if self.rows % OFTEN:
            return
        scene = self.scene(self.folder)
        scene.put(scene.two)
        good = self.enter(scene)
        assert (good.code, good.reason("SourceVerified"), good.accepts) == (0, "Verified", True), good
        self.leave()
        self.forget()

    def look(self, environment: Mapping[str, str] | None = None) -> Seen:
        """One pass."""
        done = subprocess.run(
            [str(RECONCILE), "--json"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={**self._env(), **(environment or {})},
            timeout=PATIENCE,
        )
        assert done.stdout, done.stderr
        return Seen(done.returncode, json.loads(done.stdout.splitlines()[-1]))

    def completion(self, seen: Seen | None = None) -> str:
        """What the runtime answers on its socket; empty where none listens.

        Args:
            seen: the pass that says where the socket is; the first one's where it is not given.
        """
        if seen is not None:
            self.known = dict(seen.report)
        try:
            return self.complete("Hello")
        except (OSError, KeyError):  # nobody listens; or the front does, and says that nothing serves
            return ""

    # --- the node's memory ----------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Keep what the node knows now."""
        kept = self.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for name in REMEMBERED:
            _copy(self.remembered / name, kept / name)

    def forget(self) -> None:
        """Put back what the node knew, as though nothing had happened."""
        for name in REMEMBERED:
            path = self.remembered / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            _copy(self.folder / "kept" / name, path)

    def recover(self) -> None:
        """Serve again after a row in which serving had to end."""
        again = self.look()
        assert again.code == 0, again
        self.instance = again.serving["instance"]
        self.completion(again)
        self.remember()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copyfile(source, target)
        target.chmod(source.stat().st_mode & 0o777)


@contextmanager
def victim(folder: Path) -> Iterator[Victim]:
    """A node that serves, for as long as the context lasts."""
    made = Victim(folder, "native")
    made.make_models()
    with serving(folder / "mirror") as made.mirror:
        try:
            made.found()
            yield made
        finally:
            made.config.write_bytes(made.own_config)
            made.stop_runtime()
