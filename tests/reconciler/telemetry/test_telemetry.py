"""Metrics and the page: what they say of a node's story, to whom, and in a real browser."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from functools import partial
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.journal import Journal
from reconciler.memory import Note
from reconciler.telemetry.metrics import Metrics
from reconciler.telemetry.observer import observed
from reconciler.telemetry.server import View, serving
from schemas.errors import ConfigError, StalePlan
from schemas.node import TelemetryConfig
from tests.reconciler.test_pipeline import V1, A, B
from tests.support.builders import manifest_digest
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from schemas.status import NodeStatus


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """A fresh node."""
    return SimulatedNode(tmp_path / "state")


def series(metrics: Metrics) -> dict[str, float]:
    """Every sample, as Prometheus' own parser reads it: name and labels to value."""
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_a_story_in_numbers(node: SimulatedNode) -> None:
    """A first start, nothing to do, a swap, a repair: each is counted as what it was."""
    metrics = Metrics()
    metrics.passed(node.run(A), 1.5)
    metrics.passed(node.run(), 0.01)
    metrics.passed(node.run(B), 2.0)
    found = series(metrics)
    assert found["reconcile_total['changed']"] == 2
    assert found["reconcile_total['converged']"] == 1
    assert found["reconcile_duration_seconds_count[]"] == 3
    assert found["reconcile_actions_total['done', 'validate-model']"] == 2
    assert found["reconcile_model_state['Active', 'b:v1']"] == 1
    assert found["reconcile_model_state['Failed', 'b:v1']"] == 0
    assert found["reconcile_snapshot_sequence[]"] == 2
    assert found["reconcile_swap_downtime_seconds_count[]"] == 2
    assert [name for name in found if name.startswith("reconcile_serving")] == [
        name for name in found if "b:v1" in name and name.startswith("reconcile_serving")
    ]
    assert not any(name.startswith("reconcile_drift_total") for name in found)
    for item in node.room.running():
        node.room.kill(item.name)
    metrics.passed(node.run(), 0.5)
    assert series(metrics)["reconcile_drift_total['instance']"] == 1
    metrics.refused(StalePlan("no"), 0.1)
    assert series(metrics)["reconcile_errors_total['StalePlan']"] == 1
    assert series(metrics)["reconcile_total['refused']"] == 1


def test_a_bad_change_is_degraded(node: SimulatedNode) -> None:
    """A model that lies is counted by its reason, and the pass as degraded."""
    metrics = Metrics()
    node.run(A)
    node.lies = frozenset({manifest_digest("b:v1")})
    node.restart()
    metrics.passed(node.run(B), 1.0)
    found = series(metrics)
    assert found["reconcile_total['degraded']"] == 1
    assert found["reconcile_errors_total['ValidationFailed']"] == 1
    assert found["reconcile_condition['RolledBack', 'ValidationFailed']"] == 1


def test_expiry_goes_on_without_passes(node: SimulatedNode) -> None:
    """The time left is counted when it is asked for: a daemon that hangs does not stop it."""
    metrics = Metrics()
    result = node.run(A)
    metrics.passed(result, 1.0)
    first = series(metrics)["reconcile_snapshot_expiry_seconds[]"]
    assert result.status.snapshot is not None
    assert series(metrics)["reconcile_snapshot_expiry_seconds[]"] < first


# --- the server ---------------------------------------------------------------------------------------------------


def view(node: SimulatedNode, *, page: bool = True) -> View:
    """What a node shows."""
    metrics = Metrics()
    journal = node.node.state.journal
    return View(node.node.state, lambda: Journal(journal, readonly=True), metrics.text, page=page)


@pytest.fixture
def address(node: SimulatedNode) -> Iterator[str]:
    """A node that serves, shown on a free port."""
    node.run(V1)
    node.journal.apply((Note("Warning", "Odd", "<script>alert(1)</script> & <b>bold</b>"),), node.clock.now())
    with serving(TelemetryConfig(listen="127.0.0.1:0"), view(node)) as shown:
        yield shown


