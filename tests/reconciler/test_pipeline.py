"""Passes over a whole node on simulated parts: convergence, the way back, crashes."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.memory import AskCheck
from runtime.engines.simulated import ENVIRONMENT
from runtime.host import DurableFiles, StopEvent
from schemas.errors import DiskFailed, NoSpace, SourceUnreachable, StalePlan
from schemas.refusals import Expired, SignaturesPending, ThresholdNotMet
from tests.support.builders import assignment, hardware, manifest_digest, model, node, snapshot
from tests.support.histories import NAMES, mishap, worlds
from tests.support.simulated_node import CrashError, FixedHardware, Recorder, SimulatedNode, conditions, states

V1 = snapshot()
V2 = snapshot(models=(model(), model(version="v2", name="m")), assignments=(assignment("m:v2"),), sequence=2)


def versions(*names: str, serve: str, sequence: int, **spec: Any) -> Any:
    """A snapshot of several models, each with a probe of its own."""
    models = tuple(model(name) for name in names)
    return snapshot(models=models, assignments=(assignment(f"{serve}:v1"),), sequence=sequence, **spec)


A = versions("a", serve="a", sequence=1)
B = versions("a", "b", serve="b", sequence=2)
C = versions("a", "b", "c", serve="c", sequence=3)


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A fresh node."""
    return SimulatedNode(tmp_path / "state")


def test_first_pass_ends_ready(simulated: SimulatedNode) -> None:
    """From nothing to a served, validated model in one pass; the next has nothing to do (I2)."""
    result = simulated.run(A)
    assert (result.exit_code, simulated.serving(), states(result)) == (0, ["a:v1"], {"a:v1": "Active"})
    assert conditions(result)["Ready"] == "True"
    again = simulated.run()
    assert again.outcomes == ()
    assert again.exit_code == 0


def test_swap_and_the_old_model_stays_active(simulated: SimulatedNode) -> None:
    """After a swap the new model serves, and never did two run at once (I3)."""
    simulated.run(A)
    result = simulated.run(B)
    assert (result.exit_code, simulated.serving()) == (0, ["b:v1"])
    assert states(result) == {"a:v1": "Active", "b:v1": "Active"}
    assert simulated.room.most_running == 1


def test_wrong_bytes_are_refused_and_what_serves_goes_on(simulated: SimulatedNode) -> None:
    """A model whose bytes do not match is never started; the old one is not even stopped (I2, I4)."""
    simulated.run(A)
    served = simulated.room.running()
    simulated.shelf.corrupt_sources.add(manifest_digest("b:v1"))
    result = simulated.run(B)
    assert result.exit_code == 6
    assert simulated.room.running() == served
    assert states(result)["b:v1"] == "Failed"
    assert result.status.held[0].reason == "ModelCorrupt"


def test_repaired_mirror_is_tried_again_after_the_backoff(simulated: SimulatedNode) -> None:
    """A hash failure downloads again, with backoff, without a person (I5)."""
    simulated.run(A)
    simulated.shelf.corrupt_sources.add(manifest_digest("b:v1"))
    simulated.run(B)
    fetched = simulated.shelf.fetched
    simulated.shelf.corrupt_sources.clear()
    simulated.run()
    assert simulated.shelf.fetched == fetched, "nothing is fetched before its time"
    simulated.later(minutes=1)
    assert simulated.run().exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_failed_probe_goes_back_and_is_not_repeated(tmp_path: Path) -> None:
    """A model that answers wrongly is replaced by the last known good in the same pass, and remembered (I5)."""
    simulated = SimulatedNode(tmp_path / "state", lies=frozenset({manifest_digest("b:v1")}))
    simulated.run(A)
    result = simulated.run(B)
    assert result.exit_code == 6
    assert simulated.serving() == ["a:v1"]
    assert states(result) == {"a:v1": "Active", "b:v1": "Failed"}
    assert conditions(result)["RolledBack"] == "True"
    assert simulated.run().outcomes == ()
    assert simulated.run(C).exit_code == 0, "another subject is tried"
    assert simulated.serving() == ["c:v1"]


