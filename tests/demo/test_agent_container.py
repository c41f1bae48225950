"""The agent as a container of the engine that it commands: with Docker, llama.cpp, and clients on the host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from model_server import serving
from telling import DemoError

from tests.support import nvml
from tests.support.containers import BUILD
from tests.support.front import eventually
from tests.support.nvml import StandIn
from tests.support.quiet_demo import QuietDemo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not os.environ.get("TEST_AGENT_IMAGE"), reason="TEST_AGENT_IMAGE=1 builds the agent's image first: several minutes"
)

PATIENCE = 120
"""Seconds for what takes five on a quiet machine."""

READY = "Ready True Serving"
"""What an agent logs after a pass that found all well, once."""

WHOSE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from reconciler.cli import wiring
from reconciler.identity import node_address
from reconciler.observe import _attributed
from reconciler.state_dir import StateDir
from schemas.observation import Present

config = wiring.load_config(Path(sys.argv[1]))
state = StateDir(Path(config.state_dir))
node = node_address(state)
backends = wiring.build_backends(config, state, node, wiring.host())
seen = {"docker": Present(tuple(replace(item, gpus=("GPU-1",)) for item in backends["docker"].list()))}
machine = _attributed(wiring.build_hardware(config, state, node).read(), seen, backends)
print(json.dumps({process.pid: process.instance for gpu in machine.gpus for process in gpu.processes}))
"""
"""Asked in the agent's container. Without NVIDIA's toolkit an engine gives no GPU: here it is as if it had."""

RIGHTS = (
    *("--read-only", "--tmpfs=/tmp", "--security-opt=no-new-privileges", "--security-opt=apparmor=unconfined"),
    *("--cap-drop=ALL", "--cap-add=CHOWN", "--cap-add=DAC_OVERRIDE", "--cap-add=FOWNER", "--cap-add=SYS_ADMIN"),
)
"""As docs/how-to/agent-in-a-container.md has them."""


