"""Reads the machine: processor, memory, disk, and GPUs where NVML is at hand. The only importer of pynvml."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from schemas.observation import Gpu, Hardware

if TYPE_CHECKING:
    from pathlib import Path

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_READ_LIMIT: Final = 2**16
_INSTRUCTIONS: Final = (
    *("amx_bf16", "avx512_bf16", "avx512f", "avx2", "avx"),
    *("sve2", "sve", "bf16", "asimd"),
)
"""As the kernel names them, for amd64 and arm64, the widest first."""


class HostHardware:
    """This machine. What cannot change while it runs is read once."""

    def __init__(self, folder: Path) -> None:
        """Describe the machine.

        Args:
            folder: the state directory, whose file system counts as the disk.
        """
        self._folder = folder
        self._platform = platform_name()
        self._processor = _processor()
        self._instructions = instructions()
        self._gpus: tuple[Gpu, ...] | None = None

    def read(self) -> Hardware:
        """What the machine is, now."""
        if self._gpus is None or self._gpus:
            # What is free on a GPU changes. A driver that fails for a moment has not lost what it drives.
            seen = _gpus()
            known = tuple(replace(gpu, memory_free=0) for gpu in self._gpus or ())
            self._gpus = seen or known or seen
        usage = os.statvfs(self._folder)
        memory = _memory()
        return Hardware(
            platform=self._platform,
            processor=self._processor,
            cpus=len(os.sched_getaffinity(0)),
            memory=memory.get("MemTotal", 0),
            disk=usage.f_blocks * usage.f_frsize,
            # A driver that does not answer now is asked again at the next look.
            gpus=self._gpus or (),
            disk_free=usage.f_bavail * usage.f_frsize,
            memory_free=memory.get("MemAvailable", 0),
            instructions=self._instructions,
        )


def platform_name() -> str:
    """This machine as images name it: `linux/amd64`."""
    machine = platform.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


def _processor() -> str:
    """The processor's model as the kernel names it (proc_cpuinfo(5)); arm64 kernels name none."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - kernel file
        for line in file.read(_READ_LIMIT).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.machine()


def instructions() -> str:
    """The widest of the processor's instructions that engines have kernels of their own for (proc_cpuinfo(5))."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - kernel file
        for line in file.read(_READ_LIMIT).splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                has = set(value.split())
                return next((name for name in _INSTRUCTIONS if name in has), "")
    return ""


def _memory() -> dict[str, int]:
    """Main memory in bytes, by the kernel's names (proc_meminfo(5), which counts in KiB)."""
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - kernel file
        rows = (line.split() for line in file.read(_READ_LIMIT).splitlines())
        return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdigit()}


def _gpus() -> tuple[Gpu, ...] | None:
    """NVIDIA GPUs, by UUID; none where the driver or its bindings are missing, which is a normal machine.

    None when there is a driver and it fails: it may be being replaced, or a GPU fell off the bus.
    """
    if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/proc/driver/nvidia"):  # noqa: PTH110 - devices
        # Importing NVML costs 20 ms, and without a driver there is nothing to ask.
        return ()
    try:
        import pynvml  # noqa: PLC0415 - optional, and only where a driver is
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        found = [_gpu(pynvml, handle, driver) for handle in handles]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return tuple(sorted(found, key=lambda gpu: gpu.uuid))


def _gpu(nvml: Any, handle: Any, driver: str) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory=int(memory.total),
        driver=driver,
        capability=".".join(str(part) for part in nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        memory_free=int(getattr(memory, "free", 0)),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