def test_failed_start_goes_back(simulated: SimulatedNode) -> None:
    """An engine that ends while starting leads to the last known good as well (I5)."""
    simulated.run(A)
    simulated.room.bad_starts.add("b:v1")
    result = simulated.run(B)
    assert simulated.serving() == ["a:v1"]
    condition = result.status.condition("RolledBack")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "StartFailed")


def test_first_model_that_fails_is_stalled_and_nothing_serves(tmp_path: Path) -> None:
    """Without a last known good there is no way back: stalled, loudly, and nothing unproven serves (I2, I5)."""
    simulated = SimulatedNode(tmp_path / "state", lies=frozenset({manifest_digest("a:v1")}))
    result = simulated.run(A)
    assert (result.exit_code, simulated.serving()) == (6, [])
    assert conditions(result)["Stalled"] == "True"


def test_killed_engine_comes_back_validated(simulated: SimulatedNode) -> None:
    """A dead engine is replaced and validated again, and the pass calls it drift that was repaired."""
    simulated.run(A)
    name = simulated.room.running()[0].name
    simulated.room.kill(name)
    result = simulated.run()
    assert (result.exit_code, simulated.serving()) == (0, ["a:v1"])
    assert [outcome.action.kind for outcome in result.outcomes] == ["stop-instance", "start-instance", "validate-model"]
    drifted = result.status.condition("Drifted")
    assert drifted is not None
    assert drifted.reason == "Repaired"


def test_the_socket_folder_of_a_start_that_never_was_goes(simulated: SimulatedNode) -> None:
    """An agent that died between a folder and its instance leaves nothing for ever (I7), and takes nothing else."""
    run = simulated.node.state.run
    orphan, other, serving = (
        run / "reconcile-testnet-0a0b0c0d0e0f",
        run / "reconcile-mainnet-0a0b0c0d0e0f",
        run / "front",
    )
    for folder in (orphan, other, serving):
        folder.mkdir(parents=True)
    simulated.run(A)
    (name,) = [item.name for item in simulated.room.running()]
    assert {path.name for path in run.iterdir()} == {other.name, serving.name, name}


def test_crash_loop_ends_in_stalled(simulated: SimulatedNode) -> None:
    """An engine that dies again and again is not restarted for ever; later it gets another chance."""
    simulated.run(A)
    for _ in range(4):
        simulated.room.kill(simulated.room.running()[0].name)
        simulated.run()
        simulated.later(seconds=50)
        simulated.run()
    simulated.room.kill(simulated.room.running()[0].name)
    result = simulated.run()
    assert simulated.serving() == []
    assert conditions(result)["Stalled"] == "True"
    assert result.status.held[0].reason == "CrashLooping"
    simulated.later(minutes=11)
    simulated.run()
    assert simulated.serving() == ["a:v1"]


def test_changed_files_are_verified_and_a_bad_disk_is_repaired(simulated: SimulatedNode) -> None:
    """Bytes that may have changed are hashed; bytes that did are quarantined, repaired, and served anew (I2, I4)."""
    simulated.run(A)
    digest = manifest_digest("a:v1")
    simulated.shelf.touch(digest)
    assert [outcome.action.kind for outcome in simulated.run().outcomes] == ["verify-model"]
    simulated.shelf.touch(digest)
    simulated.shelf.corrupt_disk.add(digest)
    result = simulated.run()
    assert simulated.shelf.quarantined == [digest]
    assert [f"{outcome.status} {outcome.action.kind}" for outcome in result.outcomes] == [
        "failed verify-model",
        "done download-model",
        "done create-instance",
        "done stop-instance",
        "done start-instance",
        "done validate-model",
    ]
    assert result.exit_code == 0
    assert states(result)["a:v1"] == "Active"
    causes = [event.message for event in simulated.journal.events() if event.subject == "a:v1"]
    assert [cause for cause in causes if "-> Failed" in cause], "the transition is in the journal, with its cause"


