"""The image recipes, built for real and run by real engines, with every restriction that a runtime gets (I10)."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from examples.tiny_model import write_tiny_model
from tests.support.containers import BUILD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ENGINES = [
    pytest.param("docker_host", marks=pytest.mark.docker, id="docker"),
    pytest.param("podman_host", marks=pytest.mark.podman, id="podman"),
]
# An agent that is root runs engines as nobody, any other as itself: both can reach a socket of mode 0660.
USER = os.geteuid() or 65534
ISOLATED = [
    *("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", f"--user={USER}:{USER}"),
    *("--init", "--ipc=private", "--shm-size=16m", "--pids-limit=128", "--memory=256m", "--memory-swap=256m"),
    *("--cpus=1", "--ulimit=nofile=1024", "--ulimit=nproc=1024"),
    *("--tmpfs=/tmp:size=1m", "--tmpfs=/run:size=1m", "--tmpfs=/var/tmp:size=1m"),
]
READY_SECONDS = 60


class Engine:
    """The docker command against one engine: Docker, or Podman through its Docker-compatible socket."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.name = f"reconcile-test-{uuid.uuid4().hex[:12]}"

    def __call__(self, *arguments: str) -> str:
        """Run one docker command and return what it prints."""
        command = ["docker", "--host", self._address, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    def state(self) -> dict[str, Any]:
        """The container's state, as the engine tells it."""
        state: dict[str, Any] = json.loads(self("inspect", "--format", "{{json .State}}", self.name))
        return state

    def wait(self) -> int:
        """The container's exit code, once it has one."""
        return int(self("wait", self.name))


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine that is present, with a container name of this test's own, removed afterwards."""
    engine = Engine(request.getfixturevalue(request.param))
    yield engine
    subprocess.run(
        ["docker", "--host", engine._address, "rm", "--force", engine.name], check=False, capture_output=True
    )


def ask(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Ask for a completion over the socket, from the moment that somebody listens there."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        connection = http.client.HTTPConnection("localhost", timeout=READY_SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(path))
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            answer = connection.getresponse()
            if answer.status == http.client.OK:
                decoded: dict[str, Any] = json.loads(answer.read())
                return decoded
        except OSError:
            pass
        finally:
            connection.close()
        assert time.monotonic() < deadline, "the engine does not answer on its socket"
        time.sleep(0.02)


def test_llamacpp_serves_in_full_isolation(engine: Engine, test_images: Mapping[str, str], tmp_path: Path) -> None:
    """I10: pulled by digest, without network, capabilities or a writable root, it serves; SIGTERM ends it cleanly."""
    model, sockets = tmp_path / "model", tmp_path / "sockets"
    model.mkdir()
    sockets.mkdir()
    write_tiny_model(model / "tiny.gguf", seed=1)
    os.chown(sockets, USER, USER)
    model.chmod(0o755)
    mounts = ("--volume", f"{model}:/model:ro", "--volume", f"{sockets}:/run/engine")
    arguments = ("--model", "/model", "--socket", "/run/engine/x.sock", "--ctx-size", "256", "--threads", "1")
    engine("run", "--detach", "--name", engine.name, *ISOLATED, *mounts, test_images["llamacpp"], *arguments)
    question = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
    assert ask(sockets / "x.sock", question)["usage"]["completion_tokens"] == 8
    engine("stop", "--time", "30", engine.name)
    assert engine.state()["ExitCode"] == 0
    assert not (sockets / "x.sock").exists()


def test_busybox_stays_until_told_to_go(engine: Engine, test_images: Mapping[str, str]) -> None:
    """Its default command runs until SIGTERM and then ends with 0, not killed after the grace."""
    engine("run", "--detach", "--name", engine.name, *ISOLATED, test_images["busybox"])
    assert engine.state()["Status"] == "running"
    engine("stop", "--time", "30", engine.name)
    assert engine.state()["ExitCode"] == 0


def test_busybox_exit_codes_arrive(engine: Engine, test_images: Mapping[str, str]) -> None:
    """An exit code of the command is the container's."""
    engine("run", "--detach", "--name", engine.name, *ISOLATED, test_images["busybox"], "sh", "-c", "exit 7")
    assert engine.wait() == 7


def test_volume_variant_declares_its_volume(engine: Engine, test_images: Mapping[str, str]) -> None:
    """What backends must refuse can be seen before anything is created."""
    engine("pull", "--quiet", test_images["busybox-volume"])
    volumes = engine("image", "inspect", "--format", "{{json .Config.Volumes}}", test_images["busybox-volume"])
    assert json.loads(volumes) == {"/data": {}}


def test_an_unchanged_image_is_not_built_again(
    test_images: Mapping[str, str], registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second build needs no engine at all: the registry has every key, and the references are the same."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    out = tmp_path / "images.json"
    command = [sys.executable, str(BUILD), "--registry", registry, "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert json.loads(out.read_text()) == test_images


def test_build_refusals_are_clear(tmp_path: Path) -> None:
    """An unknown image is a usage error; a registry that is not there is one line, not a traceback."""
    unknown = subprocess.run(
        [sys.executable, str(BUILD), "nonesuch"], check=False, capture_output=True, text=True, timeout=60
    )
    assert unknown.returncode == 2
    assert "no such image: nonesuch" in unknown.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, str(BUILD), "busybox", "--registry", f"127.0.0.1:{port}"]
    absent = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert absent.returncode == 1
    assert absent.stderr.startswith(f"build: registry 127.0.0.1:{port} does not answer")
