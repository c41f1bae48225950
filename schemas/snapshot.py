"""The snapshot: one signed version of desired state for one network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.base import (
    Count,
    Digest,
    Document,
    Duration,
    Frozen,
    ImageRef,
    Json,
    Label,
    Least,
    ModelKey,
    Name,
    Percent,
    Positive,
    RelativePath,
    Size,
    Text,
    Time,
    Url,
    Version,
    measure,
)

Mode = Literal["container", "native"]
EngineName = Literal["llamacpp", "vllm", "ollama", "openai"]
DesiredModelState = Literal["active", "inactive", "archived"]
Unenforced = Literal["capabilities", "cpu", "filesystem", "memory", "network", "pids", "shm", "socket-size", "user"]
"""Restrictions of a runtime that a backend may be unable to enforce on some machine."""
WeekDay = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

MAX_MODELS = 10_000
MAX_RUNTIMES = 100
MAX_ASSIGNMENTS = 1_000


class FileRef(Frozen):
    """A file of the network's repository, bound by the digest of its exact bytes."""

    path: RelativePath
    """Path from the repository's root."""
    digest: Digest
    """BLAKE3 of the file's bytes."""


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


# --- runtimes -----------------------------------------------------------------------------------------------------


class PlatformImage(Frozen):
    """One image of a runtime, by digest, for one platform and accelerator."""

    platform: Annotated[str, StringConstraints(pattern=r"^linux/(amd64|arm64)$")] = "linux/amd64"
    """Operating system and processor."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """What the image computes on."""
    ref: ImageRef
    """Name and digest; a tag alone is never accepted."""


class NativeEnvironment(Frozen):
    """How the engine is installed without a container. Without a lock, the agent's own environment is used."""

    lock: FileRef | None = None
    """Hash-locked requirements from which an environment of its own is built."""


class Isolation(Frozen):
    """How far the runtime is locked in (I10). The defaults are the strictest; anything weaker must be allowed twice."""

    network: Literal["none"] = "none"
    """A runtime has no network."""
    overlap: bool = False
    """Whether the replacement may briefly run beside the old instance."""
    allow_unenforced: tuple[Unenforced, ...] = ()
    """Restrictions that this snapshot accepts as not enforced; the node's owner must accept them too."""


class Resources(Frozen):
    """Upper bounds for one instance."""

    gpus: Count = 0
    """GPUs given to the instance, by UUID; 0 means none is visible."""
    memory: Size = 2**32
    """Memory limit, bytes."""
    shm: Size = 2**26
    """Shared memory, bytes."""
    pids: Annotated[int, Field(ge=8, le=65536)] = 512
    """Processes and threads."""
    cpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processors; all when absent."""


class VllmResources(Resources):
    """Upper bounds for one instance of vLLM."""

    shm: Size = 2**30
    """Shared memory, bytes: its processes hand work to each other through rings of 160 MiB each, one or more per
    worker, and it does not start where one has no room (vLLM 0.32, `shm_broadcast.py`)."""
    pids: Annotated[int, Field(ge=8, le=65536)] = 4096
    """Processes and threads: each of at least three processes has one per processor, and some more."""


class Timeouts(Frozen):
    """Time bounds of one instance, in seconds."""

    start: Duration = 600
    """From start to ready."""
    drain: Duration = 30
    """How long requests in flight may take before a stop."""
    stall: Duration = 60
    """Starting, or having requests, without any sign of progress for this long is a failure."""


class LlamaCppArgs(Frozen):
    """Typed, allow-listed arguments of llama.cpp's server."""

    context_size: Annotated[int, Field(ge=64, le=2**24)] = 2048
    """Tokens of context."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 1
    """Sequences decoded at once."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads; llama.cpp chooses when absent."""
    gpu_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Layers kept on the GPU."""


class VllmArgs(Frozen):
    """Typed, allow-listed arguments of vLLM's OpenAI server. `trust_remote_code` does not exist here on purpose."""

    max_model_len: Annotated[int, Field(ge=64, le=2**24)] | None = None
    """Tokens of context; the model's own when absent."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of GPU memory that vLLM may take."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Weights' and activations' type."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs over which tensors are split."""
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Sequences decoded at once."""
    enforce_eager: bool = False
    """Skip graph capture: faster start, slower decode. Always so without a GPU, where nothing is compiled."""
    kv_cache: Annotated[Size, Field(ge=2**30)] | None = None
    """Memory for attention keys and values without a GPU, in whole GiB; when absent, what the memory limit leaves
    beside the weights and 2.5 GiB, at least 1 GiB."""
    tool_call_parser: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")] | None = None
    """How functions are called in this family of models (`hermes`, `llama3_json`, `mistral`, ...): one of those that
    vLLM brings. Without it vLLM refuses requests that want a function called: a model that is for `tools` needs it."""
    compact_json: bool | None = None
    """Whether answers in a JSON Schema's form have no white space between their parts: a small model may write that
    until its tokens are used up."""


class OllamaArgs(Frozen):
    """Typed, allow-listed arguments of Ollama."""

    context_size: Annotated[int, Field(ge=64, le=2**24)] = 2048
    """Tokens of context."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 1
    """Requests answered at once."""
    flash_attention: bool = False
    """Whether attention is computed that way."""


