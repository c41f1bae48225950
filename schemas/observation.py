"""What is really there. Values only; `reconciler.observe` fills them.

An observation is `Present`, `Absent` or `Unknown`. Unknown is never taken for absent: nothing is removed, and nothing
is started, because something could not be seen (I3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from schemas.memory import Memory
    from schemas.target import FrontLimits

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Present(Generic[T]):
    """Seen."""

    value: T


@dataclass(frozen=True, slots=True)
class Absent:
    """Looked for, and not there."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Could not be looked for."""

    reason: str


Observation = Present[T] | Absent | Unknown


# --- facts about the machine --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU."""

    pid: int
    memory: int | None = None
    """Bytes of the GPU's memory that it has; None where the driver does not say."""
    instance: str = ""
    """Which of this node's running instances it belongs to; empty for none of them."""
    ended: bool = False
    """Whether it has ended, and only the driver still lists it; also False where that cannot be told."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. What changes by itself makes no other machine."""

    uuid: str
    name: str
    memory: int
    """Total memory, bytes."""
    driver: str
    capability: str = field(default="", compare=False)
    """Compute capability (`9.0`): the same machine also where it was not asked for."""
    memory_free: int = field(default=0, compare=False)
    """Memory that nobody uses now, bytes; 0 where that is not known."""
    cuda: str = field(default="", compare=False)
    """The newest CUDA that the driver serves (`12.8`); empty where it was not asked."""
    temperature: int | None = field(default=None, compare=False)
    """Degrees Celsius; None where it is not known, as below."""
    ecc_corrected: int | None = field(default=None, compare=False)
    """Memory errors that were corrected since the driver was loaded; None also without error correction."""
    ecc_uncorrected: int | None = field(default=None, compare=False)
    """Memory errors that could not be corrected since the driver was loaded."""
    processes: tuple[GpuProcess, ...] | None = field(default=None, compare=False)
    """Who computes on it, by process id; None where the driver does not say."""
    fault: str = field(default="", compare=False)
    """Why it computes nothing any more (`has fallen off the bus`); empty while it does, or where that is not known."""
    holder: str = field(default="", compare=False)
    """Which other node of this machine has taken it, for people; empty for none."""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """Something that a GPU reported by itself."""

    id: str
    """No other report's, in this life of the agent or another one's."""
    uuid: str
    """Which GPU; empty where it did not say."""
    what: str
    """`Xid 79: the GPU has fallen off the bus`."""


@dataclass(frozen=True, slots=True)
class NativeEngine:
    """An engine installed in an environment of this machine."""

    engine: str
    version: str
    environment: str
    """Content digest of the installed files' record."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the machine is. Readings that change by themselves are not part of a plan's fingerprint."""

    platform: str
    """`linux/amd64`."""
    processor: str
    cpus: int
    memory: int
    """Main memory, bytes."""
    disk: int
    """Size of the state directory's file system, bytes."""
    gpus: tuple[Gpu, ...] = ()
    disk_free: int = field(default=0, compare=False)
    memory_free: int = field(default=0, compare=False)
    gpu_reports: tuple[GpuReport, ...] = field(default=(), compare=False)
    """What GPUs reported in this agent's life, the newest last; the oldest are forgotten."""
    gpu_trouble: str = field(default="", compare=False)
    """Why GPUs, or what they report, cannot be read; empty where they can, or where there are none."""
    unsupported: tuple[str, ...] = field(default=(), compare=False)
    """GPUs that are here and are not used, for people: other vendors'."""
    instructions: str = field(default="", compare=False)
    """The widest instructions that engines have kernels for: `avx512f`. Part of what the processor is."""

    @property
    def architecture(self) -> str:
        """What decides how its processor rounds: `amd64/avx512f`."""
        return "/".join(part for part in (self.platform.partition("/")[2], self.instructions) if part)

    @property
    def accelerator(self) -> str:
        """What computes here, as it goes into a validation's subject."""
        return accelerator_name(((gpu.name, gpu.uuid, gpu.driver) for gpu in self.gpus), self.processor)


def accelerator_name(gpus: Iterable[tuple[str, str, str]], processor: str) -> str:
    """What computes, in one line: the GPUs by name, UUID and driver, or the processor where there is none."""
    return ";".join(f"{name}:{uuid}:{driver}" for name, uuid, driver in gpus) or f"cpu:{processor}"


# --- things of the node -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of something that is no longer as this node made it: somebody else's hand."""

    field: str
    """What it is about, one of a few words: `memory`, `network`, `label spec`, `mode`."""
    expected: str
    """As it was made, for people."""
    found: str
    """As it is now, for people."""
    where: str = ""
    """Which part of it, where it has several: a file's path."""
    mendable: bool = False
    """Whether it can be given back while it runs."""


