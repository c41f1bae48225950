"""The daemon as a real process: it notices a commit, reads its configuration again, and leaves when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from reconciler.cli.main import cli
from reconciler.state_dir import StateDir
from schemas.digests import digest_bytes
from schemas.errors import StateLocked
from tests.desired_state import network
from tests.desired_state.network import Repository, snapshot_text
from tests.support.disks import small_disk
from tests.support.front import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60.0
YEARS = 3650.0


@pytest.fixture
def origin(tmp_path: Path) -> Repository:
    """A network whose documents are valid for as long as these tests will live."""
    made = Repository(tmp_path / "origin")
    made.put_trust(1, network.trust_text(expires=YEARS), (1, 2))
    made.put_model()
    made.put_snapshot(snapshot_text(expires=YEARS))
    made.commit()
    return made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB for a node's state; to be asked for before the daemon."""
    with small_disk(tmp_path / "state", size=64 * 2**20) as folder:
        yield folder


@pytest.fixture
def daemon(tmp_path: Path, origin: Repository) -> Iterator[subprocess.Popen[bytes]]:
    """`reconcile --watch` on a node without an assignment. It polls once an hour: what it notices, it was told."""
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [
                *("init", "--network", "testnet", "--repository", origin.url, "--yes", "--backend", "native"),
                *("--trust", digest_bytes(network.trust_text(expires=YEARS))),
                *("--state-dir", str(tmp_path / "state"), "--config", str(tmp_path / "node.yaml")),
            ],
            prog_name="reconcile",
        )
    assert ended.value.code == 0
    command = [sys.executable, "-m", "reconciler.cli.main", "--watch", "--interval", "1h"]
    env = {**os.environ, "RECONCILE_CONFIG": str(tmp_path / "node.yaml")}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def status(folder: Path) -> dict[str, object]:
    """What the daemon has published; empty before the first time."""
    path = folder / "state" / "status.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def sequence(folder: Path) -> int:
    """Sequence of the snapshot that is in force."""
    seen = status(folder).get("snapshot")
    return int(seen["sequence"]) if isinstance(seen, dict) else 0


def condition(folder: Path, wanted: str) -> tuple[str, str]:
    """Status and reason of a published condition."""
    conditions = status(folder).get("conditions")
    assert isinstance(conditions, list)
    found = next(item for item in conditions if item["type"] == wanted)
    return found["status"], found["reason"]


def command(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of its own beside the daemon."""
    line = [sys.executable, "-m", "reconciler.cli.main", "--config", str(config), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_daemon_from_start_to_end(tmp_path: Path, origin: Repository, daemon: subprocess.Popen[bytes]) -> None:
    """A commit, SIGHUP after a change of the configuration, a second reconciler, SIGTERM: each as promised."""
    eventually(lambda: sequence(tmp_path) == 1, "the first pass is published")
    before = (origin.folder / "networks/testnet/snapshot.v1alpha1.yaml").read_bytes()
    for old in (origin.folder / "networks/testnet/snapshot.sigs").glob("*"):
        old.unlink()
    origin.put_snapshot(snapshot_text(2, previous=before, expires=YEARS))
    origin.commit()
    eventually(lambda: sequence(tmp_path) == 2, "a commit on this machine is noticed long before the next poll")

    config = tmp_path / "node.yaml"
    config.write_text(config.read_text() + "labels: {rack: r1}\n")
    daemon.send_signal(signal.SIGHUP)
    eventually(lambda: status(tmp_path).get("labels") == {"rack": "r1"}, "the configuration is read again")

    once = command(config)
    assert (once.returncode, "NoAssignment" in once.stdout) == (6, True), "a pass beside a daemon is the daemon's"
    assert command(config, "suspend", "lunch").returncode == 0
    eventually(lambda: condition(tmp_path, "Suspended") == ("True", "ByOperator"), "a suspension is honoured at once")
    assert command(config, "resume").returncode == 0
    eventually(lambda: condition(tmp_path, "Suspended") == ("False", "Active"), "so is its end")

    good = config.read_text()
    config.write_text(good + "nonsense: true\n")
    eventually(lambda: condition(tmp_path, "Stalled") == ("True", "ConfigError"), "a broken configuration is reported")
    assert status(tmp_path)["labels"] == {"rack": "r1"}, "and the one before goes on"
    config.write_text(good.replace("r1", "r2"))
    eventually(lambda: status(tmp_path).get("labels") == {"rack": "r2"}, "a mended one is taken without being told")
    assert condition(tmp_path, "Stalled")[1] != "ConfigError"

    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0
    assert daemon.stderr is not None
    log = daemon.stderr.read().decode()
    assert "SourceVerified True Verified" in log
    assert "Traceback" not in log


def test_a_disk_that_runs_low_wakes_a_daemon(disk: Path, daemon: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """And so does room that comes back: what waits for it does not wait for the next poll as well."""
    eventually(lambda: sequence(tmp_path) == 1, "the first pass is published")
    ballast, published = disk / "ballast", disk / "status.json"
    for change in (lambda: ballast.write_bytes(bytes(61 * 2**20)), ballast.unlink):
        # What was published comes back with a pass, of which the next would be made in an hour.
        published.unlink()
        change()
        eventually(published.exists, "a pass is made")
    assert daemon.poll() is None


def test_a_command_between_two_configurations_ends_no_daemon(
    tmp_path: Path, origin: Repository, daemon: subprocess.Popen[bytes]
) -> None:
    """The state directory is free for a moment: whoever takes it then is waited for."""
    eventually(lambda: sequence(tmp_path) == 1, "the first pass is published")
    state = StateDir(tmp_path / "state")

    def taken() -> bool:
        daemon.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                held.enter_context(state.lock())
            except StateLocked:
                continue
            return True
        return False

    with ExitStack() as held:
        eventually(taken, "somebody takes the state directory while the daemon changes over")
        assert daemon.stderr is not None
        os.set_blocking(daemon.stderr.fileno(), False)
        eventually(lambda: b"StateLocked" in (daemon.stderr.read() or b""), "the daemon finds it taken")
        assert daemon.poll() is None
    config = tmp_path / "node.yaml"
    config.write_text(config.read_text() + "labels: {rack: r9}\n")
    eventually(lambda: status(tmp_path).get("labels") == {"rack": "r9"}, "it goes on")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0


@pytest.mark.parametrize("change", ["network: elsewhere", "stateDir: FOLDER/nowhere"])
def test_a_configuration_of_another_node_is_refused(
    tmp_path: Path, origin: Repository, daemon: subprocess.Popen[bytes], change: str
) -> None:
    """A network or a folder that is not this node's ends no daemon, and leads it to no second runtime (I3)."""
    eventually(lambda: sequence(tmp_path) == 1, "the first pass is published")
    config = tmp_path / "node.yaml"
    good = config.read_text()
    field = change.partition(":")[0]
    lines = [
        change.replace("FOLDER", str(tmp_path)) if line.startswith(f"{field}:") else line for line in good.splitlines()
    ]
    config.write_text("\n".join(lines) + "\n")
    eventually(lambda: condition(tmp_path, "Stalled") == ("True", "ConfigError"), "it is refused")
    assert status(tmp_path)["network"] == "testnet"
    config.write_text(good)
    eventually(lambda: condition(tmp_path, "Stalled")[1] != "ConfigError", "and the right one is taken again")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0


def test_a_control_socket_that_was_removed_comes_back(
    tmp_path: Path, origin: Repository, daemon: subprocess.Popen[bytes]
) -> None:
    """A daemon that runs for years can be asked again after somebody has tidied up."""
    eventually(lambda: sequence(tmp_path) == 1, "the first pass is published")
    socket = tmp_path / "state" / "run" / "control.sock"
    socket.unlink()
    before = (origin.folder / "networks/testnet/snapshot.v1alpha1.yaml").read_bytes()
    for old in (origin.folder / "networks/testnet/snapshot.sigs").glob("*"):
        old.unlink()
    origin.put_snapshot(snapshot_text(2, previous=before, expires=YEARS))
    origin.commit()
    eventually(lambda: sequence(tmp_path) == 2, "a pass is made")
    eventually(socket.exists, "the socket is there again")
    once = command(tmp_path / "node.yaml")
    assert (once.returncode, "NoAssignment" in once.stdout) == (6, True), "the daemon answers on it"
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE) == 0
    assert not socket.exists()


