"""The loop of the daemon and what wakes it: real signals' handlers aside, everything that decides when to look."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.state_dir import StateDir
from reconciler.triggers import local_refs, notify, triggers
from reconciler.watch import Wake, watch
from runtime.host import SystemClock, SystemRandomness
from schemas.errors import DownloadFailed, SourceUnreachable
from tests.desired_state.network import git
from tests.reconciler.test_source import fresh
from tests.support.simulated_node import CountingRandomness, SteppingClock

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 30.0


def idle_pass() -> Any:
    """A pass with nothing to say."""
    return SimpleNamespace(plan=SimpleNamespace(held=()))


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
        interval=30,
        clock=SteppingClock(),
        randomness=CountingRandomness(),
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
        interval=30,
        clock=SteppingClock(),
        randomness=CountingRandomness(),
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
        interval=30,
        clock=SteppingClock(),
        randomness=CountingRandomness(),
        reported=lambda _: None,
        idle=idle,
    )
    assert len(wake.rests) == 2
    assert "Input/output error" in caplog.text


def test_passes_follow_each_other_at_the_interval() -> None:
    """Nothing happens: one pass per interval."""
    wake = Resting(3)
    assert len(run(wake, idle_pass)) == 3
    assert wake.rests == [30, 30, 30]


def test_a_hold_that_ends_sooner_shortens_the_rest() -> None:
    """A backoff is not waited out by a whole interval, and does not make the loop a busy one."""
    clock = SteppingClock()
    soon = SimpleNamespace(until=clock.now().replace(second=7))
    now = SimpleNamespace(until=clock.now())
    results = [SimpleNamespace(plan=SimpleNamespace(held=(item,))) for item in (soon, now)]
    wake = Resting(2)
    run(wake, iter(results).__next__)
    assert wake.rests == [pytest.approx(7, abs=0.1), 1.0]


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
        self.seen.set()


def test_a_commit_in_a_local_repository_wakes(tmp_path: Path) -> None:
    """A branch that moves on this machine is seen without a poll, also after its refs were packed."""
    origin = fresh(tmp_path / "origin")
    state = StateDir(tmp_path / "state")
    state.run.mkdir(parents=True)
    wake = Woken()
    with triggers(wake, state, [origin.url]):
        for _ in range(2):
            # The watcher takes a moment to begin: commit until it has seen one.
            for _attempt in range(100):
                origin.commit()
                if wake.seen.wait(PATIENCE / 100):
                    break
            assert wake.seen.is_set()
            wake.seen.clear()
            git(origin.folder, "pack-refs", "--all")


def test_notify_wakes_a_daemon_and_says_when_there_is_none(tmp_path: Path) -> None:
    """A hook can make the daemon look at once; a socket that nobody listens on is an error."""
    # Deeper than a socket's address has room for.
    state = StateDir(tmp_path / ("deep" * 30))
    state.run.mkdir(parents=True)
    with pytest.raises(SourceUnreachable, match="no daemon"):
        notify(state)
    wake = Woken()
    with triggers(wake, state, ["https://example.org/network.git"]):
        for _attempt in range(100):
            try:
                notify(state)
                break
            except SourceUnreachable:
                wake.wait(PATIENCE / 100)
        assert wake.seen.is_set()


def test_only_repositories_of_this_machine_are_watched(tmp_path: Path) -> None:
    """Everything else is polled."""
    origin = fresh(tmp_path / "origin")
    assert local_refs(origin.url) == local_refs(str(origin.folder))
    assert local_refs(origin.url)[0].name == "heads"
    for url in ("https://example.org/x.git", "ssh://host/x", "git@host:x", f"file://{tmp_path}/none"):
        assert local_refs(url) == ()


def test_the_real_clock_and_chance_fit_the_loop() -> None:
    """The loop runs on what `--watch` gives it."""
    wake = Resting(1)
    watch(
        idle_pass,
        wake=wake,
        interval=10,
        clock=SystemClock(),
        randomness=SystemRandomness(),
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
