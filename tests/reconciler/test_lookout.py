"""A newer snapshot pre-empts what is under way, and says nothing about what was given up."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.lookout import Lookout, PassStop, wants_else
from reconciler.memory import Note
from reconciler.target import choose
from reconciler.watch import Wake
from runtime.front.simulated import SimulatedFront
from runtime.host import StopEvent
from schemas.errors import SourceUnreachable
from tests.support.builders import assignment, converged, desired, model, node, runtime, snapshot
from tests.support.front import eventually
from tests.support.simulated_node import Recorder, SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reconciler.executor import Outcome
    from schemas.plan import Action
    from schemas.snapshot import SnapshotDocument

MODELS = (model("a"), model("b"))


def serve(key: str, sequence: int, **spec: Any) -> SnapshotDocument:
    """One of two models serves."""
    return snapshot(models=MODELS, assignments=(assignment(key),), sequence=sequence, **spec)


class Interrupting(Recorder):
    """Notices a newer snapshot when an action begins or ends, as a lookout would."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at
        self.hit: Callable[[], None] = lambda: None

    def started(self, action: Action) -> None:
        """An action begins."""
        super().started(action)
        self._look(f"> {action.id}")

    def finished(self, outcome: Outcome) -> None:
        """An action ended."""
        super().finished(outcome)
        self._look(f"{outcome.status} {outcome.action.id}")

    def _look(self, point: str) -> None:
        if point.startswith(self.at):
            self.hit()


class Told(Lookout):
    """Looks when the test says so."""

    def __init__(self, recorder: Interrupting) -> None:
        super().__init__(lambda _digest: False, wake=Wake(), interval=3600)
        self._recorder = recorder

    def beside(self, digest: str, agent: Any, *, suspended: bool = False) -> Any:
        """The same, with the recorder's hand on it."""
        return _Held(super().beside(digest, agent, suspended=suspended), self._recorder)


class _Held:
    def __init__(self, inner: Any, recorder: Interrupting) -> None:
        self._inner, self._recorder = inner, recorder

    def __enter__(self) -> PassStop:
        stop: PassStop = self._inner.__enter__()
        self._recorder.hit = stop.supersede
        return stop

    def __exit__(self, *trace: object) -> None:
        self._inner.__exit__(*trace)
        self._recorder.hit = lambda: None


POINTS = ("done download/b:v1", "done stop/", "> start/b:v1", "done start/b:v1", "> validate/b:v1")


@pytest.mark.parametrize("point", POINTS)
def test_a_swap_is_given_up_wherever_it_is(tmp_path: Path, point: str) -> None:
    """Whatever was under way, the next pass serves what is wanted now, and nothing is held against b (I3, I5)."""
    recorder = Interrupting(point)
    simulated = SimulatedNode(tmp_path, recorder=recorder)
    simulated.run(serve("a:v1", 1))
    simulated.reconciler._lookout = Told(recorder)
    given_up = simulated.run(serve("b:v1", 2))
    assert {"cancelled", "skipped"} & {outcome.status for outcome in given_up.outcomes}
    assert "failed" not in {outcome.status for outcome in given_up.outcomes}
    recorder.at = "never"
    after = simulated.run(serve("a:v1", 3))
    assert after.exit_code == 0
    assert simulated.serving() == ["a:v1"]
    assert simulated.room.most_running == 1
    memory = simulated.node.look("")[1].memory
    assert (dict(memory.rejections), dict(memory.holds)) == ({}, {})
    assert any(event.reason == "Superseded" for event in simulated.journal.events())
    # What was given up may be asked for again.
    assert simulated.run(serve("b:v1", 4)).exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_what_passed_its_probe_is_led_to_all_the_same(tmp_path: Path) -> None:
    """After the point of no return the plan is carried out: clients do not wait for another swap."""
    recorder = Interrupting("done validate/b:v1")
    simulated = SimulatedNode(tmp_path, recorder=recorder, front=SimulatedFront())
    simulated.run(serve("a:v1", 1))
    simulated.reconciler._lookout = Told(recorder)
    result = simulated.run(serve("b:v1", 2))
    assert {outcome.action.id: outcome.status for outcome in result.outcomes}["route/b:v1"] == "done"