def docker(*arguments: str) -> str:
    """What a command of Docker's prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout.strip()


class Contained(QuietDemo):
    """A node whose agent is a container."""

    name: str
    agent_image: str
    socket: str
    driver: StandIn | None = None
    """A GPU's driver that the agent's container is given."""

    @property
    def node(self) -> Path:
        """The state directory, under the same path inside and outside."""
        return self.folder / "node"

    @property
    def config(self) -> Path:
        """In a folder, since what is mapped is replaced by renaming."""
        return self.folder / "etc" / "node.yaml"

    def options(self, *, pids: tuple[str, ...] = ("--pid=host",)) -> list[str]:
        """How the agent's container is to be run."""
        return [
            *pids,
            *RIGHTS,
            "--network=host",  # the mirror of this test is on loopback
            f"--env=RECONCILE_CONFIG={self.config}",
            f"--mount=type=bind,source={self.node},target={self.node},bind-propagation=rshared",
            f"--volume={self.config.parent}:{self.config.parent}",
            f"--volume={self.repo}:{self.repo}:ro",
            f"--volume={self.socket}:/var/run/docker.sock",
            *(self.gpu_options(self.driver) if self.driver is not None else ()),
        ]

    @staticmethod
    def gpu_options(driver: StandIn) -> list[str]:
        """What `--gpus all` would bring of a driver."""
        return [
            f"--volume={nvml.library().parent}:/opt/driver:ro",
            "--env=LD_LIBRARY_PATH=/opt/driver",
            f"--volume={driver.path}:{nvml.SIGN}:ro",
            f"--volume={driver.path.parent}:{driver.path.parent}:ro",
            f"--env=NVML_STANDIN={driver.path}",
        ]

    def once(self, *arguments: str, pids: tuple[str, ...] = ("--pid=host",)) -> subprocess.CompletedProcess[str]:
        """A command in a container of its own."""
        command = ["docker", "run", "--rm", *self.options(pids=pids), self.agent_image, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def start(self) -> None:
        """The daemon."""
        restarts = "--restart=unless-stopped"
        docker("run", "--detach", f"--name={self.name}", restarts, *self.options(), self.agent_image)

    def process(self) -> int:
        """The agent's, as the host numbers it; 0 while it does not run."""
        return int(docker("inspect", "--format={{.State.Pid}}", self.name))

    def ask(self, *arguments: str) -> str:
        """What a command prints in the agent's container."""
        return docker("exec", self.name, "reconcile", *arguments)

    def told(self) -> dict[str, Any]:
        """The published status: a file that the host reads where the container wrote it."""
        with suppress(FileNotFoundError):
            told: dict[str, Any] = json.loads((self.node / "status.json").read_bytes())
            return told
        return {}

    def await_serving(self, model: str) -> dict[str, Any]:
        """Wait until a model serves with a receipt, and answers at the front; its entry in the status."""
        until = time.monotonic() + PATIENCE
        while True:
            self.known = self.told()
            serving = self.known.get("serving") or {}
            with suppress(OSError, KeyError, DemoError):
                if serving.get("model") == model and serving.get("receipt") and self.complete("Hello"):
                    return dict(serving)
            assert time.monotonic() < until, f"{model} does not serve: {self.said()}"
            time.sleep(0.1)

    def said(self) -> str:
        """The end of what the daemon printed."""
        done = subprocess.run(["docker", "logs", "--tail=200", self.name], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def engine(self) -> tuple[str, str, bool]:
        """Id, start and life of the one container that serves."""
        (name,) = (path.name for path in (self.node / "run").iterdir() if path.name.startswith("reconcile-"))
        (one,) = json.loads(docker("inspect", "--type=container", name))
        return one["Id"], one["State"]["StartedAt"], one["State"]["Running"]

    def take_apart(self) -> None:
        """Everything away."""
        subprocess.run(["docker", "rm", "--force", self.name], capture_output=True, check=False)
        self.stop_runtime()


@pytest.fixture(scope="module")
def agent_image(docker_host: str, registry: str) -> str:
    """The agent's image, of this code."""
    command = [sys.executable, str(BUILD), "agent", "--registry", registry]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    image = str(json.loads(done.stdout)["agent"])
    docker("pull", "--quiet", image)
    return image


@pytest.fixture
def contained(
    tmp_path: Path, docker_host: str, test_images: Mapping[str, str], agent_image: str
) -> Iterator[Contained]:
    """A network with two versions, and a node of which nothing was made yet but its folder, on a shared mount."""
    made = Contained(tmp_path, "docker", image=test_images["llamacpp"])
    made.name = f"reconcile-agent-{uuid.uuid4().hex[:8]}"
    made.agent_image, made.socket = agent_image, docker_host.removeprefix("unix://")
    made.node.mkdir()
    made.config.parent.mkdir()
    # A host with systemd has all of / shared; other machines share what they are told to.
    subprocess.run(["mount", "--bind", str(made.node), str(made.node)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(made.node)], check=True)
        made.make_models()
        with serving(tmp_path / "mirror") as made.mirror:
            made.found_network()
            yield made
    finally:
        made.take_apart()
        subprocess.run(["umount", "--lazy", "--recursive", str(made.node)], check=True)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_agent_in_a_container(contained: Contained) -> None:
    """Ready, a swap, and another agent's container in its place: the runtime is not touched (I1, I3, I6, I10)."""
    repository = f"file://{contained.repo}"
    joined = contained.once(
        *("init", "--network", "demo", "--repository", repository, "--yes", "--allow-http", "--allow-private"),
        *("--state-dir", str(contained.node), "--config", str(contained.config)),
        *("--backend", "docker", "--docker-socket", "/var/run/docker.sock"),
    )
    assert joined.returncode == 0, joined.stderr
    contained.start()
    assert contained.await_serving("tiny:v1")["notEnforced"] == [], "the socket folder is capped, from in there"
    first = contained.complete("Hello")
    examined = json.loads(contained.ask("doctor", "--json"))
    found = [check["message"] for check in examined["checks"] if check["subject"] == "docker"]
    assert any("the agent is a container itself" in message for message in found)

    contained.approve("v2")
    contained.publish("tiny v2")
    contained.ask("notify")
    before = contained.await_serving("tiny:v2")
    second, engine = contained.complete("Hello"), contained.engine()
    assert second != first, "another model answers differently"
    assert "tiny:v2" in contained.ask("status")
    assert "tiny:v2" in contained.ask("why", "tiny:v2")
    is_killed(contained, before, second)

    docker("rm", "--force", contained.name)
    assert contained.engine() == engine, "the runtime outlives its agent's container"
    blind = contained.once("doctor", "--json", pids=())
    assert blind.returncode == 1
    failures = [check for check in json.loads(blind.stdout)["checks"] if check["verdict"] == "failure"]
    assert any("process ids of its own" in item["message"] and "--pid host" in item["mend"] for item in failures)
    assert contained.once("--json", pids=()).returncode != 0, "an agent that sees nothing says so"
    assert contained.engine() == engine, "and leaves alone what it cannot judge"

    (contained.node / "status.json").unlink()
    contained.agent_image = another(contained.agent_image)
    contained.start()
    after = contained.await_serving("tiny:v2")
    assert contained.engine() == engine, "adopted, not started again"
    assert after["receipt"] == before["receipt"]
    assert contained.complete("Hello") == second
    sees_who_computes(contained)
    assert contained.engine() == engine


def is_killed(contained: Contained, before: Mapping[str, Any], answer: str) -> None:
    """SIGKILL of the agent: Docker starts its container again, and the runtime is adopted."""
    engine, agent, passes = contained.engine(), contained.process(), contained.said().count(READY)
    os.kill(agent, signal.SIGKILL)
    eventually(lambda: contained.said().count(READY) > passes, "another agent has looked", seconds=PATIENCE)
    assert contained.process() not in (0, agent)
    assert contained.await_serving("tiny:v2")["receipt"] == before["receipt"]
    assert contained.engine() == engine
    assert contained.complete("Hello") == answer


def another(image: str) -> str:
    """A newer image, as far as Docker can tell."""
    built = subprocess.run(
        ["docker", "build", "--quiet", "-"],
        input=f"FROM {image}\nLABEL newer=yes\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return built.stdout.strip()


def sees_who_computes(contained: Contained) -> None:
    """A driver's process ids mean the same to the agent: the runtime's are told from a stranger's."""
    folder = contained.folder / "driver"
    folder.mkdir()
    contained.driver = StandIn(folder / "state")
    (name,) = (path.name for path in (contained.node / "run").iterdir() if path.name.startswith("reconcile-"))
    computes = int(docker("inspect", "--format={{.State.Pid}}", name))
    contained.driver.processes = [("GPU-1", computes, 2**30), ("GPU-1", os.getpid(), 2**20)]
    contained.driver.write()
    docker("rm", "--force", contained.name)
    (contained.node / "status.json").unlink()
    contained.start()
    contained.await_serving("tiny:v2")
    (gpu,) = json.loads(contained.ask("status", "--json"))["hardware"]["gpus"]
    assert {item["pid"] for item in gpu["processes"]} == {computes, os.getpid()}
    told = docker("exec", contained.name, "/opt/reconcile/bin/python3", "-c", WHOSE, str(contained.config))
    assert json.loads(told) == {str(computes): name, str(os.getpid()): ""}
