"""The runtimes of a snapshot: which engine, how it is run, how far it is locked in, and what it may take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Count, Duration, FileRef, Frozen, ImageRef, Name, Size, Version

Mode = Literal["container", "native"]
EngineName = Literal["llamacpp", "vllm", "ollama", "openai"]
Unenforced = Literal["capabilities", "cpu", "filesystem", "memory", "network", "pids", "shm", "socket-size", "user"]
"""Restrictions of a runtime that a backend may be unable to enforce on some machine."""


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
