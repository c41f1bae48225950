"""Which GPUs an instance gets, why it may get none, and what follows from what is seen of them; as values."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.gpu_watch import AGAIN, watched
from reconciler.gpus import allot, judged, told
from reconciler.memory import AskRetest, Note
from reconciler.planner import plan
from runtime.backends.gpu_keeper import processes_of
from schemas.observation import Gpu, GpuProcess, GpuReport
from schemas.runtimes import Resources, VllmArgs
from schemas.status import GpuStatus
from tests.support.builders import (
    NOW,
    desired,
    gpu,
    hardware,
    instance,
    model,
    node,
    observed,
    receipt,
    runtime,
    snapshot,
    target,
)

if TYPE_CHECKING:
    from schemas.target import ServingTarget

GIB = 2**30


def wanting(gpus: int = 1, **fields: Any) -> ServingTarget:
    """A target on GPUs."""
    return target(resources=Resources(gpus=gpus), **fields)


@pytest.mark.parametrize(
    ("cards", "wish", "uuids", "reason", "words"),
    [
        ((), wanting(0), (), "", ""),
        ((gpu("GPU-2"), gpu("GPU-1")), wanting(), ("GPU-2",), "", ""),
        ((replace(gpu("GPU-1"), holder="x of node y"), gpu("GPU-2")), wanting(), ("GPU-2",), "", ""),
        ((replace(gpu("GPU-1"), fault="needs to be reset"), gpu("GPU-2")), wanting(), ("GPU-2",), "", ""),
        ((replace(gpu(), holder="x of node y"),), wanting(), (), "GpuInUse", "GPU-1 is in use by x of node y"),
        ((replace(gpu(), fault="has fallen off the bus"),), wanting(), (), "GpuFault", "GPU-1 has fallen off the bus"),
        (
            (replace(gpu("GPU-1"), fault="is gone"), replace(gpu("GPU-2"), holder="x")),
            wanting(2),
            (),
            "GpuInUse",
            "GPU-2 is in use by x; GPU-1 is gone",
        ),
        ((), wanting(), (), "Incompatible", "needs 1 GPUs, the machine has 0"),
        ((gpu(),), wanting(gpu_memory=73 * GIB), (), "Incompatible", "headroom included"),
        ((gpu(),), wanting(gpu_memory=72 * GIB), ("GPU-1",), "", ""),
        ((gpu("GPU-1"), gpu("GPU-2")), wanting(2, gpu_memory=140 * GIB), ("GPU-1", "GPU-2"), "", ""),
        ((gpu("GPU-1", 24 * GIB), gpu("GPU-2")), wanting(gpu_memory=40 * GIB), ("GPU-2",), "", ""),
        (
            (replace(gpu(), capability="7.5"),),
            wanting(compute_capability="8.0"),
            (),
            "Incompatible",
            "has compute capability 7.5, 8.0 is needed",
        ),
        ((replace(gpu(), capability="12.0"),), wanting(compute_capability="8.9"), ("GPU-1",), "", ""),
        (
            (replace(gpu(), processes=(GpuProcess(7, 20 * GIB),)),),
            wanting(gpu_memory=60 * GIB),
            (),
            "GpuNotFree",
            "process 7 has",
        ),
        (
            (replace(gpu(), processes=(GpuProcess(7, 20 * GIB, "ours"),)),),
            wanting(gpu_memory=60 * GIB),
            ("GPU-1",),
            "",
            "",
        ),
        (
            (replace(gpu(), processes=(GpuProcess(7, 10 * GIB),)),),
            wanting(engine="vllm", engine_args=VllmArgs()),
            (),
            "GpuNotFree",
            "process 7 has",
        ),
        (
            (replace(gpu(), processes=(GpuProcess(7, 10 * GIB),)),),
            wanting(engine="vllm", engine_args=VllmArgs(gpu_memory_utilization=0.8)),
            ("GPU-1",),
            "",
            "",
        ),
    ],
)
def test_what_a_target_gets(
    cards: tuple[Gpu, ...], wish: ServingTarget, uuids: tuple[str, ...], reason: str, words: str
) -> None:
    """GPUs that nobody else has, that compute, and that hold it with headroom; otherwise the reason and the numbers."""
    found = allot(wish, hardware(gpus=cards))
    assert (found.uuids, found.reason) == (uuids, reason)
    assert words in found.message


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 80)), max_size=6),
    st.integers(0, 4),
    st.integers(0, 80),
)
def test_nothing_is_given_that_somebody_else_has(cards: list[tuple[bool, bool, int]], share: int, needed: int) -> None:
    """Whatever the machine: what is given is free, whole, large enough, and as many as asked; or nothing, with why."""
    machine = hardware(
        gpus=tuple(
            replace(
                gpu(f"GPU-{number}"),
                holder="x" if taken else "",
                fault="is lost" if lost else "",
                processes=(GpuProcess(9, used * GIB),),
            )
            for number, (taken, lost, used) in enumerate(cards)
        )
    )
    found = allot(wanting(share, gpu_memory=needed * GIB), machine)
    assert len(found.gpus) == (0 if found.reason else share)
    assert bool(found.reason) == bool(found.message)
    for card in found.gpus:
        assert not card.holder
        assert not card.fault
        assert card.processes is not None
        left = card.memory - (card.processes[0].memory or 0)
        assert needed * GIB <= left * share or not card.processes[0].memory


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        ({"driver": "590"}, "needs driver 590, the machine has 580.1"),
        ({"cuda": "12.9"}, "needs CUDA 12.9, the machine's driver 580.1 serves up to 12.8"),
        ({"computeCapability": "10.0"}, "has compute capability 9.0, 10.0 is needed"),
        ({"gpuMemory": "75GiB"}, "headroom included"),
        ({"driver": "580.1", "cuda": "12.8", "computeCapability": "9.0", "gpuMemory": "70GiB"}, ""),
        ({"driver": "570.200.300", "cuda": "11"}, ""),
    ],
)
def test_compatibility_is_judged_before_anything_is_fetched(requires: dict[str, str], words: str) -> None:
    """Driver, CUDA, compute capability, memory of each GPU: `Incompatible`, with what there is and what is needed."""
    card = replace(gpu(), capability="9.0", cuda="12.8")
    wish = snapshot(models=(model(requires=requires),), runtimes=(runtime(resources={"gpus": 1}),))
    made = plan(desired(wish), observed(machine=hardware(gpus=(card,))), node(), NOW)
    if words:
        assert [item.reason for item in made.held if item.subject != "runtime"] == ["Incompatible"]
        assert words in made.held[0].message
        assert not [action for action in made.actions if action.kind == "start-instance"]
    else:
        assert [item.reason for item in made.held] == []


def test_an_instance_on_a_lost_gpu_is_not_well() -> None:
    """The one that runs there, and no other; a driver that says nothing calls nobody lost."""
    lost, well = replace(gpu("GPU-1"), fault="has fallen off the bus"), gpu("GPU-2")
    there, elsewhere = replace(instance(), gpus=("GPU-1",)), replace(instance(), gpus=("GPU-2",))
    first, second, ended = judged((there, elsewhere, replace(there, status="exited")), hardware(gpus=(lost, well)))
    assert (first.health, first.detail) == ("unhealthy", "GPU-1 has fallen off the bus")
    assert second == elsewhere
    assert ended.health != "unhealthy"
    assert judged((there,), hardware(gpus=(gpu("GPU-1"),), gpu_trouble="NVML fails")) == (there,)


def test_an_inventory_knows_a_gpu_as_its_node_does() -> None:
    """What a plan is made from survives a node's report, so that a plan elsewhere is the same."""
    card = Gpu(
        *("GPU-1", "H100", 80 * GIB, "580.1", "9.0", 7 * GIB, "12.8", 60, 1, 2),
        processes=(GpuProcess(7, GIB, "reconcile-testnet-a1"), GpuProcess(8, None, ended=True)),
        fault="needs to be reset",
        holder="x of node y",
    )
    report = GpuStatus.model_validate_json(GpuStatus.model_validate(asdict(card)).model_dump_json())
    assert asdict(told(report)) == asdict(card)


