"""`status.json` and `reconcile status --json`: what the node says about itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Address, Count, Digest, Document, Duration, Frozen, ModelKey, Size, Text, Time
from schemas.facts import NodeFacts
from schemas.plan import Drift, Held

ConditionType = Literal["Ready", "Reconciling", "Stalled", "SourceVerified", "Drifted", "RolledBack", "Suspended"]
CONDITION_TYPES: tuple[ConditionType, ...] = (
    "Ready",
    "Reconciling",
    "Stalled",
    "SourceVerified",
    "Drifted",
    "RolledBack",
    "Suspended",
)


class Condition(Frozen):
    """One aspect of the node's state, in the form that Kubernetes made customary."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Text
    """Stable CamelCase reason."""
    message: Text
    """For people."""
    since: Time
    """When `status` last changed."""


class SnapshotStatus(Frozen):
    """An accepted snapshot."""

    digest: Digest
    epoch: Count
    sequence: Count
    signers: tuple[Address, ...]
    expires_at: Time
    accepted_at: Time


class ModelStatus(Frozen):
    """One model of this node."""

    model: ModelKey
    manifest: Digest
    state: Literal["Pending", "Active", "Inactive", "Failed", "Archived"]
    loaded: bool
    """Served now."""
    size: Size
    cause: Text
    since: Time
    guarded: bool = False
    """Whether the kernel refuses changed bytes of all its files (fs-verity)."""
    failures: Count = 0
    """Consecutive failures of download, hash check or validation."""
    not_before: Time | None = None
    """No attempt before this time."""
    unlisted_for: Annotated[float, Field(ge=0)] = 0
    """Running time since it was last listed, seconds; 0 while listed."""


class ReceiptStatus(Frozen):
    """The receipt by which something serves."""

    number: Count
    """Its number in the node's chain (`reconcile audit`)."""
    issued_at: Time
    strength: Text = ""
    """What kind of test it was."""
    signed: bool = False
    """Whether it carries the node's signature already."""
    retest_from: Time | None = None
    """From when on it is renewed in a quiet moment."""
    retest_by: Time | None = None
    """From when on it is renewed at once."""


class ServingStatus(Frozen):
    """What serves."""

    model: ModelKey
    manifest: Digest
    engine: Text
    mode: Text
    backend: Text
    instance: Text
    socket: Text
    """Path of the runtime's unix socket."""
    health: Literal["healthy", "unhealthy", "unknown"]
    since: Time | None = None
    receipt: Digest | None = None
    proof: ReceiptStatus | None = None
    """What is known of that receipt."""
    not_enforced: tuple[Text, ...] = ()
    """Restrictions that are not enforced for this instance (I10)."""


class WantedStatus(Frozen):
    """What the snapshot wants this node to serve."""

    model: ModelKey
    manifest: Digest
    runtime: Text
    """As what: engine, version and backend; empty where this node cannot run it at all."""


class StepStatus(Frozen):
    """One action of a plan, and how far it came."""

    id: Text
    kind: Text
    cause: Text
    state: Literal["waiting", "running", "done", "failed", "skipped", "cancelled"] = "waiting"
    since: Time | None = None
    """When it began."""
    seconds: Annotated[float, Field(ge=0)] = 0
    """How long it took; 0 until it has ended."""
    done: Size = 0
    """Bytes that are secured, of something long."""
    total: Size = 0
    """Bytes that it is about; 0 where it is not about bytes."""
    error: Text = ""
    """Reason and message, where it failed."""


class PlanStatus(Frozen):
    """The plan that is carried out, or the last one that was."""

    snapshot: Digest | None = None
    begun_at: Time
    ended_at: Time | None = None
    """Absent while it is carried out."""
    steps: tuple[StepStatus, ...] = ()
    left_out: Count = 0
    """Further steps that are not listed."""

    @property
    def running(self) -> StepStatus | None:
        """The step that is under way."""
        return next((step for step in self.steps if step.state == "running"), None)


class StoreStatus(Frozen):
    """The model store."""

    unguarded: Text = ""
    """Why the kernel does not refuse changed bytes here (fs-verity); empty where it does."""
    scrub_rate: Size = 0
    """Bytes a second that are looked through for bit rot, at most; 0 where that is off."""
    scrub_every: Duration = 0
    """Seconds within which every model is looked through."""
    residue: Size = 0
    """Bytes that an interruption left lying about, until the next pass."""


class ReceiptsStatus(Frozen):
    """The node's chain of receipts."""

    statements: Count
    """How many there are."""
    pending: Count
    """How many wait for the node's signature."""
    locked: Text = ""
    """Why the identity could not sign; empty where it can."""


