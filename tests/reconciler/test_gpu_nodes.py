"""Whole nodes with real engines on one machine with GPUs that a library stands in for: who gets them, and when."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from reconciler.kinds import instances
from runtime import gpu_release
from runtime.backends import native_processes
from runtime.backends.native import NativeBackend
from runtime.gpu_locks import GpuLocks
from runtime.gpu_reports import GpuListener, GpuReports
from runtime.hardware import HostHardware
from runtime.nvml import Nvml
from tests.support.front import eventually
from tests.support.nvml import GIB, Fake, install
from tests.support.swapping import SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.loop import PassResult
    from schemas.observation import Instance
    from tests.support.nvml import StandIn

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc not present"),
    pytest.mark.timeout(600),
]


class GpuNode(SwappingNode):
    """A node on a machine with GPUs, beside others."""

    def __init__(self, folder: Path, models: tuple[Path, Path], locks: Path) -> None:
        self.locks = locks
        self.nvml, self.reports = Nvml(), GpuReports()
        super().__init__(folder, models)

    def restart(self) -> None:
        """A new agent, with what reads the machine."""
        super().restart()
        locks = GpuLocks(self.locks, network="testnet", node_id=self.mark)
        run, ports = self.node.state.run, self.node.adapters.ports
        machine = HostHardware(self.folder, nvml=self.nvml, reports=self.reports, locks=locks)
        backend = NativeBackend(run, network="testnet", node_id=self.mark, ports=ports, locks=locks)
        adapters = replace(self.node.adapters, backends={"native": backend}, machine=machine)
        self.node = replace(self.node, adapters=adapters, hardware=machine)
        self.wire()

    def serve(self, key: str = "a:v1", gpus: int = 1) -> PassResult:
        """One pass with a snapshot that wants a model on GPUs."""
        return self.run(self.wish(key, resources={"memory": "256MiB", "gpus": gpus}))

    def later(self) -> PassResult:
        """One more pass, after whatever was waited for."""
        self.real_clock.ahead += timedelta(hours=1)
        return self.run()

    @property
    def running(self) -> list[Instance]:
        """What runs."""
        return [item for item in self.node.adapters.backends["native"].list() if item.status == "running"]

    def engine_pid(self) -> int:
        """The process that computes."""
        (item,) = self.running
        return int(json.loads((self.node.state.run / "instances" / item.name / "state.json").read_text())["engine"])

    def said(self) -> list[str]:
        """Warnings, by reason."""
        return [event.reason for event in self.journal.events() if event.type == "Warning"]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A machine with one GPU."""
    return install(monkeypatch, tmp_path / "nvml")


@pytest.fixture
def join(driver: StandIn, tmp_path: Path, tiny_model: Callable[[int], Path]) -> Iterator[Callable[[str], GpuNode]]:
    """Makes nodes on the machine."""
    nodes: list[GpuNode] = []

    def make(name: str) -> GpuNode:
        made = GpuNode(tmp_path / name, (tiny_model(1), tiny_model(2)), tmp_path / "locks")
        nodes.append(made)
        return made

    yield make
    for one in nodes:
        one.take_apart()
        one.nvml.close()


def held(result: PassResult) -> list[str]:
    """Why changes that are due are not made."""
    return [item.reason for item in result.plan.held]


def kinds(result: PassResult) -> list[str]:
    """What was done."""
    return [item.action.kind for item in result.outcomes]


def test_two_nodes_never_share_a_gpu(join: Callable[[str], GpuNode]) -> None:
    """The second is refused in its plan, by name, with nothing tried; an agent's death frees nothing, an engine's does.

    I3: at every moment the engines of one node at most run on a GPU.
    """
    ours, theirs = join("ours"), join("theirs")
    served = ours.serve()
    assert (served.exit_code, [item.gpus for item in ours.running]) == (0, [("GPU-1",)])
    refused = theirs.serve()
    assert held(refused) == ["GpuInUse"]
    assert f"GPU-1 is in use by {ours.running[0].name} of node {ours.mark}" in refused.plan.held[0].message
    ready = refused.status.condition("Ready")
    assert ready is not None
    assert ready.reason == "GpuInUse"
    assert refused.status.hardware.gpus[0].holder.endswith(f"node {ours.mark} (testnet)")
    assert not theirs.running
    assert "start-instance" not in kinds(refused)
    ours.restart()
    assert held(theirs.later()) == ["GpuInUse"], "an agent's death frees nothing"
    ours.node.adapters.backends["native"].stop(ours.running[0].name, grace=30)
    assert theirs.later().exit_code == 0
    assert [item.gpus for item in theirs.running] == [("GPU-1",)]
    assert held(ours.later()) == ["GpuInUse"]
    assert not ours.running