def test_cancelled_starts_do_not_use_up_the_budget(tmp_path: Path) -> None:
    """However often a start was given up for a newer snapshot: that is no crash loop."""
    recorder = Interrupting("> start/b:v1")
    simulated = SimulatedNode(tmp_path, recorder=recorder)
    simulated.run(serve("a:v1", 1))
    simulated.reconciler._lookout = Told(recorder)
    for number in range(2, 9):
        simulated.run(serve("b:v1", number))
    recorder.at = "never"
    assert simulated.run(serve("b:v1", 20)).exit_code == 0
    assert simulated.serving() == ["b:v1"]


class Person:
    """Somebody at the node: what is asked for is in the journal first, as the control socket has it."""

    def __init__(self, tmp_path: Path, at: str, says: Callable[[SimulatedNode], None], hand: Any) -> None:
        self.recorder = Interrupting(at)
        self.node = SimulatedNode(tmp_path, recorder=self.recorder)
        self.node.run(serve("a:v1", 1))
        self.lookout = Lookout(lambda _digest: False, wake=Wake(), interval=3600)
        self.node.reconciler._lookout = self.lookout

        def ask() -> None:
            self.recorder.at = "never"
            says(self.node)
            self.lookout.ask(hand)

        self.recorder.hit = ask

    def outcomes(self, result: Any) -> dict[str, str]:
        """How each action ended."""
        return {item.action.id: item.status for item in result.outcomes}


def suspend(simulated: SimulatedNode) -> None:
    """`reconcile suspend`."""
    simulated.journal.set_fact("suspended", "lunch")


def test_a_suspension_ends_what_is_under_way(tmp_path: Path) -> None:
    """What serves goes on; the same pass says that it is suspended; nothing is held against what was given up."""
    person = Person(tmp_path, "> download/b:v1", suspend, "suspend")
    result = person.node.run(serve("b:v1", 2))
    assert person.outcomes(result)["start/b:v1"] in ("cancelled", "skipped")
    assert person.node.serving() == ["a:v1"]
    assert result.exit_code == 5
    suspended = result.status.condition("Suspended")
    assert suspended is not None
    assert suspended.status == "True"
    memory = person.node.node.look("")[1].memory
    assert (dict(memory.rejections), dict(memory.holds)) == ({}, {})
    assert "Interrupted" in [event.reason for event in person.node.journal.events()]
    person.node.journal.set_fact("suspended", "")
    assert person.node.run(serve("b:v1", 2)).exit_code == 0
    assert person.node.serving() == ["b:v1"]


@pytest.mark.parametrize("point", ["> stop/", "done stop/", "> start/b:v1", "> validate/b:v1"])
def test_a_swap_that_has_stopped_what_served_comes_to_its_end(tmp_path: Path, point: str) -> None:
    """Nobody who suspends changes in the middle of a swap wants nothing to serve (I6)."""
    person = Person(tmp_path, point, suspend, "suspend")
    result = person.node.run(serve("b:v1", 2))
    assert {item.status for item in result.outcomes} == {"done"}
    assert person.node.serving() == ["b:v1"]
    assert person.node.run(serve("a:v1", 3)).exit_code == 5, "from then on nothing is changed"
    assert person.node.serving() == ["b:v1"]


def test_a_swap_that_fails_under_a_suspension_goes_back_all_the_same(tmp_path: Path) -> None:
    """The way back is part of the swap (I5)."""
    person = Person(tmp_path, "> start/b:v1", suspend, "suspend")
    person.node.room.bad_starts.add("b:v1")
    result = person.node.run(serve("b:v1", 2))
    assert person.outcomes(result)["start/b:v1"] == "failed"
    assert person.node.serving() == ["a:v1"]
    suspended = result.status.condition("Suspended")
    assert suspended is not None
    assert suspended.status == "True"


def test_what_a_person_asks_between_a_plan_and_its_first_action_counts(tmp_path: Path) -> None:
    """No moment is lost: the plan was made already, and nothing was done yet."""
    person = Person(tmp_path, "never", suspend, "suspend")
    lookout, inner = person.lookout, person.lookout.beside

    def late(digest: str, agent: Any, *, suspended: bool = False) -> Any:
        if not suspended:
            suspend(person.node)
            lookout.ask("suspend")
        return inner(digest, agent, suspended=suspended)

    lookout.beside = late  # type: ignore[method-assign]
    result = person.node.run(serve("b:v1", 2))
    assert set(person.outcomes(result).values()) <= {"cancelled", "skipped"}
    assert person.node.serving() == ["a:v1"]


