"""`Active` is exactly "a receipt stands for this subject": over random histories, and cause by cause."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.audit import audit_journal
from reconciler.memory import RESTART_WINDOW
from reconciler.proof import difference, retest, settled, spelled_out
from runtime.host import StopEvent
from schemas.digests import digest_text
from schemas.receipt import ReceiptSubject
from schemas.target import ServingTarget
from tests.support.builders import (
    IMAGE,
    NODE_ID,
    NOW,
    assignment,
    gpu,
    hardware,
    manifest_digest,
    model,
    receipt,
    runtime,
    snapshot,
    target,
)
from tests.support.histories import NAMES, mishap, worlds
from tests.support.simulated_node import FixedHardware, SimulatedNode, states

if TYPE_CHECKING:
    from schemas.memory import Memory
    from schemas.observation import Gpu, Hardware

PROCESSORS = ("Test CPU", "Another CPU")


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A fresh node."""
    return SimulatedNode(tmp_path / "state")


def remembered(simulated: SimulatedNode) -> Memory:
    """What the journal itself counts."""
    return simulated.journal.memory(starts_since=simulated.clock.now() - RESTART_WINDOW)


def voids(simulated: SimulatedNode) -> list[str]:
    """Causes of all statements that end a receipt."""
    return [row.void_cause for row in simulated.journal.chain.rows() if row.void_cause]


def check(simulated: SimulatedNode) -> None:
    """State by state against the statements, which are read by other code than the journal's."""
    journal = simulated.journal
    report = audit_journal(
        journal.chain.rows(),
        last_number=journal.chain.last_number(),
        network="testnet",
        node=NODE_ID,
        recover=lambda _content, _signature: NODE_ID,
    )
    assert report.findings == ()
    proven = {item.manifest for item in report.standing}
    memory = remembered(simulated)
    for manifest, record in memory.models.items():
        if record.state in ("Pending", "Active"):
            assert (record.state == "Active") == (manifest in proven), record
        if record.state == "Failed":
            assert manifest not in proven, record
    assert proven <= set(memory.models), "what is not here is proven by nothing"
    running = {item.intent for item in simulated.room.running()}
    machine = simulated.machine.machine
    for item in memory.receipts:
        spelled = spelled_out(item.content)
        assert spelled is not None
        assert spelled.digest == item.subject
        assert spelled.accelerator == machine.accelerator
        good = memory.last_known_good
        if good is not None and good.target.manifest == item.manifest and item.intent not in running:
            assert item.subject == good.target.subject(machine.accelerator)


@settings(max_examples=60, deadline=None)
@given(worlds(), st.lists(st.sampled_from((*PROCESSORS, "")), min_size=6, max_size=6), st.integers(0, 2))
def test_active_is_a_standing_receipt_over_random_histories(
    steps: list[tuple[str, Any]], machines: list[str], lies: int
) -> None:
    """Snapshots, other runtimes, other machines, dead engines, changed files, lying models: the two never part (I2)."""
    liars = frozenset(manifest_digest(f"{name}:v1") for name in NAMES[:lies])
    with tempfile.TemporaryDirectory() as folder:
        simulated = SimulatedNode(Path(folder) / "state", lies=liars)
        for number, (what, value) in enumerate(steps):
            if what == "snapshot":
                simulated.offer(value)
            else:
                mishap(simulated, what, value)
                simulated.reconciler.idle(simulated.node.adapters.ports.stop)
            if machines[number % 6]:
                simulated.machine = FixedHardware(replace(hardware(), processor=machines[number % 6]))
                simulated.restart()
            simulated.run()
            check(simulated)
        simulated.journal.close()


# --- cause by cause -----------------------------------------------------------------------------------------------

A = snapshot(models=(model("a"), model("b")), assignments=(assignment("a:v1", "b:v1"),), sequence=1)
B = snapshot(models=(model("a"), model("b")), assignments=(assignment("b:v1", "a:v1"),), sequence=2)


def other_arguments(sequence: int, *serve: str) -> Any:
    """The same models on a runtime with another context."""
    return snapshot(
        models=(model("a"), model("b")),
        runtimes=(runtime(engineArgs={"contextSize": 512}),),
        assignments=(assignment(*serve),),
        sequence=sequence,
    )


