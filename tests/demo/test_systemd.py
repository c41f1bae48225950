"""The agent as a service of a systemd that runs, as docs/how-to/first-node.md has it, with clients that ask on.

A machine of the test's own is booted for each (tests/support/systemd.py). Where that cannot be, they are skipped by
name; `REQUIRE_SYSTEMD=1` makes failures of that, as CI does.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from model_server import serving

from reconciler.service import unit
from tests.support.front import PATIENCE, eventually
from tests.support.systemd import machine_or_skip
from tests.support.systemd_node import CONFIG, PROGRAM, STATE, Client, SystemdNode, needed_of_this_machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WATCHDOG_SECONDS = 10
"""Instead of the unit's two minutes; an agent that lives feeds it twice as often."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SystemdNode]:
    """A network with one version, and a machine on which the agent was installed and has joined."""
    made = SystemdNode(tmp_path, "native")
    for folder in (tmp_path / "machine", made.repo, made.wheels):
        folder.mkdir()
    made.machine = machine_or_skip(tmp_path / "machine", needed_of_this_machine(made.repo, made.wheels))
    try:
        made.make_models()
        with serving(tmp_path / "mirror") as made.mirror:
            made.found_network()
            made.install(made.build())
            made.enrol()
            yield made
    finally:
        made.machine.take_apart()


@dataclass
class Story:
    """A node that serves, a client that asks on, and what must stay as it was."""

    node: SystemdNode
    client: Client
    engine: tuple[int, str]
    entry: dict[str, Any]

    def goes_on(self, why: str) -> int:
        """An agent looks after the very same engine, and nobody noticed anything; its process."""
        agent = self.node.main_pid()
        self.node.await_pass_of(agent)
        self.client.asked_again()
        assert self.node.engine() == self.engine, f"{why}: adopted, not started again"
        assert self.node.await_serving(self.entry["model"])["receipt"] == self.entry["receipt"]
        assert self.client.wrong == [], why
        return agent

    def await_another(self, agent: int) -> None:
        """Wait until systemd has started the next agent."""
        eventually(lambda: self.node.main_pid() not in (0, agent), "it is started again", seconds=2 * PATIENCE)


def test_a_service_whose_runtime_goes_on(node: SystemdNode) -> None:
    """Restart, SIGKILL, a hang, reload, upgrade, a swap and a stop: no request fails (I3, I6, I7)."""
    node.machine.run("systemctl", "enable", "reconcile")
    node.ctl("start")
    told = node.machine.show("reconcile", "ActiveState", "SubState", "NRestarts")
    assert told == {"ActiveState": "active", "SubState": "running", "NRestarts": "0"}, "start returns when it is ready"
    node.await_pass_of(node.main_pid())
    entry = node.await_serving("tiny:v1")
    is_seen_and_closed(node, entry)
    with Client(node.front) as client:
        story = Story(node, client, node.engine(), entry)
        its_agents_end(story)
        its_configuration_changes(story)
        node.install(node.build("99.1.0"))
        node.ctl("restart")
        story.goes_on("upgrade")
        assert node.told()["agent"] == "99.1.0"
        it_swaps_and_stops(story)
    assert client.wrong == []


def is_seen_and_closed(node: SystemdNode, entry: dict[str, Any]) -> None:
    """What `systemctl status` and the journal say; under the unit's restrictions an engine is locked in as without."""
    machine, (engine, _) = node.machine, node.engine()
    assert "Serving: tiny:v1 serves" in machine.run("systemctl", "status", "reconcile", "--no-pager")
    assert "Ready True Serving" in node.logged()
    assert entry["notEnforced"] == []
    status = machine.run("cat", f"/proc/{engine}/status")
    held = {name: int(value, 16) for name, value in re.findall(r"^(Cap\w+):\s*([0-9a-f]+)$", status, re.MULTILINE)}
    assert held == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)
    agent, host = (machine.run("readlink", f"/proc/{pid}/ns/mnt") for pid in (node.main_pid(), 1))
    assert agent == host, "what it mounts is there for whoever comes after it"
    doctor = json.loads(machine.run(PROGRAM, "doctor", "--json", "--config", CONFIG, code=None))
    assert [check for check in doctor["checks"] if check["verdict"] == "failure"] == []