def test_a_retry_is_honoured_in_the_middle_of_another_start(tmp_path: Path) -> None:
    """What is wanted again is started, not what was on its way."""
    person = Person(tmp_path, "never", lambda _node: None, "redirect")
    person.node.room.bad_starts.add("b:v1")
    assert person.node.run(serve("b:v1", 2)).exit_code == 6
    person.node.room.bad_starts.clear()
    for item in person.node.room.running():
        person.node.room.kill(item.name)

    def retry() -> None:
        person.recorder.at = "never"
        now = person.node.node.adapters.ports.clock.now()
        person.node.journal.forget_rejections(None, Note("Normal", "RetryAsked", "by hand"), now)
        person.lookout.ask("redirect")

    person.recorder.at, person.recorder.hit = "> start/a:v1", retry
    result = person.node.run(serve("b:v1", 2))
    assert person.outcomes(result)["validate/a:v1"] == "cancelled"
    assert person.node.serving() == ["b:v1"]
    assert result.exit_code == 0


def test_what_is_wrong_shows_under_a_suspension(tmp_path: Path) -> None:
    """A backend that cannot be seen is held and said, whoever has suspended what."""
    simulated = SimulatedNode(tmp_path)
    simulated.run(serve("a:v1", 1))
    suspend(simulated)
    simulated.room.unavailable = "connection refused"
    result = simulated.run(serve("b:v1", 2))
    assert {"BackendUnavailable"} <= {item.reason for item in result.plan.held}
    assert {"BackendUnavailable"} <= {item.reason for item in result.status.held}


@pytest.mark.parametrize(
    ("newer", "expected"),
    [
        (serve("a:v1", 2), False),
        (snapshot(models=(*MODELS, model("c")), assignments=(assignment("a:v1"),), sequence=2), False),
        (serve("b:v1", 2), True),
        (serve("a:v1", 2, runtimes=(runtime(timeouts={"start": "20m"}),)), True),
        (serve("a:v1", 2, withdrawn=({"digest": "blake3:" + "0" * 64, "reason": "bad"},)), True),
        (snapshot(models=(model("a", sources=("https://other.example.org/",)), model("b")),
                  assignments=(assignment("a:v1"),), sequence=2), True),
    ],
)  # fmt: skip
def test_only_what_concerns_this_node_counts(newer: SnapshotDocument, expected: bool) -> None:
    """A commit about something else is no reason to give up minutes of loading; a mended source is."""
    wishes = [(document, choose(desired(document), converged(), node())) for document in (serve("a:v1", 1), newer)]
    assert wants_else(wishes[0], wishes[1]) is expected


def test_the_lookout_looks_when_woken_and_wakes_the_loop_for_news() -> None:
    """Each wake is one look; what fails to be seen is no news; news end the pass and begin the next."""
    wake, looks = Wake(), []

    def scout(digest: str) -> bool:
        looks.append(digest)
        if len(looks) == 1:
            raise SourceUnreachable("down")
        return len(looks) == 3

    lookout = Lookout(scout, wake=wake, interval=3600)
    wake.now()
    lookout.forget()
    wake.rest(0)
    with lookout.beside("blake3:x", StopEvent()) as stop:
        for number in (1, 2):
            wake.now()
            eventually(lambda number=number: len(looks) == number, "it looks")  # type: ignore[misc]
            assert not stop.is_set()
        wake.rest(0)
        wake.now()
        assert stop.wait(60)
        assert stop.superseded
    assert looks == ["blake3:x"] * 3
    assert wake._event.is_set(), "the next pass begins at once"


def test_the_agents_own_stop_ends_a_pass_without_superseding_it() -> None:
    """Both ends are one stop for what takes time, and two for what is said of it."""
    agent = StopEvent()
    stop = PassStop(agent)
    assert not stop.wait(0.01)
    threading.Timer(0.05, agent.set).start()
    assert stop.wait(60)
    assert not stop.superseded