def test_a_repair_that_fails_is_tried_again_with_backoff(simulated: SimulatedNode) -> None:
    """Only the first repair follows at once: sources that send wrong bytes are left alone for longer each time."""
    simulated.run(A)
    digest = manifest_digest("a:v1")
    simulated.shelf.taint(digest)
    simulated.shelf.corrupt_sources.add(digest)
    result = simulated.run()
    assert states(result)["a:v1"] == "Failed"
    assert result.status.held[0].reason == "ModelCorrupt"
    first = result.status.held[0].until
    assert first is not None
    assert simulated.run().outcomes == ()
    simulated.clock.moment = first + timedelta(seconds=1)
    second = simulated.run().status.held[0].until
    assert second is not None
    assert second - simulated.clock.moment > timedelta(seconds=50)
    simulated.shelf.corrupt_sources.clear()
    simulated.clock.moment = second + timedelta(seconds=1)
    assert states(simulated.run())["a:v1"] == "Active"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceUnreachable("no route to host"), 0),
        (SignaturesPending("1 of 2"), 0),
        (ThresholdNotMet("1 of 2"), 3),
        (Expired("yesterday"), 3),
    ],
)
def test_a_bad_source_never_stops_what_serves(simulated: SimulatedNode, error: Any, code: int) -> None:
    """Whatever is wrong with the source, the last known good serves on, and the condition says why (I6)."""
    simulated.run(A)
    simulated.source_error = error
    result = simulated.run()
    assert (result.exit_code, simulated.serving()) == (code, ["a:v1"])
    condition = result.status.condition("SourceVerified")
    assert condition is not None
    assert (condition.status != "True", condition.reason) == (True, error.reason)


def test_unavailable_backend_changes_nothing(simulated: SimulatedNode) -> None:
    """While the backend cannot be seen nothing is started; once it can, the node converges (I3)."""
    simulated.run(A)
    simulated.room.unavailable = "connection refused"
    result = simulated.run(B)
    assert result.exit_code == 6
    assert result.status.held[0].reason == "BackendUnavailable"
    simulated.room.unavailable = ""
    assert simulated.run().exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_suspended_node_says_so_and_resumes(simulated: SimulatedNode) -> None:
    """Suspension holds the change, with its own exit code; resuming lets it through."""
    simulated.run(A)
    simulated.journal.set_fact("suspended", "maintenance")
    result = simulated.run(B)
    assert (result.exit_code, simulated.serving()) == (5, ["a:v1"])
    simulated.journal.set_fact("suspended", "")
    assert simulated.run().exit_code == 0


def test_withdrawn_model_is_stopped_even_if_nothing_serves_then(simulated: SimulatedNode) -> None:
    """A withdrawn digest stops at once (I6)."""
    simulated.run(A)
    gone = versions("a", serve="a", sequence=2, withdrawn=({"digest": manifest_digest("a:v1"), "reason": "poisoned"},))
    result = simulated.run(gone)
    assert simulated.serving() == []
    assert result.exit_code == 6


def test_a_window_is_ignored_by_hand_and_on_record(simulated: SimulatedNode) -> None:
    """Outside every window nothing moves; a person can say otherwise, for one pass, and history and events say so."""
    simulated.run(A)
    window = {"days": ("tue",), "from": "02:00", "to": "05:00"}
    closed = snapshot(
        models=(model("a"), model("b")),
        assignments=(assignment("b:v1"),),
        sequence=2,
        policy={"windows": {"stage": (window,), "swap": (window,)}},
    )
    waiting = simulated.run(closed)
    assert simulated.serving() == ["a:v1"]
    assert waiting.exit_code == 5
    result = simulated.reconciler.run_pass(ignore_windows=True)
    assert simulated.serving() == ["b:v1"]
    assert result.exit_code == 0
    assert "outside its maintenance window, by hand" in simulated.journal.history(limit=1)[0].summary
    assert "WindowIgnored" in [event.reason for event in simulated.journal.events()]
    simulated.run(closed.model_copy(update={"metadata": closed.metadata.model_copy(update={"sequence": 3})}))
    assert [event.reason for event in simulated.journal.events()].count("WindowIgnored") == 1


