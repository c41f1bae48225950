"""What is fuzzed: one function for each thing that reads what others wrote, and sound inputs to begin from.

A target lets the errors pass that its parser may raise, and nothing else: any other exception is a finding.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from desired_state import document, keys, paths, tree
from desired_state.files import check_path
from desired_state.git_safety import check_address, check_branch, scrub
from desired_state.git_source import GitSettings, GitSource
from desired_state.load import parse_manifest, parse_probe
from desired_state.signatures import snapshot_message, timestamp_message, trust_message
from desired_state.tally import count
from desired_state.watermark import MarkFile
from reconciler import windows
from reconciler.published import read_status
from reconciler.state_dir import StateDir
from runtime import connection
from runtime.engines.llamacpp import LlamaCppEngine
from runtime.engines.openai import OpenAIEngine
from runtime.engines.vllm import VllmEngine
from runtime.host import DurableFiles, SystemClock, host_ports
from runtime.interfaces import Model
from runtime.models import formats, http_source, pieces, records, sources
from runtime.models.addresses import locate, redirected
from schemas.base import Duration, Name, Percent, RelativePath, Size, Time, Version
from schemas.digests import digest_bytes, digest_text
from schemas.errors import ReconcileError
from schemas.node import NodeConfig, SourcePolicy
from schemas.plan import Plan
from schemas.policy import Window
from schemas.ports import Completed, Ports
from schemas.snapshot import SnapshotDocument
from schemas.timestamp import TimestampDocument
from schemas.trust import Role, TrustDocument
from tests.desired_state import network
from tests.support.models import OPEN_POLICY, gguf, safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Reader = Callable[[bytes], object]

TARGETS: dict[str, Target] = {}


@dataclass(frozen=True)
class Target:
    """One parser."""

    read: Reader
    seeds: tuple[bytes, ...]
    """Sound inputs."""

    def __call__(self, content: bytes) -> None:
        """Read; any exception is a finding."""
        self.read(content)


def target(*seeds: bytes) -> Callable[[Reader], Reader]:
    """Enter a target, under its function's name."""

    def enter(read: Reader) -> Reader:
        TARGETS[read.__name__] = Target(read, seeds)
        return read

    return enter


# --- documents ----------------------------------------------------------------------------------------------------

SNAPSHOT = network.snapshot_text()
NODE = {
    "apiVersion": "reconcile/v1alpha1",
    "kind": "Node",
    "network": "testnet",
    "repositories": [{"url": "https://example.org/a.git"}, {"url": "git@example.org:a.git"}],
    "trust": {"digest": digest_bytes(b"")},
    "stateDir": "/var/lib/reconcile/testnet",
    "labels": {"gpu": "h100"},
    "interval": "30s",
    "keepFree": "10%",
}
SPEC = {
    "runtimes": [
        {
            "name": "main", "engine": "llamacpp", "version": "1.0", "modes": ["native"],
            "engineArgs": {"contextSize": 512}, "resources": {"memory": "1GiB"}, "timeouts": {"start": "10m"},
        }
    ],
    "assignments": [
        {
            "selector": {
                "matchLabels": {"gpu": "h100"},
                "matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}],
            },
            "rollout": {"percent": 25, "key": "k"}, "runtime": "main", "serve": ["m:v1"],
        }
    ],
    "policy": {"windows": {"swap": [{"days": ["mon"], "from": "02:00", "to": "05:00", "zone": "Europe/Berlin"}]}},
    "withdrawn": [{"digest": digest_bytes(b""), "reason": "bad"}],
}  # fmt: skip
YAML = b"a: [1, -0x1f, 0o17, 1.5e3, .inf, ~, true]\n\"b\\u0041\": |\n  text\n? c\n: {d: 'e', f: >-\n  folded}\n"


@target(YAML, SNAPSHOT, b"- - - - a\n", b"a: !!str &x b\n---\n", "\ufeffa: \u202e".encode())
def yaml_tree(content: bytes) -> None:
    """The YAML reader."""
    with suppress(ReconcileError):
        tree.parse(content, file="f", limit=2**20)


