"""What every backend must do: one suite, run against each (`test_backends.py` says against which).

A harness stands for one kind of backend on this machine: it makes backend objects as a restarted agent would, describes
instances of a tiny engine, and does from outside what backends cannot (kill an engine). A new backend is a new harness.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import pytest

from runtime.host import host_ports
from schemas.errors import BackendUnavailable, EngineUnreachable, StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from runtime.interfaces import Backend, EngineConnection, InstanceSpec
    from schemas.observation import Instance

PATIENCE = 60.0
"""Seconds after which a real process that does not do what it should has failed."""


class Harness(Protocol):
    """One kind of backend, on this machine, for one test. `close` leaves nothing behind."""

    def attach(self, node: str = "a") -> Backend:
        """A new backend object of a node, as an agent that was just started makes it."""
        ...

    def spec(self, intent: str, *flags: str, node: str = "a") -> InstanceSpec:
        """An instance of the test engine, with its folders made.

        Args:
            intent: the intent's id.
            flags: of the test engine: `--say TEXT`, `--exit CODE`, `--ignore-term`.
            node: whose instance it is.
        """
        ...

    def connect(self, backend: Backend, spec: InstanceSpec) -> EngineConnection:
        """The connection to an instance."""
        ...

    def end(self, backend: Backend, spec: InstanceSpec, code: int) -> None:
        """Make a running engine end by itself."""
        ...

    def kill(self, backend: Backend, spec: InstanceSpec) -> None:
        """SIGKILL a running engine from outside."""
        ...

    def squeeze(self, backend: Backend, spec: InstanceSpec, memory: int) -> None:
        """Give the instance another limit of memory, as somebody else would; skips where there is none to change."""

    def interrupt(self) -> None:
        """Make the backend impossible to observe."""
        ...

    def left(self, spec: InstanceSpec) -> Sequence[str]:
        """What there still is of an instance, logs and the folders of `spec` aside."""
        ...

    def close(self) -> None:
        """Remove everything."""
        ...


def eventually(check: Callable[[], bool], what: str) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def answers(connection: EngineConnection) -> bool:
    """Whether the engine serves."""
    try:
        return connection.request("GET", "/health", timeout=10) is not None
    except EngineUnreachable:
        return False


def run(harness: Harness, backend: Backend, spec: InstanceSpec) -> EngineConnection:
    """Create, start, and wait until it serves."""
    backend.create(spec)
    backend.start(spec.name)
    connection = harness.connect(backend, spec)
    eventually(lambda: answers(connection), f"{spec.name} serves; it printed {backend.output(spec.name, limit=1000)}")
    return connection


@contextmanager
def foreign_socket(path: Path) -> Iterator[None]:
    """A socket of this process, which belongs to no instance, under an instance's name for its own."""
    folder = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        # unix(7) has room for 107 bytes of a path; this one is short however deep the folder lies.
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        listener.listen()
        yield


def look(backend: Backend, spec: InstanceSpec) -> Instance:
    """The one instance, as both ways of looking agree on it."""
    seen = backend.inspect(spec.name)
    assert seen is not None
    assert [item.name for item in backend.list()] == [spec.name]
    return seen


def await_exit(backend: Backend, spec: InstanceSpec) -> Instance:
    """The instance once it has ended."""
    eventually(lambda: look(backend, spec).status == "exited", f"{spec.name} ends")
    return look(backend, spec)


