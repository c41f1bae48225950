"""The other end: operators who sign, and git servers that show what they please. Signed once per process."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from desired_state import layout
from runtime.engines.simulated import answer
from schemas.digests import digest_bytes, digest_text, raw_hash
from schemas.refusals import LimitExceeded, MissingDocument
from tests.desired_state import network as signing
from tests.desired_state.network import FIRST_TRUST, NETWORK, address, signature_file, snapshot_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES: Final = ("a", "b", "c", "d")
STEP: Final = 10
"""Sequences of ordinary snapshots: what lies between them is for snapshots that claim to follow directly."""
IMAGES: Final = tuple(f"registry.example.org/engine@sha256:{letter * 64}" for letter in "ef")
URLS: Final = ("https://one.example.org/network.git", "https://two.example.org/network.git")


# --- what operators sign ------------------------------------------------------------------------------------------


@functools.cache
def manifest(name: str) -> bytes:
    """A model of one small file of its own."""
    content = f"the bytes of {name}".encode()
    file = {"path": "m.gguf", "size": len(content), "blake3": digest_bytes(content), "sha256": "sha256:" + "a" * 64}
    spec = {
        "format": "gguf",
        "files": [file],
        "pieces": {"path": f"models/{name}/v1.pieces", "digest": digest_bytes(pieces(name))},
    }
    return _document("ModelManifest", {"name": name, "version": "v1"}, spec=spec)


@functools.cache
def pieces(name: str) -> bytes:
    """Its one piece."""
    return raw_hash(f"the bytes of {name}".encode())


@functools.cache
def probe(name: str) -> bytes:
    """What the model answers, as the simulated engine makes it follow from the manifest."""
    digest = digest_bytes(manifest(name))
    spec = {
        "recorded": {"engine": "llamacpp", "version": "1.0", "manifest": digest, "machine": "simulated"},
        "tokenizer": [
            {"messages": [{"role": "user", "content": "hello"}], "tokens": answer("tokenizer", "user:hello")}
        ],
        "greedy": [{"prompt": [1, 2], "tokens": answer(digest, "1", "2")}],
    }
    return _document("Probe", {"name": name, "model": f"{name}:v1"}, spec=spec)


def _document(kind: str, metadata: Mapping[str, Any], **rest: Any) -> bytes:
    tree = {"apiVersion": "reconcile/v1alpha1", "kind": kind, "metadata": metadata, **rest}
    return json.dumps(tree, indent=1).encode() + b"\n"


def model_digest(name: str) -> str:
    """A model's identity."""
    return digest_bytes(manifest(name))


@dataclass(frozen=True, slots=True)
class Wish:
    """What a snapshot asks for. Few enough that all of them are signed within seconds."""

    serve: str
    listed: tuple[str, ...] = NAMES[:3]
    context: int = 512
    container: str = ""
    """Image; empty for native."""
    gpus: int = 0
    withdrawn: str = ""
    """Name of a model."""
    archived: str = ""
    """Name of a model."""
    retry: bool = False
    """Clears what is remembered against the model that it serves."""


WISHES: Final = (
    Wish("a"),
    Wish("b"),
    Wish("c"),
    Wish("a", context=2048),
    Wish("b", listed=("b",)),
    Wish("a", listed=("a", "d"), archived="d"),
    Wish("b", container=IMAGES[0]),
    Wish("c", container=IMAGES[1]),
    Wish("a", gpus=1),
    Wish("c", gpus=1),
    Wish("b", container=IMAGES[0], gpus=1),
    Wish("b", withdrawn="a"),
    Wish("a", withdrawn="b"),
    Wish("d", listed=("b", "d")),
)


@dataclass(frozen=True, slots=True)
class Signed:
    """A snapshot with the signatures that lie beside it."""

    content: bytes
    signers: tuple[int, ...]
    wish: Wish
    sequence: int
    what: str = "valid"

    @property
    def digest(self) -> str:
        """Its content digest."""
        return digest_bytes(self.content)

    def files(self) -> dict[str, bytes]:
        """A repository that shows it."""
        found = {
            layout.snapshot_file(NETWORK): self.content,
            layout.trust_file(NETWORK, 1): FIRST_TRUST,
            **_signatures(self.content, self.signers, layout.snapshot_signatures(NETWORK)),
        }
        for name in NAMES:
            found[f"models/{name}/v1.yaml"] = manifest(name)
            found[f"models/{name}/v1.pieces"] = pieces(name)
            found[f"probes/{name}.yaml"] = probe(name)
        return found


@functools.cache
def _signatures(content: bytes, signers: tuple[int, ...], folder: str) -> dict[str, bytes]:
    return {f"{folder}/{layout.signature_name(address(one))}": signature_file(content, one) for one in signers}