InstanceStatus = Literal["created", "running", "exited"]
Health = Literal["healthy", "unhealthy", "unknown"]


@dataclass(frozen=True, slots=True)
class Instance:
    """One engine instance that carries our marks."""

    name: str
    """Deterministic: `reconcile-<network>-<intent>`."""
    intent: str
    """Id of the journalled intent that created it. Ours only if the journal knows it (I8)."""
    backend: str
    spec_digest: str
    status: InstanceStatus
    health: Health = "unknown"
    exit_code: int | None = None
    detail: str = ""
    """What is known about an exit or a bad health, for people: `OOMKilled`, `signal 9`."""
    started_at: datetime | None = None
    changed: tuple[Difference, ...] = ()
    """What somebody else has changed of it since it was created."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that it was given."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model version in the store."""

    manifest: str
    intact: bool
    """False when size, mtime, ctime or inode of a file changed since it was verified: hash before use (I2)."""
    size: int
    """Bytes."""
    doubt: str = ""
    """Why it has to be hashed before use although its files' stat may be the same, for people; empty for none."""
    guarded: bool = field(default=False, compare=False)
    """Whether the kernel itself refuses changed bytes of all its files (fs-verity)."""
    own: int = field(default=0, compare=False)
    """Bytes that nobody else has: what its removal gives back."""
    changed: tuple[Difference, ...] = field(default=(), compare=False)
    """Where it is not intact: what is different about its files."""


@dataclass(frozen=True, slots=True)
class PartialModel:
    """A model version that is not complete."""

    manifest: str
    verified_bytes: int
    """Bytes that need not be fetched again."""
    quarantined: bool = False
    """Whether it was complete and went bad: what is left of it waits for its repair."""
    own: int = field(default=0, compare=False)
    """Bytes of the disk that it takes."""


@dataclass(frozen=True, slots=True)
class ArchivedModel:
    """A model version in cold storage."""

    manifest: str
    size: int
    """Bytes of the model itself."""
    own: int = field(default=0, compare=False)
    """Bytes that it takes there."""


@dataclass(frozen=True, slots=True)
class StoredEnvironment:
    """An installed native environment."""

    environment: str
    lock: str
    """Digest of the lock that it was installed from."""
    size: int = field(default=0, compare=False)
    """Bytes."""


ModelSeen = StoredModel | PartialModel | ArchivedModel
"""What a store may have of a model."""


@dataclass(frozen=True, slots=True)
class FrontSeen:
    """The front, as it is found."""

    current: bool
    """A front with this agent's program and settings takes new clients."""
    state: Literal["serving", "holding", "none"]
    """What it does with requests: leads them to an instance, lets them wait, or refuses them."""
    intent: str = ""
    """The instance that it leads to, or led to last."""
    limits: FrontLimits | None = None
    """The limits that are in force."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """Everything observed in one look."""

    hardware: Hardware
    engines: tuple[NativeEngine, ...]
    backends: Mapping[str, Observation[tuple[Instance, ...]]]
    """By backend name; a backend that is not configured is not a key."""
    not_enforced: Mapping[str, tuple[str, ...]]
    """By backend name: restrictions that it cannot enforce on this machine."""
    images: Mapping[str, Observation[str]]
    """`backend/ref` to image id, for the refs that were asked about."""
    models: Mapping[str, Observation[ModelSeen]]
    """By manifest digest: everything in the store, and every desired model."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """By manifest digest: bytes that would have to be fetched, for desired models that are not stored."""
    room: Mapping[str, int] = field(default_factory=dict)
    """By manifest digest: bytes of the disk that installing it would take, for the same models."""
    residue: int = 0
    """Bytes of the store that nothing visible needs: what a crash left lying about."""
    cold_free: int | None = field(default=None, compare=False)
    """Free bytes of the cold disk; None where cold storage lies on the disk of the state directory."""
    unguarded: str = ""
    """Why the store's file system cannot have the kernel refuse changed bytes (fs-verity); empty where it can."""
    front: Observation[FrontSeen] | None = None
    """None on a node without one."""
    quiet: bool | None = field(default=None, compare=False)
    """Whether what serves has nothing to do; None where nobody asked, or it cannot say."""
    interpreter: str = ""
    """What locked environments are installed for here: implementation, version and machine."""
    environments: Observation[Mapping[str, StoredEnvironment]] = field(default_factory=Absent)
    """The locked environments that are installed, by their digest; `Absent` where nothing can be installed."""

    @property
    def instances(self) -> tuple[Instance, ...]:
        """What was seen of all backends, in their order; nothing of one that could not be looked at."""
        return tuple(
            instance
            for _, seen in sorted(self.backends.items())
            if isinstance(seen, Present)
            for instance in seen.value
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """The planner's second argument: what is there, and what the node remembers."""

    node_id: str
    state: NodeState
    memory: Memory
