"""Which platform a target computes on: what thresholds belong to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.validation.evidence import Platform
from schemas.runtimes import VllmArgs

if TYPE_CHECKING:
    from schemas.observation import Hardware
    from schemas.target import ServingTarget

STORED: Final = "stored"
"""Numbers as the model's files hold them."""


def platform_of(target: ServingTarget, hardware: Hardware) -> Platform:
    """The platform of a target on this machine.

    A GPU's compute capability, or the widest instructions of a processor: within one of them an engine build takes the
    same kernels and rounds the same way, whatever the model name on the lid.
    """
    gpu = hardware.gpus[0] if target.resources.gpus and hardware.gpus else None
    architecture = f"cuda/{gpu.capability or gpu.name}" if gpu is not None else hardware.architecture
    arguments = target.engine_args
    dtype = arguments.dtype if isinstance(arguments, VllmArgs) and arguments.dtype != "auto" else STORED
    # An image is an engine build by itself; a version is one where no image is.
    return Platform(target.engine, target.image or target.version, architecture, dtype)
