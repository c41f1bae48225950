"""The machine as it is read: no GPU is a normal machine, and a GPU is what NVML says."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import hardware
from runtime.hardware import HostHardware
from schemas.observation import Gpu

if TYPE_CHECKING:
    from pathlib import Path


class NVMLError(Exception):
    """As NVML's."""


class FakeNvml(SimpleNamespace):
    """NVML with two GPUs, in the words of nvidia-ml-py: this machine may have none."""

    def __init__(self, **changes: Any) -> None:
        calls: dict[str, Any] = {
            "NVMLError": NVMLError,
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: self.__dict__.update(closed=True),
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            # Older drivers' bindings answer bytes.
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{9 - handle}".encode(),
            "nvmlDeviceGetName": lambda _: "NVIDIA H100",
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * 2**30),
            "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
        }
        super().__init__(closed=False, **{**calls, **changes})


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a fake NVML on a machine with a driver."""

    def install(nvml: object) -> None:
        monkeypatch.setattr(os.path, "exists", lambda _: True)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)

    return install


def test_the_machine_is_what_the_kernel_says(tmp_path: Path) -> None:
    """Processors, memory and the disk of the given folder, in bytes; free is part of the whole."""
    seen = HostHardware(tmp_path).read()
    disk = os.statvfs(tmp_path)
    assert seen.platform in ("linux/amd64", "linux/arm64")
    assert seen.cpus == len(os.sched_getaffinity(0))
    assert seen.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert seen.disk == disk.f_blocks * disk.f_frsize
    assert 0 < seen.disk_free <= seen.disk
    assert 0 < seen.memory_free <= seen.memory
    assert seen.processor
    assert "\n" not in seen.processor


def test_readings_that_change_by_themselves_do_not_make_another_machine(tmp_path: Path) -> None:
    """Two looks are equal although free bytes differ: a plan does not become stale by them."""
    machine = HostHardware(tmp_path)
    before = machine.read()
    (tmp_path / "file").write_bytes(os.urandom(2**20))
    os.sync()
    assert machine.read() == before


def test_without_a_driver_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU has none; NVML is not even imported."""
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert HostHardware(tmp_path).read().gpus == ()


def test_gpus_come_by_uuid(tmp_path: Path, driver: Any) -> None:
    """Name, memory and driver of each, in an order that does not depend on how they are plugged; NVML is closed."""
    nvml = FakeNvml()
    driver(nvml)
    assert HostHardware(tmp_path).read().gpus == (
        Gpu("GPU-8", "NVIDIA H100", 80 * 2**30, "580.1"),
        Gpu("GPU-9", "NVIDIA H100", 80 * 2**30, "580.1"),
    )
    assert [gpu.capability for gpu in HostHardware(tmp_path).read().gpus] == ["9.0", "9.0"]
    assert nvml.closed


def test_free_gpu_memory_is_read_at_each_look_and_nothing_is_free_that_cannot_be_seen(
    tmp_path: Path, driver: Any
) -> None:
    """What is free changes; a driver that fails for a moment has lost no GPU, and proves no room on it."""

    def having(free: int) -> Any:
        return FakeNvml(nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * 2**30, free=free))

    def fail() -> None:
        raise NVMLError("busy")

    machine = HostHardware(tmp_path)
    driver(having(50))
    before = machine.read()
    driver(having(20))
    assert [gpu.memory_free for gpu in machine.read().gpus] == [20, 20]
    driver(FakeNvml(nvmlInit=fail))
    after = machine.read()
    assert [gpu.memory_free for gpu in after.gpus] == [0, 0]
    assert after == before, "it is the same machine"


def test_a_driver_that_does_not_answer_is_a_machine_without_gpus(tmp_path: Path, driver: Any) -> None:
    """A driver that is being replaced (NVML cannot start) does not stop the node from looking."""

    def fail() -> None:
        raise NVMLError("driver/library version mismatch")

    driver(FakeNvml(nvmlInit=fail))
    assert HostHardware(tmp_path).read().gpus == ()


def test_missing_bindings_are_a_machine_without_gpus(tmp_path: Path, driver: Any) -> None:
    """NVML's bindings are optional."""
    driver(None)
    assert HostHardware(tmp_path).read().gpus == ()


@pytest.mark.parametrize("call", ["nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo", "nvmlSystemGetDriverVersion"])
def test_a_gpu_that_is_lost_while_looking_does_not_stop_the_node(tmp_path: Path, driver: Any, call: str) -> None:
    """NVML failing in the middle (a GPU fell off the bus) is never an error of a pass, and it is asked again."""

    def fail(*_: object) -> None:
        raise NVMLError("GPU is lost")

    nvml = FakeNvml(**{call: fail})
    driver(nvml)
    machine = HostHardware(tmp_path)
    assert machine.read().gpus == ()
    assert nvml.closed
    driver(FakeNvml())
    assert len(machine.read().gpus) == 2


def test_the_processor_has_a_name_on_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that name no model (arm64) give the architecture, never an empty name."""
    real = open

    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        return real(os.devnull if path == "/proc/cpuinfo" else path, *args, **kwargs)

    monkeypatch.setattr(hardware, "open", opened, raising=False)
    assert hardware._processor()
