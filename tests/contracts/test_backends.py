"""Every backend against the one contract, and what is particular to each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.backends import native, native_confinement, native_group, native_processes
from runtime.backends.native import NativeBackend
from runtime.backends.simulated import SimulatedBackend, SimulatedEngineRoom
from runtime.connection import UnixConnection
from runtime.engines.simulated import SimulatedConnection
from runtime.gpu_locks import GpuLocks
from runtime.host import host_ports
from runtime.interfaces import InstanceSpec, Launch
from schemas.digests import digest_text
from schemas.errors import BackendUnavailable, EngineUnreachable, GpuInUse, StartFailed
from schemas.observation import Difference
from tests.contracts.backend_contract import (
    BackendContract,
    RealBackendContract,
    answers,
    await_exit,
    eventually,
    look,
    run,
)
from tests.contracts.gpu_contract import GPU, GpuContract, is_started, on
from tests.support import builders, test_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.interfaces import Backend, EngineConnection
    from schemas.target import ServingTarget


def describe(folder: Path, intent: str, node: str, target: ServingTarget, launch: Launch) -> InstanceSpec:
    """An instance with folders of its own below `folder`."""
    name = f"reconcile-testnet-{intent}"
    places = [folder / kind / name for kind in ("run", "logs")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    shutil.copy(test_engine.__file__, folder / "model" / "engine.py")
    return InstanceSpec(
        name=name,
        intent=intent,
        network="testnet",
        node_id=node,
        target=target,
        launch=launch,
        model_folder=folder / "model",
        socket_folder=places[0],
        log_folder=places[1],
        log_limit=2**20,
    )


class SimulatedHarness:
    """The simulated backend: what outlives an agent is its engine room."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.room = SimulatedEngineRoom()

    def attach(self, node: str = "a") -> SimulatedBackend:
        """A new object over the same room."""
        return SimulatedBackend(self.room, network="testnet", node_id=node, clock=host_ports().clock)

    def spec(self, intent: str, *flags: str, node: str = "a") -> InstanceSpec:
        """An instance that is only remembered."""
        return describe(self.folder, intent, node, builders.target(backend="simulated"), Launch(("engine", *flags), {}))

    def connect(self, backend: Backend, spec: InstanceSpec) -> EngineConnection:
        """Into the room."""
        return SimulatedConnection(self.room, spec.name)

    def end(self, backend: Backend, spec: InstanceSpec, code: int) -> None:
        """As the room says."""
        self.room.kill(spec.name, exit_code=code, detail=f"exit code {code}")

    def kill(self, backend: Backend, spec: InstanceSpec) -> None:
        """As the room says."""
        self.room.kill(spec.name)

    def squeeze(self, backend: Backend, spec: InstanceSpec, memory: int) -> None:
        """As the room says."""
        made = str(spec.target.resources.memory)
        self.room.change(spec.name, Difference("memory", made, str(memory), mendable=True))

    def interrupt(self) -> None:
        """The room does not answer."""
        self.room.unavailable = "closed"

    def left(self, spec: InstanceSpec) -> Sequence[str]:
        """What the room still knows."""
        return tuple(name for name in self.room.instances if name == spec.name)

    def close(self) -> None:
        """Nothing is real."""