def test_a_second_gpu_serves_a_second_node(join: Callable[[str], GpuNode], driver: StandIn) -> None:
    """Each gets one that nobody has, and the plan says which."""
    driver.gpus = [Fake("GPU-1"), Fake("GPU-2")]
    driver.write()
    ours, theirs = join("ours"), join("theirs")
    assert ours.serve().exit_code == 0
    result = theirs.serve()
    starts = [item.action for item in result.outcomes if item.action.kind == "start-instance"]
    assert [action.gpus for action in starts] == [("GPU-2",)]
    assert (ours.running[0].gpus, theirs.running[0].gpus) == (("GPU-1",), ("GPU-2",))


def test_a_claim_that_another_won_is_refused_at_the_start(
    join: Callable[[str], GpuNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes that saw the same free GPU: the lock itself decides, and the loser tries again later."""
    ours, theirs = join("ours"), join("theirs")
    with monkeypatch.context() as blind:
        blind.setattr(GpuLocks, "holder", lambda _self, _uuid: "")
        assert ours.serve().exit_code == 0
        result = theirs.serve()
    assert "GpuInUse" in {item.error.reason for item in result.outcomes if item.error}
    assert not theirs.running
    assert len(ours.running) == 1


def test_what_is_stopped_is_waited_for_until_the_driver_no_longer_lists_it(
    join: Callable[[str], GpuNode], driver: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next engine is started after the last process of the one before has gone from the driver's list."""
    ours = join("ours")
    assert ours.serve("a:v1").exit_code == 0
    old, pid = ours.running[0].name, ours.engine_pid()
    driver.processes = [("GPU-1", pid, 60 * GIB)]
    driver.write()
    asked = threading.Event()
    begun: list[tuple[bool, list[str]]] = []
    real_wait, real_start = gpu_release._why_not_free, instances.start_instance

    def why_not_free(*arguments: object) -> str:
        found = real_wait(*arguments)  # type: ignore[arg-type]
        if found:
            asked.set()
        return found

    def start_instance(*arguments: object, **named: object) -> None:
        begun.append((bool(driver.processes), [item.name for item in ours.running]))
        real_start(*arguments, **named)  # type: ignore[arg-type]

    def give_back() -> None:
        asked.wait(300)
        if not native_processes.lives(pid):
            driver.processes = []
            driver.write()

    monkeypatch.setattr(gpu_release, "_why_not_free", why_not_free)
    monkeypatch.setattr(instances, "start_instance", start_instance)
    giving = threading.Thread(target=give_back)
    giving.start()
    assert ours.serve("b:v1").exit_code == 0
    asked.set()  # or nobody looked, which shows next
    giving.join(60)
    assert begun == [(False, [])]
    assert [item.name for item in ours.running] != [old]


def test_a_gpu_that_is_not_given_back_is_named_and_tried_again(
    join: Callable[[str], GpuNode], driver: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait has a bound; then an event says who is still there, and the next attempt finds it free."""
    ours = join("ours")
    assert ours.serve("a:v1").exit_code == 0
    old, pid = ours.running[0].name, ours.engine_pid()
    driver.processes = [("GPU-1", pid, 60 * GIB)]
    driver.write()
    monkeypatch.setattr(gpu_release, "RELEASE_SECONDS", 0.2)
    failed = ours.serve("b:v1")
    errors = [item.error for item in failed.outcomes if item.error is not None]
    assert {error.reason for error in errors} == {"GpuNotFree"}
    assert f"GPU-1 still has process {pid} of {old}, {60 * GIB} bytes" in errors[0].message
    assert "GpuNotFree" in ours.said()
    assert not ours.running
    driver.processes = []
    driver.write()
    assert ours.later().exit_code == 0
    assert len(ours.running) == 1


def test_a_strangers_memory_is_seen_before_anything_is_stopped(join: Callable[[str], GpuNode], driver: StandIn) -> None:
    """What serves goes on, and the plan names the process that is in the way (I4)."""
    ours = join("ours")
    assert ours.serve("a:v1").exit_code == 0
    before = ours.running
    driver.processes = [("GPU-1", ours.engine_pid(), 10 * GIB), ("GPU-1", 1, 60 * GIB)]
    driver.write()
    wish = ours.wish("b:v1", resources={"memory": "256MiB", "gpus": 1})
    models = tuple(
        item.model_copy(update={"requires": item.requires.model_copy(update={"gpu_memory": 40 * GIB})})
        for item in wish.spec.models
    )
    result = ours.run(wish.model_copy(update={"spec": wish.spec.model_copy(update={"models": models})}))
    assert held(result) == ["GpuNotFree"]
    assert "process 1 has" in result.plan.held[0].message
    assert [item.name for item in ours.running] == [before[0].name]
    seen = result.status.hardware.gpus[0].processes
    assert seen is not None
    assert [process.instance for process in seen] == ["", before[0].name]


def test_a_gpu_that_falls_off_the_bus_takes_its_engine_with_it_and_comes_back(
    join: Callable[[str], GpuNode], driver: StandIn
) -> None:
    """An engine without its GPU serves nobody, however alive: stopped, named, and started when the GPU is back."""
    ours = join("ours")
    assert ours.serve().exit_code == 0
    driver.change("GPU-1", code=15)
    lost = ours.later()
    assert held(lost) == ["GpuFault"]
    assert "GPU-1 has fallen off the bus" in lost.plan.held[0].message
    ready = lost.status.condition("Ready")
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", "GpuFault")
    assert lost.status.hardware.gpus[0].fault == "has fallen off the bus"
    assert "GpuFault" in ours.said()
    assert not ours.running
    driver.change("GPU-1", code=0)
    assert ours.later().exit_code == 0
    assert len(ours.running) == 1
    assert "GpuRecovered" in [event.reason for event in ours.journal.events()]


def test_an_xid_error_wakes_the_node_and_what_serves_is_tested_again(
    join: Callable[[str], GpuNode], driver: StandIn
) -> None:
    """Said once, by its number; the model passes its probe again, on the same instance."""
    ours = join("ours")
    assert ours.serve().exit_code == 0
    before, receipts = ours.running, ours.journal.chain.last_number()
    woken = threading.Event()
    listener = GpuListener(ours.nvml, ours.reports)
    listening = threading.Thread(target=listener.follow, args=(woken.set,))
    listening.start()
    try:
        driver.reports.append(("GPU-1", 94))
        driver.write()
        assert woken.wait(120)
        result = ours.run()
        assert kinds(result) == ["validate-model"]
        assert "GPU-1 reported Xid 94: a contained memory error" in result.outcomes[0].action.cause
        assert result.exit_code == 0
        assert ours.journal.chain.last_number() == receipts + 1
        assert [item.name for item in ours.running] == [before[0].name]
        assert ours.said() == ["GpuFault"]
        # The same again is no news for a while, and a storm of it no storm of tests.
        driver.reports += [("GPU-1", 94)] * 3
        driver.write()
        eventually(lambda: len(ours.reports.so_far()) == 4, "all came")
        assert kinds(ours.run()) == []
        assert ours.said() == ["GpuFault"]
    finally:
        listener.close()
        listening.join(60)


def test_uncorrected_memory_errors_and_another_driver_ask_for_a_test(
    join: Callable[[str], GpuNode], driver: StandIn
) -> None:
    """A count that rises is an event of its own; another driver voids what was proven under the one before."""
    ours = join("ours")
    assert ours.serve().exit_code == 0
    assert kinds(ours.run()) == []
    driver.change("GPU-1", uncorrected=2, corrected=5)
    result = ours.run()
    assert kinds(result) == ["validate-model"]
    assert "could not be corrected" in result.outcomes[0].action.cause
    assert kinds(ours.run()) == []
    driver.driver = "590.1"
    driver.write()
    result = ours.run()
    assert "validate-model" in kinds(result)
    assert {"GpuDriverChanged", "ReceiptVoided"} <= {event.reason for event in ours.journal.events()}
    assert result.exit_code == 0


def test_a_driver_that_says_nothing_stops_nothing(join: Callable[[str], GpuNode], driver: StandIn) -> None:
    """What serves goes on while its GPU cannot be asked, and the status says so (I6)."""
    ours = join("ours")
    assert ours.serve().exit_code == 0
    before = ours.running
    driver.fails = 999
    driver.write()
    result = ours.later()
    assert [item.name for item in ours.running] == [before[0].name]
    assert "NVML" in result.status.hardware.gpu_trouble
    assert "stop-instance" not in kinds(result)
