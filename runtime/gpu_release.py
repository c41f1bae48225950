"""Whether GPUs are really free before an engine is started on them: as the driver lists it, process by process.

An engine's processes can be gone, and its memory on the GPU not yet: the driver takes seconds to give back tens of
gigabytes, and workers have been seen to outlive the container that they were started in. An engine that is started then
fails for lack of memory, or takes less than it should. So what is waited for is the driver's own word, not a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.errors import BackendUnavailable, GpuFault, GpuNotFree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.interfaces import HardwareProbe
    from schemas.observation import Gpu, GpuProcess
    from schemas.ports import Clock, Stop

RELEASE_SECONDS: Final = 60.0
"""For what was stopped to be gone from the driver's list: it takes up to seconds, and longer only where it hangs."""

LOOK_SECONDS: Final = (0.02, 0.5)
"""Shortest and longest time between two looks; each costs the driver about as long as a request for its list."""


def await_release(
    machine: HardwareProbe, needs: Mapping[str, int], *, leaving: Mapping[int, str], clock: Clock, stop: Stop
) -> float:
    """Return once nothing that was stopped is on these GPUs any more, and there is room.

    A driver that says nothing at the moment is not waited for: an engine may well be started under it.

    Args:
        machine: is read.
        needs: by UUID: bytes that must be free; 0 where nobody knows.
        leaving: by process id: what was stopped, of which it was a process.
        clock: for the bound.
        stop: ends the waiting.

    Returns:
        Seconds that it took.

    Raises:
        GpuNotFree: the bound passed; it names what is still there.
        GpuFault: one of them computes nothing any more.
        BackendUnavailable: stopping was requested.
    """
    if not needs:
        return 0.0
    begun = clock.monotonic()
    while True:
        seen = machine.read()
        gpus = [gpu for gpu in seen.gpus if gpu.uuid in needs] if not seen.gpu_trouble else []
        for gpu in gpus:
            if gpu.fault:
                raise GpuFault(f"{gpu.uuid} {gpu.fault}")
        why = "; ".join(text for gpu in gpus if (text := _why_not_free(gpu, needs[gpu.uuid], leaving)))
        spent = clock.monotonic() - begun
        if not why:
            return spent
        if spent > RELEASE_SECONDS:
            raise GpuNotFree(f"after {RELEASE_SECONDS:g} s {why}")
        shortest, longest = LOOK_SECONDS
        if stop.wait(min(max(spent / 10, shortest), longest)):
            raise BackendUnavailable("stopped while a GPU was not free yet")


def _why_not_free(gpu: Gpu, needed: int, leaving: Mapping[int, str]) -> str:
    listed = gpu.processes or ()
    left = [process for process in listed if process.pid in leaving or process.ended]
    if left:
        names = ", ".join(_named(process, leaving) for process in left)
        return f"{gpu.uuid} still has {names}"
    if needed > gpu.memory_free:
        others = ", ".join(_named(process, leaving) for process in listed) or "no process that is listed"
        return f"{gpu.uuid} has {gpu.memory_free} bytes free, {needed} are needed; on it: {others}"
    return ""


def _named(process: GpuProcess, leaving: Mapping[int, str]) -> str:
    owner = leaving.get(process.pid) or process.instance
    held = f", {process.memory} bytes" if process.memory is not None else ""
    return f"process {process.pid}" + (f" of {owner}" if owner else "") + held
