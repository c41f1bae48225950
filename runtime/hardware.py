"""Reads the machine: processor, memory, disk and GPUs."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.backends.native_processes import lives
from runtime.nvml import Nvml
from schemas.observation import Hardware

if TYPE_CHECKING:
    from runtime.gpu_locks import GpuLocks
    from runtime.gpu_reports import GpuReports
    from schemas.observation import Gpu

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_READ_LIMIT: Final = 2**16
PCI: Final = "/sys/bus/pci/devices"
_PCI_PARTS: Final = ("vendor", "class", "device")
_AMD: Final = "0x1002"
_INITIAL_PIDS: Final = 0xEFFFFFFC
"""Inode of the machine's own pid namespace (PROC_PID_INIT_INO in linux/proc_ns.h)."""
_COMPUTES: Final = ("0x03", "0x12")
_INSTRUCTIONS: Final = (
    *("amx_bf16", "avx512_bf16", "avx512f", "avx2", "avx"),
    *("sve2", "sve", "bf16", "asimd"),
)
"""As the kernel names them, for amd64 and arm64, the widest first."""


class HostHardware:
    """This machine. What cannot change while it runs is read once; GPUs are read at each look."""

    def __init__(
        self,
        folder: Path,
        *,
        nvml: Nvml | None = None,
        reports: GpuReports | None = None,
        locks: GpuLocks | None = None,
    ) -> None:
        """Describe the machine.

        Args:
            folder: the state directory, whose file system counts as the disk.
            nvml: the driver's library, where this process has opened it already.
            reports: what GPUs report by themselves; None where nobody listens.
            locks: which GPUs other nodes of this machine have taken; None where nobody can have.
        """
        self._folder = folder
        self._nvml = nvml or Nvml()
        self._reports = reports
        self._locks = locks
        self._platform = platform_name()
        self._processor = _processor()
        self._instructions = instructions()
        self._unsupported: tuple[str, ...] | None = None

    def read(self) -> Hardware:
        """What the machine is, now."""
        if self._unsupported is None:
            self._unsupported = other_gpus()
        seen = self._nvml.read()
        troubles = (seen.trouble, self._reports.trouble if self._reports is not None else "")
        usage = os.statvfs(self._folder)
        memory = _memory()
        return Hardware(
            platform=self._platform,
            processor=self._processor,
            cpus=len(os.sched_getaffinity(0)),
            memory=memory.get("MemTotal", 0),
            disk=usage.f_blocks * usage.f_frsize,
            gpus=tuple(map(self._around, seen.gpus)),
            disk_free=usage.f_bavail * usage.f_frsize,
            memory_free=memory.get("MemAvailable", 0),
            gpu_reports=self._reports.so_far() if self._reports is not None else (),
            gpu_trouble="; ".join(trouble for trouble in troubles if trouble),
            unsupported=self._unsupported,
            instructions=self._instructions,
        )

    def _around(self, gpu: Gpu) -> Gpu:
        """A GPU, with what the machine beside the driver knows of it."""
        holder = self._locks.holder(gpu.uuid) if self._locks is not None else ""
        if not gpu.processes:
            return replace(gpu, holder=holder)
        # Driver and agent mean the same processes by the same ids in the machine's own pid namespace only.
        same = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PIDS  # noqa: PTH116 - a kernel file
        processes = tuple(replace(item, ended=same and not lives(item.pid)) for item in gpu.processes)
        return replace(gpu, holder=holder, processes=processes)


def other_gpus() -> tuple[str, ...]:
    """Graphics and compute devices of AMD's, by their addresses, as the kernel lists them: seen, and not supported.

    Vendor and class are those of the PCI ID Repository: 0x1002; 0x03 a display controller, 0x12 a processing
    accelerator.
    """
    found = []
    for device in sorted(Path(PCI).glob("*")):
        try:
            vendor, kind, name = ((device / part).read_text(encoding="ascii").strip() for part in _PCI_PARTS)
        except (OSError, UnicodeDecodeError):
            continue
        if vendor == _AMD and kind[:4] in _COMPUTES:
            found.append(f"the AMD GPU {name} at {device.name} is not supported")
    return tuple(found)


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
