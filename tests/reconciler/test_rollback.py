"""A person wants what was good before: the planner goes back as it always does, and only to what may run."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.rollback import REASON, way_back
from reconciler.verbs import record
from schemas.control import Left, Retry, Rollback
from schemas.errors import NothingToGoBackTo
from tests.support.builders import assignment, manifest_digest, model, snapshot
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.loop import PassResult
    from schemas.snapshot import SnapshotDocument

MODELS = (model("a"), model("b"))


def serve(key: str, sequence: int, **spec: Any) -> SnapshotDocument:
    """One of two models serves."""
    return snapshot(models=MODELS, assignments=(assignment(key),), sequence=sequence, **spec)


@pytest.fixture
def swapped(tmp_path: Path) -> SimulatedNode:
    """A node that served a, and serves b."""
    node = SimulatedNode(tmp_path)
    node.run(serve("a:v1", 1))
    assert node.run(serve("b:v1", 2)).exit_code == 0
    return node


def rollback(node: SimulatedNode, to: str = "") -> PassResult:
    """`reconcile rollback [ID]`."""
    accepted = node.journal.accepted()
    assert accepted is not None
    desired, observed = node.node.look(accepted.digest)
    back = way_back(desired, observed, node.config, node.clock.now(), to)
    accelerator = observed.state.hardware.accelerator
    left = tuple(
        Left(subject=item.subject(accelerator), model=item.model, snapshot=desired.digest) for item in back.leave
    )
    record(Rollback(to=back.good.target.model, leave=left, why="it is slow"), node.journal, node.clock.now())
    return node.run()


def test_what_was_good_before_serves_again(swapped: SimulatedNode) -> None:
    """At once, validated, with the reason on record; and stays, whatever passes come (I5)."""
    result = rollback(swapped)
    assert swapped.serving() == ["a:v1"]
    assert swapped.room.most_running == 1
    assert result.exit_code == 6
    rolled_back = result.status.condition("RolledBack")
    assert rolled_back is not None
    assert (rolled_back.status, rolled_back.reason) == ("True", REASON)
    assert "it is slow" in rolled_back.message
    assert swapped.run().outcomes == ()
    assert "RollbackAsked" in [event.reason for event in swapped.journal.events()]


def test_a_retry_ends_it(swapped: SimulatedNode) -> None:
    """By hand as here, by a signed token, or because another subject is wanted."""
    rollback(swapped)
    assert record(Retry(), swapped.journal, swapped.clock.now())
    assert swapped.run().exit_code == 0
    assert swapped.serving() == ["b:v1"]


def test_another_snapshot_that_wants_the_same_does_not_end_it(swapped: SimulatedNode) -> None:
    """The subject is what is held against; something else is followed."""
    rollback(swapped)
    swapped.run(serve("b:v1", 3))
    assert swapped.serving() == ["a:v1"]
    assert swapped.run(serve("a:v1", 4)).exit_code == 0


def test_there_and_back_again(swapped: SimulatedNode) -> None:
    """What was left is the one that was good before, and is not gone back to unless a person clears it."""
    rollback(swapped)
    with pytest.raises(NothingToGoBackTo, match="RolledBackByHand"):
        rollback(swapped)
    assert swapped.serving() == ["a:v1"]


def test_it_can_be_named(swapped: SimulatedNode) -> None:
    """By its model, or by the snapshot that wanted it; what serves is no way back, and neither is a stranger."""
    with pytest.raises(NothingToGoBackTo, match="b:v1 is what serves"):
        rollback(swapped, "b")
    with pytest.raises(NothingToGoBackTo, match="is not what served here last"):
        rollback(swapped, "c:v1")
    good = swapped.node.look("")[1].memory.earlier_good
    assert good is not None
    rollback(swapped, good.snapshot[7:19])
    assert swapped.serving() == ["a:v1"]


def test_a_swap_that_has_not_come_to_its_end_is_left(tmp_path: Path) -> None:
    """What is wanted and cannot be had is held back: what serves stays, also once it could be had."""
    node = SimulatedNode(tmp_path)
    node.run(serve("a:v1", 1))
    node.shelf.unreachable = True
    node.run(serve("b:v1", 2))
    result = rollback(node)
    assert node.serving() == ["a:v1"]
    assert REASON in [item.reason for item in result.plan.held if item.subject == "b:v1"]
    node.shelf.unreachable = False
    node.clock.moment += timedelta(hours=2)
    node.run()
    assert node.serving() == ["a:v1"]


def test_without_anything_that_was_good_nothing_is_stopped(tmp_path: Path) -> None:
    """There has to be a way back (I5)."""
    node = SimulatedNode(tmp_path)
    node.run(serve("a:v1", 1))
    with pytest.raises(NothingToGoBackTo, match="is what serves"):
        rollback(node)
    assert node.serving() == ["a:v1"]


def test_what_is_withdrawn_never_comes_back(swapped: SimulatedNode) -> None:
    """Whoever asks (I6)."""
    swapped.run(serve("b:v1", 3, withdrawn=({"digest": manifest_digest("a:v1"), "reason": "unsafe"},)))
    with pytest.raises(NothingToGoBackTo, match="Withdrawn: unsafe"):
        rollback(swapped)


def test_what_is_no_longer_stored_is_no_way_back(swapped: SimulatedNode) -> None:
    """What was good before the last known good is kept only as long as nobody removes it."""
    swapped.shelf.stored.pop(manifest_digest("a:v1"))
    with pytest.raises(NothingToGoBackTo, match="no longer stored"):
        rollback(swapped)
    assert swapped.serving() == ["b:v1"]