@target(SNAPSHOT, b'{"a": [1, 2.5e-3, "\\ud83d\\ude00", null], "a": NaN}', b"[[[[]]]]")
def json_tree(content: bytes) -> None:
    """The JSON reader."""
    with suppress(ReconcileError):
        tree.parse_json(content, file="f", limit=2**20)


@target(SNAPSHOT, network.snapshot_text(2, previous=b"x", spec=SPEC))
def snapshot(content: bytes) -> None:
    """Snapshots, up to what is signed."""
    with suppress(ReconcileError):
        read = document.load(content, SnapshotDocument, file="f", limit=2**20, agent_version="0.1.0")
        snapshot_message(read, content).full()
        now = datetime(2026, 3, 2, tzinfo=UTC)
        windows.is_open(read.spec.policy.windows.swap, now)
        windows.next_opening(read.spec.policy.windows.stage, now)


@target(network.FIRST_TRUST, network.trust_text(2, previous=b"x"))
def trust(content: bytes) -> None:
    """Trust documents, up to what is signed."""
    with suppress(ReconcileError):
        trust_message(document.load(content, TrustDocument, file="f", limit=2**18), content).full()


@target(network.manifest_text())
def manifest(content: bytes) -> None:
    """Manifests, with the side file that they bind."""
    with suppress(ReconcileError):
        read = parse_manifest(content, file="f")
        pieces.split(Model(digest_bytes(content), read, network.PIECES * min(read.piece_count, 1000)))


@target(network.probe_text())
def probe(content: bytes) -> None:
    """Probes."""
    with suppress(ReconcileError):
        parse_probe(content, file="f")


@target(json.dumps(NODE).encode())
def node_configuration(content: bytes) -> None:
    """The node's configuration, up to the addresses that git is given."""
    with suppress(ReconcileError):
        read = document.load(content, NodeConfig, file="f")
        for repository in read.repositories:
            check_address(repository.url)
        check_branch(read.branch)


@target(network.timestamp_text(SNAPSHOT))
def timestamp(content: bytes) -> None:
    """Timestamps, up to what is signed."""
    with suppress(ReconcileError):
        read = document.load(content, TimestampDocument, file="f", limit=2**14)
        timestamp_message(read, content).full()


ROLE = Role(threshold=1, signers=tuple(network.address(number) for number in network.SIGNERS))
MESSAGE = snapshot_message(document.load(SNAPSHOT, SnapshotDocument, file="s"), SNAPSHOT)


@target(network.signature_file(SNAPSHOT, 11), network.signature_file(SNAPSHOT, 99))
def signature(content: bytes) -> None:
    """Signature files, and the signatures in them."""
    tally = count(MESSAGE, digest_bytes(SNAPSHOT), [content], ROLE)
    assert set(tally.signers) <= set(ROLE.signers)


@target(json.dumps(keys.plain(network.key(1))).encode(), b'{"version": 3, "crypto": {"kdf": "scrypt"}}')
def key_file(content: bytes) -> None:
    """Key files."""
    with TemporaryDirectory() as folder, suppress(ReconcileError):
        path = Path(folder) / "key.json"
        path.touch(mode=0o600)
        path.write_bytes(content)
        keys.read_key_file(path)


# --- git ----------------------------------------------------------------------------------------------------------


@dataclass
class Printing:
    """A git that prints these bytes, whatever it is asked."""

    content: bytes

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        """Print."""
        return Completed(0, self.content, self.content)


def _printing(content: bytes) -> GitSource:
    real = host_ports()
    ports = Ports(
        clock=real.clock,
        randomness=real.randomness,
        processes=Printing(content),
        files=real.files,
        concurrency=real.concurrency,
        stop=real.stop,
    )
    return GitSource(ports, GitSettings(timeout=1.0, max_bytes=2**20, environment={}))


COMMIT = b"0123456789abcdef0123456789abcdef01234567"


