"""Which GPUs an instance gets, and why it may get none. Pure.

Nothing is started on a GPU that another node of the machine has (I3), that computes nothing any more, or whose memory a
stranger has taken: all that is known before anything is stopped (I4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from schemas.observation import Gpu, GpuProcess
from schemas.runtimes import VllmArgs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from schemas.observation import Hardware, Instance
    from schemas.runtimes import RuntimeSpec
    from schemas.snapshot import ModelRequirements
    from schemas.status import GpuStatus
    from schemas.target import ServingTarget

HEADROOM_PERCENT: Final = 10
"""Beyond what an instance may take: page tables, buffers, and the driver's own share come on top of what is said."""

VLLM_UTILISATION: Final = 0.9
"""Share of a GPU's memory that vLLM takes unless it is told (`--gpu-memory-utilization`, vLLM's engine arguments)."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a target gets."""

    gpus: tuple[Gpu, ...]
    """In the order of their UUIDs; none where it needs none, or gets none."""
    reason: str = ""
    """Why it cannot have what it needs; empty where it can."""
    message: str = ""

    @property
    def uuids(self) -> tuple[str, ...]:
        """Their UUIDs."""
        return tuple(gpu.uuid for gpu in self.gpus)


def allot(target: ServingTarget, hardware: Hardware) -> Allotment:
    """The GPUs on which a target is started now; what this node itself runs on them does not count.

    Args:
        target: what is to be started.
        hardware: the machine.
    """
    share = target.resources.gpus
    able = [gpu for gpu in hardware.gpus if not shortcoming(target, gpu)]
    refused = [(gpu, *_refusal(target, gpu)) for gpu in able]
    free = [gpu for gpu, reason, _ in refused if not reason]
    if len(free) >= share:
        return Allotment(tuple(free[:share]))
    if len(able) < share:
        why = "; ".join(f"{gpu.uuid} {shortcoming(target, gpu)}" for gpu in hardware.gpus if gpu not in able)
        said = f"{target.model} needs {share} GPUs, the machine has {len(able)}" + (f" ({why})" if why else "")
        return Allotment((), "Incompatible", said + (f": {hardware.gpu_trouble}" if hardware.gpu_trouble else ""))
    # What another node has comes first: it is the one that can be waited for, or moved.
    ordered = sorted((item for item in refused if item[1]), key=lambda item: _ORDER.index(item[1]))
    return Allotment((), ordered[0][1], "; ".join(message for _, _, message in ordered))


_ORDER: Final = ("GpuInUse", "GpuNotFree", "GpuFault")


def _refusal(target: ServingTarget, gpu: Gpu) -> tuple[str, str]:
    """Why a GPU that would do cannot be used now, as reason and message; both empty where it can."""
    if gpu.holder:
        return "GpuInUse", f"{gpu.uuid} is in use by {gpu.holder}"
    if gpu.fault:
        return "GpuFault", f"{gpu.uuid} {gpu.fault}"
    strangers = [process for process in gpu.processes or () if not process.instance]
    taken = sum(process.memory or 0 for process in strangers)
    needed = needed_memory(target, gpu)
    if taken and needed > gpu.memory - taken:
        names = ", ".join(f"process {process.pid}" for process in strangers)
        return "GpuNotFree", f"{names} has {taken} bytes of {gpu.uuid}: {needed} are needed, {gpu.memory - taken} left"
    return "", ""


def needed_memory(target: ServingTarget, gpu: Gpu) -> int:
    """Bytes that a target needs of one GPU, with headroom; 0 where nobody says."""
    if isinstance(target.engine_args, VllmArgs):
        # A bound that vLLM itself keeps: it refuses to start where less than this is free.
        part = target.engine_args.gpu_memory_utilization
        return int(gpu.memory * (VLLM_UTILISATION if part is None else part))
    return with_headroom(-(-target.gpu_memory // max(target.resources.gpus, 1)))


def with_headroom(size: int) -> int:
    """Bytes, and a little more."""
    return size + size * HEADROOM_PERCENT // 100


# --- whether it can ever fit --------------------------------------------------------------------------------------


def shortcoming(target: ServingTarget, gpu: Gpu) -> str:
    """What a GPU lacks for a target, whatever happens on it now; empty where it would do."""
    each = with_headroom(-(-target.gpu_memory // max(target.resources.gpus, 1)))
    if each > gpu.memory:
        return f"has {gpu.memory} bytes of memory, {each} are needed of each, headroom included"
    if target.compute_capability and _less(gpu.capability, target.compute_capability):
        return f"has compute capability {gpu.capability}, {target.compute_capability} is needed"
    return ""


def driver_shortcoming(runtime: RuntimeSpec, wanted: ModelRequirements, hardware: Hardware) -> str:
    """What the machine's driver lacks for a model on GPUs; empty where it would do, or where none is used."""
    if not runtime.resources.gpus or not hardware.gpus:
        return ""
    gpu = hardware.gpus[0]
    if wanted.driver and _less(gpu.driver, wanted.driver):
        return f"needs driver {wanted.driver}, the machine has {gpu.driver}"
    if wanted.cuda and _less(gpu.cuda, wanted.cuda):
        return f"needs CUDA {wanted.cuda}, the machine's driver {gpu.driver} serves up to {gpu.cuda}"
    return ""


def _less(there: str, wanted: str) -> bool:
    """Whether a version is below another; what is not known is not below anything."""
    if not there:
        return False
    return _numbers(there) < _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
    while numbers and not numbers[-1]:
        numbers = numbers[:-1]
    return numbers


# --- what is seen -------------------------------------------------------------------------------------------------


def attributed(hardware: Hardware, owners: Mapping[int, str]) -> Hardware:
    """The machine, with the instance that each process on its GPUs belongs to.

    Args:
        hardware: as it was read.
        owners: by process id: the name of a running instance.
    """

    def named(process: GpuProcess) -> GpuProcess:
        return replace(process, instance=owners.get(process.pid, ""))

    gpus = tuple(
        replace(gpu, processes=tuple(map(named, gpu.processes)) if gpu.processes is not None else None)
        for gpu in hardware.gpus
    )
    return replace(hardware, gpus=gpus)


def told(seen: GpuStatus) -> Gpu:
    """A GPU out of a node's report, where it is as it was read."""
    processes = None if seen.processes is None else tuple(GpuProcess(**dict(item)) for item in seen.processes)
    return Gpu(**{**dict(seen), "processes": processes})


def judged(instances: Sequence[Instance], hardware: Hardware) -> tuple[Instance, ...]:
    """Instances, of which those that run on a GPU that computes nothing any more are not well.

    A driver that says nothing, or a GPU that is not known, is no reason to stop what serves.
    """
    faults = {gpu.uuid: f"{gpu.uuid} {gpu.fault}" for gpu in hardware.gpus if gpu.fault}

    def look(item: Instance) -> Instance:
        fault = next((faults[uuid] for uuid in item.gpus if uuid in faults), "")
        return replace(item, health="unhealthy", detail=fault) if fault and item.status == "running" else item

    return tuple(map(look, instances))