def test_what_is_not_loaded_keeps_its_receipt(simulated: SimulatedNode) -> None:
    """Another model serves, the engine of this one is gone: no change of its subject. Loading it asks its probe."""
    simulated.run(A)
    assert states(simulated.run(B)) == {"a:v1": "Active", "b:v1": "Active"}
    assert voids(simulated) == []
    kinds = [outcome.action.kind for outcome in simulated.run(A.model_copy(update={"metadata": B.metadata})).outcomes]
    assert kinds[-1] == "validate-model"


def test_other_arguments_end_what_was_proven_once_the_old_runtime_is_gone(simulated: SimulatedNode) -> None:
    """What serves keeps its proof until it is replaced; what is not loaded would be served otherwise: Pending."""
    simulated.run(A)
    simulated.run(B)
    result = simulated.run(other_arguments(3, "b:v1", "a:v1"))
    assert states(result) == {"a:v1": "Pending", "b:v1": "Active"}
    assert set(voids(simulated)) == {"engineArgs.contextSize is 512, not 2048"}
    check(simulated)


def test_a_swap_that_cannot_begin_takes_no_proof_from_what_serves(simulated: SimulatedNode) -> None:
    """While the replacement waits, the one that serves stands (I6)."""
    simulated.run(A)
    closed = {"swap": ({"days": ("sun",), "from": "03:00", "to": "03:01", "zone": "UTC"},)}
    waiting = other_arguments(2, "a:v1", "b:v1")
    policy = waiting.spec.policy.model_validate({"windows": closed})
    result = simulated.run(waiting.model_copy(update={"spec": waiting.spec.model_copy(update={"policy": policy})}))
    assert (states(result)["a:v1"], voids(simulated)) == ("Active", [])


def test_another_processor_ends_what_was_proven_everywhere(simulated: SimulatedNode) -> None:
    """Loaded or not: a receipt speaks for the machine that answered. What serves is asked again at once."""
    simulated.run(A)
    simulated.run(B)
    simulated.machine = FixedHardware(replace(hardware(), processor="Another CPU"))
    simulated.restart()
    result = simulated.run()
    assert [outcome.action.kind for outcome in result.outcomes] == ["validate-model"]
    assert states(result) == {"a:v1": "Pending", "b:v1": "Active"}
    assert set(voids(simulated)) == {"the processor is Another CPU, not Test CPU"}


def on(*gpus: Gpu) -> Hardware:
    """A machine with GPUs."""
    return replace(hardware(), gpus=gpus)


def test_another_driver_or_gpu_is_named(simulated: SimulatedNode) -> None:
    """Which GPU went or came, and from which driver to which; one that cannot be seen now says nothing."""
    first, second = gpu(), replace(gpu(), uuid="GPU-2")
    simulated.machine = FixedHardware(on(first))
    simulated.restart()
    simulated.run(A)
    for machine, cause in (
        (on(replace(first, driver="999.1")), f"the driver is 999.1, not {first.driver}"),
        (on(replace(first, driver="999.1"), second), "GPU GPU-2 is new"),
        (on(second), f"GPU {first.uuid} is gone"),
    ):
        simulated.machine = FixedHardware(machine)
        simulated.restart()
        assert states(simulated.run())["a:v1"] == "Active"
        assert voids(simulated)[-1].startswith(cause) or cause in voids(simulated)
    before = len(voids(simulated))
    simulated.machine = FixedHardware(hardware())
    simulated.restart()
    simulated.run()
    assert len(voids(simulated)) == before


def test_bytes_that_were_fetched_again_have_proven_nothing(simulated: SimulatedNode) -> None:
    """Bit rot that was repaired: Failed, then Pending, then Active by a probe of its own (I2)."""
    simulated.run(A)
    simulated.shelf.rotten.add(manifest_digest("a:v1"))
    assert simulated.reconciler.idle(StopEvent())
    simulated.run()
    check(simulated)
    messages = [event.message for event in simulated.journal.events(limit=1000) if event.subject == "a:v1"]
    assert any("what was proven counts no longer" in message for message in messages)


