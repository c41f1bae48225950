"""Docker and Podman against the one contract, and what only containers promise (I10)."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import docker
import docker.errors
import pytest

from runtime.backends import containers
from runtime.backends.container_answers import LABEL
from runtime.backends.container_limits import host_config
from runtime.backends.containers import ContainerEngine
from runtime.backends.docker_api import ContainerEvents
from runtime.connection import UnixConnection
from runtime.gpu_locks import GpuLocks
from runtime.host import host_ports
from runtime.interfaces import InstanceSpec, Launch
from schemas.errors import BackendUnavailable, EngineUnreachable, GpuInUse, ImageUnavailable
from schemas.observation import Absent, Present
from tests.contracts.backend_contract import RealBackendContract, await_exit, eventually, run
from tests.contracts.gpu_contract import GPU, GpuContract, is_started, on
from tests.contracts.test_backends import describe
from tests.support import builders

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from runtime.interfaces import Backend, EngineConnection
    from schemas.target import BackendName


def _keepers(container: str) -> list[int]:
    """Process ids of what keeps a container's GPUs."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0") if entry.name.isdigit() else []
            if container in argv and any(word.endswith("gpu_keeper.py") for word in argv):
                found.append(int(entry.name))
    return found


class ContainerHarness:
    """Containers of one engine. Nodes have names of their own in every test, so that tests in parallel do not meet."""

    def __init__(self, folder: Path, name: BackendName, host: str, image: str) -> None:
        self.folder = folder
        self.name: BackendName = name
        self.host = host
        self.image = image
        self.unique = uuid.uuid4().hex[:12]
        # Through a link of the test's own, which it can take away.
        self.socket = folder / "engine-api.sock"
        self.socket.symlink_to(host.removeprefix("unix://"))
        self.api = docker.DockerClient(base_url=host, timeout=60)
        self.attached: list[ContainerEngine] = []
        # What an engine without NVIDIA's toolkit would refuse; everything else about GPUs is as it would be.
        self.without_devices = mock.patch.object(containers, "host_config", without_devices)
        self.without_devices.start()

    def attach(self, node: str = "a") -> ContainerEngine:
        """A new object over the same engine."""
        backend = ContainerEngine(
            self.name,
            socket=str(self.socket),
            network="testnet",
            node_id=f"{node}-{self.unique}",
            ports=host_ports(),
            run_folder=self.folder / node / "run",
            locks=GpuLocks(self.folder / "gpus", network="testnet", node_id=f"{node}-{self.unique}"),
        )
        self.attached.append(backend)
        return backend

    def spec(self, intent: str, *flags: str, node: str = "a") -> InstanceSpec:
        """The test engine under the image's Python."""
        folder = self.folder / node
        backend = self.attach(node)
        backend.pull(self.image, progress=lambda *_: None, stop=host_ports().stop)
        view = backend.view(model_folder=folder / "model", socket_folder=folder)
        argv = ("/usr/bin/python3", "-I", f"{view.model}/engine.py", "--socket", view.socket, *flags)
        target = builders.target(mode="container", backend=self.name, image=self.image, environment=None)
        launch = Launch(argv, {"LANG": "C.UTF-8"})
        spec = describe(folder, intent, f"{node}-{self.unique}", target, launch)
        # Names are the engine's, which all tests share.
        return replace(spec, name=f"{spec.name}-{self.unique}", socket_folder=self._moved(spec.socket_folder))

    def _moved(self, folder: Path) -> Path:
        moved = folder.with_name(f"{folder.name}-{self.unique}")
        moved.mkdir(exist_ok=True)
        return moved

    def connect(self, backend: Backend, spec: InstanceSpec) -> EngineConnection:
        """Over the socket, peer checked."""
        return UnixConnection(spec.socket_folder / "engine.sock", is_peer=lambda pid: backend.is_peer(spec.name, pid))

    def end(self, backend: Backend, spec: InstanceSpec, code: int) -> None:
        """Ask the engine to."""
        with pytest.raises(EngineUnreachable):
            self.connect(backend, spec).request("GET", f"/exit/{code}", timeout=30)

    def kill(self, backend: Backend, spec: InstanceSpec) -> None:
        """SIGKILL, by the engine's hand."""
        self.api.api.kill(spec.name, "SIGKILL")

    def squeeze(self, backend: Backend, spec: InstanceSpec, memory: int) -> None:
        """`docker update`."""
        try:
            self.api.api.update_container(spec.name, mem_limit=memory, memswap_limit=memory)
        except docker.errors.NotFound:
            # Its own API changes limits, and its answers go on telling the old ones.
            pytest.skip(f"this {self.name} tells nobody of limits that were changed")

    def interrupt(self) -> None:
        """The engine's socket is gone, and so are the connections to it."""
        self.socket.unlink()
        for backend in self.attached:
            backend._api.forget()

    def left(self, spec: InstanceSpec) -> Sequence[str]:
        """The container, if there is one."""
        found = self.api.api.containers(all=True, filters={"name": spec.name})
        return tuple(item["Id"] for item in found)

    def close(self) -> None:
        """Remove what a failed test left."""
        found = self.api.api.containers(all=True, filters={"label": f"{LABEL}network=testnet"})
        for item in found:
            if any(self.unique in name for name in item.get("Names") or ()):
                self.api.api.remove_container(item["Id"], force=True, v=True)
        for folder in self.folder.glob("*/run/*"):
            if folder.is_mount():
                host_ports().processes.run(["umount", "--lazy", str(folder)], timeout=10)
        self.without_devices.stop()
        self.api.close()