class BackendContract:
    """The suite. A subclass provides the fixture `harness`."""

    def test_created_is_seen_and_not_running(self, harness: Harness) -> None:
        """A crash between create and start leaves an instance that the next agent sees as created (I7)."""
        spec = harness.spec("a1")
        assert harness.attach().list() == ()
        harness.attach().create(spec)
        backend = harness.attach()
        seen = look(backend, spec)
        assert (seen.status, seen.intent, seen.spec_digest, seen.backend, seen.exit_code) == (
            "created",
            "a1",
            spec.target.spec_digest,
            backend.name,
            None,
        )
        assert not answers(harness.connect(backend, spec))

    def test_life_is_idempotent(self, harness: Harness) -> None:
        """Every step may be repeated after a crash, by another agent, and nothing happens twice (I7)."""
        spec = harness.spec("a1")
        for _ in range(2):
            harness.attach().create(spec)
        for _ in range(2):
            harness.attach().start(spec.name)
        backend = harness.attach()
        eventually(lambda: answers(harness.connect(backend, spec)), "it serves")
        seen = look(backend, spec)
        assert seen.status == "running"
        assert seen.started_at is not None
        for _ in range(2):
            harness.attach().stop(spec.name, grace=PATIENCE)
        assert look(backend, spec).status == "exited"
        for _ in range(2):
            harness.attach().remove(spec.name)
        assert harness.attach().list() == ()
        assert harness.attach().inspect(spec.name) is None
        assert harness.left(spec) == ()

    def test_what_is_not_there_cannot_be_started_but_may_be_stopped_and_removed(self, harness: Harness) -> None:
        """Starting nothing is an error; stopping and removing nothing is done already."""
        backend = harness.attach()
        with pytest.raises(StartFailed):
            backend.start("reconcile-testnet-none")
        backend.stop("reconcile-testnet-none", grace=1)
        backend.remove("reconcile-testnet-none")
        assert backend.inspect("reconcile-testnet-none") is None
        assert backend.output("reconcile-testnet-none", limit=100) == ""

    def test_a_restarted_agent_adopts_what_runs(self, harness: Harness) -> None:
        """A new backend object sees, reaches and stops the same engine, which went on serving meanwhile (I7)."""
        spec = harness.spec("a1")
        run(harness, harness.attach(), spec)
        before = look(harness.attach(), spec)
        backend = harness.attach()
        assert look(backend, spec) == before
        assert answers(harness.connect(backend, spec))
        backend.stop(spec.name, grace=PATIENCE)
        assert not answers(harness.connect(backend, spec))

    @pytest.mark.parametrize("code", [0, 3])
    def test_exit_codes_are_seen_by_whoever_looks_later(self, harness: Harness, code: int) -> None:
        """An engine that ends while no agent runs is seen with its exit code, and its end has words."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        harness.end(backend, spec, code)
        await_exit(harness.attach(), spec)
        seen = look(harness.attach(), spec)
        assert (seen.status, seen.exit_code) == ("exited", code)
        assert str(code) in seen.detail

    def test_a_killed_engine_is_seen_as_exited(self, harness: Harness) -> None:
        """SIGKILL from outside is told apart from an end of its own: 128 + 9, and the signal is named."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        harness.kill(backend, spec)
        seen = await_exit(backend, spec)
        assert seen.exit_code == 137
        assert "signal 9" in seen.detail
        assert not answers(harness.connect(backend, spec))

    def test_stop_ends_an_engine_that_does_not_listen(self, harness: Harness) -> None:
        """An engine that ignores SIGTERM is killed after the grace, and stop returns only then."""
        spec = harness.spec("a1", "--ignore-term")
        backend = harness.attach()
        run(harness, backend, spec)
        backend.stop(spec.name, grace=1)
        assert look(backend, spec).status == "exited"
        assert not answers(harness.connect(backend, spec))

    def test_two_nodes_on_one_machine_do_not_see_each_other(self, harness: Harness) -> None:
        """Another node's instance is not listed, not stopped, not removed (I8)."""
        spec = harness.spec("a1", node="b")
        other = harness.attach("b")
        connection = run(harness, other, spec)
        backend = harness.attach("a")
        assert backend.list() == ()
        assert backend.inspect(spec.name) is None
        backend.stop(spec.name, grace=1)
        backend.remove(spec.name)
        assert answers(connection)
        assert look(other, spec).status == "running"

    def test_a_name_is_not_given_twice(self, harness: Harness) -> None:
        """Creating something else under a taken name changes nothing about what is there."""
        spec = harness.spec("a1")
        backend = harness.attach()
        connection = run(harness, backend, spec)
        resources = spec.target.resources.model_copy(update={"memory": 2**29})
        other = replace(spec, target=spec.target.model_copy(update={"resources": resources}))
        assert other.target.spec_digest != spec.target.spec_digest
        with pytest.raises(StartFailed):
            backend.create(other)
        assert look(backend, spec).spec_digest == spec.target.spec_digest
        assert answers(connection)

    def test_several_instances_are_listed_in_order(self, harness: Harness) -> None:
        """Sorted by name, each with its own status."""
        backend = harness.attach()
        specs = [harness.spec(intent) for intent in ("c3", "a1", "b2")]
        for spec in specs:
            backend.create(spec)
        backend.start(specs[1].name)
        assert [(item.intent, item.status) for item in backend.list()] == [
            ("a1", "running"),
            ("b2", "created"),
            ("c3", "created"),
        ]

    def test_what_cannot_be_seen_is_not_taken_for_absent(self, harness: Harness) -> None:
        """While the backend cannot be observed, looking is an error and never an empty list (I3)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        backend.create(spec)
        harness.interrupt()
        with pytest.raises(BackendUnavailable):
            backend.list()
        with pytest.raises(BackendUnavailable):
            backend.inspect(spec.name)
        with pytest.raises(BackendUnavailable):
            backend.stop(spec.name, grace=1)
        with pytest.raises(BackendUnavailable):
            backend.remove(spec.name)


class RealBackendContract(BackendContract):
    """What only real processes can show: output, sockets, isolation, survivors."""

    def test_output_is_captured_and_outlives_the_instance(self, harness: Harness) -> None:
        """Both streams, also of an engine that failed while no agent looked; kept in its log folder after removal."""
        spec = harness.spec("a1", "--say", "hello", "--exit", "4")
        backend = harness.attach()
        backend.create(spec)
        backend.start(spec.name)
        assert await_exit(backend, spec).exit_code == 4
        backend = harness.attach()
        for words in ("test engine hello", "on stderr hello"):
            assert words in backend.output(spec.name, limit=10_000)
        assert len(backend.output(spec.name, limit=5)) == 5
        backend.remove(spec.name)
        assert "test engine hello" in (spec.log_folder / "output.log").read_text()

    def test_output_is_bounded(self, harness: Harness) -> None:
        """An engine that prints without end fills its limit, not the disk, and the end is what is kept (I11)."""
        spec = replace(harness.spec("a1"), log_limit=200_000)
        backend = harness.attach()
        run(harness, backend, spec).request("GET", "/fill/20000", timeout=PATIENCE)
        eventually(lambda: "line 19999 " in backend.output(spec.name, limit=1000), "the last line arrives")
        backend.stop(spec.name, grace=PATIENCE)
        backend.remove(spec.name)
        kept = sum(file.stat().st_size for file in spec.log_folder.iterdir())
        assert kept <= 200_000
        assert "line 19999 " in (spec.log_folder / "output.log").read_text(errors="replace")[-1000:]

    def test_what_is_printed_is_followed_over_rotations_to_the_end(self, harness: Harness) -> None:
        """A follower sees every line once, in order, also when the log was rotated meanwhile, and ends with it."""
        backend = harness.attach()
        spec = replace(harness.spec("a1"), log_limit=400_000)
        connection = run(harness, backend, spec)
        seen: list[bytes] = []
        stop = host_ports().stop
        follower = threading.Thread(
            target=lambda: seen.extend(harness.attach().printed(spec.name, lines=1000, follow=True, stop=stop)),
            daemon=True,
        )
        follower.start()
        eventually(lambda: b"test engine" in b"".join(seen), "the follower sees the beginning")
        for _ in range(4):
            # 100 KB at a time, and the follower keeps up: a log that is overrun is not what this is about.
            before = b"".join(seen).count(b"line 1499 ")
            connection.request("GET", "/fill/1500", timeout=PATIENCE)
            eventually(lambda before=before: b"".join(seen).count(b"line 1499 ") > before, "it sees the last line")  # type: ignore[misc] # bound now
        backend.stop(spec.name, grace=PATIENCE)
        follower.join(PATIENCE)
        assert not follower.is_alive()
        numbers = [int(line.split()[1]) for line in b"".join(seen).splitlines() if line.startswith(b"line ")]
        assert numbers == [*range(1500)] * 4

    def test_the_last_lines_are_told(self, harness: Harness) -> None:
        """As many as are asked for, of an instance that has ended too; of none, nothing."""
        spec = harness.spec("a1", "--say", "hello", "--exit", "4")
        backend = harness.attach()
        backend.create(spec)
        backend.start(spec.name)
        await_exit(backend, spec)
        stop = host_ports().stop
        told = b"".join(backend.printed(spec.name, lines=1, follow=False, stop=stop)).splitlines()
        assert len(told) == 1
        assert b"hello" in told[0]
        assert len(b"".join(backend.printed(spec.name, lines=9, follow=True, stop=stop)).splitlines()) == 2
        assert list(backend.printed("reconcile-testnet-none", lines=9, follow=True, stop=stop)) == []

    def test_a_limit_that_somebody_else_changed_is_seen_and_given_back(self, harness: Harness) -> None:
        """Field by field, by an agent that comes later too; while it runs, and nothing else of it changes."""
        spec = harness.spec("a1")
        run(harness, harness.attach(), spec)
        (before,) = harness.attach().list()
        assert before.changed == ()
        half = spec.target.resources.memory // 2
        harness.squeeze(harness.attach(), spec, half)
        backend = harness.attach()
        (seen,) = backend.list()
        assert {"memory"} <= {one.field for one in seen.changed}
        assert all(one.mendable for one in seen.changed)
        assert all(one.expected != one.found for one in seen.changed)
        backend.mend(spec.name)
        (after,) = backend.list()
        assert after.changed == ()
        assert (after.started_at, after.status) == (before.started_at, "running")
        assert answers(harness.connect(backend, spec))
        backend.mend(spec.name)
        backend.mend("reconcile-testnet-none")

    def test_the_peer_is_known(self, harness: Harness) -> None:
        """The process that listens belongs to the instance; this test, and a process of another node, do not (I10)."""
        spec, foreign = harness.spec("a1"), harness.spec("b1", node="b")
        backend, other = harness.attach(), harness.attach("b")
        run(harness, backend, spec)
        run(harness, other, foreign)
        assert not backend.is_peer(spec.name, os.getpid())
        assert not backend.is_peer(spec.name, 1)
        assert not backend.is_peer("reconcile-testnet-none", os.getpid())
        # A link to the other instance's socket in this one's folder leads nowhere.
        path = spec.socket_folder / "engine.sock"
        path.unlink()
        path.symlink_to(foreign.socket_folder / "engine.sock")
        assert not answers(harness.connect(backend, spec))
        path.unlink()
        with foreign_socket(path), pytest.raises(EngineUnreachable, match="not the instance's"):
            harness.connect(backend, spec).request("GET", "/health", timeout=10)

    def test_the_engine_is_locked_in(self, harness: Harness) -> None:
        """No network, no capability, no way to gain one, nothing inherited (I10); or `not_enforced` says so."""
        spec = harness.spec("a1")
        backend = harness.attach()
        seen = run(harness, backend, spec).request("GET", "/inside", timeout=PATIENCE)
        assert isinstance(seen, dict)
        excused = backend.not_enforced()
        assert excused == tuple(sorted(excused))
        if "network" not in excused:
            assert not seen["route"]
            assert set(seen["interfaces"]) <= {"lo"}  # type: ignore[arg-type] # a list of names
        assert seen["capabilities"] == ["0000000000000000"]
        assert seen["noNewPrivileges"] == "1"
        assert seen["input"] == "/dev/null"
        assert "PYTEST_CURRENT_TEST" not in str(seen["environment"])
        assert max(int(str(descriptor)) for descriptor in seen["descriptors"]) < 8  # type: ignore[union-attr]

    def test_no_process_survives_its_instance(self, harness: Harness) -> None:
        """A grandchild that left the engine's session and ignores SIGTERM is gone when stop returns (I3, I8)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec).request("GET", "/orphan", timeout=PATIENCE)
        assert harness.left(spec) != ()
        backend.stop(spec.name, grace=PATIENCE)
        backend.remove(spec.name)
        assert harness.left(spec) == ()

    def test_an_instance_can_be_started_again(self, harness: Harness) -> None:
        """After an end it serves again under the same name, and its earlier end is forgotten."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        harness.kill(backend, spec)
        await_exit(backend, spec)
        run(harness, backend, spec)
        seen = look(backend, spec)
        assert (seen.status, seen.exit_code, seen.detail) == ("running", None, "")
