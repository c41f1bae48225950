"""What an interruption will take: the median of what it took here, by kind of change."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from reconciler.cli.render_plan import plan_text
from reconciler.downtime import KEPT, predicted
from reconciler.inventory import facts, restore
from runtime.engines.simulated import SimulatedEngine
from tests.support.builders import NOW, assignment, model, snapshot
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from runtime.interfaces import EngineConnection


class Slow(SimulatedEngine):
    """An engine that takes a second of the simulated clock to be ready."""

    def __init__(self, simulated: SimulatedNode) -> None:
        super().__init__()
        self.simulated = simulated

    def ready(self, connection: EngineConnection) -> bool:
        """After a while."""
        self.simulated.clock.moment += timedelta(seconds=1)
        return super().ready(connection)


def serve(key: str, sequence: int) -> Any:
    """One of two models."""
    return snapshot(models=(model("a"), model("b")), assignments=(assignment(key),), sequence=sequence)


def test_a_plan_predicts_what_was_measured_here(tmp_path: Path) -> None:
    """Nothing is said before; then the median, for this kind of change only, in the plan and in what is published."""
    simulated = SimulatedNode(tmp_path)
    simulated.node.adapters.engines["llamacpp"] = Slow(simulated)  # type: ignore[index] # a plain dict here
    simulated.run(serve("a:v1", 1))
    simulated.later(minutes=11)
    simulated.run(serve("b:v1", 2))
    took = simulated.journal.history()[0].downtime_ms
    assert took >= 1000
    memory = simulated.node.look("")[1].memory
    assert {kind.partition("/")[0] for kind in memory.downtimes} == {"first", "replace"}
    (kind,) = (kind for kind in memory.downtimes if kind.startswith("replace/llamacpp/native/"))
    assert memory.downtimes[kind] == (took,)
    simulated.journal.set_fact("suspended", "")
    simulated.later(minutes=11)
    simulated.run(serve("a:v1", 3))
    status = simulated.run().status
    assert status.facts is not None
    assert len(status.facts.downtimes[kind]) == 2
    restored = restore(status)
    assert restored is not None
    assert restored[1].memory.downtimes == simulated.node.look("")[1].memory.downtimes
    assert facts(restored[0], restored[1]).downtimes == status.facts.downtimes


def test_only_the_last_ones_count_and_a_failure_does_not(tmp_path: Path) -> None:
    """A history is short, and what did not end as planned measures something else."""
    simulated = SimulatedNode(tmp_path)
    for number in range(KEPT + 3):
        simulated.later(minutes=11)
        simulated.run(serve("ab"[number % 2] + ":v1", number + 1))
    known = simulated.node.look("")[1].memory.downtimes
    assert [len(times) for kind, times in sorted(known.items())] == [1, KEPT]
    simulated.room.bad_starts = {"b:v1", "a:v1"}
    simulated.later(minutes=11)
    simulated.run(serve("b:v1", 90))
    assert simulated.node.look("")[1].memory.downtimes == known


def test_prediction_is_a_median_and_silence_is_no_zero() -> None:
    """One slow day does not move it."""
    assert predicted("replace", {"replace": (100, 110, 9000)}) == 110
    assert predicted("first", {"replace": (100,)}) is None


def test_people_read_it(tmp_path: Path) -> None:
    """In the plan's text, with how often it was measured; or that it was not."""
    simulated = SimulatedNode(tmp_path)
    simulated.run(serve("a:v1", 1))
    desired, observed = simulated.node.look("")
    document = serve("b:v1", 2)
    from reconciler.planner import plan

    wanted = replace(desired, document=document, digest="blake3:" + "0" * 64, verified=True)
    made = plan(wanted, observed, simulated.config, NOW)
    assert "not measured yet" in plan_text(made)
    kind = made.cost.downtime_kind
    knowing = replace(observed, memory=replace(observed.memory, downtimes={kind: (1000, 2000, 9000)}))
    assert "Predicted downtime 2 s: the median of what it took here, 3 times." in plan_text(
        plan(wanted, knowing, simulated.config, NOW)
    )
