"""The front between clients and instances that behave as badly as they can, over real sockets."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.front import STREAM, Answer, Stage, bind, chunk, dial, eventually, question, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _briskly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front that looks often, and leaves quickly."""
    monkeypatch.setattr("runtime.front.program.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("runtime.front.program.LEAVE_SECONDS", 0.01)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A front without a route."""
    made = Stage(tmp_path)
    yield made
    made.close()


def saying(text: str) -> Callable[[socket.socket, bytes], None]:
    """An instance that answers the same to everything."""
    return lambda stream, _: stream.sendall(whole(text))


class Slowly:
    """An instance that streams one part at a time, when it is told to."""

    def __init__(self) -> None:
        self.step = threading.Semaphore(0)
        self.begun = threading.Event()

    def __call__(self, stream: socket.socket, _: bytes) -> None:
        """Three parts and the end."""
        stream.sendall(STREAM)
        self.begun.set()
        for number in range(3):
            self.step.acquire()
            stream.sendall(chunk(f"data: {number}\n\n"))
        stream.sendall(chunk(""))


# --- what passes --------------------------------------------------------------------------------------------------


def test_a_question_is_answered_and_the_connection_kept(stage: Stage) -> None:
    """Several requests on one connection; the engine sees one each, with a head of the front's own."""
    engine = stage.engine("a", saying("hello"))
    stage.lead()
    with dial(stage.address) as stream:
        for _ in range(3):
            head = b"POST /v1/completions HTTP/1.1\r\nHost: evil\r\nCookie: a\r\nAuthorization: b\r\nX-Y: z\r\n"
            stream.sendall(head + b'Content-Length: 16\r\n\r\n{"max_tokens":1}')
            answer = Answer(stream)
            assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"hello", "text/plain")
    expected = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n"
        b'Connection: close\r\n\r\n{"max_tokens":1}'
    )
    assert engine.requests == [expected] * 3
    assert stage.stats()["served"] == 3


def test_a_stream_passes_part_by_part(stage: Stage) -> None:
    """Each event arrives before the next one is made: nothing is collected on the way."""
    slowly = Slowly()
    stage.engine("a", slowly)
    stage.lead()
    with stage.asking() as stream:
        assert slowly.begun.wait(60)
        seen = b""
        for number in range(3):
            slowly.step.release()
            while f"data: {number}".encode() not in seen:
                seen += stream.recv(65536)
            assert f"data: {number + 1}".encode() not in seen
        while not seen.endswith(b"0\r\n\r\n"):
            seen += stream.recv(65536)


def test_a_long_body_in_chunks_arrives_with_its_length(stage: Stage) -> None:
    """A chunked request, with a wait for `100 Continue`, reaches the engine framed by a length."""
    engine = stage.engine("a", saying("ok"))
    stage.lead()
    content = json.dumps({"max_tokens": 1, "prompt": "x" * 50_000}).encode()
    with dial(stage.address) as stream:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        stream.sendall(head)
        assert stream.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for start in range(0, len(content), 7000):
            part = content[start : start + 7000]
            stream.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        stream.sendall(b"0\r\n\r\n")
        assert Answer(stream).status == 200
    assert engine.requests[0].endswith(content)
    assert f"Content-Length: {len(content)}\r\n".encode() in engine.requests[0]


