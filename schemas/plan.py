"""Plans and their actions, in the form in which they are shown, saved and carried out: one form for all three."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.base import (
    Count,
    Digest,
    Document,
    Duration,
    FileRef,
    Frozen,
    ImageRef,
    ModelKey,
    Name,
    Size,
    Text,
    Time,
    Url,
    Version,
)
from schemas.runtimes import EngineName
from schemas.target import BackendName, FrontLimits, ServingTarget

FORMAT_VERSION = "1"


class _Action(Frozen):
    id: Text
    """Unique within the plan; stable for the same plan."""
    cause: Text
    """Why this is done."""
    needs: tuple[Text, ...] = ()
    """Ids of the actions that must have succeeded before. A failed one skips those that need it."""


class DownloadModel(_Action):
    """Fetch, verify and publish a model version. Idempotent: verified pieces are not fetched again."""

    kind: Literal["download-model"] = "download-model"
    model: ModelKey
    manifest: FileRef
    size: Size
    """Bytes of the model."""
    to_fetch: Size
    """Bytes that are not here yet."""
    room: Size = 0
    """Bytes of the disk that it takes."""
    sources: tuple[Url, ...]


class RestoreModel(_Action):
    """Bring a model back from cold storage; what went bad there is fetched. Idempotent."""

    kind: Literal["restore-model"] = "restore-model"
    model: ModelKey
    manifest: FileRef
    size: Size
    """Bytes of the model."""
    room: Size = 0
    """Bytes of the disk that it takes."""
    sources: tuple[Url, ...]


class ArchiveModel(_Action):
    """Move a stored model to cold storage: written, read back, and only then gone from where it was. Idempotent."""

    kind: Literal["archive-model"] = "archive-model"
    model: ModelKey
    manifest: FileRef
    size: Size


class VerifyModel(_Action):
    """Hash a stored model again, because it may have changed. Idempotent."""

    kind: Literal["verify-model"] = "verify-model"
    model: ModelKey
    manifest: FileRef
    size: Size


class SetModelState(_Action):
    """Move a model to another state. Idempotent."""

    kind: Literal["set-model-state"] = "set-model-state"
    model: ModelKey
    manifest: Digest
    before: Literal["Pending", "Active", "Inactive", "Failed", "Archived"]
    after: Literal["Pending", "Active", "Inactive", "Failed", "Archived"]


class RemoveModel(_Action):
    """Remove an unlisted model after its grace. Idempotent."""

    kind: Literal["remove-model"] = "remove-model"
    model: ModelKey
    manifest: Digest
    size: Size


class RemoveLeftover(_Action):
    """Remove what the store has of a model that is not listed and was never installed, after a grace. Idempotent."""

    kind: Literal["remove-leftover"] = "remove-leftover"
    manifest: Digest
    size: Size
    """Bytes of the disk that it takes."""


class SweepStore(_Action):
    """Remove what a crash left lying about in the model store. Idempotent."""

    kind: Literal["sweep-store"] = "sweep-store"
    size: Size


class PullImage(_Action):
    """Bring an image to a backend, by digest. Idempotent."""

    kind: Literal["pull-image"] = "pull-image"
    backend: BackendName
    image: ImageRef


class InstallEnvironment(_Action):
    """Install a native environment from its lock. Idempotent: wheels that were fetched are not fetched again."""

    kind: Literal["install-environment"] = "install-environment"
    environment: Digest
    lock: FileRef
    engine: EngineName
    version: Version
    """What the environment must bring."""


class VerifyEnvironment(_Action):
    """Compare an installed environment with what was installed; what changed is hashed. Idempotent."""

    kind: Literal["verify-environment"] = "verify-environment"
    environment: Digest
    lock: FileRef


class RemoveEnvironment(_Action):
    """Remove an environment that neither the snapshot nor the last known good names. Idempotent."""

    kind: Literal["remove-environment"] = "remove-environment"
    environment: Digest
    size: Size


class StopInstance(_Action):
    """Stop an instance and remove it; its logs stay. Idempotent."""

    kind: Literal["stop-instance"] = "stop-instance"
    backend: BackendName
    instance: Text
    intent: Text
    spec_digest: Digest
    drain: Duration
    failed: bool = False
    """It ended, or went bad, by itself: `cause` has its exit code, signal, or what is wrong with it."""
    failures: Count = 0
    """How many of its specification did so in a row, with this one; 0 where that is not counted."""
    gives_up: ServingTarget | None = None
    """What it ran, where that is not restarted any more: there is something else to go back to."""


class Drift(Frozen):
    """Something that was changed from outside since the snapshot was applied, one field of it."""

    subject: Text
    """What it is about: `runtime`, `front`, an image, a model key."""
    field: Text
    """One of a few words: `memory`, `network`, `instance`, `mode`."""
    expected: Text
    """As it was applied, for people."""
    found: Text
    """As it is, for people."""
    where: Text = ""
    """Which instance or file."""
    repaired: bool = False
    """Whether carrying out this plan gives it back."""

    @property
    def key(self) -> str:
        """The same for the same thing whenever it is changed, whichever instance it is by then."""
        return f"{self.subject}/{self.field}"

    @property
    def said(self) -> str:
        """For people."""
        where = f" of {self.where}" if self.where else ""
        return f"{self.subject}: {self.field}{where} is {self.found}, not {self.expected}"


class MendInstance(_Action):
    """Give a running instance back the limits that it was created with. Idempotent."""

    kind: Literal["mend-instance"] = "mend-instance"
    backend: BackendName
    instance: Text
    intent: Text
    fields: tuple[Text, ...]
    """What was changed."""


class CreateInstance(_Action):
    """Create what a later action starts, while the old one serves: what the backend refuses, it refuses now (I4)."""

    kind: Literal["create-instance"] = "create-instance"
    target: ServingTarget
    tried_again: bool = False
    """Whether it is tried again when it fails, as something that has served and may well do so again."""
    gpus: tuple[Text, ...] = ()
    """UUIDs of the GPUs that it gets."""


class StartInstance(_Action):
    """Start an instance of a target and wait until it is ready. Idempotent by its journalled intent."""

    kind: Literal["start-instance"] = "start-instance"
    target: ServingTarget
    role: Literal["desired", "last-known-good", "trial"]
    """`trial`: only to be validated; what serves comes back."""
    strategy: Literal["first", "replace", "overlap"] = "first"
    """Where nothing serves; after what serves was stopped; or beside it, until requests are led to the new one."""
    strategy_reason: Text = ""
    """Why it is `replace` or `overlap`."""
    tried_again: bool = False
    """Whether it is tried again when it fails, as something that has served and may well do so again."""
    gpus: tuple[Text, ...] = ()
    """UUIDs of the GPUs that it gets."""


class ValidateModel(_Action):
    """Run the probe against the serving instance; passing makes the model Active and the target last known good."""

    kind: Literal["validate-model"] = "validate-model"
    target: ServingTarget
    role: Literal["desired", "last-known-good", "trial"]
    snapshot: Digest
    """The snapshot that wants it."""
    tasks: tuple[Name, ...] = ()
    """What the model is said to be for."""
    inconclusive: Literal["retry", "reject"] = "retry"
    """What becomes of it when its answers cannot tell."""


class StartFront(_Action):
    """Have this agent's front take new clients. An older one gives its last answers and ends. Idempotent."""

    kind: Literal["start-front"] = "start-front"


