"""The agent's hand on the front: the real process, found again, replaced, and outliving whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.backends import native_processes as processes
from runtime.backends.containment import Containment, blindness, containment
from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.front.route import Route
from runtime.host import host_ports
from schemas.errors import BackendUnavailable, StartFailed
from tests.support.front import STREAM, Answer, Engine, chunk, dial, eventually, question, whole

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

SETTINGS = FrontSettings()


class House:
    """A run folder with a keeper for each agent that there was."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.engines: list[Engine] = []

    def agent(self, settings: FrontSettings = SETTINGS) -> FrontKeeper:
        """A keeper, as an agent that was just started makes it."""
        return FrontKeeper(self.run, settings, uid=os.geteuid(), ports=host_ports())

    def engine(self, name: str, script: object) -> Route:
        """An instance in this process, and the route to it."""
        (self.run / name).mkdir(parents=True)
        engine = Engine(self.run / name / "engine.sock", script)  # type: ignore[arg-type]
        self.engines.append(engine)
        return Route("serving", name, name, "llamacpp", str(engine.path), os.getpid(), models=("m:v1",))

    def pids(self) -> list[int]:
        """Fronts that live."""
        folder = self.run / "front"
        found = [processes.lock_holder(item / "lock") for item in folder.iterdir()] if folder.exists() else []
        return [pid for pid in found if pid]

    def ask(self) -> bytes:
        """One question at the address."""
        with dial(self.run / "front.sock") as stream:
            stream.sendall(question())
            return Answer(stream).body


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house without a front, taken apart at the end."""
    made = House(tmp_path)
    yield made
    made.agent().stop()
    for engine in made.engines:
        engine.close()


class Waiting:
    """An instance that streams one event, then waits until it may end."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self, stream: socket.socket, _: bytes) -> None:
        """One stream."""
        stream.sendall(STREAM + chunk("data: 0\n\n"))
        self.begun.set()
        self.end.wait(60)
        stream.sendall(chunk("data: 1\n\n") + chunk(""))


def test_a_front_is_started_once_and_found_again(house: House) -> None:
    """The next agent neither starts another nor asks the first to end."""
    agent = house.agent()
    assert not agent.look().current
    assert agent.counts() is None
    agent.ensure()
    agent.lead(house.engine("a", lambda stream, _: stream.sendall(whole("a"))))
    assert house.ask() == b"a"
    (pid,) = house.pids()
    second = house.agent()
    second.ensure()
    seen, counts = second.look(), second.counts()
    assert (seen.current, seen.state, seen.intent, house.pids()) == (True, "serving", "a", [pid])
    assert counts is not None
    assert (counts.served, counts.in_flight) == (1, 0)


@pytest.mark.parametrize("damage", [b'{"x":', b"", b"[]", b'{"state": "serving", "models": 7}', b"\xff\xfe"])
def test_a_damaged_route_is_written_again(house: House, damage: bytes) -> None:
    """What a bad disk left leads nowhere that is known: the agent sees that, and can hold and lead (I7)."""
    agent = house.agent()
    agent.ensure()
    route = house.engine("a", lambda stream, _: stream.sendall(whole("a")))
    agent.lead(route)
    assert house.ask() == b"a"
    (house.run / "route.json").write_bytes(damage)
    seen = agent.look()
    assert (seen.current, seen.state, seen.intent) == (True, "none", "")
    assert agent.hold("a"), "it may have led there"
    assert agent.look().state == "holding"
    agent.lead(route)
    assert house.ask() == b"a"


@pytest.mark.parametrize("name", ["settings.json", "state.json"])
def test_a_front_whose_files_are_damaged_is_replaced(house: House, name: str) -> None:
    """Another takes the clients, and the one that cannot be told any more ends."""
    agent = house.agent()
    agent.ensure()
    agent.lead(house.engine("a", lambda stream, _: stream.sendall(whole("a"))))
    (before,) = house.pids()
    (folder,) = (house.run / "front").iterdir()
    (folder / name).write_text('{"half')
    assert not agent.look().current
    agent.ensure()
    assert agent.look().current
    eventually(lambda: bool(house.pids()) and before not in house.pids(), "the one before ends")
    assert house.ask() == b"a"


def test_looking_and_asking_change_nothing(house: House, tmp_path: Path) -> None:
    """A dry run is dry (I9)."""
    agent = house.agent()
    agent.look()
    agent.counts()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_agent_cuts_no_stream(house: House) -> None:
    """SIGKILL to the agent and to everything in its process group: the stream goes on to its end (I7)."""
    waiting = Waiting()
    route = house.engine("a", waiting)
    code = (
        "import os, sys, time; from pathlib import Path; from runtime.host import host_ports\n"
        "from runtime.front.keeper import FrontKeeper, FrontSettings\n"
        "FrontKeeper(Path(sys.argv[1]), FrontSettings(), uid=os.geteuid(), ports=host_ports()).ensure()\n"
        "print('started', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(house.run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"started\n"
        house.agent().lead(route)
        with dial(house.run / "front.sock") as stream:
            stream.sendall(question())
            assert waiting.begun.wait(60)
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
            waiting.end.set()
            answer = Answer(stream)
    assert (answer.body, answer.whole) == (b"data: 0\n\ndata: 1\n\n", True)
    assert house.agent().look().current


def test_a_killed_front_is_replaced(house: House) -> None:
    """Its folder is cleared away, the address answers again, the route is still followed."""
    agent = house.agent()
    agent.ensure()
    agent.lead(house.engine("a", lambda stream, _: stream.sendall(whole("a"))))
    (pid,) = house.pids()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: house.pids() == [], "it is dead")
    assert not agent.look().current
    agent.ensure()
    assert house.ask() == b"a"
    assert (len(house.pids()), len(list((house.run / "front").iterdir()))) == (1, 1)


