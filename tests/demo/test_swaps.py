"""Clients keep asking while real instances are swapped under the front."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.front import eventually
from tests.support.swapping import Asker, SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from schemas.snapshot import SnapshotDocument

SWAPS = int(os.environ.get("RECONCILE_TEST_SWAPS", "10"))
"""Swaps under load; 50 where there is time for them."""


@pytest.fixture
def swapping(tmp_path: Path, tiny_model: Callable[[int], Path]) -> Iterator[SwappingNode]:
    """A node with two models."""
    made = SwappingNode(tmp_path, (tiny_model(1), tiny_model(2)))
    yield made
    made.take_apart()


def has_more(asker: Asker, model: str, count: int) -> bool:
    """Whether a model has answered more than so often; or something went wrong, and waiting is in vain."""
    return bool(asker.wrong) or asker.answered.get(model, 0) > count


def settled(swapping: SwappingNode, document: SnapshotDocument) -> None:
    """Follow a snapshot; a machine too busy for one of the agent's bounds in one pass has it in another."""
    result = swapping.run(document)
    for _ in range(3):
        if result.exit_code == 0:
            return
        result = swapping.run()
    assert result.exit_code == 0, [(outcome.action.id, outcome.error) for outcome in result.outcomes]


def nothing_is_lost_through(swaps: int, swapping: SwappingNode) -> None:
    """Every question gets one whole answer of the model that says it answers, and none is refused, through swaps."""
    settled(swapping, swapping.wish("a:v1"))
    askers = [Asker(swapping.keeper.address, swapping.answers, stream=stream) for stream in (False, True, True)]
    threads = [asker.start() for asker in askers]
    seen: dict[str, int] = {}
    for number in range(swaps):
        wanted = "ab"[(number + 1) % 2] + ":v1"
        before = [asker.answered.get(wanted, 0) for asker in askers]
        settled(swapping, swapping.wish(wanted))
        for asker, count in zip(askers, before, strict=True):
            eventually(partial(has_more, asker, wanted, count), f"{wanted} answers after swap {number + 1}")
        assert [asker.wrong for asker in askers] == [[], [], []], f"after swap {number + 1}"
        assert len(swapping.backend.list()) == 1
    for asker, thread in zip(askers, threads, strict=True):
        asker.stop.set()
        thread.join(60)
        for model, count in asker.answered.items():
            seen[model] = seen.get(model, 0) + count
    assert [asker.wrong for asker in askers] == [[], [], []]
    counts = swapping.keeper.counts()
    assert counts is not None
    assert counts.served == sum(seen.values()), "one answer for each question"
    assert (counts.unavailable, counts.failed, counts.cut, counts.cut_by_drain) == (0, 0, 0, 0)
    assert set(seen) == {"a:v1", "b:v1"}


def test_no_request_is_lost_and_none_is_answered_wrongly(swapping: SwappingNode) -> None:
    """Real clients meet real swaps, and notice nothing but a wait (I2, I3, I4).

    As long as a swap takes less than the hold bound, nothing is refused either.
    """
    nothing_is_lost_through(SWAPS, swapping)


def test_an_overlap_makes_nobody_wait(swapping: SwappingNode) -> None:
    """Real instances side by side, until requests are led over: none waits, none is lost, and one is left (I3)."""
    settled(swapping, swapping.wish("a:v1", overlap=True))
    asker = Asker(swapping.keeper.address, swapping.answers, stream=True)
    thread = asker.start()
    backend = swapping.node.adapters.backends["native"]
    for wanted in ("b:v1", "a:v1", "b:v1"):
        before = asker.answered.get(wanted, 0)
        result = swapping.run(swapping.wish(wanted, overlap=True))
        assert result.exit_code == 0, [(outcome.action.id, outcome.error) for outcome in result.outcomes]
        kinds = [outcome.action.kind for outcome in result.outcomes if outcome.action.kind != "download-model"]
        assert kinds == ["start-instance", "validate-model", "route-front", "stop-instance"]
        assert swapping.journal.history()[0].downtime_ms == 0
        assert len(backend.list()) == 1
        eventually(partial(has_more, asker, wanted, before), f"{wanted} answers")
    asker.stop.set()
    thread.join(60)
    assert asker.wrong == []


def test_a_new_agent_finds_the_front_and_goes_on(swapping: SwappingNode) -> None:
    """An agent's restart touches neither the front nor the runtime, and has nothing to do."""
    swapping.run(swapping.wish("a:v1"))
    asker = Asker(swapping.keeper.address, swapping.answers, stream=True)
    thread = asker.start()
    eventually(lambda: bool(asker.answered), "it is answered")
    swapping.restart()
    assert swapping.run().outcomes == ()
    before = asker.answered["a:v1"]
    eventually(lambda: asker.answered["a:v1"] > before + 2, "it is answered on")
    asker.stop.set()
    thread.join(60)
    assert asker.wrong == []