def test_unlisted_model_goes_after_its_grace_of_running_time(simulated: SimulatedNode) -> None:
    """Removal waits for running time: a long gap between passes counts for little (I8)."""
    only_b = versions("b", serve="b", sequence=2, policy={"gc": {"grace": "5m"}})
    simulated.run(A)
    simulated.run(only_b)
    simulated.later(days=3)
    simulated.run()
    assert manifest_digest("a:v1") in simulated.shelf.stored
    for _ in range(4):
        simulated.later(minutes=2)
        simulated.run()
    assert manifest_digest("a:v1") not in simulated.shelf.stored
    assert simulated.serving() == ["b:v1"]


def test_disabled_model_is_inactive_and_comes_back_without_a_download(simulated: SimulatedNode) -> None:
    """Inactive is a state of configuration: the bytes stay, and so does the proof."""
    simulated.run(A)
    simulated.run(B)
    document = snapshot(
        models=(model("a", state="inactive"), model("b")), assignments=(assignment("b:v1"),), sequence=3
    )
    assert states(simulated.run(document))["a:v1"] == "Inactive"
    fetched = simulated.shelf.fetched
    assert states(simulated.run(versions("a", "b", serve="b", sequence=4)))["a:v1"] == "Active"
    assert simulated.shelf.fetched == fetched


def test_saved_plan_runs_only_if_it_is_still_the_same(simulated: SimulatedNode) -> None:
    """What was shown is what runs; anything else is stale."""
    simulated.run(A)
    simulated.offer(B)
    simulated.reconciler._source.refresh(simulated.clock.now())
    from reconciler.planner import plan

    accepted = simulated.journal.accepted()
    assert accepted is not None
    desired, observed = simulated.node.look(accepted.digest)
    saved = plan(desired, observed, simulated.config, simulated.clock.now())
    simulated.room.kill(simulated.room.running()[0].name)
    with pytest.raises(StalePlan):
        simulated.reconciler.run_pass(expected=saved)
    desired, observed = simulated.node.look(accepted.digest)
    fresh = plan(desired, observed, simulated.config, simulated.clock.now())
    assert simulated.reconciler.run_pass(expected=fresh).exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_status_is_published_for_readers(simulated: SimulatedNode) -> None:
    """Readers see what the pass reported, from a file, atomically written."""
    from reconciler.published import read_status

    result = simulated.run(A)
    assert read_status(simulated.node.state) == result.status


def test_idle_pass_writes_nothing(simulated: SimulatedNode) -> None:
    """A pass with nothing to do leaves journal and status untouched."""
    simulated.run(A)
    simulated.run()
    before = simulated.journal._db.total_changes
    stamp = simulated.node.state.status.stat().st_mtime_ns
    simulated.run()
    assert simulated.journal._db.total_changes == before
    assert simulated.node.state.status.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("lies", [False, True])
def test_crash_between_any_two_steps_converges(tmp_path: Path, lies: bool) -> None:
    """The agent dies before and after every action of a swap and of a rollback; the next run converges (I3, I7)."""
    bad = frozenset({manifest_digest("b:v1")}) if lies else frozenset()
    expected = "a:v1" if lies else "b:v1"
    point = 0
    crashed = True
    while crashed:
        point += 1
        simulated = SimulatedNode(tmp_path / f"{point}", lies=bad)
        simulated.run(A)
        simulated.recorder = Recorder(crash_at=point)
        simulated.restart()
        crashed = False
        try:
            simulated.run(B)
        except CrashError:
            crashed = True
        simulated.recorder = Recorder()
        simulated.restart()
        simulated.run()
        assert simulated.serving() == [expected], f"after a crash at point {point}"
        assert simulated.room.most_running == 1
        assert len(simulated.room.instances) == 1, "nothing is orphaned"
    assert point > 8


