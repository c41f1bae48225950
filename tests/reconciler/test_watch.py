"""The loop of the daemon and what wakes it: real signals' handlers aside, everything that decides when to look."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.tempo import Next, Tempo
from reconciler.triggers import Sights, triggers
from reconciler.watch import Wake, watch
from runtime.backends.lock_follower import LockFollower
from runtime.host import SystemClock, SystemRandomness
from schemas.errors import DownloadFailed, SourceUnreachable
from schemas.plan import Held
from schemas.refusals import Expired
from tests.desired_state.network import git
from tests.reconciler.test_source import fresh
from tests.support.builders import NOW
from tests.support.simulated_node import CountingRandomness, SteppingClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 30.0


def idle_pass() -> Any:
    """A pass with nothing to say."""
    return SimpleNamespace(next=None)


class Resting(Wake):
    """Records for how long the loop rests, and ends it after some rests."""

    def __init__(self, rests: int) -> None:
        super().__init__()
        self.rests: list[float] = []
        self.left = rests

    def rest(self, seconds: float) -> None:
        """Do not rest; remember."""
        self.rests.append(seconds)
        self.left -= 1
        if self.left == 0:
            self.stop()


def run(wake: Resting, run_pass: Any) -> list[Any]:
    """Run the loop to its end; what was reported."""
    reported: list[Any] = []
    watch(
        run_pass,
        wake=wake,
        tempo=Tempo(30, CountingRandomness()),
        clock=SteppingClock(),
        reported=reported.append,
    )
    return reported


def test_a_rest_is_used_and_given_up_when_something_happens() -> None:
    """What is done while resting is told to stop when the loop is woken, and when the time is up."""
    clock = SteppingClock()
    wake = Wake()
    rest = wake.until(clock, 30)
    assert not rest.is_set()
    wake.now()
    assert rest.is_set()
    assert rest.wait(30), "at once"
    wake.rest(0)
    assert not rest.is_set()
    clock.moment += timedelta(seconds=31)
    assert rest.is_set()
    assert rest.wait(30)


@pytest.mark.parametrize("found", [True, False])
def test_what_was_found_while_resting_is_looked_at_without_a_rest(found: bool) -> None:
    """Bit rot does not wait for the interval; where nothing was found the rest goes on, for what is left of it."""
    wake = Resting(1)
    idled: list[bool] = []

    def idle(rest: Any) -> bool:
        idled.append(rest.is_set())
        if len(idled) > 2:
            wake.stop()
        return found

    passes: list[int] = []
    watch(
        lambda: passes.append(1) or idle_pass(),  # type: ignore[func-returns-value]
        wake=wake,
        tempo=Tempo(30, CountingRandomness()),
        clock=SteppingClock(),
        reported=lambda _: None,
        idle=idle,
    )
    assert len(passes) == (3 if found else 1)
    assert [round(seconds) for seconds in wake.rests] == ([] if found else [30])


def test_a_disk_that_fails_while_resting_ends_no_loop(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and tried again in the next rest."""
    wake = Resting(2)

    def idle(_rest: Any) -> bool:
        raise DownloadFailed("scrubbing: Input/output error")

    watch(
        idle_pass,
        wake=wake,
        tempo=Tempo(30, CountingRandomness()),
        clock=SteppingClock(),
        reported=lambda _: None,
        idle=idle,
    )
    assert len(wake.rests) == 2
    assert "Input/output error" in caplog.text


def test_passes_follow_each_other_at_the_interval() -> None:
    """Nothing happens: one pass per interval."""
    wake = Resting(3)
    assert len(run(wake, idle_pass)) == 3
    assert wake.rests == pytest.approx([30, 30, 30])


def test_a_pass_says_when_the_next_one_comes() -> None:
    """The loop rests until then, and no longer."""
    clock = SteppingClock()
    soon = Next(clock.now().replace(second=7), "a: Backoff")
    wake = Resting(2)
    results = [SimpleNamespace(next=soon), SimpleNamespace(next=Next(clock.now(), "now"))]
    run(wake, iter(results).__next__)
    assert wake.rests == [pytest.approx(7, abs=0.1), 0.0]


def test_what_comes_first_is_waited_for_and_named() -> None:
    """A backoff is not waited out by a whole interval, and does not make the loop a busy one."""
    tempo = Tempo(30, CountingRandomness())
    soon = Held(subject="a", reason="Backoff", message="m", until=NOW + timedelta(seconds=7))
    past = Held(subject="b", reason="OutsideWindow", message="m", until=NOW)
    plan = SimpleNamespace(held=(soon, Held(subject="c", reason="Rejected", message="m")))
    coming = tempo.after(NOW, None, plan)  # type: ignore[arg-type]
    assert (coming.at, coming.why) == (NOW + timedelta(seconds=7), "a: tried again after Backoff")
    assert [item.why for item in coming.coming] == [coming.why, "the repositories are asked again"]
    plan = SimpleNamespace(held=(soon, past))
    coming = tempo.after(NOW, None, plan)  # type: ignore[arg-type]
    assert (coming.at, coming.why) == (NOW + timedelta(seconds=1), "b: its window opens")
    retest, over = Next(NOW + timedelta(hours=2), "a retest"), Next(NOW, "what is due is done in the pass itself")
    assert tempo.after(NOW, None, None, None, [retest, over]).coming[1:] == (retest,)
    expiry = tempo.after(NOW, None, None, NOW + timedelta(seconds=3))
    assert (expiry.at, expiry.why) == (NOW + timedelta(seconds=4), "the snapshot expires")
    assert tempo.after(NOW, None, None, NOW).wait(NOW) == 30, "what has expired does not expire again"


