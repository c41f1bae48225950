"""Locked native environments in plans, and through the loop of a simulated node."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.planner import plan
from schemas.digests import digest_text
from schemas.memory import Hold
from schemas.observation import Present, StoredEnvironment, Unknown
from schemas.target import locked_environment
from tests.support.builders import (
    NOW,
    converged,
    desired,
    good,
    instance,
    node,
    observed,
    runtime,
    snapshot,
    stored,
    target,
)
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.observation import Observed

PYTHON = "cpython 3.12.1 linux x86_64"


def lock(name: str = "main") -> dict[str, str]:
    """A lock of a snapshot."""
    return {"path": "runtimes/main.lock", "digest": digest_text(f"lock {name}")}


def environment(name: str = "main") -> str:
    """What comes of it here."""
    return locked_environment(lock(name)["digest"], PYTHON)


LOCKED = snapshot(runtimes=(runtime(native={"lock": lock()}),))
TARGET = target(environment=environment(), lock=lock())


def having(seen: Observed, *names: str) -> Observed:
    """The same node with environments."""
    found = {environment(name): StoredEnvironment(environment(name), lock(name)["digest"], 5) for name in names}
    return replace(seen, state=replace(seen.state, interpreter=PYTHON, environments=Present(found)))


def text(document: Any, seen: Observed) -> list[str]:
    """Actions with their needs, then what is held."""
    made = plan(desired(document), seen, node(), NOW)
    lines = [f"{action.id}{' <- ' + ' '.join(action.needs) if action.needs else ''}" for action in made.actions]
    return [*lines, *(f"held {held.subject} {held.reason}" for held in made.held)]


def test_it_is_installed_before_anything_is_stopped() -> None:
    """The old instance's stop and the start both wait for it (I4)."""
    old = target(environment=digest_text("another"))
    seen = having(converged(old))
    assert text(LOCKED, seen) == [
        "install/environment",
        "create/m:v1 <- install/environment",
        f"stop/{instance(old).name} <- install/environment create/m:v1",
        f"start/m:v1 <- install/environment create/m:v1 stop/{instance(old).name}",
        "validate/m:v1 <- start/m:v1",
    ]


def test_one_that_is_here_is_compared_before_a_start() -> None:
    """Also with nothing to stop (I2)."""
    made = text(LOCKED, having(observed(models=(stored(),)), "main"))
    assert made[:2] == ["verify/environment", "start/m:v1 <- verify/environment"]


def test_what_runs_needs_nothing() -> None:
    """No action for what serves from it."""
    assert text(LOCKED, having(converged(TARGET), "main")) == []


def test_it_is_the_lock_s_and_the_interpreter_s() -> None:
    """Another lock or another Python is another environment, and what was proven in one says nothing of the other."""
    seen = having(converged(TARGET), "main")
    newer = replace(seen, state=replace(seen.state, interpreter="cpython 3.13.0 linux x86_64"))
    assert "install/environment" in text(LOCKED, newer)
    other = snapshot(runtimes=(runtime(native={"lock": lock("other")}),), sequence=2)
    assert "install/environment" in text(other, seen)


def test_a_failed_installation_waits_and_what_serves_goes_on() -> None:
    """With backoff: neither a stop nor a start (I4, I6)."""
    old = target(environment=digest_text("another"))
    hold = Hold(environment(), "EnvironmentUnavailable", "no wheel", 1, NOW + timedelta(minutes=1))
    seen = having(converged(old, holds={environment(): hold}))
    assert text(LOCKED, seen) == ["held environment EnvironmentUnavailable"]


def test_what_cannot_be_seen_blocks() -> None:
    """An unreadable folder is not an empty one (I3)."""
    seen = converged(target(environment=digest_text("another")))
    seen = replace(seen, state=replace(seen.state, interpreter=PYTHON, environments=Unknown("input/output error")))
    assert text(LOCKED, seen) == ["held environment EnvironmentUnavailable"]


def test_what_nobody_names_is_removed_once_only_the_target_runs() -> None:
    """The last known good's stays, and so does everything while another instance is there (I5, I8)."""
    seen = having(converged(TARGET), "main", "old")
    assert text(LOCKED, seen) == [f"remove/{environment('old')}"]
    kept = target(environment=environment("old"), lock=lock("old"))
    assert text(LOCKED, replace(seen, memory=replace(seen.memory, last_known_good=good(kept)))) == []
    other = instance(kept, intent="b2", status="exited")
    both = having(converged(TARGET), "main", "old")
    both = replace(both, state=replace(both.state, backends={"native": Present((instance(TARGET), other))}))
    assert f"remove/{environment('old')}" not in text(LOCKED, both)


def test_nothing_is_removed_on_an_unverified_word() -> None:
    """A draft names nothing away (I8)."""
    seen = having(converged(TARGET), "main", "old")
    made = plan(desired(LOCKED, verified=False), seen, node(), NOW)
    assert made.actions == ()


# --- through the loop ---------------------------------------------------------------------------------------------


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A node with nothing on it."""
    return SimulatedNode(tmp_path)


def kept(name: str) -> str:
    """Digest of the bytes that the simulated node has of a lock."""
    return digest_text(lock(name)["digest"])


def offered(name: str, sequence: int, version: str = "1.0") -> Any:
    """A snapshot with a lock."""
    return snapshot(runtimes=(runtime(native={"lock": lock(name)}, version=version),), sequence=sequence)


def test_a_node_installs_serves_swaps_and_clears_up(simulated: SimulatedNode) -> None:
    """From nothing to Active, to a second lock, and the first is removed in the end; a pass more has nothing to do."""
    first = simulated.run(offered("main", 1))
    assert first.exit_code == 0
    assert simulated.serving() == ["m:v1"]
    assert simulated.run(offered("other", 2)).exit_code == 0
    simulated.run()
    assert [one.lock for one in simulated.environments.list().values()] == [kept("other")]
    assert simulated.run().outcomes == ()


def test_a_changed_environment_is_installed_again_before_it_is_started(simulated: SimulatedNode) -> None:
    """The comparison fails, it is made good, and only then something is started from it (I2)."""
    simulated.run(offered("main", 1))
    (digest,) = simulated.environments.list()
    simulated.environments.changed.add(digest)
    for item in simulated.room.running():
        simulated.room.kill(item.name)
    result = simulated.run()
    assert [outcome.error.reason for outcome in result.outcomes if outcome.error] == ["EnvironmentChanged"]
    done = [outcome.action.kind for outcome in result.outcomes if outcome.status == "done"]
    assert done.index("install-environment") < done.index("start-instance")
    assert simulated.serving() == ["m:v1"]


def test_a_lock_that_brings_another_version_is_refused(simulated: SimulatedNode) -> None:
    """What the snapshot says of the engine is what must be there; the last known good goes on."""
    simulated.run(offered("main", 1))
    result = simulated.run(offered("other", 2, version="2.0"))
    assert [outcome.error.reason for outcome in result.outcomes if outcome.error] == ["Incompatible"]
    assert simulated.serving() == ["m:v1"]
    assert [one.lock for one in simulated.environments.list().values()] == [kept("main")]


def test_wheels_that_cannot_be_had_leave_what_serves(simulated: SimulatedNode) -> None:
    """And are asked for again when the backoff is over."""
    simulated.run(offered("main", 1))
    simulated.environments.unavailable = "no wheel"
    simulated.run(offered("other", 2))
    assert simulated.serving() == ["m:v1"]
    simulated.environments.unavailable = ""
    simulated.later(minutes=1)
    assert simulated.run().exit_code == 0
    assert kept("other") in {one.lock for one in simulated.environments.list().values()}
