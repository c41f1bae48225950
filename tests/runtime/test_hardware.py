"""The machine as it is read (its GPUs: `test_nvml.py`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runtime import hardware
from runtime.hardware import HostHardware

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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


def test_the_processor_has_a_name_on_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that name no model (arm64) give the architecture, never an empty name."""
    real = open

    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        return real(os.devnull if path == "/proc/cpuinfo" else path, *args, **kwargs)

    monkeypatch.setattr(hardware, "open", opened, raising=False)
    assert hardware._processor()
