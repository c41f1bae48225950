"""A network with real keys, real signatures and a real git repository, of which a test changes what it is about."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from desired_state import document, layout, signatures
from schemas.base import format_time
from schemas.digests import digest_bytes, digest_text, raw_hash
from schemas.snapshot import SnapshotDocument
from schemas.timestamp import TimestampDocument
from schemas.trust import TrustDocument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

NETWORK = "testnet"
NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
AGENT = "0.1.0"


def key(number: int) -> bytes:
    """A private key that every run has again."""
    return number.to_bytes(1, "big") * 32


@functools.cache
def address(number: int) -> str:
    """The address of a key."""
    return signatures.address_of(key(number))


ROOTS = (1, 2, 3)
SIGNERS = (11, 12, 13)
STRANGER = 99
ONLINE = 21


def moment(days: float) -> str:
    """A time relative to `NOW`, in days, as documents write it."""
    return format_time(NOW + timedelta(days=days))


# --- documents ----------------------------------------------------------------------------------------------------


def _yaml(tree: Mapping[str, Any]) -> bytes:
    """JSON is YAML: enough for documents that nobody edits."""
    return json.dumps(tree, indent=1).encode() + b"\n"


def trust_text(
    version: int = 1,
    *,
    previous: bytes | None = None,
    epoch: int = 1,
    network: str = NETWORK,
    roots: Sequence[int] = ROOTS,
    signers: Sequence[int] = SIGNERS,
    threshold: int = 2,
    online: Sequence[int] = (),
    issued: float = -30,
    expires: float = 300,
) -> bytes:
    """A trust document; `online` hold the role `timestamp`, each of them alone."""
    metadata = {
        "network": network,
        "version": version,
        "epoch": epoch,
        "issuedAt": moment(issued),
        "expiresAt": moment(expires),
        **({"previous": digest_bytes(previous)} if previous is not None else {}),
    }
    roles = {
        "root": {"threshold": threshold, "signers": [address(number) for number in roots]},
        "snapshot": {"threshold": threshold, "signers": [address(number) for number in signers]},
        **({"timestamp": {"threshold": 1, "signers": [address(number) for number in online]}} if online else {}),
    }
    return _yaml(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Trust",
            "metadata": metadata,
            "spec": {"roles": roles},
        }
    )


FIRST_TRUST = trust_text()
"""The trust document that every node of the network has pinned."""

PIECE = b"the bytes of a model"
PIECES = raw_hash(PIECE)


def manifest_text(name: str = "m", version: str = "v1", pieces: bytes = PIECES) -> bytes:
    """A manifest of one small file."""
    files = [{"path": "m.gguf", "size": len(PIECE), "blake3": digest_bytes(PIECE), "sha256": "sha256:" + "a" * 64}]
    return _yaml(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "ModelManifest",
            "metadata": {"name": name, "version": version},
            "spec": {
                "format": "gguf",
                "files": files,
                "pieces": {"path": f"models/{name}/{version}.pieces", "digest": digest_bytes(pieces)},
            },
        }
    )


def probe_text(name: str = "m") -> bytes:
    """A probe with one case."""
    recorded = {"engine": "llamacpp", "version": "1", "manifest": digest_text("m"), "machine": "cpu"}
    return _yaml(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Probe",
            "metadata": {"name": name, "model": f"{name}:v1"},
            "spec": {"recorded": recorded, "greedy": [{"prompt": [1], "tokens": [2]}]},
        }
    )


def model_entry(manifest: bytes | None = None, probe: bytes | None = None) -> dict[str, Any]:
    """The entry of the model `m:v1` in a snapshot."""
    manifest_digest = digest_bytes(manifest if manifest is not None else manifest_text())
    probe_digest = digest_bytes(probe if probe is not None else probe_text())
    return {
        "name": "m",
        "version": "v1",
        "manifest": {"path": "models/m/v1.yaml", "digest": manifest_digest},
        "validation": {"probe": {"path": "probes/m.yaml", "digest": probe_digest}},
    }


def snapshot_text(
    sequence: int = 1,
    *,
    previous: bytes | None = None,
    epoch: int = 1,
    network: str = NETWORK,
    trust_version: int = 1,
    issued: float = -1,
    expires: float = 30,
    requires: str = ">=0.1",
    models: Sequence[Mapping[str, Any]] | None = None,
    note: str = "",
    spec: Mapping[str, Any] | None = None,
) -> bytes:
    """A snapshot; with `spec`, of that content, and otherwise of these models."""
    content = {"models": [model_entry()] if models is None else list(models), **({} if spec is None else spec)}
    metadata = {
        "network": network,
        "epoch": epoch,
        "sequence": sequence,
        "trustVersion": trust_version,
        "issuedAt": moment(issued),
        "expiresAt": moment(expires),
        **({"previous": digest_bytes(previous)} if previous is not None else {}),
    }
    return _yaml(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Snapshot",
            "metadata": metadata,
            "requires": {"agent": requires},
            "spec": {**content, "extensions": {"note": note}},
        }
    )


def timestamp_text(snapshot: bytes, *, issued: float = -0.1, expires: float = 1, **changes: Any) -> bytes:
    """A timestamp that names a snapshot as the newest; times in days from `NOW`."""
    metadata = json.loads(snapshot)["metadata"]
    newest = {"epoch": metadata["epoch"], "sequence": metadata["sequence"], "digest": digest_bytes(snapshot)}
    network = changes.pop("network", metadata["network"])
    return _yaml(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Timestamp",
            "metadata": {"network": network, "issuedAt": moment(issued), "expiresAt": moment(expires)},
            "snapshot": {**newest, **changes},
        }
    )


# --- signatures ---------------------------------------------------------------------------------------------------


@functools.cache
def signature(content: bytes, number: int) -> str:
    """A signature over a snapshot, a trust document or a timestamp."""
    tree, positions = document.parse(content, file="test", limit=document.SNAPSHOT_LIMIT)
    if document.envelope(tree).kind == "Timestamp":
        timestamp = document.validate(tree, positions, TimestampDocument, file="test")
        return signatures.sign(signatures.timestamp_message(timestamp, content), key(number))
    if document.envelope(tree).kind == "Snapshot":
        snapshot = document.validate(tree, positions, SnapshotDocument, file="test")
        return signatures.sign(signatures.snapshot_message(snapshot, content), key(number))
    trust = document.validate(tree, positions, TrustDocument, file="test")
    return signatures.sign(signatures.trust_message(trust, content), key(number))


def signature_file(content: bytes, number: int, **changes: Any) -> bytes:
    """A signature file, with fields changed."""
    fields = {
        "apiVersion": "reconcile/v1alpha1",
        "kind": "Signature",
        "signer": address(number),
        "content": digest_bytes(content),
        "signature": changes.pop("signature", None) or signature(content, number),
    }
    return json.dumps({**fields, **changes}).encode()


def signed(content: bytes, *numbers: int) -> tuple[bytes, ...]:
    """Signature files of several signers."""
    return tuple(signature_file(content, number) for number in numbers)


def twin(text: str) -> str:
    """The other signature that the curve allows for the same message: high s, v flipped."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    r, s, v = text[2:66], int(text[66:130], 16), int(text[130:], 16)
    return f"0x{r}{order - s:064x}{55 - v:02x}"


