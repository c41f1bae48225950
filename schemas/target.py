"""What a node should serve, resolved: the value that is compared, started, validated, remembered and gone back to."""

from __future__ import annotations

from typing import Literal

from schemas.base import Digest, Duration, FileRef, Frozen, ImageRef, Least, ModelKey, Name, Positive, Size, Version
from schemas.digests import digest_text
from schemas.runtimes import (
    EngineName,
    Isolation,
    LlamaCppArgs,
    Mode,
    OllamaArgs,
    OpenAIArgs,
    Resources,
    Timeouts,
    VllmArgs,
)

BackendName = Literal["docker", "podman", "native", "simulated"]


class FrontLimits(Frozen):
    """Bounds on requests, as the front keeps them: the network's and the node's owner's."""

    max_tokens: Positive
    """Tokens that one request may ask for."""
    max_queue: Positive
    """Requests that may wait at once."""
    timeout: Duration
    """Time that an answer may take, seconds."""
    hold: Duration
    """Time that a request may wait for a route, seconds."""


class ServingTarget(Frozen):
    """One runtime with one model, on one backend of this node."""

    runtime: Name
    """Name of the runtime in the snapshot; not part of the identity."""
    engine: EngineName
    """Engine."""
    version: Version
    """Engine version."""
    mode: Mode
    """Container or native."""
    backend: BackendName
    """The backend that runs it."""
    image: ImageRef | None = None
    """Container mode: the image."""
    environment: Digest | None = None
    """Native mode: digest of the installed environment."""
    lock: FileRef | None = None
    """Native mode in an environment of its own: the lock that it is installed from; the environment stands for it."""
    engine_args: LlamaCppArgs | VllmArgs | OllamaArgs | OpenAIArgs
    """Typed arguments of the engine."""
    isolation: Isolation
    """Restrictions."""
    resources: Resources
    """Bounds."""
    timeouts: Timeouts
    """Time bounds; not part of the identity."""
    model: ModelKey
    """The model, as people call it."""
    manifest: Digest
    """The model's identity."""
    probe: FileRef
    """What must be answered before it serves."""
    gpu_memory: Size = 0
    """GPU memory that the model was said to need, bytes, over all its GPUs; not part of the identity, as the next."""
    compute_capability: Least = ""
    """The least compute capability that the model was said to need."""

    @property
    def spec_digest(self) -> str:
        """Identity of the instance: everything that a running instance cannot change without a restart."""
        return specification_digest(
            engine=self.engine,
            version=self.version,
            backend=self.backend,
            image=self.image,
            environment=self.environment,
            engine_args=self.engine_args.to_json(),
            isolation=self.isolation.to_json(),
            resources=self.resources.to_json(),
            model=self.model,
            manifest=self.manifest,
        )

    def subject(self, accelerator: str) -> str:
        """Identity of what a validation is about.

        Args:
            accelerator: GPU model, UUIDs and driver, or the processor where no GPU is used: a receipt from one does
                not speak for another.
        """
        return subject_digest(self.spec_digest, self.probe.digest, accelerator)


def specification_digest(
    *,
    engine: str,
    version: str,
    backend: str,
    image: str | None,
    environment: str | None,
    engine_args: str,
    isolation: str,
    resources: str,
    model: str,
    manifest: str,
) -> str:
    """Identity of an instance, from the parts of its specification; the last four before the model as JSON text."""
    parts = (engine, version, backend, image or "", environment or "", engine_args, isolation, resources)
    return digest_text("|".join(("spec/1", *parts, model, manifest)))


def subject_digest(spec_digest: str, probe: str, accelerator: str) -> str:
    """Identity of what a validation is about.

    Args:
        spec_digest: identity of the instance.
        probe: digest of the probe.
        accelerator: as `Hardware.accelerator`.
    """
    return digest_text(f"subject/1|{spec_digest}|{probe}|{accelerator}")


def locked_environment(lock: str, interpreter: str) -> str:
    """Identity of an environment that is installed from a lock.

    Args:
        lock: digest of the lock's exact bytes: it names every file that is installed by its hash.
        interpreter: what it is installed for, as `EnvironmentStore.interpreter` tells it.
    """
    return digest_text(f"environment/locked/1|{interpreter}|{lock}")
