"""The control socket: who may ask, what is understood, what is heard meanwhile, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import asking, control
from reconciler.asking import ask
from reconciler.control import CONTROL_SOCKET, Asked, Audience, listening, short
from reconciler.loop import Reconciler
from reconciler.progress import Retelling
from reconciler.state_dir import StateDir
from reconciler.watch import Wake
from schemas.control import REQUEST_LIMIT, Apply, Notify, Reconcile, Reload, Retry, Suspend, Validate
from schemas.errors import (
    BackendUnavailable,
    DaemonUnreachable,
    DownloadFailed,
    PeerRefused,
    SourceUnreachable,
    StalePlan,
)
from tests.support.builders import snapshot
from tests.support.simulated_node import ScriptedSource, SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemas.control import Question

PATIENCE = 30.0


class Daemon:
    """The parts of a daemon that the socket needs, over a simulated node."""

    def __init__(self, folder: Path) -> None:
        # Deeper than a socket's address has room for.
        self.state = StateDir(folder / ("deep" * 30))
        self.state.run.mkdir(parents=True)
        self.wake = Wake()
        self.recorded: list[Question] = []
        self.audience = Audience(self._record, self.wake)

    def _record(self, question: Question) -> int:
        if isinstance(question, Retry):
            raise BackendUnavailable("the disk is on fire", hint="run")
        self.recorded.append(question)
        return len(self.recorded)

    @contextmanager
    def listens(self) -> Iterator[None]:
        """Serve the socket."""
        with listening(self.state.run / CONTROL_SOCKET, self.audience):
            yield

    def say(self, content: bytes) -> bytes:
        """Send anything, and read to the end."""
        with socket.socket(socket.AF_UNIX) as connection, short(self.state.run / CONTROL_SOCKET) as address:
            connection.settimeout(PATIENCE)
            connection.connect(address)
            connection.sendall(content)
            answer = b""
            while part := connection.recv(2**16):
                answer += part
        return answer


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon that does not listen yet."""
    return Daemon(tmp_path)


def test_what_is_asked_is_recorded_and_wakes(daemon: Daemon) -> None:
    """An operator's word is recorded before the answer, and the deciding thread is woken; a reload says so."""
    with pytest.raises(DaemonUnreachable, match="no daemon listens"):
        ask(daemon.state, Notify())
    with daemon.listens():
        assert ask(daemon.state, Suspend(why="lunch")).count == 1
        assert daemon.recorded == [Suspend(why="lunch")]
        assert not daemon.wake.reload
        assert ask(daemon.state, Reload()).count == 2
        assert daemon.wake.reload
    with pytest.raises(DaemonUnreachable, match="no daemon listens"):
        ask(daemon.state, Notify())