# --- what happened ------------------------------------------------------------------------------------------------

AT = NOW


def seen(*reports: GpuReport, trouble: str = "", **fields: Any) -> Any:
    """A look at a node whose model runs on GPU-1."""
    card = replace(gpu(), temperature=40, **fields)
    item = replace(instance(), gpus=("GPU-1",))
    machine = hardware(gpus=(card,), gpu_reports=reports, gpu_trouble=trouble)
    return observed(machine=machine, instances=(item,), receipts=(receipt(intent=item.intent),))


def reasons(changes: Any) -> list[str]:
    """Events and questions, in order."""
    return [change.reason if isinstance(change, Note) else type(change).__name__ for change in changes]


def test_a_report_is_noted_once_and_asks_for_a_test() -> None:
    """By its id, across passes and restarts; the same words of the same GPU again only after a while."""
    first = GpuReport("a/1", "GPU-1", "Xid 94")
    one = watched(seen(first), "", AT)
    assert reasons(one.changes) == ["GpuFault", "AskRetest"]
    assert isinstance(one.changes[1], AskRetest)
    assert one.changes[1].cause == "GPU-1 reported Xid 94"
    assert watched(seen(first), one.fact, AT).changes == ()
    again = GpuReport("a/2", "GPU-1", "Xid 94")
    two = watched(seen(first, again), one.fact, AT + timedelta(seconds=30))
    assert two.changes == ()
    later = GpuReport("b/1", "GPU-1", "Xid 94")
    assert reasons(watched(seen(later), two.fact, AT + AGAIN).changes) == ["GpuFault", "AskRetest"]
    other = GpuReport("a/3", "GPU-1", "Xid 79")
    assert reasons(watched(seen(first, again, other), two.fact, AT).changes) == ["GpuFault", "AskRetest"]