HUSH = "hush-Xq9Kz7wTn2"


def test_no_secret_reaches_the_log_or_what_a_daemon_writes(tmp_path: Path, origin: Repository) -> None:
    """Seeded wherever a node may have one: whatever fails because of it, nobody reads it (I11)."""
    with pytest.raises(SystemExit):
        cli.main(
            [
                *("init", "--network", "testnet", "--repository", origin.url, "--yes", "--backend", "native"),
                *("--trust", digest_bytes(network.trust_text(expires=YEARS))),
                *("--state-dir", str(tmp_path / "state"), "--config", str(tmp_path / "node.yaml")),
            ],
            prog_name="reconcile",
        )
    config, hook = tmp_path / "node.yaml", tmp_path / "hook.secret"
    hook.write_text(f"{HUSH}-file\n")
    hook.chmod(0o600)
    text = config.read_text().replace(
        "repositories:", f"repositories:\n  - {{url: 'https://me:{HUSH}@127.0.0.1:9/network.git'}}"
    )
    text += (
        "secrets: {hook: {file: HOOK}, store: {environment: STORE_TOKEN}}\n"
        f"notifications: [{{name: chat, webhook: 'http://me:{HUSH}@127.0.0.1:9/hook', secret: hook,\n"
        "  events: [SnapshotAccepted]}]\n"
        f"telemetry: {{listen: 'unix:{tmp_path}/t.sock', traces: 'http://me:{HUSH}@127.0.0.1:9/v1/traces'}}\n"
        "logs: {level: debug}\n"
    ).replace("HOOK", str(hook), 1)
    config.write_text(text)
    command_line = [sys.executable, "-m", "reconciler.cli.main", "--watch", "--interval", "1s", "--log-format", "json"]
    env = {
        **os.environ,
        "RECONCILE_CONFIG": str(config),
        "STORE_TOKEN": f"{HUSH}-variable",
        "https_proxy": f"http://me:{HUSH}@127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{HUSH}",
    }
    log = tmp_path / "daemon.log"
    with log.open("wb") as out, subprocess.Popen(command_line, env=env, stdout=out, stderr=out) as process:
        try:
            eventually(lambda: sequence(tmp_path) == 1, "the repository without a secret is believed")
            eventually(lambda: b"SourceVerified" in log.read_bytes(), "the log says so")
            eventually(lambda: b"chat" in log.read_bytes(), "the webhook that is away is said")
            assert command(config, "why").returncode == 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    lines = log.read_text().splitlines()
    assert all(json.loads(line)["level"] for line in lines), "each line is an object"
    written = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    found = [path for path in [log, *written] if HUSH.encode() in path.read_bytes()]
    assert found == []
    for arguments in (("status",), ("events",), ("history",), ("doctor",), ("plan",), ("status", "--json")):
        done = command(config, *arguments)
        assert HUSH not in done.stdout + done.stderr, arguments