# --- what does not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        (b"GET /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (b"POST http://y/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 404, "not_found"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413, "body_too_large"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", 400, "invalid_json"),
        (question(max_tokens=101), 400, "max_tokens_exceeded"),
        (question(model="other"), 404, "model_not_found"),
        (b"nonsense\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_may_not_be_asked_never_reaches_the_engine(stage: Stage, request_: bytes, status: int, code: str) -> None:
    """Refused in OpenAI's form, and counted."""
    engine = stage.engine("a", saying("hello"))
    stage.lead()
    answer = stage.ask(request_)
    assert (answer.status, answer.code) == (status, code)
    assert engine.requests == []
    assert stage.stats()["refused"] == 1


def test_a_second_request_behind_the_first_is_thrown_away(stage: Stage) -> None:
    """One answer, then the end: nobody can hide a request behind another."""
    engine = stage.engine("a", saying("one"))
    stage.lead()
    with stage.asking(question() + question()) as stream:
        answer = Answer(stream)
        assert (answer.body, answer.headers["connection"]) == (b"one", "close")
        assert stream.recv(100) == b""
    assert len(engine.requests) == 1


def test_only_allowed_users_come_in(tmp_path: Path) -> None:
    """Whoever may open the socket and is not on the list gets a 403."""
    stage = Stage(tmp_path, allow=(os.getuid() + 1,))
    try:
        answer = stage.ask()
        assert (answer.status, answer.code) == (403, "forbidden")
        assert (tmp_path / "front.sock").stat().st_mode & 0o777 == 0o660
    finally:
        stage.close()


def test_connections_are_bounded(tmp_path: Path) -> None:
    """One too many is told so, and there is room again when another has left."""
    stage = Stage(tmp_path, connections=2)
    try:
        stage.engine("a", saying("hello"))
        stage.lead()
        with dial(stage.address), dial(stage.address):
            eventually(lambda: stage.stats()["connections"] == 2, "both are there")
            assert stage.ask().code == "overloaded"
        eventually(lambda: stage.stats()["connections"] == 0, "both have left")
        assert stage.ask().status == 200
    finally:
        stage.close()


def test_who_is_refused_in_the_middle_of_a_body_still_reads_why(stage: Stage) -> None:
    """The rest of the body is let in and thrown away, so that the answer is not lost with the connection."""
    stage.lead()
    with dial(stage.address) as stream:
        stream.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            stream.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert Answer(stream).status == 413


# --- instances that fail ------------------------------------------------------------------------------------------


def test_an_engine_that_dies_in_mid_stream_cuts_the_stream(stage: Stage) -> None:
    """The client sees the beginning, and no end: nothing pretends that the answer was whole."""

    def dies(stream: socket.socket, _: bytes) -> None:
        stream.sendall(STREAM + chunk("data: 0\n\n"))

    stage.engine("a", dies)
    stage.lead()
    answer = stage.ask()
    assert (answer.status, answer.body, answer.whole) == (200, b"data: 0\n\n", False)
    stats = stage.stats()
    assert (stats["cut"], stats["cutByDrain"], stats["served"], stats["inFlight"]) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"nonsense", b"HTTP/1.1 200 OK\r\n\r\nendless"]
)
def test_an_engine_that_does_not_answer_is_a_502(stage: Stage, sent: bytes) -> None:
    """Silence, half a head, no HTTP, an answer without an end: an error, and the connection lives on."""
    stage.engine("a", lambda stream, _: stream.sendall(sent))
    stage.lead()
    with dial(stage.address) as stream:
        for _ in range(2):
            stream.sendall(question())
            answer = Answer(stream)
            assert (answer.status, answer.code) == (502, "engine_failed")
    assert stage.stats()["failed"] == 2


def test_an_answer_has_a_time_bound(stage: Stage) -> None:
    """Without an answer in time: a 504. With the beginning of one: cut."""
    slowly = Slowly()
    stage.engine("a", lambda stream, _: stream.recv(1) and None)
    stage.engine("b", slowly)
    stage.lead(timeout=0.05)
    answer = stage.ask()
    assert (answer.status, answer.code) == (504, "engine_timeout")
    stage.lead(instance="b", timeout=0.5)
    answer = stage.ask()
    assert (answer.status, answer.whole) == (200, False)
    for _ in range(3):
        slowly.step.release()


@pytest.mark.parametrize("trick", ["link", "file", "foreign", "another process's"])
def test_the_front_cannot_be_lured_to_another_socket(stage: Stage, trick: str, tmp_path: Path) -> None:
    """An engine can write in its folder: a link, a file, or a listener that is not the one that was checked (I10)."""
    reached = stage.engine("other", saying("lured"))
    folder = tmp_path / "a"
    folder.mkdir()
    fields: dict[str, Any] = {}
    if trick == "link":
        (folder / "engine.sock").symlink_to(reached.path)
    elif trick == "file":
        (folder / "engine.sock").write_text("")
    elif trick == "foreign":
        fields = {"socket": str(reached.path), "pid": 1}
    else:
        fields = {"socket": str(reached.path), "ticks": 1}
    stage.lead(hold=0.1, **fields)
    answer = stage.ask()
    assert (answer.status, answer.code) == (503, "unavailable")
    assert reached.requests == []


def test_a_request_that_was_not_sent_waits_for_an_instance_that_is_there(stage: Stage) -> None:
    """A dead instance's requests are not lost: they go to the one that comes after it."""
    stage.engine("a", saying("a")).close()
    stage.engine("b", saying("b"))
    stage.lead()
    with stage.asking() as stream:
        eventually(lambda: stage.stats()["held"] == 1, "it waits")
        stage.lead(instance="b")
        assert Answer(stream).body == b"b"