def test_a_daemon_that_hangs_is_not_waited_for(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket takes the question and nobody answers: whoever wants something recorded is told soon."""
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as hung, short(daemon.state.run / CONTROL_SOCKET) as address:
        hung.bind(address)
        hung.listen()
        with pytest.raises(DaemonUnreachable, match="does not answer"):
            ask(daemon.state, Suspend(why="lunch"))


def test_a_failure_arrives_as_what_it_was(daemon: Daemon) -> None:
    """Its class, and with it reason and exit code, and its hint."""
    with daemon.listens(), pytest.raises(BackendUnavailable, match="on fire") as raised:
        ask(daemon.state, Retry())
    assert raised.value.hint == "run"


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"{}\n",
        b"nonsense\n",
        b'{"formatVersion":"1","ask":{"verb":"destroy"}}\n',
        b'{"formatVersion":"2","ask":{"verb":"notify"}}\n',
        b'{"formatVersion":"1","ask":{"verb":"notify","more":1}}\n',
        b'{"formatVersion":"1","ask":{"verb":"notify"}}\n{"formatVersion":"1","ask":{"verb":"resume"}}\n',
        b'{"formatVersion":"1","ask":{"verb":"verify","manifests":["../x"]}}\n',
        b"\xff\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_not_a_question_is_refused(daemon: Daemon, content: bytes) -> None:
    """Only listed verbs, one a connection; nothing is recorded, and the next caller is served (I11)."""
    with daemon.listens():
        answer = json.loads(daemon.say(content))
        assert (answer["event"], answer["failure"]["reason"]) == ("failed", "UsageError")
        assert not daemon.recorded
        assert ask(daemon.state, Notify()).count == 1


def test_a_question_without_end_is_cut(daemon: Daemon) -> None:
    """It is refused at its limit, not read to its end (I11)."""
    with daemon.listens(), socket.socket(socket.AF_UNIX) as connection:
        with short(daemon.state.run / CONTROL_SOCKET) as address:
            connection.connect(address)
        connection.settimeout(PATIENCE)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            connection.sendall(b"x" * 64 * REQUEST_LIMIT)
        assert ask(daemon.state, Notify()).count == 1


def test_other_users_are_refused(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root and the daemon's own user may change the node, whoever else reaches the socket."""
    monkeypatch.setattr(control, "peer", lambda _: (1, os.geteuid() + 4711))
    with daemon.listens():
        with pytest.raises(PeerRefused):
            ask(daemon.state, Suspend(why="mischief"))
        assert not daemon.recorded
        monkeypatch.setattr(control, "peer", lambda _: (1, 0))
        assert ask(daemon.state, Notify()).count == 1
    assert not (daemon.state.run / CONTROL_SOCKET).exists()


def test_the_socket_is_its_users_alone(daemon: Daemon) -> None:
    """Nobody else can even connect; one that a dead daemon left is taken over."""
    path = daemon.state.run / CONTROL_SOCKET
    with socket.socket(socket.AF_UNIX) as dead, short(path) as address:
        dead.bind(address)
    with daemon.listens():
        assert path.stat().st_mode & 0o777 == 0o600
        assert ask(daemon.state, Notify()).count == 1


def test_a_pass_is_heard_and_answered(daemon: Daemon, tmp_path: Path) -> None:
    """Two who ask before a pass hear the same one: each step, then the result; the windows' exception goes along."""
    node = SimulatedNode(tmp_path / "node")
    node.reconciler = Reconciler(node.node, ScriptedSource(node), daemon.audience)
    ignored: list[bool] = []
    with daemon.listens(), ThreadPoolExecutor(2) as pool:
        heard: list[list[Any]] = [[], []]
        retelling = Retelling(Listener(heard[0]), lambda *_: None)
        answers = [
            pool.submit(ask, daemon.state, Reconcile(ignore_windows=True), heard=retelling),
            pool.submit(ask, daemon.state, Reconcile(), heard=heard[1].append),
        ]
        wait_for(daemon, 2)

        def run_pass(ignore: bool, _expected: object) -> Any:
            ignored.append(ignore)
            return node.run(snapshot())

        result = daemon.audience.serve(run_pass)
        reports = [answer.result(PATIENCE).result for answer in answers]
    assert ignored == [True]
    assert result.outcomes
    for report in reports:
        assert report is not None
        assert (report.exit_code, report.status, report.plan) == (result.exit_code, result.status, result.plan)
    ended = [(item.action.id, item.status) for item in retelling.outcomes]
    assert ended == [(item.action.id, item.status) for item in result.outcomes]
    assert [item["action"] for item in heard[1] if item["event"] == "finished"] == [name for name, _ in ended]


class Listener:
    """A reporter that remembers."""

    def __init__(self, heard: list[Any]) -> None:
        self._heard = heard

    def started(self, action: Any) -> None:
        """Remember."""
        self._heard.append(action)

    def finished(self, outcome: Any) -> None:
        """Remember."""
        self._heard.append(outcome)


def wait_for(daemon: Daemon, count: int) -> None:
    """Until so many callers wait for a pass."""
    for _ in range(int(PATIENCE * 100)):
        if len(daemon.recorded) >= count and len(daemon.audience._waiting) >= count:
            return
        daemon.wake.wait(0.01)
    pytest.fail("nobody asked")


def test_a_refused_pass_is_told(daemon: Daemon) -> None:
    """Who asked learns why, and the loop does as well."""

    def refuse(_ignore: bool, _expected: object) -> Any:
        raise SourceUnreachable("no route")

    with daemon.listens(), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, daemon.state, Reconcile())
        wait_for(daemon, 1)
        with pytest.raises(SourceUnreachable):
            daemon.audience.serve(refuse)
        with pytest.raises(SourceUnreachable, match="no route"):
            answer.result(PATIENCE)