def test_repositories_that_do_not_answer_are_asked_less_often() -> None:
    """The wait doubles up to its cap, and one answer sets it back; a refusal is an answer."""
    tempo = Tempo(30, CountingRandomness())
    away = SourceUnreachable("no route to host")
    waits = [tempo.after(NOW, away).wait(NOW) for _ in range(7)]
    assert waits == [60, 120, 240, 480, 600, 600, 600]
    assert tempo.after(NOW, None).wait(NOW) == 30
    assert tempo.after(NOW, Expired("over")).wait(NOW) == 30
    assert tempo.after(NOW, away).wait(NOW) == 60
    assert Tempo(3600, CountingRandomness()).after(NOW, away).wait(NOW) == 3600


def test_a_refused_pass_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """What a pass raises does not end the daemon."""

    def refused() -> Any:
        raise SourceUnreachable("no route to host")

    wake = Resting(2)
    assert run(wake, refused) == []
    assert caplog.text.count("SourceUnreachable: no route to host") == 2


def test_reload_leaves_the_loop() -> None:
    """SIGHUP ends the inner loop, so that the configuration is read again."""
    wake = Resting(5)

    def hang_up() -> Any:
        wake.now(reload=True)
        return idle_pass()

    assert len(run(wake, hang_up)) == 1
    assert not wake.is_set()


def test_waking_ends_a_rest() -> None:
    """Being woken is noticed at once, also when it came before the rest began."""
    wake = Wake()
    wake.now()
    wake.rest(PATIENCE)
    threading.Timer(0.01, wake.now).start()
    wake.rest(PATIENCE)


class Woken(Wake):
    """Tells a test that it was woken."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def now(self, *, reload: bool = False) -> None:
        """Remember."""
        self.reload = self.reload or reload
        self.seen.set()


@pytest.mark.parametrize("branch", ["main", "lines/stable"])
def test_a_commit_in_a_local_repository_wakes(tmp_path: Path, branch: str) -> None:
    """A branch that moves on this machine is seen without a poll, also after its refs were packed."""
    origin = fresh(tmp_path / "origin")
    git(origin.folder, "checkout", "-q", "-B", branch)
    wake = Woken()
    with triggers(wake, Sights(urls=(origin.url,), branch=branch)):
        for _ in range(2):
            # The watcher takes a moment to begin: commit until it has seen one.
            eventually_woken(wake, origin.commit)
            git(origin.folder, "pack-refs", "--all", "--no-prune")
    assert not wake.reload


def eventually_woken(wake: Woken, again: Callable[[], object]) -> None:
    """Do something until it has woken the loop."""
    for _attempt in range(100):
        again()
        if wake.seen.wait(PATIENCE / 100):
            break
    assert wake.seen.is_set()
    wake.seen.clear()


def test_a_changed_configuration_is_read_again(tmp_path: Path) -> None:
    """However it is written: in place, or renamed into place. What else lies in its folder is of no interest."""
    config = tmp_path / "node.yaml"
    config.write_text("a")
    wake = Woken()

    def replace() -> None:
        (tmp_path / "other").write_text("x")
        (tmp_path / "other").rename(config)

    with triggers(wake, Sights(config=config)):
        for change in (lambda: config.write_text("b"), replace):
            eventually_woken(wake, change)
            assert wake.reload
            wake.reload = False
        (tmp_path / "neighbour").write_text("x")
        assert not wake.seen.wait(0.5)


def test_the_end_of_a_process_that_holds_a_lock_wakes(tmp_path: Path) -> None:
    """One that was there at the start, and one that came with a pass; each once, and closing ends the thread."""
    wake = Woken()

    def hold(name: str) -> subprocess.Popen[bytes]:
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        code = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        code += "print(flush=True); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code, str(folder / "lock")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    first = hold("one")
    before = threading.active_count()
    with triggers(wake, Sights(instances=(LockFollower([tmp_path / "run", tmp_path / "missing"]),))) as renew:
        second = hold("two")
        renew()
        assert not wake.seen.is_set()
        for process in (first, second):
            process.kill()
            process.wait()
            assert wake.seen.wait(PATIENCE)
            wake.seen.clear()
        renew()
        assert not wake.seen.is_set()
    assert threading.active_count() == before


def test_the_real_clock_and_chance_fit_the_loop() -> None:
    """The loop runs on what `--watch` gives it."""
    wake = Resting(1)
    watch(
        idle_pass,
        wake=wake,
        tempo=Tempo(10, SystemRandomness()),
        clock=SystemClock(),
        reported=lambda _result: None,
    )
    assert 9 <= wake.rests[0] <= 11


def test_wake_is_a_stop() -> None:
    """Whoever works is told to end by the same object."""
    wake = Wake()
    assert not wake.is_set()
    assert not wake.wait(0)
    wake.stop()
    assert wake.is_set()
    assert wake.wait(PATIENCE)
