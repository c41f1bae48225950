"""NVML through its real bindings, over a library that stands in for the driver's."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from runtime import gpu_reports, hardware, nvml
from runtime.gpu_reports import GpuListener, GpuReports
from runtime.hardware import HostHardware
from runtime.nvml import Nvml
from schemas.observation import Gpu, GpuProcess
from tests.support.front import eventually
from tests.support.nvml import GIB, Fake, install, loaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nvml import StandIn

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc not present")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A machine with one GPU."""
    return install(monkeypatch, tmp_path / "nvml")


@pytest.fixture
def library(driver: StandIn) -> Iterator[Nvml]:
    """NVML of an agent on it."""
    opened = Nvml()
    yield opened
    driver.hangs = False
    driver.write()
    opened.close()


def test_a_gpu_is_what_the_driver_says(driver: StandIn, library: Nvml) -> None:
    """Every reading, in its unit, by UUID whatever the order in which they are plugged."""
    driver.gpus = [Fake("GPU-9", free=3 * GIB, corrected=7, uncorrected=1), Fake("GPU-2", celsius=71, corrected=-1)]
    driver.processes = [("GPU-9", 4242, 70 * GIB), ("GPU-9", 17, GIB)]
    driver.write()
    seen = library.read()
    assert seen.trouble == ""
    assert [gpu.uuid for gpu in seen.gpus] == ["GPU-2", "GPU-9"]
    cold, busy = seen.gpus
    assert (busy.name, busy.memory, busy.memory_free) == ("NVIDIA H100 80GB HBM3", 80 * GIB, 3 * GIB)
    assert (busy.driver, busy.cuda, busy.capability) == ("580.10", "12.8", "9.0")
    assert (busy.ecc_corrected, busy.ecc_uncorrected) == (7, 1)
    assert busy.processes == (GpuProcess(17, GIB), GpuProcess(4242, 70 * GIB))
    assert (cold.temperature, cold.ecc_corrected, cold.processes) == (71, None, ())


def test_it_is_opened_once_and_what_changes_is_seen_at_the_next_look(driver: StandIn, library: Nvml) -> None:
    """Memory, temperature, error counts and the driver itself; each look costs a bounded number of calls."""
    before = library.read().gpus[0]
    calls = loaded().standin_calls()
    driver.driver, driver.cuda = "590.1", 13000
    driver.change("GPU-1", free=GIB, celsius=90, uncorrected=2)
    after = library.read().gpus[0]
    assert (after.memory_free, after.temperature, after.ecc_uncorrected) == (GIB, 90, 2)
    assert (before.driver, after.driver, after.cuda) == ("580.10", "590.1", "13.0")
    # Driver, CUDA, count; memory, temperature, two counters, processes: no more, and nothing opened again.
    assert loaded().standin_calls() - calls == 8