# --- holding and draining -----------------------------------------------------------------------------------------


def test_requests_wait_for_the_next_route_and_then_get_their_answer(stage: Stage) -> None:
    """During a swap nothing is refused and nothing is answered by the old instance."""
    old, new = stage.engine("a", saying("old")), stage.engine("b", saying("new"))
    stage.lead("holding")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(stage.ask) for _ in range(8)]
        eventually(lambda: stage.stats()["held"] == 8, "all wait")
        assert stage.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status == 503
        stage.lead(instance="b")
        assert {answer.result().body for answer in waiting} == {b"new"}
    assert (len(old.requests), len(new.requests)) == (0, 8)


def test_waiting_has_a_bound_in_time(stage: Stage) -> None:
    """Beyond it: 503, and when to come back."""
    stage.lead("holding", hold=0.05, retry_after=7)
    answer = stage.ask()
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "unavailable", "7")


def test_waiting_has_a_bound_in_number(stage: Stage) -> None:
    """One too many is told so at once."""
    stage.engine("a", saying("a"))
    stage.lead("holding", max_queue=2)
    with stage.asking() as first, stage.asking() as second:
        eventually(lambda: stage.stats()["held"] == 2, "both wait")
        assert stage.ask().status == 503
        stage.lead()
        assert [Answer(first).status, Answer(second).status] == [200, 200]


def test_without_a_route_nothing_waits(stage: Stage) -> None:
    """Nothing serves and nothing will: 503 at once."""
    assert stage.ask().status == 503
    stage.lead("none")
    assert stage.ask().status == 503
    assert stage.stats()["unavailable"] == 2


def test_a_damaged_route_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    """The last route that could be read is followed on."""
    stage.engine("a", saying("a"))
    stage.lead()
    assert stage.ask().status == 200
    (tmp_path / "route.json").write_text("{")
    assert stage.ask().status == 200


def test_who_waits_and_goes_is_forgotten(stage: Stage) -> None:
    """A client that gives up is not served later, and leaves its place in the queue."""
    engine = stage.engine("a", saying("a"))
    stage.lead("holding")
    with stage.asking():
        eventually(lambda: stage.stats()["held"] == 1, "it waits")
    eventually(lambda: stage.stats()["held"] == 0, "it has gone")
    stage.lead()
    assert stage.ask().status == 200
    assert len(engine.requests) == 1


def test_what_is_in_flight_is_counted_until_its_end(stage: Stage) -> None:
    """What an agent waits for before it stops an instance; requests that come meanwhile are not its business."""
    slowly = Slowly()
    stage.engine("a", slowly)
    stage.lead()
    with stage.asking() as stream, stage.asking():
        eventually(lambda: stage.stats()["inFlightBy"] == {"a": 2}, "both are answered by a")
        stage.lead("holding")
        with stage.asking():
            eventually(lambda: stage.stats()["held"] == 1, "the third waits")
            assert stage.stats()["inFlightBy"] == {"a": 2}
        for _ in range(6):
            slowly.step.release()
        assert Answer(stream).whole
        eventually(lambda: stage.stats()["inFlightBy"] == {}, "nothing is left")


def test_a_stream_that_outlasts_the_drain_is_cut_and_counted_apart(stage: Stage) -> None:
    """The instance is stopped at the deadline: the client sees an unfinished answer, the node knows why."""
    gone = threading.Event()

    def until_stopped(stream: socket.socket, _: bytes) -> None:
        stream.sendall(STREAM + chunk("data: 0\n\n"))
        gone.wait(60)

    stage.engine("a", until_stopped)
    stage.lead()
    with stage.asking() as stream:
        eventually(lambda: stage.stats()["inFlight"] == 1, "it streams")
        stage.lead("holding")
        gone.set()
        assert not Answer(stream).whole
    stats = stage.stats()
    assert (stats["cutByDrain"], stats["cut"]) == (1, 0)


# --- clients that fail --------------------------------------------------------------------------------------------


def endless(stream: socket.socket, _: bytes) -> None:
    """Streams until nobody listens."""
    stream.sendall(STREAM)
    while True:
        stream.sendall(chunk("x" * 10_000))