class NativeHarness:
    """Host processes. Nodes have names of their own in every test, so that tests in parallel do not meet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unique = uuid.uuid4().hex
        self.nodes: set[str] = set()

    def attach(self, node: str = "a") -> NativeBackend:
        """A new object over the same folder."""
        self.nodes.add(node)
        run_folder, node_id = self.folder / node / "run", f"{node}-{self.unique}"
        locks = GpuLocks(self.folder / "gpus", network="testnet", node_id=node_id)
        return NativeBackend(run_folder, network="testnet", node_id=node_id, ports=host_ports(), locks=locks)

    def spec(self, intent: str, *flags: str, node: str = "a") -> InstanceSpec:
        """The test engine under this interpreter."""
        folder = self.folder / node
        view = self.attach(node).view(model_folder=folder / "model", socket_folder=folder)
        argv = (sys.executable, "-I", f"{view.model}/engine.py", "--socket", view.socket, *flags)
        launch = Launch(argv, {"LANG": "C.UTF-8"})
        return describe(folder, intent, f"{node}-{self.unique}", builders.target(), launch)

    def connect(self, backend: Backend, spec: InstanceSpec) -> EngineConnection:
        """Over the socket, peer checked."""
        return UnixConnection(spec.socket_folder / "engine.sock", is_peer=lambda pid: backend.is_peer(spec.name, pid))

    def end(self, backend: Backend, spec: InstanceSpec, code: int) -> None:
        """Ask the engine to."""
        with pytest.raises(EngineUnreachable):
            self.connect(backend, spec).request("GET", f"/exit/{code}", timeout=30)

    def kill(self, backend: Backend, spec: InstanceSpec) -> None:
        """SIGKILL to the process that answers."""
        os.kill(self.pid(backend, spec), signal.SIGKILL)

    def pid(self, backend: Backend, spec: InstanceSpec) -> int:
        """The engine's process."""
        answer = self.connect(backend, spec).request("GET", "/inside", timeout=30)
        assert isinstance(answer, dict)
        return int(str(answer["pid"]))

    def shim(self, spec: InstanceSpec, node: str = "a") -> int:
        """The supervisor's process."""
        return native_processes.lock_holder(self.folder / node / "run" / "instances" / spec.name / "lock")

    def squeeze(self, backend: Backend, spec: InstanceSpec, memory: int) -> None:
        """Into its control group, where this machine lets one be made."""
        known = json.loads((self.folder / "a" / "run" / "instances" / spec.name / "spec.json").read_bytes())
        if "memory" in known["refused"]:
            pytest.skip("this machine limits no memory of native engines")
        group = native_group.Group(known["group"])
        name = "memory.max" if group.unified else "memory.limit_in_bytes"
        (group.folder("memory") / name).write_text(str(memory))

    def interrupt(self) -> None:
        """The folder of instances cannot be read; taking the rights away would not stop root."""
        folder = self.folder / "a" / "run" / "instances"
        folder.rename(folder.with_name("elsewhere"))
        folder.touch()

    def left(self, spec: InstanceSpec) -> Sequence[str]:
        """Processes that carry the instance's marks or hold its folder's lock, and its folder."""
        owner = digest_text(f"native/1|testnet|{spec.node_id}")
        alive = [str(process.pid) for process in native_processes.marked(owner) if process.instance == spec.name]
        return (*alive, *(str(path) for path in self.folder.glob(f"*/run/instances/{spec.name}")))

    def close(self) -> None:
        """Kill what a failed test left."""
        for node in sorted(self.nodes):
            for process in native_processes.marked(digest_text(f"native/1|testnet|{node}-{self.unique}")):
                os.kill(process.pid, signal.SIGKILL)
            # A supervisor that is killed gives nothing back: mounts and control groups are given back here.
            folder = self.folder / node / "run" / "instances"
            for place in folder.iterdir() if folder.is_dir() else ():
                with suppress(BackendUnavailable):
                    self.attach(node).remove(place.name)
        for mounted in self.folder.glob("*/run/*"):
            if mounted.is_mount():
                native_confinement.unmount(str(mounted))