class RouteFront(_Action):
    """Lead requests to an instance that has passed its probe, or nowhere. Idempotent."""

    kind: Literal["route-front"] = "route-front"
    target: ServingTarget | None
    """What the instance runs; None refuses requests, because nothing serves."""
    intent: Text
    """The instance's intent; empty for the one that this plan starts."""
    limits: FrontLimits


Action = Annotated[
    DownloadModel
    | RestoreModel
    | VerifyModel
    | ArchiveModel
    | SetModelState
    | RemoveModel
    | RemoveLeftover
    | SweepStore
    | PullImage
    | InstallEnvironment
    | VerifyEnvironment
    | RemoveEnvironment
    | StopInstance
    | MendInstance
    | CreateInstance
    | StartInstance
    | StartFront
    | RouteFront
    | ValidateModel,
    Field(discriminator="kind"),
]


RESTARTING: Final = "Restarting"
CRASH_LOOPING: Final = "CrashLooping"
"""Reasons why what ended by itself is not started again yet; the second one once it did so too often in a row."""


class Held(Frozen):
    """A change that is due and not made now, with the reason."""

    subject: Text
    """What it is about: a model key, an image, `runtime`."""
    reason: Text
    """Stable CamelCase reason: `OutsideWindow`, `Suspended`, `CrashLooping`, `BackendUnavailable`, ..."""
    message: Text
    """For people."""
    until: Time | None = None
    """When it will be looked at again, where known."""
    token: Digest | None = None
    """The rejected subject: what a snapshot's `retry` list, or `reconcile retry`, names to clear it."""


