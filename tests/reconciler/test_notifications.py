"""Notifications: whom they reach, once each, in order, across restarts; and what they never do to the node."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from reconciler.journal import Journal
from reconciler.memory import Note
from reconciler.notifications import QUEUE, Notifier, Receiver, notifying
from runtime.host import host_ports
from runtime.notifying import Program, Webhook
from schemas.errors import NotDelivered
from schemas.node import Notification
from tests.reconciler.test_pipeline import V1, A
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.notifying import Deliver


class Inbox:
    """A receiver that keeps what it was told, and fails when it is told to."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []
        self.failing = 0

    def __call__(self, event: str, body: bytes) -> None:
        """Take one, or not."""
        if self.failing:
            self.failing -= 1
            raise NotDelivered("the inbox is full")
        document = json.loads(body)
        assert document["event"] == event
        self.told.append(document)

    @property
    def events(self) -> list[str]:
        """Names, in order."""
        return [item["event"] for item in self.told]


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """A fresh node."""
    return SimulatedNode(tmp_path / "state")


def notifier(node: SimulatedNode, deliver: Deliver, *events: str, name: str = "ops") -> Notifier:
    """What tells one receiver."""
    settings = Notification(name=name, events=events, program=("unused",))
    state = node.node.state
    return Notifier(
        [Receiver(settings, deliver)],
        node={"network": "testnet", "node": node.node.node_id},
        journal=lambda: Journal(state.journal, readonly=True),
        memory=state.notifications,
        ports=node.node.adapters.ports,
    )


def say(node: SimulatedNode, *reasons: str, level: str = "Warning", subject: str = "s") -> None:
    """Let something happen."""
    for reason in reasons:
        node.journal.apply((Note(level, reason, "it happened", subject=subject),), node.clock.now())  # type: ignore[arg-type]


def test_warnings_unless_others_are_named(node: SimulatedNode) -> None:
    """Without names: every warning. With names: these, whatever their level. What was before stays untold."""
    node.run(V1)
    every, named = Inbox(), Inbox()
    first, second = notifier(node, every), notifier(node, named, "ModelInstalled", "Odd")
    first.run(), second.run()
    say(node, "Odd", "Strange")
    say(node, "ModelInstalled", "Usual", level="Normal")
    assert (first.run(), second.run()) == (None, None)
    assert every.events == ["Odd", "Strange"]
    assert named.events == ["Odd", "ModelInstalled"]
    said = every.told[0]
    assert (said["network"], said["node"], said["type"]) == ("testnet", node.node.node_id, "Warning")
    accepted = node.journal.accepted()
    assert accepted is not None
    assert said["snapshot"] == accepted.digest
    assert said["id"].startswith(f"{node.node.node_id}/")


def test_once_for_each_digest(node: SimulatedNode) -> None:
    """What repeats itself under one snapshot is told once; under the next, again; of another subject, as well."""
    node.run(V1)
    inbox = Inbox()
    telling = notifier(node, inbox, "Odd")
    telling.run()
    say(node, "Odd", "Odd", "Odd")
    say(node, "Odd", subject="other")
    telling.run()
    assert len(inbox.told) == 2
    node.run(A)
    say(node, "Odd")
    telling.run()
    assert len(inbox.told) == 3


def test_a_failure_is_tried_again_at_growing_intervals(node: SimulatedNode) -> None:
    """Order holds, nothing is lost, and nobody is hammered (I11)."""
    inbox = Inbox()
    telling = notifier(node, inbox)
    telling.run()
    say(node, "Odd", "Strange")
    inbox.failing = 3
    waits = []
    for _ in range(3):
        wait = telling.run()
        assert wait is not None
        waits.append(wait)
        again = telling.run()
        assert again is not None, "too early: it is not asked again"
        node.clock.moment += timedelta(seconds=wait)
    assert waits == sorted(waits)
    assert waits[2] > 2 * waits[0] - 1
    assert telling.run() is None
    assert inbox.events == ["Odd", "Strange"]


def test_a_restart_neither_loses_nor_repeats(node: SimulatedNode) -> None:
    """A new agent goes on where the last one was, also after one that could deliver nothing (I7)."""
    inbox = Inbox()
    notifier(node, inbox).run()
    say(node, "Odd")
    notifier(node, inbox).run()
    say(node, "Strange")
    inbox.failing = 1
    assert notifier(node, inbox).run() is not None
    notifier(node, inbox).run()
    assert inbox.events == ["Odd", "Strange"]


def test_a_damaged_memory_stops_nothing(node: SimulatedNode) -> None:
    """What was told before is forgotten, in so many words; what comes is told (I6)."""
    inbox = Inbox()
    notifier(node, inbox).run()
    node.node.state.notifications.write_text('{"ops": {"after": "many"}}')
    telling = notifier(node, inbox)
    telling.run()
    say(node, "Odd")
    telling.run()
    assert inbox.events == ["Odd"]