@target(COMMIT + b"\trefs/heads/main\n", COMMIT + b"\n", b"fatal: fsck error in packed object\n")
def git_answers(content: bytes) -> None:
    """What `git ls-remote`, `git fetch` and `git rev-parse` print."""
    source = _printing(content)
    with suppress(ReconcileError):
        source.head("https://example.org/a.git", "main")
    with suppress(ReconcileError):
        source.fetch("https://example.org/a.git", "main", Path("/nowhere"))
    assert len(scrub(content.decode(errors="replace"))) <= 400


@target(
    b"100644 blob " + COMMIT + b"      12\ta.yaml\0040000 tree " + COMMIT + b"       -\tb\0",
    b"120000 blob " + COMMIT + b"       3\ta.yaml\0",
)
def git_objects(content: bytes) -> None:
    """What `git ls-tree` and `git cat-file` print about a mirror, which may be damaged."""
    files = _printing(content).files(Path("/nowhere"), COMMIT.decode())
    with suppress(ReconcileError):
        files.read("a.yaml", 2**20)
    with suppress(ReconcileError):
        files.list("models")


# --- models -------------------------------------------------------------------------------------------------------


def _header(content: bytes, extension: str) -> None:
    descriptor = os.memfd_create("model")
    try:
        os.write(descriptor, content)
        with suppress(formats._Bad):
            formats._check(descriptor, extension)
    finally:
        os.close(descriptor)


@target(gguf(512), gguf(512)[:100])
def gguf_header(content: bytes) -> None:
    """Headers of GGUF files."""
    _header(content, "gguf")


@target(safetensors(64), safetensors(64)[:40])
def safetensors_header(content: bytes) -> None:
    """Headers of safetensors files."""
    _header(content, "safetensors")