class TestSimulated(GpuContract, BackendContract):
    """The simulator must not drift from what is real."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> SimulatedHarness:
        """A room of its own."""
        return SimulatedHarness(tmp_path)


def start_and_die(backend: NativeBackend, name: str) -> None:
    """Start an instance in another process, which is killed before it has let go of anything."""
    real = backend._launch

    def launch(*arguments: Any) -> str:
        answer = real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        return answer

    child = os.fork()
    if child == 0:
        backend._launch = launch  # type: ignore[method-assign]
        backend.start(name)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


class TestNative(GpuContract, RealBackendContract):
    """Real processes of this host."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[NativeHarness]:
        """A folder of its own."""
        harness = NativeHarness(tmp_path)
        yield harness
        harness.close()

    def test_an_agent_that_is_killed_while_it_starts_leaves_no_gap(self, harness: NativeHarness) -> None:
        """SIGKILL with the locks in its hands: the GPU goes from agent to engine without a moment between (I3)."""
        ours, theirs = on(harness.spec("a1"), GPU), on(harness.spec("b1", node="b"), GPU)
        harness.attach().create(ours)
        start_and_die(harness.attach(), ours.name)
        assert look(harness.attach(), ours).status == "running"
        other = harness.attach("b")
        other.create(theirs)
        with pytest.raises(GpuInUse, match=f"in use by {ours.name}"):
            other.start(theirs.name)
        os.kill(harness.shim(ours), signal.SIGKILL)
        eventually(lambda: is_started(other, theirs), "the GPU is free once the supervisor and its engine are dead")

    def test_the_supervisor_s_death_takes_the_engine_along(self, harness: NativeHarness) -> None:
        """SIGKILL of the supervisor leaves no engine that nobody looks after, and is seen for what it is (I3)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        os.kill(harness.shim(spec), signal.SIGKILL)
        seen = await_exit(backend, spec)
        assert (seen.exit_code, seen.detail) == (None, "killed with its supervisor")

    def test_a_survivor_of_its_supervisor_still_counts_as_running(self, harness: NativeHarness) -> None:
        """A worker that outlives supervisor and engine holds memory: it is seen, and stop ends it (I3)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        worker = run(harness, backend, spec).request("GET", "/orphan", timeout=30)
        shim, engine = harness.shim(spec), harness.pid(backend, spec)
        os.kill(shim, signal.SIGKILL)
        eventually(lambda: harness.left(spec)[:-1] == (str(worker),), f"only the worker is left of {shim}, {engine}")
        seen = look(backend, spec)
        assert (seen.status, seen.health) == ("running", "unhealthy")
        assert "processes of it remain" in seen.detail
        backend.stop(spec.name, grace=1)
        assert look(backend, spec).status == "exited"

    def test_an_end_is_told_only_when_nothing_is_left(self, harness: NativeHarness) -> None:
        """An engine that ends by itself takes along what it started: exited means that its memory is free (I3)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec).request("GET", "/orphan", timeout=30)
        harness.end(backend, spec, 0)
        await_exit(backend, spec)
        assert harness.left(spec) == (str(harness.folder / "a" / "run" / "instances" / spec.name),)

    def test_an_instance_without_its_folder_is_still_seen_and_stopped(self, harness: NativeHarness) -> None:
        """Somebody who empties the folder hides no engine: its marks name it, with its intent and spec (I3, I8)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        shutil.rmtree(harness.folder / "a" / "run" / "instances")
        seen = look(backend, spec)
        assert (seen.status, seen.health, seen.intent, seen.spec_digest) == (
            "running",
            "unhealthy",
            "a1",
            spec.target.spec_digest,
        )
        backend.stop(spec.name, grace=1)
        assert backend.list() == ()
        assert harness.left(spec) == ()

    def test_a_hanging_supervisor_is_killed(self, harness: NativeHarness) -> None:
        """Even a stopped (SIGSTOP) supervisor cannot keep its engine alive."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(native, "KILL_SECONDS", 1.0)
            os.kill(harness.shim(spec), signal.SIGSTOP)
            backend.stop(spec.name, grace=0)
        assert look(backend, spec).status == "exited"
        assert len(harness.left(spec)) == 1  # the folder

    def test_a_restart_of_the_machine_is_seen(self, harness: NativeHarness) -> None:
        """State of another boot says nothing about today's processes, even when their ids are the same."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        harness.kill(backend, spec)
        await_exit(backend, spec)
        folder = harness.folder / "a" / "run" / "instances" / spec.name
        (folder / "exit.json").unlink()
        (folder / "state.json").write_text(
            f'{{"boot": "0", "engine": {os.getpid()}, "engineTicks": 1, "startedAt": 1}}'
        )
        seen = look(backend, spec)
        assert (seen.status, seen.detail) == ("exited", "the machine was restarted")
        backend.stop(spec.name, grace=1)

    @pytest.mark.parametrize("stranger", ["session", "namespace", "init"])
    def test_an_id_that_was_used_again_is_left_alone(self, harness: NativeHarness, stranger: str) -> None:
        """A session that another process leads, or nobody seen from here, is a stranger's: the stop spares it (I8)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        harness.kill(backend, spec)
        await_exit(backend, spec)
        folder = harness.folder / "a" / "run" / "instances" / spec.name
        (folder / "exit.json").unlink()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        try:
            leader = {"session": process.pid, "namespace": 0, "init": 1}[stranger]
            state = f'{{"boot": "{boot}", "engine": {leader}, "engineTicks": 1, "startedAt": 1}}'
            (folder / "state.json").write_text(state)
            assert native_processes.session_members(leader, 1) == []
            backend.stop(spec.name, grace=1)
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        assert look(backend, spec).status == "exited"

    def test_a_folder_of_another_node_is_none_of_ours(self, harness: NativeHarness) -> None:
        """After the node got another key, what its predecessor prepared in the same folder is left alone (I8)."""
        spec = harness.spec("a1")
        connection = run(harness, harness.attach(), spec)
        successor = NativeBackend(harness.folder / "a" / "run", network="testnet", node_id="c", ports=host_ports())
        assert successor.list() == ()
        successor.stop(spec.name, grace=0)
        successor.remove(spec.name)
        assert answers(connection)
        assert look(harness.attach(), spec).status == "running"

    def test_a_damaged_spec_blocks_rather_than_hides(self, harness: NativeHarness) -> None:
        """What is written about an instance cannot be understood: unknown, never absent (I3); it can be removed."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        (harness.folder / "a" / "run" / "instances" / spec.name / "spec.json").write_bytes(b"{")
        with pytest.raises(BackendUnavailable, match=r"cannot be seen: .*/spec\.json is damaged"):
            backend.list()
        backend.remove(spec.name)
        assert harness.left(spec) == ()
        assert backend.list() == ()

    @pytest.mark.parametrize("name", ["state.json", "exit.json"])
    def test_what_a_supervisor_wrote_may_be_damaged(self, harness: NativeHarness, name: str) -> None:
        """Its lock says that it runs: it is seen, stopped and removed all the same (I7)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        (harness.folder / "a" / "run" / "instances" / spec.name / name).write_bytes(b"{")
        assert look(backend, spec).status == "running"
        backend.stop(spec.name, grace=5)
        assert look(backend, spec).status != "running"
        backend.remove(spec.name)
        assert harness.left(spec) == ()
        assert backend.list() == ()

    def test_a_crash_while_creating_leaves_nothing(self, harness: NativeHarness) -> None:
        """A folder without its spec is no instance, and the next creation clears it away (I7)."""
        backend = harness.attach()
        half = harness.folder / "a" / "run" / "instances" / "reconcile-testnet-half"
        half.mkdir(parents=True)
        assert backend.list() == ()
        backend.create(harness.spec("a1"))
        assert not half.exists()

    def test_a_program_that_cannot_be_started_says_why(self, harness: NativeHarness) -> None:
        """The reason reaches the error, the instance counts as created, and nothing runs."""
        spec = replace(harness.spec("a1"), launch=Launch(("/nonexistent/engine",), {}))
        backend = harness.attach()
        backend.create(spec)
        with pytest.raises(StartFailed, match="No such file"):
            backend.start(spec.name)
        assert look(backend, spec).status == "created"

    def test_a_model_that_the_engine_s_user_cannot_read_is_said(self, harness: NativeHarness) -> None:
        """Where the engine is given a user of its own, a file for its owner's eyes is one clear error beforehand."""
        spec = harness.spec("a1")
        backend = harness.attach()
        if "user" in backend.not_enforced():
            pytest.skip("engines run as the agent's user here")
        (spec.model_folder / "engine.py").chmod(0o600)
        with pytest.raises(StartFailed, match=r"engine\.py can be read by its owner only"):
            backend.create(spec)

    def test_what_a_killed_supervisor_held_is_given_back(self, harness: NativeHarness) -> None:
        """Removing an instance leaves no mount and no control group, also where its supervisor could not (I7)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        described = json.loads((harness.folder / "a" / "run" / "instances" / spec.name / "spec.json").read_text())
        group = native_group.Group(described["group"])
        places = [group.folder(name) for name in ("cpu", "memory", "pids") if name not in described["refused"]]
        assert all(place.exists() for place in places)
        assert spec.socket_folder.is_mount() == described["capped"]
        os.kill(harness.shim(spec), signal.SIGKILL)
        await_exit(backend, spec)
        backend.remove(spec.name)
        assert not [place for place in places if place.exists()]
        assert not spec.socket_folder.is_mount()

    def test_an_engine_serves_from_a_folder_that_cannot_be_capped(self, harness: NativeHarness) -> None:
        """Also as a user of its own, to whom a folder of the host is closed; what is not enforced is said (I10)."""
        harness.attach().create(harness.spec("a1"))
        remembered = harness.folder / "a" / "run" / "namespaces"
        answer = json.loads(remembered.read_text())
        remembered.write_text(json.dumps({**answer, "permitted": {**answer["permitted"], "capped": False}}))
        backend, spec = harness.attach(), harness.spec("a2")
        assert "socket-size" in backend.not_enforced()
        spec.socket_folder.chmod(0o700)
        run(harness, backend, spec)
        assert not spec.socket_folder.is_mount()

    def test_what_a_machine_permits_is_asked_again_only_by_another(self, harness: NativeHarness) -> None:
        """The answer is remembered for this boot, user and program; a stale or damaged one counts for nothing."""
        harness.attach().create(harness.spec("a1"))
        remembered = harness.folder / "a" / "run" / "namespaces"
        answer = json.loads(remembered.read_text())
        real = harness.attach().not_enforced()
        pretended = {**answer, "permitted": {**answer["permitted"], "namespaces": "none"}}
        remembered.write_text(json.dumps(pretended))
        assert "network" in harness.attach().not_enforced()
        for stale in (json.dumps({**pretended, "asked": "another boot"}), "{", "plain"):
            remembered.write_text(stale)
            assert harness.attach().not_enforced() == real

    def test_the_agent_is_left_no_zombie(self, harness: NativeHarness) -> None:
        """A daemon that starts engines for years has no children to wait for."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert str(harness.shim(spec)) not in children
        assert str(harness.pid(backend, spec)) not in children