def without_devices(spec: InstanceSpec, image: dict[str, Any]) -> dict[str, Any]:
    """The restrictions of a container, without the devices of its GPUs."""
    return {**host_config(spec, image), "device_requests": None}


class ContainerContract(GpuContract, RealBackendContract):
    """What containers promise beyond the common contract."""

    def inside(self, harness: ContainerHarness, *flags: str) -> dict[str, Any]:
        """What a running engine sees from where it is locked in."""
        spec = harness.spec("a1", *flags)
        answer = run(harness, harness.attach(), spec).request("GET", "/inside", timeout=30)
        assert isinstance(answer, dict)
        return answer

    def test_there_is_no_network_and_no_privilege(self, harness: ContainerHarness) -> None:
        """Only loopback, no route, no capability, no way to gain one (I10)."""
        seen = self.inside(harness)
        assert seen["interfaces"] == ["lo"]
        assert seen["route"] is False
        assert seen["capabilities"] == ["0000000000000000"]
        assert seen["noNewPrivileges"] == "1"

    def test_only_what_compiles_may_run_code_from_its_scratch_folder(self, harness: ContainerHarness) -> None:
        """And has room for it, within its memory limit: kernels are loaded as libraries are (I10)."""
        assert self.inside(harness)["scratch"] == {"size": 64 * 2**20, "executable": False}
        spec = harness.spec("b2")
        spec = replace(spec, launch=replace(spec.launch, compiles=True))
        answer: Any = run(harness, harness.attach(), spec).request("GET", "/inside", timeout=30)
        assert answer["scratch"] == {"size": spec.target.resources.memory // 4, "executable": True}

    def test_an_agents_death_does_not_free_what_its_container_uses(
        self, harness: ContainerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor does that of the container's keeper: an agent in a container takes its keepers with it (I3)."""
        ours, theirs = on(harness.spec("a1"), GPU), on(harness.spec("b1", node="b"), GPU)
        run(harness, harness.attach(), ours)
        other = harness.attach("b")
        other.create(theirs)
        container = harness.left(ours)[0]
        (keeper,) = _keepers(container)
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: not _keepers(container), "the keeper is gone")
        with pytest.raises(GpuInUse, match=f"in use by {ours.name}"):
            other.start(theirs.name)
        harness.kill(harness.attach(), ours)
        eventually(lambda: is_started(other, theirs), "the GPU is free after the container")
        # A keeper ends with its container.
        taken = harness.left(theirs)[0]
        assert len(_keepers(taken)) == 1
        other.remove(theirs.name)
        eventually(lambda: not _keepers(taken), "the other keeper is gone")

    def test_restrictions_reach_the_engine_as_asked(self, harness: ContainerHarness) -> None:
        """Read-only root, limits and mounts, as the container engine itself tells them (I10)."""
        spec = harness.spec("a1")
        run(harness, harness.attach(), spec)
        detail = harness.api.api.inspect_container(spec.name)
        host = detail["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert host["NetworkMode"] == "none"
        assert host["Memory"] == spec.target.resources.memory
        assert host["PidsLimit"] == spec.target.resources.pids
        assert host["Privileged"] is False
        assert detail["Config"]["User"] == "65534:65534"
        mounts = {mount["Destination"]: mount["RW"] for mount in detail["Mounts"] if mount["Type"] == "bind"}
        assert mounts == {"/model": False, "/run/reconcile": True}
        assert "docker.sock" not in json.dumps(detail["Mounts"])

    def test_the_socket_folder_is_capped(self, harness: ContainerHarness) -> None:
        """A hostile engine cannot fill the node's disk through the folder that it shares with the agent (I10)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        run(harness, backend, spec)
        assert backend.not_enforced() == ()
        import os

        usage = os.statvfs(spec.socket_folder)
        assert usage.f_blocks * usage.f_frsize <= 65536
        assert usage.f_files <= 16
        backend.stop(spec.name, grace=1)
        backend.remove(spec.name)
        assert not spec.socket_folder.is_mount()

    def test_a_renamed_container_is_found_again(self, harness: ContainerHarness) -> None:
        """Whatever somebody calls it: a second one would be started beside it otherwise (I3)."""
        spec = harness.spec("a1")
        run(harness, harness.attach(), spec)
        other = f"mine-{harness.unique}"
        harness.api.api.rename(spec.name, other)
        backend = harness.attach()
        (seen,) = backend.list()
        assert (seen.name, seen.status) == (spec.name, "running")
        (one,) = seen.changed
        assert (one.field, one.expected, one.found, one.mendable) == ("name", spec.name, other, True)
        backend.mend(spec.name)
        (after,) = harness.attach().list()
        assert (after.name, after.changed) == (spec.name, ())
        harness.api.api.rename(spec.name, other)
        harness.attach().stop(spec.name, grace=1)
        harness.attach().remove(spec.name)
        assert not [item for item in harness.api.api.containers(all=True) if f"/{other}" in item["Names"]]

    def test_a_container_that_somebody_made_again_is_another(self, harness: ContainerHarness) -> None:
        """Of the same name, with the same labels and half the memory: it is seen, told apart, and can be ended (I3)."""
        if harness.name == "podman":
            pytest.skip("Podman's word for this image's command is none that it takes; tests/demo has one that it does")
        spec = harness.spec("a1")
        run(harness, harness.attach(), spec)
        api = harness.api.api
        detail = api.inspect_container(spec.name)
        api.remove_container(spec.name, force=True)
        half = spec.target.resources.memory // 2
        host = {**detail["HostConfig"], "Memory": half, "MemorySwap": half, "Binds": None, "Ulimits": None}
        api.create_container_from_config({**detail["Config"], "HostConfig": host}, name=spec.name)
        api.start(spec.name)
        backend = harness.attach()
        (seen,) = backend.list()
        assert (seen.name, seen.status, seen.spec_digest) == (spec.name, "running", spec.target.spec_digest)
        changed = {one.field: one for one in seen.changed}
        assert {"container", "memory"} <= set(changed)
        assert not changed["container"].mendable
        backend.stop(spec.name, grace=1)
        backend.remove(spec.name)
        assert harness.left(spec) == ()
        assert harness.attach().list() == ()

    def test_labels_alone_are_no_mark(self, harness: ContainerHarness) -> None:
        """A container with our labels and another name (as an image can bring) is none of ours (I8)."""
        spec = harness.spec("a1")
        backend = harness.attach()
        config = harness.api.api.create_container_config(
            image=harness.image, command=["/usr/bin/python3", "-c", "0"], labels=backend._marks.labels(spec)
        )
        name = f"impostor-{harness.unique}"
        harness.api.api.create_container_from_config(config, name=name)
        assert backend.list() == ()
        assert backend.inspect(name) is None
        backend.remove(name)
        assert harness.api.api.inspect_container(name)["Name"].lstrip("/") == name

    def test_an_image_is_pulled_by_digest_and_a_wrong_digest_is_refused(self, harness: ContainerHarness) -> None:
        """What is not there under exactly that digest is not there (I2)."""
        backend = harness.attach()
        ports = host_ports()
        backend.pull(harness.image, progress=lambda *_: None, stop=ports.stop)
        assert isinstance(backend.image(harness.image), Present)
        wrong = harness.image[:-64] + "0" * 64
        assert backend.image(wrong) == Absent()
        with pytest.raises(ImageUnavailable):
            backend.pull(wrong, progress=lambda *_: None, stop=ports.stop)
        assert backend.image(wrong) == Absent()

    def test_the_volumes_of_an_image_are_covered(
        self, harness: ContainerHarness, test_images: Mapping[str, str]
    ) -> None:
        """A VOLUME of the image would be unbounded and outlive the container: tmpfs of a fixed size lies over it."""
        backend = harness.attach()
        spec = harness.spec("a1")
        image = test_images["busybox-volume"]
        backend.pull(image, progress=lambda *_: None, stop=host_ports().stop)
        target = builders.target(mode="container", backend=harness.name, image=image, environment=None)
        spec = replace(spec, target=target, launch=Launch(("sleep", "100"), {}))
        backend.create(spec)
        backend.start(spec.name)
        detail = harness.api.api.inspect_container(spec.name)
        volumes = detail["Config"].get("Volumes") or {}
        declared = harness.api.api.inspect_image(image)["Config"]["Volumes"]
        assert declared
        assert all(path in detail["HostConfig"]["Tmpfs"] for path in {*declared, *volumes})
        assert not [mount for mount in detail["Mounts"] if mount["Type"] == "volume"]

    def test_a_memory_hog_is_ended(self, harness: ContainerHarness) -> None:
        """The memory limit is real: allocating beyond it ends the engine, and only it (I10)."""
        spec = harness.spec("a1")
        target = spec.target.model_copy(
            update={"resources": spec.target.resources.model_copy(update={"memory": 64 * 2**20})}
        )
        code = "x = bytearray(512 * 2**20); x[::4096] = b'1' * len(x[::4096])"
        spec = replace(spec, target=target, launch=Launch(("/usr/bin/python3", "-c", code), {}))
        backend = harness.attach()
        backend.create(spec)
        backend.start(spec.name)
        seen = await_exit(backend, spec)
        assert seen.exit_code not in (None, 0)

    def test_what_happens_to_a_container_is_told_at_once(self, harness: ContainerHarness) -> None:
        """Its end, and a pause by somebody else; nothing of another node's. An engine that is away is awaited."""
        ours, theirs = harness.spec("00000001"), harness.spec("00000002", node="b")
        for spec, node in ((ours, "a"), (theirs, "b")):
            backend = harness.attach(node)
            backend.create(spec)
            backend.start(spec.name)
        heard = threading.Semaphore(0)
        away = harness.socket.rename(harness.folder / "away.sock")
        events = ContainerEvents(socket=str(harness.socket), network="testnet", node_id=f"a-{harness.unique}")
        thread = threading.Thread(target=events.follow, args=(heard.release,), daemon=True)
        thread.start()
        try:
            assert not heard.acquire(timeout=0.2), "there is nothing to hear yet"
            away.rename(harness.socket)
            assert heard.acquire(timeout=60), "it is worth a look once the engine is back"
            harness.api.containers.get(theirs.name).kill()
            harness.api.containers.get(ours.name).pause()
            assert heard.acquire(timeout=60)
            assert harness.attach().inspect(ours.name).health == "unhealthy"  # type: ignore[union-attr]
            assert harness.attach().list()[0].health == "unhealthy"
            harness.api.containers.get(ours.name).unpause()
            assert heard.acquire(timeout=60)
            harness.api.containers.get(ours.name).kill()
            assert heard.acquire(timeout=60)
        finally:
            events.close()
            thread.join(60)
        assert not thread.is_alive()

    def test_a_paused_container_can_be_stopped(self, harness: ContainerHarness) -> None:
        """It is what the repair does first; a frozen process hears no signal."""
        spec, backend = harness.spec("00000001"), harness.attach()
        backend.create(spec)
        backend.start(spec.name)
        harness.api.containers.get(spec.name).pause()
        backend.stop(spec.name, grace=2)
        backend.remove(spec.name)
        assert backend.inspect(spec.name) is None

    def test_an_engine_that_is_not_there_is_unknown(self, harness: ContainerHarness) -> None:
        """No socket is no answer, never an empty list (I3)."""
        lost = ContainerEngine(
            harness.name, socket="/nonexistent.sock", network="testnet", node_id="a", ports=host_ports()
        )
        with pytest.raises(BackendUnavailable):
            lost.list()


@pytest.mark.docker
class TestDocker(ContainerContract):
    """A real Docker engine."""

    @pytest.fixture
    def harness(self, tmp_path: Path, docker_host: str, test_images: Mapping[str, str]) -> Iterator[ContainerHarness]:
        """A node of its own on the machine's engine."""
        harness = ContainerHarness(tmp_path, "docker", docker_host, test_images["base"])
        yield harness
        harness.close()


@pytest.mark.podman
class TestPodman(ContainerContract):
    """Podman's Docker-compatible service."""

    @pytest.fixture
    def harness(self, tmp_path: Path, podman_host: str, test_images: Mapping[str, str]) -> Iterator[ContainerHarness]:
        """A node of its own on the machine's engine."""
        harness = ContainerHarness(tmp_path, "podman", podman_host, test_images["base"])
        yield harness
        harness.close()