@settings(max_examples=60, deadline=None)
@given(history=worlds(), lies=st.sets(st.sampled_from(NAMES), max_size=2))
def test_plan_after_apply_is_empty(history: list[tuple[str, Any]], lies: set[str]) -> None:
    """Whatever happened before: once a pass has ended, planning again finds nothing to do (and one runtime at most)."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = frozenset(manifest_digest(f"{name}:v1") for name in lies)
        simulated = SimulatedNode(Path(folder) / "state", lies=wrong)
        for what, value in history:
            if what == "snapshot":
                simulated.offer(value)
            else:
                mishap(simulated, what, value)
            simulated.run()
            assert simulated.run().plan.actions == ()
            assert simulated.room.most_running <= 1
            for served in simulated.room.running():
                target = simulated.room.specs[served.name].target
                assert target.manifest not in wrong, "nothing that failed its probe goes on serving (I2)"
        simulated.journal.close()


def test_environment_of_the_native_engine_is_part_of_the_target(simulated: SimulatedNode) -> None:
    """What serves is bound to the installed engine, so an upgraded one is validated anew (I2)."""
    simulated.run(A)
    good = simulated.journal.memory(starts_since=simulated.clock.now()).last_known_good
    assert good is not None
    assert good.target.environment == ENVIRONMENT


def test_changed_accelerator_voids_the_proof(simulated: SimulatedNode) -> None:
    """A receipt from one machine does not speak for another: the model is validated again (I2)."""
    simulated.run(A)
    simulated.machine = FixedHardware(replace(hardware(), processor="Another CPU"))
    simulated.restart()
    assert [outcome.action.kind for outcome in simulated.run().outcomes] == ["validate-model"]


# --- the care of what is here -------------------------------------------------------------------------------------


def test_a_model_goes_to_cold_storage_and_comes_back_without_a_download(simulated: SimulatedNode) -> None:
    """Archived by the snapshot, and listed as active again: the states follow, and nothing is fetched."""
    simulated.run(A)
    simulated.run(B)
    put_away = snapshot(
        models=(model("a", state="archived"), model("b")), assignments=(assignment("b:v1"),), sequence=3
    )
    result = simulated.run(put_away)
    # The last known good stays at hand; once b has proven itself, a is no longer it.
    assert states(result)["a:v1"] == "Archived"
    assert list(simulated.shelf.archived) == [manifest_digest("a:v1")]
    assert simulated.run().outcomes == ()
    fetched = simulated.shelf.fetched
    result = simulated.run(versions("a", "b", serve="a", sequence=4))
    assert result.outcomes[0].action.kind == "restore-model"
    assert (states(result)["a:v1"], simulated.serving()) == ("Active", ["a:v1"])
    assert simulated.shelf.fetched == fetched
    assert not simulated.shelf.archived
    causes = [event.message for event in simulated.journal.events(limit=1000)]
    assert "a:v1: Active -> Archived (the snapshot lists it as archived)" in causes
    assert "a:v1: Archived -> Pending (brought back from cold storage and verified)" in causes


def test_bit_rot_found_while_idle_ends_in_a_repair_and_a_restart(simulated: SimulatedNode) -> None:
    """The scrub asks for a pass; the pass hashes, fetches what is bad, and swaps to the new files (I2, I4)."""
    simulated.run(A)
    digest = manifest_digest("a:v1")
    receipt = simulated.run().status.serving
    simulated.shelf.rotten.add(digest)
    assert simulated.reconciler.idle(StopEvent())
    result = simulated.run()
    kinds = [outcome.action.kind for outcome in result.outcomes]
    assert kinds[:3] == ["verify-model", "download-model", "create-instance"]
    assert kinds[3:] == ["stop-instance", "start-instance", "validate-model"]
    assert result.exit_code == 0
    assert receipt is not None
    assert result.status.serving is not None
    assert result.status.serving.receipt not in (None, receipt.receipt), "the old receipt speaks for nothing any more"
    assert not simulated.reconciler.idle(StopEvent())
    assert "BitRotFound" in [event.reason for event in simulated.journal.events(limit=1000)]


def test_the_scrub_is_off_where_its_rate_is_nothing(simulated: SimulatedNode) -> None:
    """An owner who sets no rate has no scrub."""
    simulated.config = node(backends={"native": {}}, models={"scrub": {"rate": "0B"}})
    simulated.restart()
    simulated.run(A)
    simulated.shelf.rotten.add(manifest_digest("a:v1"))
    assert not simulated.reconciler.idle(StopEvent())
    assert simulated.shelf.rotten


def test_an_unfinished_download_of_what_is_no_longer_listed_goes_after_its_grace(simulated: SimulatedNode) -> None:
    """It has no record of its own; its grace is counted in running time all the same, and ends when it is listed."""
    only_b = versions("b", serve="b", sequence=2, policy={"gc": {"grace": "5m"}})
    lost = manifest_digest("a:v1")
    simulated.run(only_b)
    simulated.shelf.partial[lost] = 10
    for _ in range(3):
        simulated.later(minutes=2)
        simulated.run()
    assert lost in simulated.shelf.partial
    for _ in range(2):
        simulated.later(minutes=2)
        simulated.run()
    assert lost not in simulated.shelf.partial
    assert not simulated.journal.memory(starts_since=simulated.clock.now()).leftovers


def test_the_grace_is_counted_where_each_pass_is_a_process_of_its_own(simulated: SimulatedNode) -> None:
    """A node that is run from a timer removes what is not listed, as a daemon does (I8)."""
    only_b = versions("b", serve="b", sequence=2, policy={"gc": {"grace": "5m"}})
    simulated.run(A)
    simulated.shelf.partial[manifest_digest("lost:v1")] = 10
    simulated.run(only_b)
    for _ in range(3):
        simulated.later(minutes=2)
        simulated.restart()
        simulated.run()
    assert manifest_digest("a:v1") in simulated.shelf.stored
    for _ in range(2):
        simulated.later(minutes=2)
        simulated.restart()
        simulated.run()
    assert manifest_digest("a:v1") not in simulated.shelf.stored
    assert not simulated.shelf.partial


def test_a_check_of_what_is_no_longer_stored_ends(simulated: SimulatedNode) -> None:
    """Nobody waits for ever for a verdict on bytes that are gone."""
    simulated.run(A)
    digest = manifest_digest("gone:v1")
    simulated.journal.apply([AskCheck(digest, "asked for")], simulated.clock.now())
    assert digest in simulated.journal.memory(starts_since=simulated.clock.now()).checks
    simulated.run()
    assert not simulated.journal.memory(starts_since=simulated.clock.now()).checks


# --- what the simulation found (each was a defect once) -------------------------------------------------------------


def _break(simulated: SimulatedNode, statement: str, error: Exception, *, skip: int = 0) -> None:
    """Make the journal's next statement of a kind fail, once, after so many that succeed."""
    real = simulated.journal._db

    class Failing:
        left = skip

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def execute(self, sql: str, parameters: Any = ()) -> Any:
            if sql.startswith(statement):
                self.left -= 1
                if self.left < 0:
                    simulated.journal._db = real
                    raise error
            return real.execute(sql, parameters)

    simulated.journal._db = Failing()  # type: ignore[assignment]


