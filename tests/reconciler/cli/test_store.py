"""`reconcile verify` and `reconcile gc`, over a real repository, journal and store; beside a real daemon, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.journal import Journal
from runtime.host import StopEvent, host_ports
from runtime.models.store import DiskModelStore
from schemas.digests import digest_bytes
from schemas.observation import PartialModel, StoredModel
from tests.desired_state import network
from tests.desired_state.network import Repository, model_entry, snapshot_text
from tests.reconciler.cli.test_daemon import PATIENCE, YEARS, eventually, sequence
from tests.support.models import OPEN_POLICY, gguf, lay_out, make_model, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from click.testing import Result

FILES = {"model.gguf": gguf(50_000, seed=1)}
MODEL = make_model(FILES, name="m")
OTHER = make_model({"model.gguf": gguf(60_000, seed=2)}, name="other")
DAY = 86400.0


class Machine:
    """A node of a network whose one model is in its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = Repository(folder / "origin")
        self.origin.put_trust(1, network.trust_text(expires=YEARS), (1, 2))
        self.origin.put_model()
        self.origin.write("models/m/v1.yaml", MODEL.manifest.to_json().encode())
        self.origin.write("models/m/v1.pieces", MODEL.pieces)
        entry = model_entry() | {"manifest": {"path": "models/m/v1.yaml", "digest": MODEL.digest}}
        self.origin.put_snapshot(snapshot_text(expires=YEARS, models=[entry]))
        self.origin.commit()
        self.run(
            *("init", "--network", "testnet", "--repository", self.origin.url, "--yes", "--backend", "native"),
            *("--trust", digest_bytes(network.trust_text(expires=YEARS))),
            *("--state-dir", str(folder / "state"), "--config", str(folder / "node.yaml")),
        )
        self.run(code=6)
        self.store = DiskModelStore(folder / "state/models", ports=host_ports(), policy=OPEN_POLICY, reserve=0)
        self.store.acquire(MODEL, [lay_out(folder / "source", FILES)], progress=silent, stop=StopEvent())

    def run(self, *arguments: str, code: int = 0) -> Result:
        """One command."""
        result = CliRunner().invoke(cli, list(arguments))
        assert result.exit_code == code, result.output
        return result

    def taint(self) -> None:
        """Change the stored bytes."""
        path = self.store.folder(MODEL.digest) / "model.gguf"
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"!")

    def journal(self) -> closing[Journal]:
        """The journal."""
        return closing(Journal(self.folder / "state/state.db"))

    def events(self) -> Sequence[str]:
        """What happened."""
        with self.journal() as journal:
            return [f"{event.reason} {event.message}" for event in journal.events(limit=1000)]

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """`reconcile --watch`, which polls once an hour: what it does, it was told."""
        command = [sys.executable, "-m", "reconciler.cli.main", "--watch", "--interval", "1h"]
        with subprocess.Popen(command, env=os.environ.copy(), stderr=subprocess.PIPE) as process:
            try:
                eventually((self.folder / "state/run/control.sock").exists, "the daemon listens")
                eventually(lambda: sequence(self.folder) == 1, "the first pass is over")
                yield process
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
                assert process.stderr is not None
                assert b"Traceback" not in process.stderr.read()
            finally:
                process.kill()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A node with a stored model."""
    monkeypatch.setenv("RECONCILE_CONFIG", str(tmp_path / "node.yaml"))
    return Machine(tmp_path)


# --- verify -------------------------------------------------------------------------------------------------------


def test_a_sound_model_verifies_and_the_journal_says_so(machine: Machine) -> None:
    """Exit code 0, a verdict for people and for programs, an event, a pass in the history (I2)."""
    assert "good" in machine.run("verify", "m:v1").output
    document = json.loads(machine.run("verify", "--all", "--json").output.splitlines()[-1])
    assert document == {"formatVersion": "1", "models": [{"model": "m:v1", "good": True, "message": ""}]}
    assert [line for line in machine.events() if line.startswith("ModelVerified m:v1")]
    assert "verify/m:v1" in machine.run("history").output


def test_a_bad_model_is_quarantined_and_the_next_plan_repairs_it(machine: Machine) -> None:
    """Exit code 1; the model is Failed with its cause, its bytes are out of use, and the repair is planned (I2, I5)."""
    machine.taint()
    result = machine.run("verify", "m", code=1)
    assert "ModelCorrupt" in result.output
    seen = machine.store.list()[MODEL.digest]
    assert isinstance(seen, PartialModel)
    assert seen.quarantined
    assert any("absent -> Failed" in line for line in machine.events())
    assert "repairs what went bad" in machine.run("plan").output
    assert "repairs what went bad" in machine.run("why", "m:v1").output


@pytest.mark.parametrize("arguments", [("verify",), ("verify", "nope"), ("verify", "m:v1", "--all")])
def test_verify_wants_to_know_what(machine: Machine, arguments: Sequence[str]) -> None:
    """Nothing named, something unknown, or both ways at once: usage, and nothing is hashed."""
    machine.run(*arguments, code=64)
    assert not [line for line in machine.events() if line.startswith("ModelVerified")]


def test_a_running_daemon_hashes_and_answers(machine: Machine) -> None:
    """Beside a daemon the command asks it, waits, and ends as if it had hashed by itself: good, then bad."""
    with machine.daemon():
        result = machine.run("verify", "m:v1")
        assert "The daemon hashes 1 model now." in result.output
        assert "good" in result.output
        machine.taint()
        result = machine.run("verify", "--all", code=1)
        assert "ModelCorrupt" in result.output
    with machine.journal() as journal:
        assert not journal.memory(starts_since=host_ports().clock.now()).checks


# --- gc -----------------------------------------------------------------------------------------------------------


def test_gc_waits_for_the_grace_and_says_how_long(machine: Machine) -> None:
    """What is not listed is shown with its bytes, kept by a dry run, and gone when its grace is over (I8, I9)."""
    machine.store.acquire(
        OTHER,
        [lay_out(machine.folder / "other", {"model.gguf": gguf(60_000, seed=2)})],
        progress=silent,
        stop=StopEvent(),
    )
    with machine.journal() as journal:
        journal.count_unlisted(frozenset({MODEL.digest}), 0.0, frozenset({MODEL.digest, OTHER.digest}))
        journal.count_unlisted(frozenset({MODEL.digest}), 100.0, frozenset({MODEL.digest, OTHER.digest}))
    shown = machine.run("gc", "--dry-run").output
    assert "Kept for now, 58.6 KiB" in shown
    assert OTHER.digest in shown
    assert "23 h 58 min of its grace left" in shown
    assert "Kept for now" in machine.run("gc").output
    assert set(machine.store.list()) == {MODEL.digest, OTHER.digest}
    with machine.journal() as journal:
        journal.count_unlisted(frozenset({MODEL.digest}), DAY, frozenset({MODEL.digest, OTHER.digest}))
    due = json.loads(machine.run("gc", "--dry-run", "--json").output)
    assert [(item["name"], item["bytes"]) for item in due["due"]] == [(OTHER.digest, 60_000)]
    assert set(machine.store.list()) == {MODEL.digest, OTHER.digest}
    assert "Removed, 58.6 KiB" in machine.run("gc").output
    assert set(machine.store.list()) == {MODEL.digest}
    assert "Nothing to remove" in machine.run("gc").output


def test_gc_removes_what_an_interruption_left(machine: Machine) -> None:
    """A blob that no model has is nobody's; the stored model stays as it is."""
    orphan = machine.folder / "state/models/blobs/00" / ("0" * 64 + "-" + "0" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(bytes(2**20))
    assert "1 MiB" in machine.run("gc", "--dry-run").output
    assert orphan.exists()
    machine.run("gc")
    assert not orphan.exists()
    seen = machine.store.list()[MODEL.digest]
    assert isinstance(seen, StoredModel)
    assert seen.intact


def test_gc_is_held_while_changes_are_suspended(machine: Machine) -> None:
    """A suspension holds removals like everything else: exit code 5."""
    orphan = machine.folder / "state/models/blobs/00" / ("0" * 64 + "-" + "0" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(bytes(2**20))
    machine.run("suspend", "audit")
    assert "Held" in machine.run("gc", code=5).output
    assert orphan.exists()