def its_agents_end(story: Story) -> None:
    """Told to, killed, and hung."""
    node, machine = story.node, story.node.machine
    agent = node.main_pid()
    node.ctl("restart")
    assert story.goes_on("restart") != agent

    agent = node.main_pid()
    machine.run("kill", "-KILL", str(agent))
    story.await_another(agent)
    story.goes_on("SIGKILL")
    assert machine.show("reconcile", "NRestarts")["NRestarts"] == "1"

    node.drop_in("watchdog", f"WatchdogSec={WATCHDOG_SECONDS}")
    node.ctl("restart")
    agent = story.goes_on("restart with a shorter watchdog")
    machine.run("kill", "-STOP", str(agent))
    story.await_another(agent)
    story.goes_on("a hang")
    assert "Watchdog timeout" in node.logged()
    node.drop_in("watchdog")


def its_configuration_changes(story: Story) -> None:
    """In a file that is watched, and in one that only a reload looks at; both are read by the same agent."""
    node, root = story.node, story.node.machine.root
    config, elsewhere = (Path(f"{root}{path}") for path in (CONFIG, "/srv/node.yaml"))
    agent = node.main_pid()
    elsewhere.write_text(f"account: replaced@example.org\n{config.read_text()}")
    config.unlink()
    config.symlink_to("/srv/node.yaml")
    eventually(lambda: node.told().get("account") == "replaced@example.org", "a file that is replaced is noticed")
    elsewhere.write_text(elsewhere.read_text().replace("replaced@", "reloaded@"))
    node.ctl("reload")
    eventually(lambda: node.told().get("account") == "reloaded@example.org", "it is read again")
    assert story.goes_on("reload") == agent