# --- the repository -----------------------------------------------------------------------------------------------

GIT_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "o",
    "GIT_AUTHOR_EMAIL": "o@example.org",
    "GIT_COMMITTER_NAME": "o",
    "GIT_COMMITTER_EMAIL": "o@example.org",
}


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as an operator would."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=GIT_ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclass
class Repository:
    """A network's git repository on disk."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        git(self.folder, "init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        """Its address."""
        return f"file://{self.folder}"

    def write(self, path: str, content: bytes) -> None:
        """Write a file of the work tree."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def put(self, path: str, content: bytes, sigs: str, numbers: Sequence[int]) -> None:
        """Write a document with the signatures of some keys."""
        self.write(path, content)
        for number in numbers:
            self.write(f"{sigs}/{layout.signature_name(address(number))}", signature_file(content, number))

    def put_trust(self, version: int, content: bytes, numbers: Sequence[int]) -> None:
        """Write a trust document with its signatures."""
        sigs = layout.trust_signatures(NETWORK, version)
        self.put(layout.trust_file(NETWORK, version), content, sigs, numbers)

    def put_snapshot(self, content: bytes, numbers: Sequence[int] = (11, 12)) -> None:
        """Write the snapshot with its signatures."""
        self.put(layout.snapshot_file(NETWORK), content, layout.snapshot_signatures(NETWORK), numbers)

    def put_timestamp(self, content: bytes, numbers: Sequence[int] = (ONLINE,)) -> None:
        """Write the timestamp with its signatures, in place of the one before."""
        for old in (self.folder / layout.timestamp_signatures(NETWORK)).glob("*"):
            old.unlink()
        self.put(layout.timestamp_file(NETWORK), content, layout.timestamp_signatures(NETWORK), numbers)

    def put_model(self) -> None:
        """Write the manifest, the pieces and the probe of `m:v1`."""
        self.write("models/m/v1.yaml", manifest_text())
        self.write("models/m/v1.pieces", PIECES)
        self.write("probes/m.yaml", probe_text())

    def commit(self) -> str:
        """Commit everything; the commit's id."""
        git(self.folder, "add", "--all", "--force")
        git(self.folder, "commit", "--quiet", "--allow-empty", "--message=change")
        return git(self.folder, "rev-parse", "HEAD")

    def commit_amended(self) -> str:
        """Replace the last commit by everything as it is now; the commit's id."""
        git(self.folder, "add", "--all", "--force")
        git(self.folder, "commit", "--quiet", "--allow-empty", "--amend", "--message=change")
        return git(self.folder, "rev-parse", "HEAD")