SHELLS = frozenset({"ash", "bash", "csh", "dash", "fish", "ksh", "mksh", "sh", "tcsh", "zsh"})


class OpenAIArgs(Frozen):
    """How an image with any OpenAI-compatible server is started and asked. Nothing of it passes through a shell."""

    command: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")], ...],
        Field(min_length=1, max_length=128),
    ]
    """The server's program, by its path in the image, and its arguments; the image's entry point is not used. In each,
    `{model}` stands for the folder with the model's files, `{socket}` for the unix socket that it must listen on (both
    must be there), and `{name}` for the name that clients call the model by."""
    health: Annotated[str, StringConstraints(max_length=256, pattern=r"^/[A-Za-z0-9._~/-]*$")] = "/health"
    """Path that answers 200 once requests are served, and not before."""
    formats: Annotated[tuple[Literal["gguf", "safetensors"], ...], Field(min_length=1, max_length=2)]
    """Formats of models that it loads."""

    @model_validator(mode="after")
    def _is_whole(self) -> OpenAIArgs:
        program = self.command[0]
        if not program.startswith("/") or program.rpartition("/")[2] in SHELLS:
            raise ValueError("the command's first word is not the path of a program in the image, or is a shell")
        for placeholder in ("{model}", "{socket}"):
            if not any(placeholder in word for word in self.command[1:]):
                raise ValueError(f"the command's arguments do not say {placeholder}")
        return self


class _RuntimeBase(Frozen):
    name: Name
    """Referred to by assignments."""
    version: Version
    """The engine's exact version, quoted."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("container",)
    """How the engine may be run, in order of preference."""
    preferred: Mode | None = None
    """Preferred among `modes`, where the node has it."""
    images: tuple[PlatformImage, ...] = ()
    """Container images, one per platform and accelerator."""
    native: NativeEnvironment | None = None
    """Native environment; needed when `modes` lists `native`."""
    isolation: Isolation = Isolation.model_construct()
    """Restrictions of the instance."""
    resources: Resources = Resources.model_construct()
    """Bounds of the instance."""
    timeouts: Timeouts = Timeouts.model_construct()
    """Time bounds of the instance."""

    @model_validator(mode="after")
    def _modes_have_means(self) -> _RuntimeBase:
        if "container" in self.modes and not self.images:
            raise ValueError("modes lists container, but images is empty")
        if "native" in self.modes and self.native is None:
            raise ValueError("modes lists native, but native is absent")
        if self.preferred is not None and self.preferred not in self.modes:
            raise ValueError("preferred is not one of modes")
        return self


class LlamaCppRuntime(_RuntimeBase):
    """llama.cpp's server, through the xllamacpp wheel."""

    engine: Literal["llamacpp"]
    """The engine."""
    engine_args: LlamaCppArgs = LlamaCppArgs.model_construct()
    """Arguments of the engine."""


class VllmRuntime(_RuntimeBase):
    """vLLM's OpenAI-compatible server."""

    engine: Literal["vllm"]
    """The engine."""
    engine_args: VllmArgs = VllmArgs.model_construct()
    """Arguments of the engine."""
    resources: VllmResources = VllmResources.model_construct()
    """Bounds of the instance."""


class OllamaRuntime(_RuntimeBase):
    """Ollama, on a loopback of its own behind a proxy. Checked against its documented API only."""

    engine: Literal["ollama"]
    """The engine."""
    engine_args: OllamaArgs = OllamaArgs.model_construct()
    """Arguments of the engine."""


class OpenAIRuntime(_RuntimeBase):
    """Any OpenAI-compatible server, in a container."""

    engine: Literal["openai"]
    """The engine."""
    engine_args: OpenAIArgs
    """How it is started and asked."""

    @model_validator(mode="after")
    def _is_contained(self) -> OpenAIRuntime:
        if self.modes != ("container",):
            raise ValueError("an OpenAI-compatible image runs in a container only")
        return self


RuntimeSpec = Annotated[LlamaCppRuntime | VllmRuntime | OllamaRuntime | OpenAIRuntime, Field(discriminator="engine")]
EngineArgs = LlamaCppArgs | VllmArgs | OllamaArgs | OpenAIArgs


# --- models -------------------------------------------------------------------------------------------------------


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


# --- assignments --------------------------------------------------------------------------------------------------