def it_swaps_and_stops(story: Story) -> None:
    """Under a front and after agents that were there before; a stopped service leaves what serves."""
    node, machine, client = story.node, story.node.machine, story.client
    node.approve("v2")
    node.publish("tiny v2")
    machine.run(PROGRAM, "notify", "--config", CONFIG)
    story.entry = node.await_serving("tiny:v2")
    client.asked_again()
    story.engine = node.engine()
    assert set(client.answers) == {"tiny:v1", "tiny:v2"}
    assert len(set(client.answers.values())) == len(client.answers), "they answer differently"

    node.ctl("stop")
    assert machine.show("reconcile", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    client.asked_again()
    assert node.engine() == story.engine, "what serves outlives the service"
    machine.run(PROGRAM, "--config", CONFIG)
    assert node.engine() == story.engine, "a command of a shell sees what the service saw"
    node.ctl("start")
    story.goes_on("stop and start")


def test_a_machine_that_is_powered_off_and_on(node: SystemdNode) -> None:
    """It goes down although clients ask, and serves again by itself; other units of its owner's do what they say."""
    machine = node.machine
    machine.run("systemctl", "enable", "--now", "reconcile")
    first = node.await_serving("tiny:v1")
    with Client(node.front) as client:
        client.asked_again()
        machine.shut_down()
    Path(f"{machine.root}{STATE}/status.json").unlink()
    machine.boot()
    assert node.await_serving("tiny:v1")["model"] == first["model"]

    node.write_unit("--stop-runtime")
    node.ctl("restart")
    node.await_pass_of(node.main_pid())
    node.ctl("stop")
    told = machine.show("reconcile", "ActiveState", "Result")
    assert told == {"ActiveState": "inactive", "Result": "success"}
    left = machine.run("ps", "-e", "-o", "args")
    assert [line for line in left.splitlines() if "/opt/reconcile" in line] == []

    a_unit_with_mounts_of_its_own_is_not_relied_upon(node)


def a_unit_with_mounts_of_its_own_is_not_relied_upon(node: SystemdNode) -> None:
    """What is mounted under it ends with the agent: it does without, says so, and is restarted like any other."""
    node.write_unit()
    node.drop_in("private", "ProtectSystem=strict", f"ReadWritePaths={STATE} /tmp", "ProtectHome=read-only")
    node.ctl("start")
    node.await_pass_of(node.main_pid())
    entry = node.await_serving("tiny:v1")
    assert entry["notEnforced"] == ["socket-size"]
    with Client(node.front) as client:
        story = Story(node, client, node.engine(), entry)
        node.ctl("restart")
        story.goes_on("restart")
        it_swaps_and_stops(story)
    assert client.wrong == []


DOCKER = {"bridge": "none", "iptables": False, "ip-forward": False, "ip-masq": False, "userland-proxy": False}
"""The machine's Docker leaves the network alone, which is this machine's."""


@pytest.fixture
def beside_docker(tmp_path: Path, test_images: Mapping[str, str]) -> Iterator[SystemdNode]:
    """As `node`, with containers of a Docker that the same systemd looks after."""
    if not Path("/lib/systemd/system/docker.service").exists():
        pytest.skip("this machine's Docker is not Debian's, which comes with a unit")
    made = SystemdNode(tmp_path, "docker", image=test_images["llamacpp"])
    for folder in (tmp_path / "machine", tmp_path / "docker", made.repo, made.wheels):
        folder.mkdir()
    shared = {**needed_of_this_machine(made.repo, made.wheels), tmp_path / "docker": "/var/lib/docker"}
    made.machine = machine_or_skip(tmp_path / "machine", shared, containers=True)
    try:
        settings = Path(f"{made.machine.root}/etc/docker/daemon.json")
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(json.dumps(DOCKER))
        made.make_models()
        with serving(tmp_path / "mirror") as made.mirror:
            made.found_network()
            made.install(made.build())
            made.machine.run("systemctl", "start", "docker")
            made.enrol()
            yield made
    finally:
        made.machine.take_apart()


@pytest.mark.docker
def test_a_service_beside_docker(beside_docker: SystemdNode) -> None:
    """The same unit commands containers: whose sockets are capped, and which go on whatever becomes of the agent."""
    node = beside_docker
    node.ctl("start")
    node.await_pass_of(node.main_pid())
    entry = node.await_serving("tiny:v1")
    assert (entry["mode"], entry["notEnforced"]) == ("container", [])
    with Client(node.front) as client:
        story = Story(node, client, node.engine(), entry)
        node.ctl("restart")
        story.goes_on("restart")
        agent = node.main_pid()
        node.machine.run("kill", "-KILL", str(agent))
        story.await_another(agent)
        story.goes_on("SIGKILL")
        it_swaps_and_stops(story)
    assert client.wrong == []


HARDENING = ("NoNew", "Restrict", "Lock", "SystemCall", "Capability")
"""How the unit's restrictions begin."""


def test_git_reaches_out_under_the_unit(tmp_path: Path) -> None:
    """Over https, whose certificate is checked, and by ssh as far as the other end's answer."""
    (tmp_path / "machine").mkdir()
    machine = machine_or_skip(tmp_path / "machine", {})
    try:
        with over_https(tmp_path) as address:
            (machine.root / "srv/ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
            lines = unit(Path("/bin/true"), Path("/node.yaml"), stop_runtime=False).splitlines()
            restrictions = [f"--property={line}" for line in lines if line.startswith(HARDENING)]
            confined = ("systemd-run", "--wait", "--pipe", "--quiet", *restrictions, "git")
            machine.run(*confined, "-c", "http.sslCAInfo=/srv/ca.pem", "clone", f"{address}/network/.git", "/srv/got")
            assert (machine.root / "srv/got/file").read_text() == "content"
            unknown = machine.attempt(*confined, "ls-remote", f"{address}/network/.git")
            assert "certificate verification failed" in unknown.stderr
        refused = machine.attempt(*confined, "ls-remote", "ssh://git@127.0.0.1:1/network")
        assert "Connection refused" in refused.stderr
    finally:
        machine.take_apart()


@contextmanager
def over_https(folder: Path) -> Iterator[str]:
    """A folder behind TLS with one repository, `network`, of one file; the address. The certificate is `ca.pem`."""
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    (folder / "network").mkdir()
    (folder / "network" / "file").write_text("content")
    for arguments in (("init", "-q"), ("add", "file"), (*who, "commit", "-q", "-m", "one"), ("update-server-info",)):
        subprocess.run(["git", *arguments], cwd=folder / "network", check=True)
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        "key.pem",
        "-out",
        "ca.pem",
    ]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}"
        server.shutdown()
