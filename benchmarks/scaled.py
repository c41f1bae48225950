"""A network of many models, and a node on which all of them are as its snapshot says.

The first model is real: llama.cpp serves it, and its receipt was earned. The others are listed beside it, installed and
recorded through the real store and journal, without downloads: their weights are sparse files, so that sizes are real
and the disk stays empty. Every snapshot is signed by the demo's threshold and accepted by a real pass.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from demo import SIGNERS, Demo

from benchmarks.conftest import environment, reconcile
from benchmarks.nodes import demo_node
from desired_state import layout
from desired_state.document import SNAPSHOT_LIMIT, parse
from desired_state.keys import load_key
from desired_state.load import parse_manifest
from reconciler.cli import wiring
from reconciler.memory import PutModel
from reconciler.state_dir import StateDir
from runtime.interfaces import Model
from runtime.models.archive import Archive
from runtime.models.install import Rooms
from runtime.models.pieces import split
from schemas.base import format_time
from schemas.digests import PREFIX, digest_bytes, digest_text
from schemas.manifest import PIECE_SIZE
from schemas.memory import ModelRecord
from schemas.snapshot import SnapshotDocument

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK = "demo"
SIZES = {"config.json": 700, "model.gguf": 64 * PIECE_SIZE, "tokenizer.json": 3 * 2**20}
"""Bytes of each listed model's files: a small language model of 1 GiB."""


def _dump(document: Any) -> bytes:
    text: str = yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False, width=120)
    return text.encode()


