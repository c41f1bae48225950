"""`reconcile doctor`: what is broken on purpose is found and named, with its remedy; nothing is changed."""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.published import LONG_SECONDS, SILENT_SECONDS
from reconciler.state_dir import StateDir
from runtime.backends.describe import describe
from runtime.host import SystemClock
from schemas.errors import EngineUnreachable
from tests.reconciler.cli.test_node import Machine
from tests.reconciler.test_pipeline import A
from tests.support.builders import NOW
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A node that has made its first pass."""
    # The documents of these tests are of early 2026.
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)
    machine = Machine(tmp_path, monkeypatch)
    machine.init()
    machine.run(code=6)
    return machine


def checks(machine: Machine, *, code: int = 0) -> dict[str, list[dict[str, str]]]:
    """What the doctor says of each subject."""
    document = json.loads(machine.run("doctor", "--json", code=code).output)
    assert document["formatVersion"] == "1"
    found: dict[str, list[dict[str, str]]] = {}
    for check in document["checks"]:
        found.setdefault(check["subject"], []).append(check)
    return found


def failures(machine: Machine) -> dict[str, str]:
    """What is broken, and how to mend it."""
    found = checks(machine, code=1)
    return {
        name: f"{check['message']} | {check['mend']}"
        for name, several in found.items()
        for check in several
        if check["verdict"] == "failure"
    }


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """A folder's files, with their modes, times and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def test_a_sound_node(machine: Machine) -> None:
    """Nothing is broken; every part is looked at; and nothing is changed by looking (I9)."""
    before = everything(machine.folder / "state")
    found = checks(machine)
    assert {"configuration", "state directory", "identity", "journal", "trust", "snapshot", "disk"} <= set(found)
    assert {"clock", "repository", "native", "GPUs", "front", "daemon"} <= set(found)
    assert all(check["verdict"] != "failure" for several in found.values() for check in several)
    assert everything(machine.folder / "state") == before
    text = machine.run("doctor").output
    assert "FAILURE" not in text
    assert "ok       repository: " in text


def test_every_warning_and_failure_says_how_to_mend_it(machine: Machine) -> None:
    """Whatever is not well comes with what to do about it (I11)."""
    (machine.folder / "state").chmod(0o777)
    machine.config.write_text(machine.config.read_text().replace("origin", "nowhere"))
    for several in checks(machine, code=1).values():
        assert all(check["mend"] for check in several if check["verdict"] != "ok")


def _others_may_write(machine: Machine) -> None:
    (machine.folder / "state").chmod(0o777)


def _readable_key(machine: Machine) -> None:
    StateDir(machine.folder / "state").identity.chmod(0o644)


def _no_repository(machine: Machine) -> None:
    (machine.folder / "origin").rename(machine.folder / "elsewhere")


def _broken_journal(machine: Machine) -> None:
    journal = StateDir(machine.folder / "state").journal
    for path in journal.parent.glob("state.db*"):
        path.unlink()
    journal.write_bytes(b"no database" * 1000)


def _no_docker(machine: Machine) -> None:
    text = machine.config.read_text()
    machine.config.write_text(text.replace("backends:", f"backends:\n  docker: {{socket: {machine.folder}/none.sock}}"))


def _nobody_home(machine: Machine) -> None:
    path = machine.folder / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    text = machine.config.read_text()
    machine.config.write_text(text.replace("backends:", f"backends:\n  podman: {{socket: {path}}}"))


def _no_room(machine: Machine) -> None:
    machine.config.write_text(machine.config.read_text() + "policy: {reserve: 900TiB}\n")