def test_a_machine_without_a_driver_is_asked_nothing(
    driver: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call, no thread, no import: a normal machine."""
    monkeypatch.setattr(nvml, "SIGNS", (str(tmp_path / "nothing"),))
    calls, threads = loaded().standin_calls(), threading.active_count()
    machine = HostHardware(tmp_path, reports=GpuReports()).read()
    assert (machine.gpus, machine.gpu_trouble, machine.gpu_reports) == ((), "", ())
    assert Nvml().watch() is None
    assert (loaded().standin_calls(), threading.active_count()) == (calls, threads)


@pytest.mark.parametrize("code", [15, 16, 28])
def test_a_gpu_that_is_lost_is_named_and_hides_no_other(driver: StandIn, library: Nvml, code: int) -> None:
    """Fallen off the bus, or to be reset: it keeps its identity, nothing on it is free, and the others are read."""
    driver.gpus = [Fake("GPU-1"), Fake("GPU-2")]
    driver.write()
    before = library.read().gpus
    driver.change("GPU-1", code=code)
    for _ in range(2):
        lost, well = library.read().gpus
        assert lost.fault == ("needs to be reset" if code == 16 else "has fallen off the bus")
        assert (lost.memory_free, lost.temperature, lost.processes) == (0, None, None)
        assert (well.fault, well.memory_free) == ("", 79 * GIB)
        assert (lost, well) == before, "it is the same machine"
    driver.change("GPU-1", code=0)
    assert [gpu.fault for gpu in library.read().gpus] == ["", ""]


def test_a_gpu_that_is_no_longer_counted_is_lost(driver: StandIn, library: Nvml) -> None:
    """Some drivers do not even count what fell off the bus."""
    driver.gpus = [Fake("GPU-1"), Fake("GPU-2")]
    driver.write()
    library.read()
    driver.gpus = [Fake("GPU-2")]
    driver.write()
    assert [gpu.fault for gpu in library.read().gpus] == ["has fallen off the bus", ""]
    driver.gpus = [Fake("GPU-1"), Fake("GPU-2")]
    driver.write()
    assert [gpu.fault for gpu in library.read().gpus] == ["", ""]


@pytest.mark.parametrize("fault", [{"init": 9}, {"init": 18}, {"fails": 999}])
def test_a_driver_that_fails_says_nothing_about_its_gpus(driver: StandIn, library: Nvml, fault: dict[str, int]) -> None:
    """One that is being replaced has lost no GPU, proves no room on it, and is asked again at the next look."""
    before = library.read().gpus
    library.close()
    for name, code in fault.items():  # from the first call on
        setattr(driver, name, code)
    driver.write()
    for _ in range(2):
        seen = library.read()
        assert seen.trouble
        assert seen.gpus == before
        assert [(gpu.memory_free, gpu.fault) for gpu in seen.gpus] == [(0, "")]
    driver.init = driver.fails = 0
    driver.write()
    # One look may be needed to find that what it had open is gone.
    library.read()
    seen = library.read()
    assert (seen.trouble, seen.gpus[0].memory_free) == ("", 79 * GIB)


def test_a_driver_that_hangs_holds_nobody_up(driver: StandIn, library: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for once; later looks only see whether it has come back."""
    before = library.read().gpus
    monkeypatch.setattr(nvml, "ANSWER_SECONDS", 0.05)
    driver.hangs = True
    driver.write()
    for _ in range(3):
        seen = library.read()
        assert "has not answered" in seen.trouble
        assert seen.gpus == before
        assert seen.gpus[0].memory_free == 0
    monkeypatch.setattr(nvml, "ANSWER_SECONDS", 60)
    driver.hangs = False
    driver.write()
    eventually(lambda: library.read().trouble == "", "the driver answers again")


def test_missing_bindings_are_said_where_there_is_a_driver(
    driver: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bindings are optional: without them GPUs are not used, and it is said why."""
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = HostHardware(tmp_path).read()
    assert machine.gpus == ()
    assert machine.gpu_trouble == "nvidia-ml-py is not installed"


def test_what_a_gpu_reports_wakes_and_is_seen(driver: StandIn, library: Nvml, tmp_path: Path) -> None:
    """Xid errors by their numbers and names, in the order in which they came, once each."""
    reports, woken = GpuReports(), threading.Semaphore(0)
    listener = GpuListener(library, reports)
    listening = threading.Thread(target=listener.follow, args=(woken.release,))
    listening.start()
    try:
        for uuid, xid in (("GPU-1", 79), ("GPU-1", 31), ("GPU-1", 0), ("GPU-1", 12345)):
            driver.reports.append((uuid, xid))
            driver.write()
            assert woken.acquire(timeout=60)
        seen = HostHardware(tmp_path, nvml=library, reports=reports).read()
        assert [(item.uuid, item.what) for item in seen.gpu_reports] == [
            ("GPU-1", "Xid 79: the GPU has fallen off the bus"),
            ("GPU-1", "Xid 31: a program's memory page fault"),
            ("GPU-1", "an uncorrectable memory error"),
            ("GPU-1", "Xid 12345"),
        ]
        assert len({item.id for item in seen.gpu_reports}) == 4
        assert seen.gpu_trouble == ""
    finally:
        listener.close()
        listening.join(60)
    assert not listening.is_alive()


@pytest.mark.parametrize("code", [3, 4])
def test_where_reports_cannot_be_read_it_is_said(
    driver: StandIn, library: Nvml, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Virtual GPUs and unprivileged containers report nothing: known, and no reason not to compute."""
    monkeypatch.setattr(gpu_reports, "AGAIN_SECONDS", 3600)
    driver.events = code
    driver.write()
    reports = GpuReports()
    listener = GpuListener(library, reports)
    listening = threading.Thread(target=listener.follow, args=(lambda: None,))
    listening.start()
    try:
        eventually(lambda: bool(reports.trouble), "it is said")
    finally:
        listener.close()
        listening.join(60)
    assert reports.trouble == (
        "GPU-1 does not report Xid errors" if code == 3 else "reports of GPUs cannot be read: Insufficient Permissions"
    )


@pytest.mark.parametrize(
    ("vendor", "kind", "seen"),
    [
        ("0x1002", "0x030000", True),
        ("0x1002", "0x120000", True),
        ("0x1002", "0x040300", False),
        ("0x10de", "0x030200", False),
        ("0x1022", "0x060000", False),
    ],
)
def test_gpus_of_amd_are_seen_and_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, kind: str, *, seen: bool
) -> None:
    """By vendor and class of the PCI device: their sound devices, and others' GPUs, are none."""
    device = tmp_path / "0000:03:00.0"
    device.mkdir()
    for name, text in (("vendor", vendor), ("class", kind), ("device", "0x74a1")):
        (device / name).write_text(text + "\n")
    monkeypatch.setattr(hardware, "PCI", str(tmp_path))
    expected = ("the AMD GPU 0x74a1 at 0000:03:00.0 is not supported",) if seen else ()
    assert HostHardware(tmp_path).read().unsupported == expected


def test_a_gpu_is_the_same_whatever_its_readings() -> None:
    """What changes by itself makes no plan stale."""
    assert Gpu("GPU-1", "H100", 1, "580") == Gpu("GPU-1", "H100", 1, "580", fault="gone", holder="x", temperature=3)