def full() -> sqlite3.OperationalError:
    """What SQLite says of a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT", "UPDATE intents"])
def test_a_full_disk_is_one_clear_error_and_the_next_pass_converges(simulated: SimulatedNode, statement: str) -> None:
    """A journal that cannot be written ends a pass, never the daemon; nothing is left half open (I6, I7, I11)."""
    simulated.run(A)
    simulated.offer(B)
    _break(simulated, statement, full(), skip=2)
    with pytest.raises(NoSpace, match="journal"):
        simulated.run()
    assert len(simulated.serving()) <= 1
    assert simulated.run().exit_code == 0
    assert simulated.serving() == ["b:v1"]
    assert "running" not in {item.outcome for item in simulated.journal.history()}


@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, NoSpace), (errno.EIO, DiskFailed)])
def test_a_file_that_cannot_be_written_fails_its_action_and_no_more(
    simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch, number: int, reason: type[Exception]
) -> None:
    """A start that finds no room for its folder waits, with a reason, and says nothing about its model (I5, I11)."""
    simulated.run(A)

    def refuse(_self: object, path: Path, *, mode: int = 0o755) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(DurableFiles, "make_folder", refuse)
    result = simulated.run(B)
    assert [type(one.error) for one in result.outcomes if one.status == "failed"][:1] == [reason]
    assert "runtime" in [item.subject for item in result.status.held]
    monkeypatch.undo()
    simulated.later(hours=2)
    assert simulated.run().exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_a_status_that_cannot_be_written_is_one_clear_error(
    simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass was made; that nobody can be told is an error with a reason, not the end of the daemon (I11)."""

    def refuse(_self: object, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(DurableFiles, "write", refuse)
    with pytest.raises(NoSpace, match=r"status\.json"):
        simulated.run(A)
    assert simulated.serving() == ["a:v1"]


def test_a_clock_that_is_set_back_does_not_stretch_a_wait(simulated: SimulatedNode) -> None:
    """A backoff set while the clock was forty days ahead is over when the clock is right again."""
    simulated.run(A)
    right = simulated.clock.moment
    simulated.later(days=20)
    simulated.shelf.corrupt_sources.add(manifest_digest("b:v1"))
    assert simulated.run(B).status.held[0].reason == "ModelCorrupt"
    simulated.shelf.corrupt_sources.clear()
    simulated.clock.moment = right + timedelta(seconds=1)
    assert simulated.run().exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_starts_in_the_future_are_no_crash_loop(simulated: SimulatedNode) -> None:
    """Restarts that were counted by a clock that was ahead do not keep an engine from coming back."""
    simulated.run(A)
    right = simulated.clock.moment
    simulated.later(days=20)
    for _ in range(4):
        simulated.room.kill(simulated.room.running()[0].name)
        simulated.run()
        simulated.later(seconds=50)
        simulated.run()
    simulated.clock.moment = right + timedelta(seconds=1)
    simulated.room.kill(simulated.room.running()[0].name)
    simulated.run()
    assert simulated.serving() == ["a:v1"]


def test_what_fails_its_probe_does_not_run_on_where_nothing_is_good(simulated: SimulatedNode) -> None:
    """A model that was good, fails a retest and has nothing behind it is stopped: it has lost its right to run (I2)."""
    simulated.run(A)
    simulated.later(hours=7)
    simulated.node.adapters.engines["llamacpp"].lies = frozenset({manifest_digest("a:v1")})  # type: ignore[attr-defined]
    result = simulated.run()
    assert simulated.serving() == []
    assert conditions(result)["Stalled"] == "True"


@pytest.mark.parametrize("state", [None, "Archived"])
def test_a_model_whose_record_a_crash_took_becomes_active(simulated: SimulatedNode, state: str | None) -> None:
    """Bytes in the store whose record was lost, or says that they are archived, are served and validated (I7)."""
    simulated.run(A)
    name, digest = simulated.room.running()[0].name, manifest_digest("a:v1")
    simulated.room.kill(name)
    if state is None:
        simulated.journal._db.execute("DELETE FROM models WHERE manifest = ?", (digest,))
    else:
        simulated.journal._db.execute("UPDATE models SET state = ?", (state,))
    assert states(simulated.run())["a:v1"] == "Active"
    assert simulated.serving() == ["a:v1"]


def test_the_last_known_good_is_repaired_from_the_snapshot_that_listed_it(
    simulated: SimulatedNode,
) -> None:
    """A model that the network no longer lists, and that this node would go back to, still has its sources (I5)."""
    simulated.run(A)
    simulated.shelf.taint(manifest_digest("a:v1"))
    simulated.room.bad_starts.add("b:v1")
    result = simulated.run(versions("b", serve="b", sequence=2))
    assert simulated.serving() == ["a:v1"]
    assert conditions(result)["RolledBack"] == "True"