def _damaged_instance(machine: Machine) -> None:
    folder = machine.folder / "state" / "run" / "instances" / "reconcile-testnet-a1"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "subject", "words"),
    [
        (_others_may_write, "state directory", "chmod 700"),
        (_readable_key, "identity", "chmod 600"),
        (_no_repository, "repository", "git ls-remote"),
        (_broken_journal, "journal", "state.db"),
        (_no_docker, "docker", "start dockerd"),
        (_nobody_home, "podman", "is podman running?"),
        (_damaged_instance, "native", "remove that file's folder"),
        (_no_room, "disk", "reconcile gc --dry-run"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_what_is_broken_is_found(machine: Machine, harm: Callable[[Machine], None], subject: str, words: str) -> None:
    """One thing broken: it is named, with its remedy, and nothing else is blamed."""
    harm(machine)
    found = failures(machine)
    assert set(found) == {subject}
    assert words in found[subject]


def test_a_daemon_is_seen_and_left_alone(machine: Machine) -> None:
    """Its process is named, and the lock stays its own (I9)."""
    state = StateDir(machine.folder / "state")
    with state.lock():
        found = checks(machine)["daemon"][0]
        assert f"process {os.getpid()} holds" in found["message"]
        assert found["verdict"] == "warning", "nobody listens: a command by hand, or a socket that was removed"
        assert state.holder() == str(os.getpid())
    assert state.holder() is None


def test_a_daemon_that_hangs_is_found(machine: Machine) -> None:
    """Its process lives and holds the node, and has not said anything for long: it does not look after it."""
    state = StateDir(machine.folder / "state")
    node = SimulatedNode(machine.folder / "other")
    status = node.run(A).status
    assert status.plan is not None
    step = status.plan.steps[0].model_copy(update={"state": "running"})
    begun = status.plan.model_copy(update={"ended_at": None, "steps": (step,)})

    def said(seconds: float, *, working: bool, code: int = 0) -> dict[str, str]:
        plan = begun if working else status.plan
        when = {"updated_at": NOW - timedelta(seconds=seconds), "plan": plan, "serving": None}
        state.status.write_text(status.model_copy(update=when).to_json())
        return checks(machine, code=code)["daemon"][0]

    state.run.mkdir(exist_ok=True)
    with state.lock(), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.run / "control.sock"))
        assert said(60, working=False)["verdict"] == "ok"
        silent = said(2 * SILENT_SECONDS, working=False, code=1)
        assert (silent["verdict"], "has said nothing for 30 minutes" in silent["message"]) == ("failure", True)
        assert "has said nothing for 30 minutes" in machine.run("status").output
        assert said(2 * SILENT_SECONDS, working=True)["verdict"] == "ok", "a start takes its time"
        assert "download/a:v1" in said(2 * LONG_SECONDS, working=True, code=1)["message"]


def test_a_front_that_is_gone_while_something_serves(machine: Machine) -> None:
    """Clients find nobody, although the runtime is well."""
    state = StateDir(machine.folder / "state")
    assert checks(machine)["front"][0]["verdict"] == "ok", "nothing serves yet: it is not started yet"
    status = SimulatedNode(machine.folder / "other").run(A).status
    state.status.write_text(status.to_json())
    assert checks(machine, code=1)["front"][0]["verdict"] == "failure"


def test_a_machine_that_is_no_node(machine: Machine) -> None:
    """Without a state directory, that is the finding, and where it ends."""
    (machine.folder / "state").rename(machine.folder / "gone")
    found = failures(machine)
    assert set(found) == {"state directory"}
    assert "reconcile init" in found["state directory"]


@pytest.mark.parametrize("host", ["docker_host", "podman_host"])
def test_a_real_engine_describes_itself(host: str, request: pytest.FixtureRequest) -> None:
    """Docker's and Podman's own answers: version, API, storage, runtimes."""
    facts = describe(Path(str(request.getfixturevalue(host)).removeprefix("unix://")))
    assert facts.version
    assert facts.api >= (1, 41)
    assert "runc" in facts.runtimes
    assert facts.storage


def test_a_socket_of_something_else(tmp_path: Path) -> None:
    """A file that is no socket is an error, not a guess."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineUnreachable):
        describe(tmp_path / "file")