def test_a_client_that_goes_away_ends_its_computation(stage: Stage) -> None:
    """The engine's connection is closed at once, in mid-stream and before the first byte."""
    slowly = Slowly()
    engine = stage.engine("a", slowly)
    stage.lead()
    with stage.asking():
        assert slowly.begun.wait(60)
    eventually(lambda: stage.stats()["gone"] == 1, "it is noticed")
    for _ in range(3):
        slowly.step.release()
    assert engine.lost.wait(60), "the engine cannot write any more"
    silent = stage.engine("b", lambda stream, _: stream.recv(1) and None)
    stage.lead(instance="b")
    with stage.asking():
        eventually(lambda: len(silent.requests) == 1, "it computes")
    eventually(lambda: stage.stats()["inFlight"] == 0, "the engine is let go")


def test_a_client_that_only_listens_gets_its_answer(stage: Stage) -> None:
    """Closing the sending half is no leaving; leaving afterwards is."""
    slowly = Slowly()
    stage.engine("a", slowly)
    stage.lead()
    with stage.asking() as stream:
        stream.shutdown(socket.SHUT_WR)
        for _ in range(3):
            slowly.step.release()
        assert Answer(stream).whole
    silent = stage.engine("b", lambda stream, _: stream.recv(1) and None)
    stage.lead(instance="b")
    with stage.asking() as stream:
        stream.shutdown(socket.SHUT_WR)
        eventually(lambda: len(silent.requests) == 1, "it computes")
    eventually(lambda: stage.stats()["inFlight"] == 0, "it is noticed that nobody listens")


def test_a_slow_reader_holds_its_own_engine_back_and_nobody_elses(stage: Stage) -> None:
    """Little is buffered for it, while another client is served."""
    written = [0]

    def fast(stream: socket.socket, request: bytes) -> None:
        if b'"slow"' not in request:
            stream.sendall(whole("quick"))
            return
        stream.sendall(STREAM)
        while True:
            stream.sendall(chunk("x" * 10_000))
            written[0] += 10_000

    stage.engine("a", fast)
    stage.lead()
    with stage.asking(question(user="slow")):
        eventually(lambda: written[0] > 0, "it streams")
        before = -1
        while before != written[0]:
            before = written[0]
            for _ in range(20):
                assert stage.ask().body == b"quick"
        assert written[0] < 3_000_000, "what nobody reads is not collected"


# --- one front after another --------------------------------------------------------------------------------------


def test_a_front_that_is_replaced_finishes_what_it_began(stage: Stage, tmp_path: Path) -> None:
    """Its address is taken; its stream goes on to the end; its connections end with their next answer."""
    slowly = Slowly()
    stage.engine("a", slowly)
    stage.engine("b", saying("b"))
    stage.lead()
    with stage.asking() as streaming, dial(stage.address) as idle:
        assert slowly.begun.wait(60)
        eventually(lambda: stage.stats()["connections"] == 2, "both are there")
        bind(tmp_path / "new.sock").close()
        (tmp_path / "new.sock").replace(tmp_path / "front.sock")
        stage.retire()
        assert stage.stats()["retiring"]
        for _ in range(3):
            slowly.step.release()
        assert Answer(streaming).whole
        stage.lead(instance="b")
        idle.sendall(question())
        answer = Answer(idle)
        assert (answer.body, answer.headers["connection"]) == (b"b", "close")
    eventually(lambda: not stage._thread.is_alive(), "it ends when nobody is left")


def test_a_front_ends_by_itself_when_its_address_is_gone(stage: Stage, tmp_path: Path) -> None:
    """A node that was taken apart leaves no process behind."""
    (tmp_path / "front.sock").unlink()
    eventually(lambda: not stage._thread.is_alive(), "it ends")


def test_a_front_that_is_told_to_end_waits_for_the_runtime_only(stage: Stage) -> None:
    """A machine that is switched off waits for it: what the runtime was asked is answered, all else is let go."""
    slowly = Slowly()
    stage.engine("a", slowly)
    stage.lead()
    with stage.asking() as streaming, dial(stage.address) as idle, dial(stage.address) as begun:
        assert slowly.begun.wait(60)
        stage.lead("holding")
        begun.sendall(question()[:20])
        with stage.asking() as held:
            eventually(lambda: stage.stats()["held"] == 1 and stage.stats()["connections"] == 4, "all are there")
            stage.call(stage._front.leave)
            assert Answer(held).status == 503
            assert Answer(begun).status == 503
            assert idle.recv(1) == b""
        for _ in range(3):
            slowly.step.release()
        assert Answer(streaming).whole
    eventually(lambda: not stage._thread.is_alive(), "it ends when the runtime has answered")
