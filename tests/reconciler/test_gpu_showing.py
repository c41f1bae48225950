"""GPUs as people and programs are told of them: status, doctor, metrics."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import doctor
from reconciler.cli.render_status import gpu_lines
from reconciler.telemetry.metrics import Metrics
from schemas.observation import Gpu, GpuProcess, Hardware
from schemas.status import GpuStatus, HardwareStatus
from tests.support.builders import hardware, node

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30
CARD = Gpu(
    *("GPU-1", "NVIDIA H100", 80 * GIB, "580.1", "9.0", 10 * GIB, "12.8", 61, 3, 0),
    processes=(GpuProcess(7, 50 * GIB, "reconcile-testnet-a1"), GpuProcess(8, 20 * GIB)),
)


def status(*cards: Gpu, **fields: Any) -> HardwareStatus:
    """The machine's part of a node's report."""
    gpus = tuple(GpuStatus.model_validate(asdict(card)) for card in cards)
    return HardwareStatus(
        platform="linux/amd64", processor="x", cpus=1, memory=1, disk=1, disk_free=1, gpus=gpus, **fields
    )


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (CARD, ("GPU-1 NVIDIA H100", "10 GiB of 80 GiB free", "61 °C", "CUDA 12.8", "1 process of others with 20")),
        (CARD, ("0 uncorrected and 3 corrected memory errors", "driver 580.1")),
        (replace(CARD, fault="has fallen off the bus", temperature=None), ("HAS FALLEN OFF THE BUS", ", 80 GiB,")),
        (replace(CARD, holder="a of node b (mainnet)"), ("in use by a of node b (mainnet)",)),
    ],
)
def test_status_says_what_a_gpu_is_doing(card: Gpu, words: tuple[str, ...]) -> None:
    """One line for each, in units that people read."""
    (line,) = gpu_lines(status(card))
    for word in words:
        assert word in line


def test_status_says_what_is_not_used_or_cannot_be_read() -> None:
    """Other vendors' GPUs by name and address; a driver that says nothing by its words."""
    machine = status(gpu_trouble="NVML: Unknown Error", unsupported=("the AMD GPU 0x74a1 at 0000:03:00.0 is not ...",))
    assert gpu_lines(machine) == ["the AMD GPU 0x74a1 at 0000:03:00.0 is not ...", "NVML: Unknown Error"]


def checks(machine: Hardware, locks: Path) -> list[doctor.Check]:
    """What the doctor finds of GPUs."""
    config = node(gpuLocks=str(locks))
    patient = SimpleNamespace(hardware=lambda: machine, config=config)
    return list(doctor._gpus(patient))  # type: ignore[arg-type] # the two parts that this check looks at


@pytest.mark.parametrize(
    ("machine", "verdict", "words"),
    [
        (hardware(), "ok", "none: engines compute on the processor"),
        (hardware(gpus=(CARD,)), "ok", "10 GiB free, 61 °C"),
        (hardware(gpus=(replace(CARD, fault="needs to be reset"),)), "failure", "it needs to be reset"),
        (hardware(gpus=(replace(CARD, ecc_uncorrected=4),)), "warning", "4 memory errors were not corrected"),
        (hardware(gpus=(replace(CARD, holder="a of node b"),)), "warning", "in use by a of node b"),
        (hardware(gpu_trouble="nvidia-ml-py is not installed"), "failure", "nvidia-ml-py is not installed"),
        (hardware(gpus=(CARD,), gpu_trouble="GPU-1 does not report Xid errors"), "warning", "does not report Xid"),
        (hardware(unsupported=("the AMD GPU 1 at 2 is not supported",)), "warning", "AMD GPU"),
    ],
)
def test_the_doctor_says_what_is_wrong_with_a_gpu(tmp_path: Path, machine: Hardware, verdict: str, words: str) -> None:
    """Each state with its verdict, and what is not well with its remedy (I11)."""
    found = checks(machine, tmp_path / "locks")
    assert [item.verdict for item in found if words in item.message] == [verdict]
    assert all(item.mend for item in found if item.verdict != "ok")


def test_the_doctor_looks_at_the_locks(tmp_path: Path) -> None:
    """A folder that is not one, or that somebody else could pull away, keeps every GPU from being used."""
    machine, folder = hardware(gpus=(CARD,)), tmp_path / "locks"

    def verdict() -> str:
        (check,) = [item for item in checks(machine, folder) if item.subject == "GPU locks"]
        assert (check.verdict == "ok") != bool(check.mend)
        return check.verdict

    assert verdict() == "ok"
    folder.write_text("")
    assert verdict() == "failure"
    folder.unlink()
    folder.symlink_to(tmp_path)
    assert verdict() == "failure"
    folder.unlink()
    folder.mkdir()
    assert verdict() in ("ok", "warning")  # the latter in a container, whose folder is its own
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        assert verdict() == "failure"


def test_metrics_tell_what_is_known_and_no_more() -> None:
    """A series for each reading; none for what a lost GPU, or one without error correction, cannot say."""
    metrics = Metrics()
    dark = replace(CARD, uuid="GPU-2", temperature=None, ecc_corrected=None, ecc_uncorrected=None, processes=None)
    for card in status(CARD, replace(dark, fault="is lost")).gpus:
        metrics._show_gpu(card)
    lines = metrics.text().decode().splitlines()
    assert 'reconcile_gpu_temperature_celsius{uuid="GPU-1"} 61.0' in lines
    free = [line.split() for line in lines if line.startswith('reconcile_gpu_memory_free_bytes{uuid="GPU-1"}')]
    assert [float(value) for _, value in free] == [10 * GIB]
    assert 'reconcile_gpu_ecc_errors{kind="corrected",uuid="GPU-1"} 3.0' in lines
    assert 'reconcile_gpu_fault{uuid="GPU-1"} 0.0' in lines
    assert 'reconcile_gpu_fault{uuid="GPU-2"} 1.0' in lines
    used = [line for line in lines if line.startswith("reconcile_gpu_process_memory_bytes{")]
    assert [line.split("}")[0] for line in used] == [
        'reconcile_gpu_process_memory_bytes{instance="reconcile-testnet-a1",uuid="GPU-1"',
        'reconcile_gpu_process_memory_bytes{instance="others",uuid="GPU-1"',
    ]
    assert [line for line in lines if "GPU-2" in line and "memory_bytes" not in line and "fault" not in line] == []