class FrontStatusCounts(Frozen):
    """What the front is doing, and has done since it was started."""

    connections: Count
    in_flight: Count
    """Requests that the runtime has been given and has not answered to the end."""
    held: Count
    """Requests that wait for a route."""
    served: Count
    """Answers passed on whole."""
    refused: Count
    """Requests that were not fit to be served (4xx)."""
    unavailable: Count
    """Requests that could not be served for now (503)."""
    failed: Count
    """Requests that the engine failed to answer (502, 504)."""
    gone: Count
    """Clients that left before their answer ended."""
    cut: Count
    """Answers cut short by the engine's failure or the time bound."""
    cut_by_drain: Count
    """Answers cut short because the drain deadline passed."""


class FrontStatus(Frozen):
    """Through which clients reach the runtime."""

    socket: Text
    """Path of the unix socket that stays the same whatever serves."""
    state: Literal["serving", "holding", "none", "unknown"]
    """What happens to requests: led to the runtime, kept waiting, or refused."""
    counts: FrontStatusCounts | None = None
    """Absent where the front does not answer."""


class ComingStatus(Frozen):
    """Something that is known to come."""

    at: Time
    why: Text


class NextStatus(Frozen):
    """When the daemon looks again, unless something wakes it."""

    at: Time
    why: Text
    coming: Annotated[tuple[ComingStatus, ...], Field(max_length=64)] = ()
    """Everything that is known to come: polls, retries, windows, retests, the scrub, the snapshot's end; in order."""


class GpuProcessStatus(Frozen):
    """A process that computes on a GPU."""

    pid: Count
    memory: Size | None = None
    """Bytes of the GPU's memory that it has; absent where the driver does not say."""
    instance: Text = ""
    """Which of this node's instances it belongs to; empty for none of them."""
    ended: bool = False
    """Whether it has ended, and only the driver still lists it."""


class GpuStatus(Frozen):
    """One GPU."""

    uuid: Text
    name: Text
    memory: Size
    driver: Text
    capability: Text = ""
    """Compute capability."""
    cuda: Text = ""
    """The newest CUDA that the driver serves."""
    memory_free: Size = 0
    """Memory that nobody uses, bytes; 0 where that is not known."""
    temperature: int | None = None
    """Degrees Celsius; absent where it is not known, as below."""
    ecc_corrected: Count | None = None
    """Memory errors that were corrected since the driver was loaded; absent also without error correction."""
    ecc_uncorrected: Count | None = None
    """Memory errors that could not be corrected since the driver was loaded."""
    processes: tuple[GpuProcessStatus, ...] | None = None
    """Who computes on it; absent where the driver does not say."""
    fault: Text = ""
    """Why it computes nothing any more."""
    holder: Text = ""
    """Which other node of this machine has it."""


class HardwareStatus(Frozen):
    """The machine."""

    platform: Text
    processor: Text
    cpus: Count
    memory: Size
    disk: Size
    disk_free: Size
    gpus: tuple[GpuStatus, ...]
    gpu_trouble: Text = ""
    """Why GPUs, or what they report, cannot be read."""
    unsupported: tuple[Text, ...] = ()
    """GPUs that are here and are not used: other vendors'."""


class NodeStatus(Document):
    """The node's report."""

    format_version: Literal["1"] = "1"
    kind: Literal["NodeStatus"] = "NodeStatus"
    network: Text
    node: Address
    """Node id: the checksummed address of its key."""
    account: Text | None = None
    """Who controls the node."""
    labels: dict[str, str]
    agent: Text
    """Version of the agent."""
    updated_at: Time
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)]
    snapshot: SnapshotStatus | None = None
    """The accepted snapshot."""
    wanted: WantedStatus | None = None
    """What the snapshot wants here; absent where it wants nothing of this node."""
    serving: ServingStatus | None = None
    front: FrontStatus | None = None
    """Absent on a node without one."""
    models: tuple[ModelStatus, ...]
    store: StoreStatus | None = None
    """The model store."""
    receipts: ReceiptsStatus | None = None
    """The chain of receipts."""
    held: tuple[Held, ...]
    drift: tuple[Drift, ...] = ()
    """What was changed from outside since the snapshot was applied, and is not given back yet."""
    plan: PlanStatus | None = None
    """What is being done, or was done last, and why; absent before anything was done."""
    next: NextStatus | None = None
    """Absent where no daemon runs, and while something is done."""
    hardware: HardwareStatus
    engines: tuple[Text, ...]
    """Native engines, `name version`."""
    facts: NodeFacts | None = None
    """What else a plan depends on, so that it can be made elsewhere (`reconcile plan --inventory`)."""

    def condition(self, wanted: ConditionType) -> Condition | None:
        """The condition of a type, if it was determined."""
        return next((condition for condition in self.conditions if condition.type == wanted), None)