def test_other_settings_take_over_without_cutting_a_stream(house: House) -> None:
    """The old front answers to the end, also to who came before the change; the new one takes who comes after."""
    waiting = Waiting()
    agent = house.agent()
    agent.ensure()
    agent.lead(house.engine("a", waiting))
    (old,) = house.pids()
    later = house.agent(replace(SETTINGS, connections=7))
    with dial(house.run / "front.sock") as stream:
        stream.sendall(question())
        assert waiting.begun.wait(60)
        assert not later.look().current
        later.ensure()
        assert later.look().current
        counts = later.counts()
        assert counts is not None
        assert counts.in_flight == 1, "the old front's stream is counted with the new one's"
        assert later.drain("a", seconds=0) == 1
        later.lead(house.engine("b", lambda stream, _: stream.sendall(whole("b"))))
        assert house.ask() == b"b"
        waiting.end.set()
        assert Answer(stream).whole
    eventually(lambda: old not in house.pids(), "the old one has ended")
    later.ensure()
    assert len(list((house.run / "front").iterdir())) == 1, "nothing of the old one is left"


def test_a_front_that_hangs_is_replaced_by_force(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer its agent would never end by itself."""
    monkeypatch.setattr("runtime.front.keeper.ANSWER_SECONDS", 0.2)
    house.agent().ensure()
    (pid,) = house.pids()
    os.kill(pid, signal.SIGSTOP)
    later = house.agent(replace(SETTINGS, connections=7))
    assert later.counts() is None
    assert later.drain("a", seconds=0) == 1, "what cannot be asked may have requests in flight"
    later.ensure()
    eventually(lambda: pid not in house.pids(), "it was killed")
    assert later.look().current


def test_draining_ends_when_the_last_answer_does(house: House) -> None:
    """New requests wait meanwhile, and get the new instance's answer."""
    waiting = Waiting()
    agent = house.agent()
    agent.ensure()
    agent.lead(house.engine("a", waiting))
    with dial(house.run / "front.sock") as stream, dial(house.run / "front.sock") as later:
        stream.sendall(question())
        assert waiting.begun.wait(60)
        assert agent.hold("a")
        assert agent.hold("a"), "again, after a crash"
        assert not agent.hold("b"), "another instance's route is left alone"
        later.sendall(question())
        threading.Timer(0.1, waiting.end.set).start()
        assert agent.drain("a", seconds=60) == 0
        assert Answer(stream).whole
        agent.lead(house.engine("b", lambda stream, _: stream.sendall(whole("b"))))
        assert Answer(later).body == b"b"


def test_a_front_that_cannot_start_says_why(house: House) -> None:
    """A group that cannot be given, a folder that cannot be written: its own words."""
    house.run.mkdir()
    (house.run / "front.sock").mkdir()
    with pytest.raises(StartFailed, match="directory"):
        house.agent().ensure()
    (house.run / "front.sock").rmdir()
    house.agent().ensure()
    assert house.agent().look().current


def test_an_agent_that_cannot_tell_who_listens_has_no_front(tmp_path: Path) -> None:
    """It is unknown, with the remedy, and not absent: none is started in the place of one that may serve (I3)."""
    blind = containment({"HostConfig": {"PidMode": ""}, "Mounts": []})

    class Engine:
        def containment(self) -> Containment:
            return blind

    settings = FrontSettings()
    keeper = FrontKeeper(tmp_path, settings, uid=os.geteuid(), ports=host_ports(), blind=lambda: blindness([Engine()]))
    with pytest.raises(BackendUnavailable, match="--pid host"):
        keeper.look()


def test_what_cannot_be_read_is_unknown_not_absent(house: House) -> None:
    """A disk that refuses is not taken for a front that is not there."""
    house.agent().ensure()
    (house.run / "route.json").mkdir()
    with pytest.raises(BackendUnavailable):
        house.agent().look()
    with pytest.raises(StartFailed):
        house.agent().hold("a")


def test_the_front_keeps_no_more_rights_than_it_needs(house: House) -> None:
    """As root: one capability, no network. Always: nothing that it executes could gain more."""
    house.agent().ensure()
    (pid,) = house.pids()
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert int(status["CapEff"], 16) == 1 << 1, "CAP_DAC_OVERRIDE, for the sockets of other users' engines"
        assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