def test_the_queue_is_bounded(node: SimulatedNode, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that was away for long is told of the newest, and the log says how many were dropped (I11)."""
    inbox = Inbox()
    telling = notifier(node, inbox)
    telling.run()
    for number in range(QUEUE + 50):
        say(node, "Odd", subject=str(number))
    telling.run()
    assert len(inbox.told) == QUEUE
    assert inbox.told[-1]["subject"] == str(QUEUE + 49)
    assert "50 events were dropped" in caplog.text


def test_one_that_fails_holds_up_no_other(node: SimulatedNode) -> None:
    """Each receiver has a queue of its own."""
    bad, good = Inbox(), Inbox()
    bad.failing = 1000
    state = node.node.state
    receivers = [
        Receiver(Notification(name=name, program=("unused",)), inbox) for name, inbox in (("bad", bad), ("good", good))
    ]
    telling = Notifier(
        receivers,
        node={"network": "n", "node": "x"},
        journal=lambda: Journal(state.journal, readonly=True),
        memory=state.notifications,
        ports=node.node.adapters.ports,
    )
    telling.run()
    say(node, "Odd")
    assert telling.run() is not None
    assert (bad.events, good.events) == ([], ["Odd"])


# --- real ways ----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A webhook's other end."""

    statuses: list[int]
    seen: list[tuple[dict[str, str], bytes]]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        """Keep it, and answer with the next status."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def server(*statuses: int) -> Iterator[Server]:
    """A server that answers with these statuses first."""
    listening = Server(("127.0.0.1", 0), _Handler)
    listening.statuses, listening.seen = list(statuses), []
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield listening
    finally:
        listening.shutdown()
        listening.server_close()


def test_a_webhook_can_check_who_wrote(node: SimulatedNode) -> None:
    """The signature is over the exact bytes; a status that is not of success is a failure, also a redirect."""
    with server(500, 302) as other:
        hook = Webhook(f"http://127.0.0.1:{other.server_port}/hook?token=hidden", lambda: "s3cret")
        for status in (500, 302):
            with pytest.raises(NotDelivered, match=f"answered {status}") as refused:
                hook("Odd", b"{}")
            assert "hidden" not in str(refused.value)
        telling = notifier(node, hook)
        telling.run()
        say(node, "Odd")
        assert telling.run() is None
        headers, body = other.seen[-1]
    expected = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["X-Reconcile-Signature"] == f"sha256={expected}"
    assert headers["X-Reconcile-Event"] == "Odd"
    assert json.loads(body)["message"] == "it happened"


def test_nobody_at_the_webhook() -> None:
    """A dead address is a failure in words that keep its token."""
    with server() as other:
        url = f"http://user:pass@127.0.0.1:{other.server_port}/?token=hidden"
    with pytest.raises(NotDelivered) as refused:
        Webhook(url, None)("Odd", b"{}")
    assert "hidden" not in str(refused.value)
    assert "pass" not in str(refused.value)


def test_a_program_is_given_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard input, with few variables of ours; one that fails, or is not there, is a failure."""
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    target = tmp_path / "out"
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(os.environ.get('SECRET_OF_THE_AGENT', 'none') + sys.stdin.read())"
    )
    tell = partial(Program, processes=host_ports().processes)
    tell((sys.executable, "-c", script, str(target)))("Odd", b'{"a": 1}')
    assert target.read_text() == 'none{"a": 1}'
    with pytest.raises(NotDelivered, match="ended with 3"):
        tell((sys.executable, "-c", "raise SystemExit(3)"))("Odd", b"{}")
    with pytest.raises(NotDelivered):
        tell(("/nowhere/program",))("Odd", b"{}")


def test_the_daemon_s_thread(node: SimulatedNode) -> None:
    """News are delivered soon after they are announced, beside whatever else goes on, and it ends when it should."""
    with server() as other:
        hook = Webhook(f"http://127.0.0.1:{other.server_port}/", None)
        telling = notifier(node, hook)
        telling.run()
        with notifying(telling) as news:
            say(node, "Odd")
            news()
            deadline = threading.Event()
            for _ in range(600):
                if other.seen:
                    break
                deadline.wait(0.05)
        assert [json.loads(body)["event"] for _, body in other.seen] == ["Odd"]
    assert not any(thread.name == "notifications" for thread in threading.enumerate())


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x"},
        {"name": "x", "program": ["a"], "webhook": "https://x.example/"},
        {"name": "x", "program": ["a"], "secret": "s"},
        {"name": "x", "webhook": "ftp://x.example/"},
        {"name": "x", "program": ["a"], "events": ["not a name"]},
    ],
)
def test_a_configuration_that_means_nothing(wrong: dict[str, object]) -> None:
    """Refused when it is read."""
    with pytest.raises(ValueError):
        Notification.model_validate(wrong)