class LabelExpression(Frozen):
    """One requirement on a label or fact."""

    key: Label
    """Name of the label or fact."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Gte", "Lt", "Lte"]
    """How the value is compared; the last four compare numbers, sizes and dotted versions, and hold for no node that
    has no such value."""
    values: tuple[Label, ...] = ()
    """Several for `In` and `NotIn`, one for `Gt`, `Gte`, `Lt` and `Lte`."""

    @model_validator(mode="after")
    def _values_fit_operator(self) -> LabelExpression:
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"{self.operator} takes no values")
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"{self.operator} needs values")
        if self.operator in ("Gt", "Gte", "Lt", "Lte") and [measure(text) is None for text in self.values] != [False]:
            raise ValueError(f"{self.operator} needs one value: a number, a size or a dotted version")
        return self


class Selector(Frozen):
    """Which nodes an assignment is for. Empty matches every node."""

    match_labels: dict[Label, Label] = {}
    """All must be equal."""
    match_expressions: tuple[LabelExpression, ...] = ()
    """All must hold."""


class Wave(Frozen):
    """A named step of rollouts: everybody up to a share of the nodes."""

    name: Name
    """What rollouts call it: `canary`, `early`."""
    percent: Percent
    """Share of the nodes in this wave and those before it."""


class Rollout(Frozen):
    """A stable share of the matching nodes: hash(node id, key) below a percentage, given here or by a wave."""

    percent: Percent | None = None
    """Share of nodes inside; those inside stay inside as it grows."""
    wave: Name | None = None
    """A wave of this snapshot, instead of a percentage."""
    key: Label
    """Names the rollout; another key draws another share."""

    @model_validator(mode="after")
    def _one_share(self) -> Rollout:
        if (self.percent is None) == (self.wave is None):
            raise ValueError("a rollout has either a percent or a wave")
        return self


class Assignment(Frozen):
    """What the selected nodes run. The first assignment that matches a node wins."""

    selector: Selector = Selector.model_construct()
    """Which nodes."""
    rollout: Rollout | None = None
    """Which share of them; the others fall through to the next assignment."""
    runtime: Name
    """A runtime of this snapshot."""
    serve: Annotated[tuple[ModelKey, ...], Field(min_length=1)]
    """Models to serve; the first is loaded."""


# --- policy -------------------------------------------------------------------------------------------------------


class JobPolicy(Frozen):
    """Bounds on requests."""

    max_tokens: Positive = 4096
    """Tokens that one request may ask for."""
    max_queue: Positive = 64
    """Requests held at once."""
    timeout: Duration = 120
    """Time bound of one request, seconds."""


class HeartbeatPolicy(Frozen):
    """Reporting."""

    interval: Duration = 10
    """Seconds between heartbeats."""


class GcPolicy(Frozen):
    """When unlisted models are removed (I8)."""

    grace: Duration = 86400
    """Running time between unlisting and removal, seconds."""
    keep_free: Percent = 10
    """Share of the disk kept free."""
    allow_empty: bool = False
    """Whether an empty model list may remove everything."""


class Window(Frozen):
    """A weekly window, in the clock of `zone`."""

    days: Annotated[tuple[WeekDay, ...], Field(min_length=1)]
    """Days on which the window opens."""
    from_: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$"), Field(alias="from")]
    """Opening time."""
    to: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    """Closing time; on the next day when not after `from`."""
    zone: Text = "UTC"
    """IANA time zone."""


class Windows(Frozen):
    """When work may happen; empty means always."""

    stage: tuple[Window, ...] = ()
    """Downloads and pulls."""
    swap: tuple[Window, ...] = ()
    """Stopping what serves."""
    urgent: bool = False
    """Signed by the operators: this snapshot ignores the windows."""


class ValidationPolicy(Frozen):
    """Validation inference."""

    inconclusive: Literal["retry", "reject"] = "retry"
    """`retry`: nothing is held against the model; what served before goes on, and it is tried again with backoff.
    `reject`: it counts as failed, and is remembered."""
    installed: bool = False
    """Whether models that are assigned and not served are validated as well: each is a swap there and one back, made
    in a swap window and a quiet moment. Without it they are `Pending` until they serve."""


class Policy(Frozen):
    """Rules of the network for every node."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("container",)
    """Execution modes that the network allows."""
    jobs: JobPolicy = JobPolicy.model_construct()
    """Bounds on requests."""
    heartbeat: HeartbeatPolicy = HeartbeatPolicy.model_construct()
    """Reporting."""
    gc: GcPolicy = GcPolicy.model_construct()
    """Clean-up."""
    windows: Windows = Windows.model_construct()
    """Maintenance windows."""
    validation: ValidationPolicy = ValidationPolicy.model_construct()
    """Validation inference."""


# --- the document -------------------------------------------------------------------------------------------------


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