def test_a_saved_plan_has_a_pass_of_its_own(daemon: Daemon, tmp_path: Path) -> None:
    """That it is stale concerns whoever brought it; who asked besides waits for the next pass, which comes at once."""
    node = SimulatedNode(tmp_path / "node")
    node.run(snapshot())
    saved = node.run(snapshot()).plan
    expected: list[Any] = []

    def run_pass(_ignore: bool, plan: Any) -> Any:
        expected.append(plan)
        if plan is not None:
            raise StalePlan("something has moved")
        return node.run(snapshot())

    with daemon.listens(), ThreadPoolExecutor(2) as pool:
        stale = pool.submit(ask, daemon.state, Apply(plan=saved))
        wait_for(daemon, 1)
        other = pool.submit(ask, daemon.state, Reconcile())
        wait_for(daemon, 2)
        daemon.wake.rest(0)
        with pytest.raises(StalePlan):
            daemon.audience.serve(run_pass)
        with pytest.raises(StalePlan, match="something has moved"):
            stale.result(PATIENCE)
        assert not other.done()
        assert daemon.wake._event.is_set()
        daemon.audience.serve(run_pass)
        assert other.result(PATIENCE).result is not None
    assert expected == [saved, None]


def test_a_look_waits_for_no_pass(daemon: Daemon) -> None:
    """A validation is answered while whatever is under way goes on, and nothing is recorded."""
    daemon.audience._look = lambda question: {"model": question.model, "outcome": "pass"}
    with daemon.listens():
        assert ask(daemon.state, Validate(model="a:v1")).document == {"model": "a:v1", "outcome": "pass"}
    assert not daemon.recorded
    assert not daemon.wake._event.is_set()


def test_whoever_waits_when_the_daemon_ends_is_told(daemon: Daemon) -> None:
    """Nobody waits for ever."""
    with ThreadPoolExecutor(1) as pool:
        with daemon.listens():
            answer = pool.submit(ask, daemon.state, Reconcile())
            wait_for(daemon, 1)
        daemon.audience.dismiss(DaemonUnreachable("it was told to end"))
        with pytest.raises(DaemonUnreachable, match="told to end"):
            answer.result(PATIENCE)


def test_who_waits_may_leave(daemon: Daemon) -> None:
    """A caller that gives up ends nothing; what it asked for is done all the same."""
    stop = threading.Event()

    class Stop:
        is_set = stop.is_set
        wait = stop.wait

    with daemon.listens(), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, daemon.state, Reconcile(), stop=Stop())
        wait_for(daemon, 1)
        stop.set()
        with pytest.raises(InterruptedError):
            answer.result(PATIENCE)
        served: list[bool] = []

        def run_pass(ignore: bool, _expected: object) -> Any:
            served.append(ignore)
            raise DownloadFailed("enough")

        with pytest.raises(DownloadFailed):
            daemon.audience.serve(run_pass)
        assert served == [False]


def test_a_slow_caller_loses_progress_and_never_the_end() -> None:
    """What waits for a caller is bounded (I11)."""
    asked = Asked(Reconcile())
    for number in range(control.KEPT_EVENTS + 100):
        asked.tell({"event": "progress", "number": number})
    asked.tell({"event": "done"})
    events = [asked.next() for _ in range(control.KEPT_EVENTS + 1)]
    assert [events[0]["number"], events[-1]["event"]] == [0, "done"]
