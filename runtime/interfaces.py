"""The protocols behind which everything outside stands: backends, engines, the model store.

`reconciler` knows these and nothing else of `runtime`; `reconciler.cli.wiring` chooses the implementations. Each
protocol has one contract suite in `tests/contracts/`, passed by every implementation, the simulated ones included.
Every method may be called again after a crash at any point: each is idempotent, or says what it expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from runtime.front.route import Route
    from runtime.validation.evidence import TopTokens
    from schemas.manifest import ManifestDocument
    from schemas.observation import (
        FrontSeen,
        Hardware,
        Instance,
        ModelSeen,
        NativeEngine,
        Observation,
        StoredEnvironment,
    )
    from schemas.ports import Stop
    from schemas.probe import ChatMessage
    from schemas.snapshot import Mode, Unenforced
    from schemas.target import BackendName, ServingTarget


SOCKET_NAME: Final = "engine.sock"
"""Name of the socket in an instance's folder."""


class Progress(Protocol):
    """Told about long work; called from any thread, cheap, never raises."""

    def __call__(self, subject: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `subject` (a file of a model, an image) are secured."""
        ...


# --- backends -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineView:
    """Paths as the engine sees them: container paths in a container, host paths natively."""

    model: str
    """Folder with the model's files, read-only."""
    socket: str
    """Unix socket that the engine must listen on."""
    python: str = ""
    """Natively: interpreter of the locked environment that the engine is in; empty for the agent's own."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started: complete, nothing is inherited."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    program: bool = False
    """In a container: whether `argv` begins with the program. Otherwise the image's entry point is the program."""
    health: str = ""
    """Path that has to answer before the engine is asked whether it is ready; empty where the engine itself knows."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything a backend needs to create one instance."""

    name: str
    """Deterministic: `reconcile-<network>-<intent>`, at most 63 characters."""
    intent: str
    """Id of the journalled intent."""
    network: str
    node_id: str
    target: ServingTarget
    launch: Launch
    model_folder: Path
    """Host folder with the verified model, mounted read-only."""
    socket_folder: Path
    """Host folder of the instance's own; holds `engine.sock` and nothing else."""
    log_folder: Path
    """Host folder of the instance's own for captured output."""
    log_limit: int
    """Bytes of output kept."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that the instance may see; none means none is visible."""


class Backend(Protocol):
    """Runs instances. Knows nothing of models, probes or plans. Safe to call from several threads."""

    name: BackendName
    mode: Mode

    def list(self) -> tuple[Instance, ...]:
        """Every instance with this node's marks (network and node id), whatever its status, sorted by name.

        Raises:
            BackendUnavailable: cannot be observed now; the caller must take everything for unknown.
        """
        ...

    def view(self, *, model_folder: Path, socket_folder: Path) -> EngineView:
        """Where an instance will find its model and its socket."""
        ...

    def not_enforced(self) -> tuple[Unenforced, ...]:
        """Restrictions of I10 that this backend cannot enforce on this machine, sorted; empty for full isolation."""
        ...

    def create(self, spec: InstanceSpec) -> None:
        """Prepare an instance without starting it. Fine if one with the same name and spec exists.

        Raises:
            BackendUnavailable: cannot be reached.
            StartFailed: refused by the backend.
            ImageUnavailable: the image is not here, or declares what I10 refuses.
        """
        ...

    def start(self, name: str) -> None:
        """Start a created instance; returns once it runs (not once it is ready). Fine if it already runs.

        Raises:
            BackendUnavailable, StartFailed.
        """
        ...

    def inspect(self, name: str) -> Instance | None:
        """One instance, None when there is none of that name with this node's marks.

        Raises:
            BackendUnavailable.
        """
        ...

    def stop(self, name: str, *, grace: float) -> None:
        """Ask to stop, and kill after `grace` seconds. Returns when no process of it is left. Fine if it is gone.

        Raises:
            BackendUnavailable.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a stopped or created instance; its logs stay in its log folder. Fine if it is gone.

        Raises:
            BackendUnavailable.
        """
        ...

    def output(self, name: str, *, limit: int) -> str:
        """The last `limit` bytes of what the instance printed, as far as known; for error messages."""
        ...

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        """What the instance printed, over rotations of its log; nothing for an instance that is not there.

        Args:
            name: of the instance.
            lines: how many of the last lines to begin with.
            follow: go on as it is printed, until the instance ends.
            stop: ends the following.

        Raises:
            BackendUnavailable.
        """
        ...

    def is_peer(self, name: str, pid: int) -> bool:
        """Whether a process (as SO_PEERCRED of the instance's socket names it) belongs to the instance.

        Raises:
            BackendUnavailable.
        """
        ...

    def image(self, ref: str) -> Observation[str]:
        """The id of an image that is here. Backends without images answer `Absent`."""
        ...

    def pull(self, ref: str, *, progress: Progress, stop: Stop) -> None:
        """Bring an image by digest. Fine if it is here.

        Raises:
            BackendUnavailable, ImageUnavailable.
        """
        ...


class Follower(Protocol):
    """Notices at once that an instance ended or changed. What it is then, only a look at the backend says."""

    def follow(self, changed: Callable[[], None]) -> None:
        """Tell of changes until closed; runs in a thread of its own, and outlives whatever it listens to.

        Args:
            changed: told that it is worth a look; may be told too often, never too seldom while it could be known.
        """
        ...

    def renew(self) -> None:
        """A pass has ended: there may be instances that were not there before. Cheap."""
        ...

    def close(self) -> None:
        """End `follow`; called once, from another thread."""
        ...


# --- engines ------------------------------------------------------------------------------------------------------


class EngineConnection(Protocol):
    """HTTP to one instance over its unix socket, bounded in size and time.

    The socket is opened without following links, and its peer must belong to the instance (I10).
    """

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """Send JSON, return JSON; only status 200 is an answer.

        Args:
            method: HTTP method.
            path: absolute path.
            body: JSON body, None for none.
            timeout: seconds for the whole exchange.
            limit: bytes of the answer.

        Raises:
            EngineUnreachable: no socket, not ours, refused, too slow, too long, not JSON, or another status.
        """
        ...

    def read(self, path: str, *, timeout: float, limit: int = 2**22) -> str:
        """Get a text, which need not be JSON; only status 200 is an answer.

        Args:
            path: absolute path.
            timeout: seconds for the whole exchange.
            limit: bytes of the answer.

        Raises:
            EngineUnreachable: as for `request`, or not UTF-8.
        """
        ...

    def peer(self, *, timeout: float) -> int:
        """The process that listens on the socket, after the checks that every request makes.

        Args:
            timeout: seconds.

        Raises:
            EngineUnreachable: no socket, not ours, refused, or too slow.
        """
        ...


Answers = Literal["render", "tokenize", "force", "sample", "chat"]
"""What validation can ask of an engine beyond greedy continuations, which every engine gives."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What an engine says that it is doing, in one answer's time."""

    running: int
    """Requests that it is working on."""
    waiting: int
    """Requests that it has accepted and not begun."""
    tokens: int
    """Tokens read and written since it started, those of unfinished requests included as far as it says. Only that it
    moves means anything: an engine with `running` requests whose count stands still makes no progress."""


class Engine(Protocol):
    """What is run: how it is started, how ready looks, how it is asked. Stateless."""

    name: str
    answers: frozenset[Answers]
    """Which of the methods below it has an answer to; the others are never called."""
    formats: frozenset[str]
    """Manifest formats that it loads."""
    distributions: tuple[str, ...]
    """Python distributions that bring it; any one of them does."""

    def native(self) -> NativeEngine | None:
        """The engine in the agent's own environment, if it is installed. Must not import the engine."""
        ...

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """Command line and environment.

        Raises:
            Incompatible: this engine cannot load that model.
        """
        ...

    def ready(self, connection: EngineConnection) -> bool:
        """Whether the model is loaded and requests are served; False while loading.

        Raises:
            EngineUnreachable: the socket does not answer (yet).
        """
        ...

    def activity(self, connection: EngineConnection) -> Activity | None:
        """What it is doing, as it reports itself; None from an engine that has no way to say.

        Raises:
            EngineUnreachable: it does not answer, or not with numbers: one that hangs may still say that it is well.
        """
        ...

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """Token ids of a rendered conversation, with the generation prompt.

        Args:
            connection: the instance.
            messages: the conversation.
            tools: functions that the model may call, as OpenAI's API describes them.

        Raises:
            EngineUnreachable.
        """
        ...

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a plain text.

        Args:
            connection: the instance.
            text: the text, in which nothing is taken for a control token.
            special: whether what the vocabulary puts around a text is added (a beginning of sequence).

        Raises:
            EngineUnreachable.
        """
        ...

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """The most likely continuation of token ids, without caches.

        Args:
            connection: the instance.
            prompt: token ids.
            tokens: how many to generate; fewer come back when the model ends by itself.

        Raises:
            EngineUnreachable.
        """
        ...

    def text(self, connection: EngineConnection, tokens: Sequence[int]) -> str:
        """What token ids say, as far as they are characters; asked for when a probe is recorded.

        Raises:
            EngineUnreachable.
        """
        ...

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """The model's next-token distribution at each of these tokens, as if it had written the ones before.

        Args:
            connection: the instance.
            prompt: token ids, at least one.
            forced: token ids that stand after the prompt, at least one, none that ends generation.

        Returns:
            One per position, each saying which token stood there: an engine that does not do as it is told shows in
            other tokens, or fewer.

        Raises:
            EngineUnreachable: it does not answer, or not with distributions.
        """
        ...

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """A continuation as clients get it: caches allowed, drawn from the whole distribution at a temperature.

        Args:
            connection: the instance.
            prompt: token ids.
            tokens: how many to generate; fewer come back when the model ends by itself.
            seed: decides what is drawn.
            temperature: 0 draws the likeliest.

        Raises:
            EngineUnreachable.
        """
        ...

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],
        *,
        schema: Mapping[str, JsonValue],
        call: bool,
    ) -> str:
        """The text of an answer that was asked to have a form; empty where there is none.

        Args:
            connection: the instance.
            messages: the conversation.
            schema: JSON Schema of the answer.
            call: whether it should be the arguments of a function call.

        Raises:
            EngineUnreachable.
        """
        ...


# --- the front ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrontCounts:
    """What the front is doing, and has done since it was started; over all fronts while one takes over from another."""

    connections: int
    in_flight: int
    """Requests that the runtime has been given and has not answered to the end."""
    held: int
    """Requests that wait for a route."""
    served: int
    """Answers passed on whole."""
    refused: int
    """Requests that were not fit to be served (4xx)."""
    unavailable: int
    """Requests that could not be served for now (503)."""
    failed: int
    """Requests that the engine failed to answer (502, 504)."""
    gone: int
    """Clients that left before their answer ended."""
    cut: int
    """Answers cut short by the engine's failure or the time bound."""
    cut_by_drain: int
    """Answers cut short because the drain deadline passed."""


class Front(Protocol):
    """The process through which the runtime is reached. It outlives the agent, which finds it again."""

    address: Path
    """Where clients find it, whatever serves."""

    def look(self) -> FrontSeen:
        """What is there, without asking it.

        Raises:
            BackendUnavailable: it cannot be seen.
        """
        ...

    def ensure(self) -> None:
        """Have a front with this agent's program and settings take new clients; an older one ends with its last answer.

        Raises:
            StartFailed: it could not be started; whatever listened before goes on.
        """
        ...

    def lead(self, route: Route) -> None:
        """Lead requests along a route, from now on.

        Raises:
            StartFailed: the route cannot be written.
        """
        ...

    def hold(self, instance: str) -> bool:
        """Let requests wait from now on, if they are led to this instance; whether they were.

        Raises:
            StartFailed: the route cannot be written.
        """
        ...

    def drain(self, instance: str, *, seconds: float) -> int:
        """Wait until an instance has answered everything, at most so long; how many requests are left.

        Returns early when stopping is requested.
        """
        ...

    def counts(self) -> FrontCounts | None:
        """What it is doing; None when it does not answer."""
        ...


# --- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """A model version that may be installed: its manifest as verified, and its pieces."""

    digest: str
    """Content digest of the manifest's bytes: the identity."""
    manifest: ManifestDocument
    pieces: bytes
    """The side file: 32 bytes per piece, in the order of the manifest's files."""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What came of looking through one model for bit rot."""

    manifest: str
    model: str
    """`name:version`."""
    bad: str = ""
    """What is wrong, for people; empty where all of it is as it was."""


class ModelStore(Protocol):
    """The node's models. Safe against a crash at any point; bytes are proven before they are published (I2, I7)."""

    def list(self) -> Mapping[str, ModelSeen]:
        """Everything in the store, by manifest digest. Costs stats only, and changes nothing (I9).

        Raises:
            OSError: the store cannot be read: what is in it is unknown, not absent.
        """
        ...

    def folder(self, digest: str) -> Path:
        """The read-only folder of a stored model, for mounting.

        Raises:
            KeyError: not stored.
        """
        ...

    def missing(self, model: Model) -> int:
        """Bytes that `acquire` would have to fetch."""
        ...

    def room(self, model: Model) -> int:
        """Bytes of the disk that `acquire` would take, beyond what it has taken already."""
        ...

    def residue(self) -> int:
        """Bytes that nothing visible needs: what a crash left lying about.

        Raises:
            OSError: the store cannot be read.
        """
        ...

    def cold_free(self) -> int | None:
        """Free bytes of the cold disk; None where it is the disk of the store."""
        ...

    def unguarded(self) -> str:
        """Why the file system cannot have the kernel refuse changed bytes (fs-verity); empty where it can."""
        ...

    def acquire(self, model: Model, sources: Sequence[str], *, progress: Progress, stop: Stop) -> Sequence[str]:
        """Fetch what is missing, verify, publish. Resumes; fine if the model is stored and intact.

        Args:
            model: what to install.
            sources: base addresses; the node's own fallback list comes after them.
            progress: told per file.
            stop: when set, returns soon with `DownloadFailed`, keeping what is verified.

        Returns:
            What is to be held against sources, although others made up for it: each a sentence for people.

        Raises:
            DownloadFailed: no source had it all; what is verified is kept.
            ModelCorrupt: the sources answered with other bytes than the manifest's, or it contradicts itself.
            Incompatible: a file is of a kind that is refused (pickles, program code), or its header is not sound.
            SignatureRefused: it does not carry the signature of its maker that its manifest asks for.
            NoSpace: the disk cannot hold it; nothing was fetched.
        """
        ...

    def verify(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Hash a stored model again, and stamp it intact. One in doubt is read past the page cache.

        Raises:
            KeyError: not stored.
            ModelCorrupt: the bytes differ; the model has been moved to quarantine and is no longer stored.
            DownloadFailed: stopped, or the disk failed, before the end; no verdict.
        """
        ...

    def archive(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Move a stored model to cold storage; `acquire` brings it back. Fine if it is there already.

        Raises:
            KeyError: not stored, and not in cold storage.
            ModelCorrupt: its bytes differ; it has been moved to quarantine.
            NoSpace: the cold disk cannot hold it; nothing was written.
            DownloadFailed: stopped, or a disk failed; the stored model stays.
        """
        ...

    def scrub(self, *, rate: int, every: float, stop: Stop) -> Scrubbed | None:
        """Look for bit rot in the model that was verified longest ago, as far as there is time.

        Args:
            rate: bytes a second, at most.
            every: seconds after which a verified model is due again.
            stop: ends it soon; the place is remembered.

        Returns:
            What came of a model that was looked through, None where none is due or the time was up. A bad one is no
            longer intact.

        Raises:
            DownloadFailed: the disk failed.
        """
        ...

    def remove(self, digest: str) -> None:
        """Remove a model, also from cold storage, and the blobs that no other model needs. Fine if it is gone."""
        ...

    def sweep(self) -> None:
        """Remove what a crash left lying about."""
        ...


class EnvironmentStore(Protocol):
    """Native environments, each installed from one lock, none of them the agent's."""

    interpreter: str
    """What environments are installed for: implementation, version and machine; part of their identity."""

    def list(self) -> dict[str, StoredEnvironment]:
        """The environments that are installed to the end, by digest.

        Raises:
            OSError: they cannot be looked at.
        """
        ...

    def python(self, environment: str) -> Path:
        """The interpreter of an environment, installed or not."""
        ...

    def install(self, environment: str, lock: bytes, *, stop: Stop) -> None:
        """Install what a lock names, whole or not at all. Fine if it is there.

        Args:
            environment: digest of the environment, as `schemas.target.locked_environment` makes it.
            lock: the lock's exact bytes.
            stop: when set, ends soon; what was fetched is kept for the next attempt.

        Raises:
            EnvironmentUnavailable: a wheel is not to be had, is not the one that is locked, or stopping was requested.
            NoSpace: the disk is full.
        """
        ...

    def verify(self, environment: str) -> None:
        """Compare an environment with what was installed: by stat, and by hash where that differs (I2).

        Raises:
            EnvironmentChanged: it is not what was installed, or not installed; it is no longer listed.
        """
        ...

    def packages(self, environment: str) -> dict[str, str]:
        """Versions of what an environment has, by normalised name; empty where it is not installed."""
        ...

    def remove(self, environment: str) -> None:
        """Remove an environment. Fine if it is gone."""
        ...


class HardwareProbe(Protocol):
    """Reads the machine."""

    def read(self) -> Hardware:
        """What the machine is, now."""
        ...