def test_a_withdrawn_model_is_proven_by_nothing(simulated: SimulatedNode) -> None:
    """The network takes it back: its receipts are void, with the network's reason (I6)."""
    simulated.run(A)
    withdrawn = snapshot(
        models=(model("a"), model("b")),
        assignments=(assignment("b:v1"),),
        sequence=2,
        withdrawn=({"digest": manifest_digest("a:v1"), "reason": "leaks"},),
    )
    assert states(simulated.run(withdrawn))["a:v1"] == "Pending"
    assert voids(simulated) == ["withdrawn by the network: leaks"]


def test_a_failure_is_on_record(tmp_path: Path) -> None:
    """A subject that fails its probe leaves a statement with the digest of what it answered."""
    simulated = SimulatedNode(tmp_path / "state", lies=frozenset({manifest_digest("b:v1")}))
    simulated.run(A)
    simulated.run(B)
    failed = next(row for row in simulated.journal.chain.rows() if row.outcome == "fail")
    assert failed.manifest == manifest_digest("b:v1")
    assert failed.evidence.startswith("blake3:")
    check(simulated)


# --- the pure parts -----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(("llamacpp", "vllm")), st.booleans(), st.integers(0, 3), st.floats(0.1, 1.0), st.integers(64, 9999)
)
def test_the_subject_that_is_spelled_out_is_the_subject(
    engine: str, container: bool, gpus: int, share: float, length: int
) -> None:
    """Its digest follows from the fields, before and after they went through a document, for any target."""
    arguments = (
        {"contextSize": length, "threads": 2}
        if engine == "llamacpp"
        else {"maxModelLen": length, "gpuMemoryUtilization": share, "kvCache": "4GiB"}
    )
    whole = json_of(target())
    whole |= {"engine": engine, "engineArgs": arguments}
    if container:
        whole |= {"mode": "container", "backend": "docker", "image": IMAGE}
        whole.pop("environment", None)
    of = ServingTarget.model_validate_json(json.dumps(whole))
    machine = on(*(replace(gpu(), uuid=f"GPU-{number}", name="NVIDIA é") for number in range(gpus)))
    spelled = ReceiptSubject.of(of, machine)
    again = ReceiptSubject.model_validate_json(spelled.to_json())
    assert spelled.digest == again.digest == of.subject(machine.accelerator)
    assert again.spec_digest == of.spec_digest


def json_of(of: ServingTarget) -> dict[str, Any]:
    """Its wire form."""
    return of.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_differences_name_the_fields() -> None:
    """Old and new, field by field."""
    before = ReceiptSubject.of(target(), hardware())
    fewer = target().resources.model_copy(update={"pids": 9})
    after = ReceiptSubject.of(target(version="2.0", resources=fewer), hardware())
    assert difference(before, after) == "the engine's version is 2.0, not 1.0; resources.pids is 9, not 512"


@pytest.mark.parametrize("state", ["Failed", "Inactive", "Archived"])
def test_what_is_so_for_another_reason_is_left_alone(state: Any) -> None:
    """A receipt does not enable what the snapshot disables."""
    assert settled(state, proven=True) == settled(state, proven=False) == state


@given(st.text("0123456789abcdef", min_size=40, max_size=40), st.integers(60, 10**7))
def test_retests_keep_their_promise_and_are_spread(node: str, every: int) -> None:
    """Never later than `every`, never before 80 % of it, and the same for the same node each time."""
    of = receipt(issued_at=NOW)
    when = retest(of, every, "0x" + node)
    assert when == retest(of, every, "0x" + node)
    interval = timedelta(seconds=every)
    slack = timedelta(milliseconds=1)
    assert NOW + interval * 0.8 - slack <= when.earliest < when.latest <= NOW + interval + slack


def test_a_fleet_is_not_retested_at_once() -> None:
    """A hundred nodes that were changed in the same second come over a tenth of the interval."""
    of = receipt(issued_at=NOW)
    times = sorted(retest(of, 3600, digest_text(str(number))).earliest for number in range(100))
    assert times[-1] - times[0] > timedelta(minutes=5)
    assert len({time.replace(second=0, microsecond=0) for time in times}) >= 6