def test_a_gpu_that_nothing_runs_on_is_noted_and_nothing_is_tested() -> None:
    """Another GPU's errors put no model in doubt; one that is not named puts all on GPUs in doubt."""
    assert reasons(watched(seen(GpuReport("a/1", "GPU-9", "Xid 94")), "", AT).changes) == ["GpuFault"]
    assert reasons(watched(seen(GpuReport("a/1", "", "Xid 94")), "", AT).changes) == ["GpuFault", "AskRetest"]


def test_faults_counts_and_drivers_are_told_when_they_change() -> None:
    """Lost, back, another driver, a count that rises; a count that begins anew, and silence, say nothing."""
    fact = watched(seen(ecc_uncorrected=3), "", AT).fact
    assert watched(seen(ecc_uncorrected=3), fact, AT).fact == fact, "a look that shows nothing new writes nothing"
    assert reasons(watched(seen(ecc_uncorrected=4), fact, AT).changes) == ["GpuFault", "AskRetest"]
    assert watched(seen(ecc_uncorrected=0), fact, AT).changes == ()
    assert reasons(watched(seen(driver="590"), fact, AT).changes) == ["GpuDriverChanged"]
    lost = watched(seen(fault="has fallen off the bus"), fact, AT)
    assert reasons(lost.changes) == ["GpuFault"]
    assert watched(seen(fault="has fallen off the bus"), lost.fact, AT).changes == ()
    assert reasons(watched(seen(), lost.fact, AT).changes) == ["GpuRecovered"]
    blind = observed(machine=hardware(gpus=(gpu(),), gpu_trouble="NVML fails"))
    assert watched(blind, lost.fact, AT).changes == (), "who says nothing calls no GPU well"
    gone = observed(machine=hardware(gpus=(replace(gpu("GPU-2"), temperature=1),)))
    assert reasons(watched(gone, fact, AT).changes) == ["GpuFault"]


def test_a_machine_without_gpus_keeps_nothing() -> None:
    """No fact is written where there is nothing to write."""
    assert watched(observed(machine=hardware()), "", AT).fact == ""
    assert json.loads(watched(seen(), "", AT).fact)["gpus"]["GPU-1"]["driver"] == "580.1"


def test_processes_are_found_by_their_container() -> None:
    """A control group that nobody is in has no process."""
    assert processes_of("0" * 64) == []
