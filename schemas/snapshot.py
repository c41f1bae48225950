"""The snapshot: one signed version of desired state for one network.

Its runtimes, assignments and policy have rooms of their own; what it approves, and the document itself, are here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.assignments import Assignment, Rollout, Wave
from schemas.base import (
    Count,
    Digest,
    Document,
    Duration,
    FileRef,
    Frozen,
    Json,
    Least,
    Name,
    Positive,
    Size,
    Text,
    Time,
    Url,
    Version,
)
from schemas.policy import Policy
from schemas.runtimes import RuntimeSpec

DesiredModelState = Literal["active", "inactive", "archived"]

MAX_MODELS = 10_000
MAX_RUNTIMES = 100
MAX_ASSIGNMENTS = 1_000


class SnapshotMetadata(Frozen):
    """Who this snapshot is for and where it stands in the chain."""

    network: Name
    """The network whose nodes may accept this snapshot."""
    epoch: Count = 1
    """Raised by root only; undoes a fast-forward attack."""
    sequence: Positive
    """Strictly increasing within an epoch."""
    trust_version: Positive
    """Lower bound of the trust document's version that a node must hold."""
    issued_at: Time
    """Not valid before."""
    expires_at: Time
    """Not accepted after. A healthy node keeps serving beyond it (I6)."""
    previous: Digest | None = None
    """Digest of the snapshot at sequence - 1, absent for the first."""

    @model_validator(mode="after")
    def _expires_after_issue(self) -> SnapshotMetadata:
        if self.expires_at <= self.issued_at:
            raise ValueError("expiresAt must be later than issuedAt")
        return self


class AgentRequirement(Frozen):
    """What an agent must be able to do to act on the document; read before anything else."""

    agent: Annotated[str, StringConstraints(pattern=r"^(>=|==|~=|<=|<|>)[0-9][0-9A-Za-z.,<>=~ ]{0,60}$")] = ">=0.1"
    """A PEP 440 version specifier for the agent."""


class ModelRequirements(Frozen):
    """What a node must offer before this model is even fetched."""

    gpu_memory: Size = 0
    """GPU memory that the model needs, bytes, over all GPUs of its runtime; each must hold its part and 10 % on top."""
    compute_capability: Least = ""
    """The least compute capability of each GPU: `8.0`."""
    driver: Least = ""
    """The oldest driver of NVIDIA's: `570`."""
    cuda: Least = ""
    """The oldest CUDA that the driver must serve: `12.8`."""
    memory: Size = 0
    """Main memory that the model needs, bytes."""
    engines: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]+([<>=~!]=?[0-9][0-9A-Za-z.]*)?$")], ...] = ()
    """Engines that can serve it, each with an optional version bound: `vllm>=0.30`. Empty means any."""
    tasks: tuple[Name, ...] = ()
    """Tasks that the model claims: `chat`, `completion`, `tools`."""


class ModelValidation(Frozen):
    """How the running model is proven."""

    probe: FileRef
    """The probe document."""
    every: Duration = 6 * 3600
    """Interval of periodic retests, seconds."""


class ModelSpec(Frozen):
    """One approved model version."""

    name: Name
    """The model's name."""
    version: Version
    """The version, quoted."""
    manifest: FileRef
    """Its manifest; the manifest's digest is the model's identity."""
    state: DesiredModelState = "active"
    """`active` may serve, `inactive` is kept but never serves, `archived` is kept in cold storage."""
    sources: Annotated[tuple[Url, ...], Field(max_length=16)] = ()
    """Base addresses below which the manifest's files lie: `https://`, `hf://org/repo@commit`, `s3://bucket/prefix`,
    `file://`; or bundles of them (`.tar`, `.tar.zst`, `.zip`). None of them is trusted, and none holds a secret."""
    requires: ModelRequirements = ModelRequirements.model_construct()
    """Compatibility."""
    validation: ModelValidation
    """The gate to Active."""

    @property
    def key(self) -> str:
        """`name:version`, as people and assignments call it."""
        return f"{self.name}:{self.version}"


class WithdrawnEntry(Frozen):
    """A digest that must stop at once, over every other rule (I6)."""

    digest: Annotated[str, StringConstraints(pattern=r"^(blake3|sha256):[0-9a-f]{64}$")]
    """A manifest or a lock (`blake3:`), or an image (`sha256:`)."""
    reason: Text = ""
    """For people."""


class SnapshotSpec(Frozen):
    """The desired state itself."""

    runtimes: Annotated[tuple[RuntimeSpec, ...], Field(max_length=MAX_RUNTIMES)] = ()
    """Runtimes that assignments refer to."""
    models: Annotated[tuple[ModelSpec, ...], Field(max_length=MAX_MODELS)] = ()
    """Approved models. A model that is not listed is removed."""
    assignments: Annotated[tuple[Assignment, ...], Field(max_length=MAX_ASSIGNMENTS)] = ()
    """Which node runs what."""
    waves: Annotated[tuple[Wave, ...], Field(max_length=100)] = ()
    """Named shares for rollouts, in growing order."""
    withdrawn: Annotated[tuple[WithdrawnEntry, ...], Field(max_length=MAX_MODELS)] = ()
    """Digests that must not run."""
    retry: Annotated[tuple[Digest, ...], Field(max_length=MAX_MODELS)] = ()
    """Subjects whose remembered failure is cleared."""
    policy: Policy = Policy.model_construct()
    """Rules for every node."""
    extensions: dict[str, Json] = {}
    """Ignored by agents that do not know them."""

    def share(self, rollout: Rollout | None) -> int:
        """Percentage of the nodes that a rollout has reached; all without one."""
        if rollout is None:
            return 100
        if rollout.percent is not None:
            return rollout.percent
        return next(wave.percent for wave in self.waves if wave.name == rollout.wave)

    @model_validator(mode="after")
    def _references_resolve(self) -> SnapshotSpec:
        runtimes = [runtime.name for runtime in self.runtimes]
        models = {model.key: model for model in self.models}
        if len(set(runtimes)) != len(runtimes):
            raise ValueError("two runtimes have the same name")
        if len(models) != len(self.models):
            raise ValueError("two models have the same name and version")
        waves = [wave.name for wave in self.waves]
        shares = [wave.percent for wave in self.waves]
        if len(set(waves)) != len(waves) or sorted(set(shares)) != shares:
            raise ValueError("waves need different names and growing percentages")
        for assignment in self.assignments:
            if assignment.rollout is not None and assignment.rollout.wave not in (None, *waves):
                raise ValueError(f"a rollout names wave {assignment.rollout.wave!r}, which is not listed")
            if assignment.runtime not in runtimes:
                raise ValueError(f"an assignment names runtime {assignment.runtime!r}, which is not listed")
            for key in assignment.serve:
                if key not in models:
                    raise ValueError(f"an assignment serves {key!r}, which is not listed")
                if models[key].state != "active":
                    raise ValueError(f"an assignment serves {key!r}, which is {models[key].state}")
        return self


class SnapshotDocument(Document):
    """A network's desired state, as operators write it. Believed only after verification (I1)."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Snapshot"]
    """`Snapshot`."""
    metadata: SnapshotMetadata
    """Identity and validity."""
    requires: AgentRequirement = AgentRequirement.model_construct()
    """What the agent must be."""
    spec: SnapshotSpec
    """What must be."""