PART = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/100\r\nContent-Length: 10\r\n\r\n0123456789"
MOVED = b"HTTP/1.1 302 Found\r\nLocation: //127.0.0.1:8080/a?b=c#d\r\nContent-Length: 0\r\n\r\n"
LATER = (
    b"HTTP/1.1 503 Busy\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)
NEVER = b"HTTP/1.1 503 Busy\r\nRetry-After: Fri, 31 Dec 1999 23" + b"3" * 40 + b":59:59 GMT\r\n\r\n"


@dataclass
class Answering:
    """A way to a server that answers with these bytes, and then closes."""

    answer: bytes

    def proxy(self, _place: object) -> None:
        """None is in between."""

    def connect(self, place: Any, _watch: object) -> Any:
        """A connection on which everything has been said."""
        connected = http.client.HTTPConnection(place.host, place.port)
        connected.sock = _Socket(self.answer)
        connected.auto_open = 0
        return connected


class _Socket(socket.socket):
    """A connection to a server that has said all it will ever say."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(socket.AF_UNIX)
        self._answer = answer

    def makefile(self, *_: object, **__: object) -> Any:
        return io.BufferedReader(io.BytesIO(self._answer))  # type: ignore[arg-type]

    def sendall(self, *_: object) -> None:
        pass

    def shutdown(self, _how: int) -> None:
        pass


@target(PART, MOVED, LATER, NEVER, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n")
def http_answer(content: bytes) -> None:
    """Heads and bodies of a mirror's answers."""
    source = http_source.HttpSource(
        locate("http://127.0.0.1:1/", OPEN_POLICY), OPEN_POLICY, stall=1.0, clock=SystemClock()
    )
    source.dialer = Answering(content)  # type: ignore[assignment] # the two methods that a session asks for
    session, view, received = source.session(), memoryview(bytearray(64)), 0
    with suppress(sources.SourceError):
        session.open("a", 100, 0, 10, whole=False, watch=sources.Watch(SystemClock()))
        while count := session.readinto(view):
            received += count
    session.drop()
    assert received == 10 or content != PART, "the sound answer must get through, or nothing is fuzzed here"


@target(b"https://example.org:443/a?b#c", b"http://[::1]:80/%2e%2e/", b"//user:pass@10.0.0.1/", b"hf://org/repo@main")
def address(content: bytes) -> None:
    """Addresses of sources, and where redirects lead."""
    text = content.decode(errors="replace")
    strict = SourcePolicy.model_construct()
    with suppress(sources.SourceError, ReconcileError):
        locate(text, strict)
    with suppress(sources.SourceError, ReconcileError):
        redirected(locate("https://example.org/a/b", strict), text, strict)


# --- what a node wrote, and what its engine says ------------------------------------------------------------------

JOURNAL = pieces.JournalRecord.of(digest_bytes(b""), {0: 1, 5: 2}).to_json().encode()
MARK = json.dumps({"epoch": 1, "sequence": 5, "digest": digest_bytes(b"")}).encode()


@target(JOURNAL, MARK, b'{"formatVersion": "1", "kind": "NodeStatus"}')
def records_of_the_node(content: bytes) -> None:
    """The mark, the published status, the journal of a download (under a seal that fits), a saved plan."""
    with TemporaryDirectory() as folder:
        state = StateDir(Path(folder))
        for path in (state.mark, state.status):
            path.write_bytes(content)
        MarkFile(state.mark, DurableFiles()).read()
        read_status(state)
        sealed = Path(folder) / "journal"
        text = content.decode(errors="replace")
        sealed.write_bytes(f"{digest_text(text)}\n{text}".encode())
        pieces.load_journal(sealed, digest_bytes(b"")).numbers()
        records.load(sealed, pieces.JournalRecord)
    with suppress(ValidationError):
        Plan.model_validate_json(content)


@dataclass
class Engine:
    """An engine that says these bytes, whatever it is asked."""

    content: bytes

    def request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
        """Answer."""
        return connection._json(self.content, f"{method} {path} {body is None}")

    def read(self, path: str, **_: Any) -> str:
        """Answer, as a text."""
        return self.content.decode(errors="replace")


VLLM = VllmEngine()


@target(
    b'{"status": "ok", "prompt": "x", "tokens": [1, 2]}',
    b'{"tokens": [-1, true, 1e400]}',
    b"[" * 200,
    b'{"tokens": [2], "completion_probabilities": [{"id": 2, "logprob": -1, "top_logprobs": [{"id": 2}]}]}',
    b'{"choices": [{"prompt_token_ids": [1, 2, 3], "prompt_logprobs": [null, {"2": {"logprob": -1}}, {}]}]}',
    b'{"data": [{"id": "m"}], "usage": {"prompt_tokens": 1}, "choices": [{"message": {"content": "x"}}]}',
    b'vllm:num_requests_running{engine="0"} 1e300\nllamacpp:requests_processing 1e\n',
)
def engine_answer(content: bytes) -> None:
    """What an engine answers on its socket."""
    engine, answering = LlamaCppEngine(), Engine(content)
    for ask in (
        lambda: engine.ready(answering),
        lambda: engine.render(answering, ()),
        lambda: engine.greedy(answering, (1,), tokens=4),
        lambda: engine.force(answering, (1,), (2, 3)),
        lambda: VLLM.force(answering, (1,), (2, 3)),
        lambda: engine.activity(answering),
        lambda: VllmEngine().activity(answering),
        lambda: OpenAIEngine().render(answering, ()),
        lambda: OpenAIEngine().greedy(answering, b'{"messages": []}', tokens=4),
    ):
        with suppress(ReconcileError):
            ask()


# --- grammar ------------------------------------------------------------------------------------------------------

GRAMMAR = [TypeAdapter(kind) for kind in (Size, Duration, Percent, Time, Name, Version, RelativePath)]
WINDOW = TypeAdapter(Window)


@target(b"32GiB", b"10m", b"10%", b"2026-01-31T12:00:00Z", b"spec.models[m:v1].state", b"America", b"models/m/v1.yaml")
def grammar(content: bytes) -> None:
    """Sizes, durations, percentages, times, names, paths into repositories and documents, zones."""
    text = content.decode(errors="replace")
    for kind in GRAMMAR:
        with suppress(ValidationError):
            kind.validate_python(text)
    for read in (check_path, paths.parse_path, check_address, check_branch):
        with suppress(ReconcileError):
            read(text)
    with suppress(ValidationError):
        window = WINDOW.validate_python({"days": ("mon",), "from": "02:00", "to": "05:00", "zone": text})
        windows.next_opening((window,), datetime(2026, 3, 2, tzinfo=UTC))