def ask(address: str, path: str, *, method: str = "GET", **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    """Status, body and headers of an answer."""
    request = urllib.request.Request(address + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_what_can_be_asked_for(address: str) -> None:
    """Metrics, a page and its three documents; nothing else, and by no other method."""
    assert "reconcile_duration_seconds" in ask(address, "metrics")[1]
    assert '"kind":"NodeStatus"' in ask(address, "status.json")[1].replace(" ", "")
    assert "SnapshotAccepted" in ask(address, "events.json")[1]
    assert '"outcome": "applied"' in ask(address, "history.json")[1]
    assert ask(address, "nothing")[0] == 404
    assert ask(address, "../etc/passwd")[0] == 404
    assert ask(address, "metrics", method="HEAD")[:2] == (200, "")
    assert ask(address, "metrics", method="POST")[0] == 501


def test_no_other_site_s_browser_reads_it(address: str) -> None:
    """A name that was made to lead here is not answered, and a page may load nothing from elsewhere (I11)."""
    assert ask(address, "status.json", Host="evil.example")[0] == 421
    assert ask(address, "metrics", Host="127.0.0.1.evil.example:9477")[0] == 421
    port = address.rstrip("/").rpartition(":")[2]
    assert ask(address, "metrics", Host=f"localhost:{port}")[0] == 200
    status, body, headers = ask(address, "")
    policy = headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
    assert status == 200
    assert nonce
    assert f'<script nonce="{nonce[1]}">' in body
    assert "default-src 'none'" in policy
    assert "://" not in re.sub(r"<!--.*?-->", "", body), "the page is whole: nothing is loaded from elsewhere"


def test_without_a_page(node: SimulatedNode) -> None:
    """Only metrics, where only metrics were asked for."""
    with serving(TelemetryConfig(listen="127.0.0.1:0", page=False), view(node, page=False)) as address:
        assert ask(address, "metrics")[0] == 200
        assert [ask(address, path)[0] for path in ("", "status.json", "events.json", "history.json")] == [404] * 4


def test_on_a_socket(node: SimulatedNode, tmp_path: Path) -> None:
    """A unix socket for its group; what a killed daemon left there is replaced, and it is gone afterwards."""
    path = tmp_path / "telemetry.sock"
    for _ in range(2):
        with serving(TelemetryConfig(listen=f"unix:{path}"), view(node)):
            assert path.stat().st_mode & 0o777 == 0o660
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("GET", "/metrics")
            assert b"reconcile_duration_seconds" in connection.getresponse().read()
            connection.close()
        assert not path.exists()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))


def test_an_address_that_is_taken(node: SimulatedNode, address: str) -> None:
    """Said in words, at the start."""
    taken = address.removeprefix("http://").rstrip("/")
    with pytest.raises(ConfigError, match=r"telemetry\.listen"), serving(TelemetryConfig(listen=taken), view(node)):
        pass


@pytest.mark.parametrize("listen", ["0.0.0.0:9477", "192.168.1.2:80", "[::]:80", "example.org:80", "unix:relative"])
def test_only_this_machine(listen: str) -> None:
    """No address that others could reach is accepted (I11)."""
    with pytest.raises(ValueError, match="listen"):
        TelemetryConfig(listen=listen)


def test_a_daemon_s_pass_is_counted(node: SimulatedNode) -> None:
    """What the loop runs is the same pass, and what came of it can be scraped while it runs."""
    config = TelemetryConfig(listen="127.0.0.1:0")
    journal = node.node.state.journal
    shown: list[Callable[[NodeStatus], None]] = []
    read = partial(Journal, journal, readonly=True)
    with observed(config, node.node.state, read, None, lambda: node.run(A), shown.append) as run:
        assert run().exit_code == 0
        assert len(shown) == 1, "what is published in the middle of a pass is shown as well"
    with observed(TelemetryConfig(), node.node.state, lambda: Journal(journal), None, node.run, shown.append) as run:
        assert run == node.run, "what nobody asked for costs nothing"


# --- a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium() -> str:
    """A browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail("chromium is required here, and is not installed")
        pytest.skip("chromium is not installed")
    return found


@pytest.mark.timeout(180)
def test_the_page_in_a_real_browser(address: str, chromium: str, tmp_path: Path) -> None:
    """What a person sees: the model that serves, its conditions and events; words of others only ever become text."""
    harmless = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}")
    shown = subprocess.run(
        [chromium, *harmless, "--virtual-time-budget=10000", "--dump-dom", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
    ).stdout
    text = re.sub(r"<script.*?</script>|<style.*?</style>", "", shown, flags=re.DOTALL)
    assert "Ready: Serving" in text
    assert "m:v1" in text
    for word in ("SourceVerified", "SnapshotAccepted", "InstanceStarted", "applied", "Active, loaded"):
        assert word in text, word
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;" in text
    assert "<b>bold" not in text
    assert 'id="stale" role="alert" class=""' in shown, "nothing went wrong while it was shown"