def _spec(wish: Wish) -> dict[str, Any]:
    runtime: dict[str, Any] = {
        "name": "main",
        "engine": "llamacpp",
        "version": "1.0",
        "engineArgs": {"contextSize": wish.context},
        "resources": {"gpus": wish.gpus},
    }
    if wish.container:
        accelerator = "cuda" if wish.gpus else "cpu"
        runtime |= {"modes": ["container"], "images": [{"ref": wish.container, "accelerator": accelerator}]}
    else:
        runtime |= {"modes": ["native"], "native": {}}
    models = [
        {
            "name": name,
            "version": "v1",
            "manifest": {"path": f"models/{name}/v1.yaml", "digest": model_digest(name)},
            "sources": ["https://models.example.org/"],
            "validation": {"probe": {"path": f"probes/{name}.yaml", "digest": digest_bytes(probe(name))}},
            **({"state": "archived"} if name == wish.archived else {}),
        }
        for name in sorted({*wish.listed, wish.serve})
    ]
    return {
        "runtimes": [runtime],
        "models": models,
        "assignments": [{"runtime": "main", "serve": [f"{wish.serve}:v1"]}],
        "withdrawn": [{"digest": model_digest(wish.withdrawn), "reason": "poisoned"}] if wish.withdrawn else [],
        "policy": {"modes": ["container", "native"], "gc": {"grace": "5m"}},
    }


@functools.cache
def valid(number: int, which: int) -> Signed:
    """An ordinary snapshot: the `number`-th, from 1, with one of the wishes."""
    wish = WISHES[which]
    content = snapshot_text(number * STEP, expires=300, spec=_spec(wish), models=())
    return Signed(content, signing.SIGNERS[:2], wish, number * STEP)


@functools.cache
def following(number: int, which: int) -> Signed:
    """The snapshot that follows an ordinary one directly, and names it."""
    before = valid(number, which)
    wish = WISHES[(which + 1) % len(WISHES)]
    content = snapshot_text(before.sequence + 1, previous=before.content, expires=300, spec=_spec(wish), models=())
    return Signed(content, signing.SIGNERS[:2], wish, before.sequence + 1)


HOSTILE: Final = (
    "unsigned",
    "one-signer",
    "strangers",
    "expired",
    "begins-later",
    "other-network",
    "later-epoch",
    "unchained",
    "malformed",
    "missing-manifest",
    "other-manifest",
)


@functools.cache
def hostile(what: str, number: int) -> Signed:
    """Something that nobody may believe, in the place of the `number`-th snapshot. Each is one way of being wrong."""
    wish = WISHES[number % 3]
    good, spec = valid(number, number % 3), _spec(wish)
    signers: Sequence[int] = signing.SIGNERS[:2]
    content, sequence = good.content, good.sequence
    if what in ("unsigned", "one-signer", "strangers"):
        content = snapshot_text(sequence, expires=300, spec=spec, models=(), note="taken")
        signers = {"unsigned": (), "one-signer": (11,), "strangers": (11, 98, signing.STRANGER)}[what]
    elif what == "expired":
        content = snapshot_text(sequence, issued=-20, expires=-10, spec=spec, models=())
    elif what == "begins-later":
        content = snapshot_text(sequence, issued=3000, expires=4000, spec=spec, models=())
    elif what == "other-network":
        content = snapshot_text(sequence, network="mainnet", expires=300, spec=spec, models=())
    elif what == "later-epoch":
        content = snapshot_text(sequence, epoch=9, expires=300, spec=spec, models=())
    elif what == "unchained":
        sequence = max(1, sequence - STEP) + 1
        content = snapshot_text(sequence, expires=300, spec=spec, models=(), note="unchained")
    elif what == "malformed":
        content = content[: len(content) // 2]
    return Signed(content, tuple(signers), wish, sequence, what)


def hostile_files(signed: Signed) -> dict[str, bytes]:
    """The repository that shows something hostile."""
    if signed.what == "malformed":
        files = valid(signed.sequence // STEP, 0).files()
        return files | {layout.snapshot_file(NETWORK): signed.content}
    files = signed.files()
    path = f"models/{signed.wish.serve}/v1.yaml"
    if signed.what == "missing-manifest":
        del files[path]
    elif signed.what == "other-manifest":
        files[path] = manifest("d")
    return files


# --- git servers --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Server:
    """A git server: what it has ever shown, and what it shows now."""

    url: str
    history: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    shown: int = -1
    down: bool = False

    def show(self, files: dict[str, bytes]) -> str:
        """A new commit."""
        commit = digest_text(f"{self.url} {len(self.history)}").partition(":")[2][:40]
        self.history.append((commit, files))
        self.shown = len(self.history) - 1
        return commit

    @property
    def head(self) -> str:
        """The commit that it shows; empty for none."""
        return self.history[self.shown][0] if self.shown >= 0 else ""


class DictFiles:
    """The files of one commit."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def read(self, path: str, limit: int) -> bytes:
        """As `DocumentFiles.read`."""
        if path not in self._files:
            raise MissingDocument("is not in the repository", file=path)
        if len(self._files[path]) > limit:
            raise LimitExceeded("too long", file=path)
        return self._files[path]

    def read_many(self, wanted: Mapping[str, int]) -> dict[str, bytes]:
        """As `DocumentFiles.read_many`."""
        return {path: self.read(path, limit) for path, limit in wanted.items()}

    def list(self, folder: str) -> tuple[str, ...]:
        """As `DocumentFiles.list`."""
        prefix = folder + "/"
        names = (path.removeprefix(prefix) for path in self._files if path.startswith(prefix))
        return tuple(sorted(name for name in names if "/" not in name))