@dataclass
class ScaledNode:
    """One node, and the network that it belongs to."""

    demo: Demo
    models: dict[str, Model] = field(default_factory=dict)
    """The listed models besides the real one, by `name:version`."""

    @property
    def repo(self) -> Path:
        """The network's repository."""
        return self.demo.repo

    @property
    def plan(self) -> list[str]:
        """The command that is measured."""
        return [reconcile(), "plan", "--config", str(self.demo.config), "--detailed-exitcode"]

    def grow(self, count: int) -> None:
        """List `count` models in all, install them, and put the snapshot in force."""
        added = [self._add(f"model-{number:05}") for number in range(len(self.models) + 1, count)]
        self._install(added)
        self.publish()
        done = subprocess.run(
            [reconcile(), "--config", str(self.demo.config)],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.check(count)

    def check(self, count: int) -> None:
        """The plan over `count` models is empty, and all of them were looked at."""
        done = subprocess.run([*self.plan, "--json"], capture_output=True, text=True, check=False, env=environment())
        assert done.returncode == 0, done.stdout + done.stderr
        plan = json.loads(done.stdout)
        looked = [step for step in plan["trace"] if step["decision"] == "installed, unchanged since it was verified"]
        assert (plan["actions"], plan["held"], len(looked)) == ([], [], count), done.stdout[:2000]

    # --- the network ----------------------------------------------------------------------------------------------

    def _add(self, name: str) -> Model:
        """Write the manifest of a model, and its pieces."""
        pieces, files = b"", []
        for path, size in SIZES.items():
            hashes = [digest_text(f"{name} {path} {index}") for index in range(-(-size // PIECE_SIZE))]
            pieces += b"".join(bytes.fromhex(digest[len(PREFIX) :]) for digest in hashes)
            # The digest of a file of one piece is the piece's.
            blake3 = hashes[0] if len(hashes) == 1 else digest_text(f"{name} {path}")
            files.append({"path": path, "size": size, "blake3": blake3, "sha256": "sha256:" + blake3[len(PREFIX) :]})
        folder = self.repo / "models" / name
        folder.mkdir()
        (folder / "v1.pieces").write_bytes(pieces)
        content = _dump(
            {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "ModelManifest",
                "metadata": {"name": name, "version": "v1"},
                "spec": {
                    "format": "gguf",
                    "files": files,
                    "pieces": {"path": f"models/{name}/v1.pieces", "digest": digest_bytes(pieces)},
                },
            }
        )
        (folder / "v1.yaml").write_bytes(content)
        model = Model(digest_bytes(content), parse_manifest(content, file=name), pieces)
        self.models[f"{name}:v1"] = model
        return model

    def publish(self) -> None:
        """List everything, sign with the threshold, commit."""
        path = self.repo / layout.snapshot_file(NETWORK)
        before = path.read_bytes()
        document: Any = parse(before, file="snapshot", limit=SNAPSHOT_LIMIT)[0]
        now = datetime.now(UTC)
        document["metadata"].update(
            sequence=document["metadata"]["sequence"] + 1,
            issuedAt=format_time(now - timedelta(minutes=1)),
            expiresAt=format_time(now + timedelta(days=30)),
            previous=digest_bytes(before),
        )
        real = document["spec"]["models"][0]
        document["spec"]["models"] = [
            real,
            *(
                {
                    "name": key.partition(":")[0],
                    "version": "v1",
                    "manifest": {"path": f"models/{key.partition(':')[0]}/v1.yaml", "digest": model.digest},
                    "sources": ["https://models.example.org/" + key.partition(":")[0], "https://mirror.example.net/m"],
                    "requires": {"memory": "1GiB", "engines": ["llamacpp"], "tasks": ["chat"]},
                    "validation": {"probe": dict(real["validation"]["probe"])},
                }
                for key, model in self.models.items()
            ),
        ]
        document["spec"]["assignments"][0]["serve"] = [document["spec"]["assignments"][0]["serve"][0], *self.models]
        content = _dump(document)
        path.write_bytes(content)
        self._sign(content)
        self.demo.commit(f"{len(self.models) + 1} models")

    def _sign(self, content: bytes) -> None:
        from desired_state.document import load
        from desired_state.signatures import address_of, sign, snapshot_message

        document = load(content, SnapshotDocument, file="snapshot", limit=SNAPSHOT_LIMIT)
        processes = wiring.host().processes
        for name in SIGNERS:
            key = load_key(self.demo.folder / f"{name}.key.json", lambda: "", processes=processes)
            address = address_of(key)
            signed = {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "Signature",
                "signer": address,
                "content": digest_bytes(content),
                "signature": sign(snapshot_message(document, content), key),
            }
            folder = self.repo / layout.snapshot_signatures(NETWORK)
            (folder / layout.signature_name(address)).write_text(json.dumps(signed), encoding="utf-8")

    # --- the node -------------------------------------------------------------------------------------------------

    def _install(self, models: list[Model]) -> None:
        """Put models on the shelf and in the journal, as a download does when its last byte was verified."""
        config = wiring.load_config(self.demo.config)
        state, ports = StateDir(Path(config.state_dir)), wiring.host()
        rooms = Rooms(state.models, ports, Archive(state.models / "archive", ports, reserve=0))
        journal = wiring.open_journal(state, readonly=False)
        now = ports.clock.now()
        with _unsynced():
            for model in models:
                base = rooms.layout.partial(model.digest) / "files"
                base.mkdir(parents=True)
                for file in model.manifest.spec.files:
                    with (base / file.path).open("wb") as stream:
                        stream.truncate(file.size)
                    (base / file.path).chmod(0o444)
                rooms.shelf.publish(model, split(model), base)
                shutil.rmtree(rooms.layout.partial(model.digest))
            records = [
                PutModel(
                    ModelRecord(
                        manifest=model.digest,
                        key=f"{model.manifest.metadata.name}:{model.manifest.metadata.version}",
                        state="Pending",
                        since=now,
                        cause="downloaded and verified",
                        size=model.manifest.size,
                    )
                )
                for model in models
            ]
            journal.apply(records, now)
            journal.close()


@contextmanager
def _unsynced() -> Iterator[None]:
    """Without waiting for the disk: what is made here need not survive a power loss."""
    fsync, os.fsync = os.fsync, lambda _: None
    try:
        yield
    finally:
        os.fsync = fsync


@contextmanager
def scaled_node(folder: Path) -> Iterator[ScaledNode]:
    """A node on which one real model serves, ready to grow."""
    with demo_node(folder) as demo:
        yield ScaledNode(demo)
