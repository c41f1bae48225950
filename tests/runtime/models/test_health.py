"""Which source is asked next: a pure decision over what was seen of each."""

from __future__ import annotations

import pytest

from runtime.models.health import MAX_RETRY_AFTER, MAX_STRIKES, Health, SourceState
from runtime.models.sources import Interrupted, Refused, Unsuitable, WholeOnly, WrongContent


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def build(*names: str, fallback: tuple[str, ...] = ()) -> tuple[Health, Hands, list[SourceState]]:
    """Sources of whom nothing is known."""
    states = [SourceState(source=None, shown=name, fallback=False) for name in names]
    states += [SourceState(source=None, shown=name, fallback=True) for name in fallback]
    hands = Hands()
    return Health(states, clock=hands, jitter=lambda low, high: (low + high) / 2), hands, states


def choose(health: Health, *, worker: int = 0, parts: int = 1) -> str:
    """Who would be asked for file `f`."""
    state = health.choose(health.possible("f"), "f", worker=worker, parts=parts)
    return state.shown if state else ""


def test_each_source_is_tried_before_one_is_preferred() -> None:
    """With nothing known, workers spread over the sources in their order."""
    health, _, (one, two) = build("one", "two")
    assert choose(health) == "one"
    one.active = 1
    assert choose(health) == "two"
    two.active = 1
    assert choose(health) == "one"


def test_the_faster_source_is_preferred_until_it_is_busy() -> None:
    """Twice as fast: used by two before the slower one is worth asking."""
    health, _, (one, two) = build("one", "two")
    health.delivered(one, received=100, seconds=1)
    health.delivered(two, received=250, seconds=1)
    assert choose(health) == "two"
    two.active = 1
    assert choose(health) == "two"
    two.active = 2
    assert choose(health) == "one"


def test_one_that_sent_wrong_bytes_falls_behind() -> None:
    """A fast liar comes after a slower honest source."""
    health, _, (one, two) = build("liar", "slow")
    health.delivered(one, received=300, seconds=1)
    health.delivered(two, received=100, seconds=1)
    assert choose(health) == "liar"
    health.sent_wrong(one, "f")
    assert choose(health) == "slow"


def test_fallback_sources_come_last() -> None:
    """However fast, they are asked only when no other source can give the file now."""
    health, hands, (one, own) = build("one", fallback=("own",))
    health.delivered(one, received=1, seconds=1)
    health.delivered(own, received=1000, seconds=1)
    assert choose(health) == "one"
    health.failed(one, "f", Interrupted("reset"), started=hands.now)
    assert choose(health) == "own", "while the other one rests"
    hands.now += 10
    assert choose(health) == "one"


def test_strikes_in_a_row_end_a_source_and_a_success_clears_them() -> None:
    """Failures that may pass: a pause that grows, and an end."""
    health, hands, (one,) = build("one")
    pauses = []
    for _ in range(MAX_STRIKES - 1):
        health.failed(one, "f", Interrupted("reset"), started=hands.now)
        assert choose(health) == ""
        pauses.append(health.wakes_at() - hands.now)
        hands.now = health.wakes_at()
        assert choose(health) == "one"
    assert pauses == sorted(pauses)
    health.delivered(one, received=1, seconds=1)
    health.failed(one, "f", Interrupted("reset"), started=hands.now)
    assert choose(health) == ""
    assert health.possible("f") == [one]
    for _ in range(MAX_STRIKES):
        health.failed(one, "f", Interrupted("reset"), started=hands.now)
    assert health.possible("f") == []
    assert "reset" in health.report("f")


def test_transfers_that_fail_together_count_once() -> None:
    """Ten connections that break at the same moment are one incident."""
    health, hands, (one,) = build("one")
    started = hands.now
    hands.now += 1
    for _ in range(10):
        health.failed(one, "f", Interrupted("reset"), started=started)
    assert one.strikes == 1


def test_two_stalls_end_a_source() -> None:
    """Each cost a whole stall timeout."""
    health, hands, (one,) = build("one")
    health.failed(one, "f", Interrupted("silence"), started=hands.now, stalled=True)
    assert not one.dropped
    health.failed(one, "f", Interrupted("silence"), started=hands.now, stalled=True)
    assert one.dropped


def test_retry_after_is_obeyed_within_bounds() -> None:
    """A short one is waited for, a long one is left to the next pass."""
    health, hands, (one,) = build("one")
    health.failed(one, "f", Interrupted("429", retry_after=30), started=hands.now)
    assert health.wakes_at() == hands.now + 30
    health.failed(one, "f", Interrupted("429", retry_after=MAX_RETRY_AFTER + 1), started=hands.now)
    assert "left alone" in one.dropped


def test_what_one_file_lacks_another_may_have() -> None:
    """Unsuitable for one file is not unsuitable for the next; refused is."""
    health, hands, (one,) = build("one")
    health.failed(one, "f", Unsuitable("404"), started=hands.now)
    assert health.possible("f") == []
    assert health.possible("g") == [one]
    health.failed(one, "g", WrongContent("another size"), started=hands.now)
    assert one.differs == {"g"}
    health.failed(one, "h", Refused("policy"), started=hands.now)
    assert health.possible("i") == []
    assert one.refused


@pytest.mark.parametrize(("parts", "second"), [(1, "one"), (2, "")])
def test_one_worker_reads_a_whole_file(parts: int, second: str) -> None:
    """From a source of whole files, a file of several pieces is read by one worker at a time."""
    health, hands, (one,) = build("one")
    health.failed(one, "f", WholeOnly("whole"), started=hands.now)
    one.reading["f"] = 1
    assert choose(health, worker=1, parts=parts) == "one"
    assert choose(health, worker=2, parts=parts) == second


def test_the_report_says_what_each_source_said() -> None:
    """One line of reasons, in the order of the sources."""
    health, hands, (one, two, _) = build("one", "two", "three")
    health.failed(one, "f", Unsuitable("answered 404 Not Found"), started=hands.now)
    health.sent_wrong(two, "f")
    assert health.report("f") == "one: answered 404 Not Found; two: sent wrong bytes of f; three: not tried"