class Explanation(Frozen):
    """One step of the decision's trace, for `why`: what was considered, and what came of it."""

    subject: Text
    decision: Text


class Notice(Frozen):
    """Something about where the snapshot comes from that stops nothing, and that a person should know."""

    reason: Text
    """Stable CamelCase reason: `StaleSource`, `FreezeSuspected`, `ClockBehind`, ..."""
    message: Text
    """For people."""


class Cost(Frozen):
    """What carrying out a plan takes."""

    fetch: Size = 0
    """Bytes to fetch."""
    disk: Size = 0
    """Additional disk at the peak, bytes."""
    disk_free: Size = 0
    """Free disk when the plan was made, bytes."""
    downtime: Literal["none", "swap", "start"] = "none"
    """Whether serving is interrupted: `swap` stops one and starts another; `start` has nothing serving before.

    `none` also where the new one is started beside the old one.
    """
    back: bool = False
    """Whether what is stopped comes back afterwards, which is a second swap: a first validation."""
    downtime_kind: Text = ""
    """What it is compared with: strategy, engine, backend and the model's size; empty where nothing is interrupted."""
    downtime_ms: Count | None = None
    """Milliseconds that changes of this kind took here, at the median; absent where none was measured yet."""
    downtime_measured: Count = 0
    """How many were measured."""


class Plan(Document):
    """What would make this node what the snapshot says. Bound to a snapshot and to an observation."""

    format_version: Literal["1"] = "1"
    """Version of this form."""
    kind: Literal["Plan"] = "Plan"
    network: Text
    node: Text
    """Node id: the checksummed address of its key."""
    snapshot: Digest | None = None
    """The snapshot planned for; absent when none was accepted yet."""
    sequence: Count = 0
    draft: bool = False
    """Made from an unverified snapshot: can be read, never applied."""
    observation: Digest
    """Fingerprint of what was observed; volatile readings are left out."""
    outside_window: bool = False
    """A person wants it outside the maintenance windows."""
    actions: tuple[Action, ...]
    held: tuple[Held, ...] = ()
    trace: tuple[Explanation, ...] = ()
    drift: tuple[Drift, ...] = ()
    """What was changed from outside since the snapshot was applied."""
    notices: tuple[Notice, ...] = ()
    cost: Cost = Cost.model_construct()
    made_at: Time

    @property
    def identity(self) -> str:
        """Everything that must be the same for a saved plan to be carried out; the times in it are left out."""
        return "|".join(
            (
                self.network,
                self.node,
                self.snapshot or "",
                self.observation,
                *(action.to_json() for action in self.actions),
            )
        )
