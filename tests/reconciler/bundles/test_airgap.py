"""Bundles from end to end at the command line: what is carried, what a node makes of it, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.bundles.container import opened
from reconciler.bundles.handover import Desk
from reconciler.cli import wiring
from reconciler.state_dir import StateDir
from runtime.host import StopEvent, host_ports
from tests.support.models import gguf, silent

if TYPE_CHECKING:
    from tests.reconciler.bundles.conftest import Airgap


def test_a_carried_model_is_in_the_store_and_its_snapshot_in_force(airgap: Airgap) -> None:
    """Nothing but the file is needed: no repository, no source; importing again changes nothing (I1, I2, I7)."""
    bundle = airgap.export("net.tar", "--models")
    airgap.operator.root.rename(airgap.folder / "out of reach")
    (airgap.folder / "mirror").rename(airgap.folder / "gone")
    airgap.join(bundle)
    done = airgap.take(bundle)
    assert (done["models"], done["absent"], done["inForce"]) == (["tiny:v1"], [], False)
    [folder] = (airgap.state / "models" / "tiny").iterdir()
    assert (folder / "tiny.gguf").read_bytes() == (airgap.folder / "gone" / "tiny.gguf").read_bytes()
    assert airgap.sequence() == 1
    before = sorted(airgap.state.rglob("*"))
    assert airgap.take(bundle)["inForce"]
    assert [path for path in sorted(airgap.state.rglob("*")) if "imported.git" not in str(path)] == [
        path for path in before if "imported.git" not in str(path)
    ]
    assert airgap.sequence() == 1


def test_what_was_imported_survives_the_loss_of_the_journal(airgap: Airgap) -> None:
    """The bundle's documents are a repository on the node's own disk: a pass finds them again (I1)."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    airgap.take(bundle)
    assert airgap.sequence() == 1
    bundle.unlink()
    for path in airgap.state.glob("state.db*"):
        path.unlink()
    wiring.open_journal(StateDir(airgap.state), readonly=False).close()
    assert airgap.sequence() == 1


def test_equal_inputs_make_equal_bundles(airgap: Airgap) -> None:
    """The order, the times and the commit in it follow from what is carried."""
    first, second = airgap.export("a.tar", "--models"), airgap.export("b.tar", "--models")
    assert first.read_bytes() == second.read_bytes()
    listed = subprocess.run(["tar", "tf", str(first)], capture_output=True, text=True, check=True).stdout.split()
    assert listed[:2] == ["bundle.json", "documents.bundle"]
    assert len(listed) == 4


def test_checking_writes_nothing(airgap: Airgap) -> None:
    """`--check` verifies and says what is in it, and leaves no trace on the node (I9)."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    before = {path: path.stat().st_mtime_ns for path in airgap.state.rglob("*") if "state.db" not in path.name}
    done = airgap.node("snapshot", "import", str(bundle), "--check")
    assert "accepted by this node's rules" in done.output
    assert "tiny:v1" in done.output
    now = {path: path.stat().st_mtime_ns for path in airgap.state.rglob("*") if "state.db" not in path.name}
    assert now == before


def test_a_bundle_of_documents_says_what_it_lacks(airgap: Airgap) -> None:
    """Without model bytes the snapshot is taken in all the same, and what is nowhere is named."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    assert airgap.take(bundle)["absent"] == ["tiny:v1"]
    assert airgap.stored() == []


@pytest.mark.parametrize("accepted", [False, True])
def test_an_older_bundle_is_refused_before_and_after_acceptance(airgap: Airgap, accepted: bool) -> None:
    """What was carried in may not be undone by an older file: by the mark, or by what lies imported already (I1)."""
    old = airgap.export("old.tar")
    airgap.publish("newer")
    new = airgap.export("new.tar")
    airgap.join(old)
    airgap.take(new)
    if accepted:
        assert airgap.sequence() == 2
    refused = airgap.take(old, code=3)["error"]
    assert refused["reason"] in (["RollbackAttack", "StaleSource"] if accepted else ["StaleSource"])
    assert str(old) in refused["message"]
    assert airgap.sequence() == 2


def test_another_networks_bundle_is_refused(airgap: Airgap) -> None:
    """A node takes nothing of a network that it does not belong to (I1)."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    text = airgap.config.read_text()
    airgap.config.write_text(text.replace("network: testnet", "network: other"))
    assert airgap.take(bundle, code=3)["error"]["reason"] == "WrongNetwork"


def test_a_node_with_another_pin_refuses(airgap: Airgap) -> None:
    """The trust that a bundle brings along counts only from the document that the node has pinned (I1)."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    lines = airgap.config.read_text().splitlines()
    pinned = next(number for number, line in enumerate(lines) if line.strip().startswith("digest:"))
    lines[pinned] = f'  digest: "blake3:{"0" * 64}"'
    airgap.config.write_text("\n".join(lines) + "\n")
    refused = airgap.take(bundle, code=3)["error"]
    assert refused["reason"] == "TrustBroken"
    assert not (airgap.state / "imported.git").exists()


def test_what_no_node_would_accept_is_not_exported(airgap: Airgap) -> None:
    """A snapshot short of its signatures is found out before anybody carries it anywhere."""
    airgap.operator.run("snapshot", "bump")
    airgap.operator.sign(1)
    airgap.operator.commit()
    out = airgap.export("net.tar", code=3)
    assert not out.exists()
    assert list(airgap.folder.glob(".*partial")) == []


def test_sources_with_other_bytes_end_the_export(airgap: Airgap) -> None:
    """A bundle holds what the manifest says or does not exist; nothing half-made is left."""
    (airgap.folder / "mirror" / "tiny.gguf").write_bytes(
        gguf((airgap.folder / "mirror" / "tiny.gguf").stat().st_size, 2)
    )
    out = airgap.export("net.tar", "--models", code=1)
    assert not out.exists()
    assert list(airgap.folder.glob(".*partial")) == []


def test_the_policy_of_sources_holds_for_exports(airgap: Airgap) -> None:
    """Loopback over plain http is refused unless it is allowed by name."""
    airgap.export("net.tar", "--models", code=1, allow=False)


def test_the_nodes_own_store_is_a_source(airgap: Airgap) -> None:
    """A node that has the model exports it without asking anybody."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    airgap.take(bundle)
    (airgap.folder / "mirror").rename(airgap.folder / "gone")
    again = airgap.folder / "again.tar"
    airgap.node("snapshot", "export", str(again), "--repository", str(airgap.operator.root), "--model", "tiny:v1")
    assert again.read_bytes() == bundle.read_bytes()


def test_changed_model_bytes_never_reach_the_store(airgap: Airgap) -> None:
    """Bytes are believed by their pieces, whatever the index says of them; what is good is kept (I2)."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    with opened(bundle) as seen:
        entry = max(seen.index.entries, key=lambda entry: entry.size)
        at = seen.span(entry).offset + entry.size - 5
    spoilt = bytearray(bundle.read_bytes())
    spoilt[at] ^= 1
    bad = airgap.folder / "bad.tar"
    bad.write_bytes(spoilt)
    assert airgap.take(bad, code=1)["error"]["reason"] == "ModelCorrupt"
    assert airgap.stored() == []
    assert not (airgap.state / "imported.git").exists()
    airgap.take(bundle)
    assert len(airgap.stored()) == 1


def test_no_room_is_said_before_the_first_byte(airgap: Airgap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is asked for all models together; a bundle that does not fit leaves nothing behind (I4)."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    monkeypatch.setattr("runtime.models.capacity.free_bytes", lambda _folder: 2**20)
    refused = airgap.take(bundle, code=1)["error"]
    assert refused["reason"] == "NoSpace"
    assert str(bundle) in refused["message"]
    assert list((airgap.state / "models").glob("partial/*")) == []


def test_a_newer_repository_takes_the_imported_ones_place(airgap: Airgap) -> None:
    """Where the network can be reached again, what was carried by hand does not lag behind for ever."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    airgap.take(bundle)
    assert airgap.sequence() == 1
    text = airgap.config.read_text()
    airgap.config.write_text(text.replace("repositories: []", f"repositories:\n  - url: {airgap.operator.root}"))
    airgap.publish("newer")
    assert airgap.sequence() == 2
    assert not (airgap.state / "imported.git").exists()
    condition = {c["type"]: c for c in json.loads((airgap.state / "status.json").read_text())["conditions"]}
    assert condition["SourceVerified"]["reason"] == "Verified"


def test_an_unreachable_repository_does_not_hold_an_import_up(airgap: Airgap) -> None:
    """A node whose repositories are out of reach goes by what was carried to it (I6)."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    text = airgap.config.read_text()
    airgap.config.write_text(text.replace("repositories: []", "repositories:\n  - url: /nowhere/at/all"))
    airgap.take(bundle)
    assert airgap.sequence() == 1


def test_a_request_is_served_by_the_next_pass(airgap: Airgap) -> None:
    """What was asked of a daemon that was killed is done by whoever comes next, and answered (I7)."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    desk = Desk(StateDir(airgap.state), host_ports().files)
    desk.ask(bundle, "a" * 32)
    assert desk.answer("a" * 32) is None
    assert airgap.sequence() == 1
    answer = desk.answer("a" * 32)
    assert answer is not None
    assert answer.models == ("tiny:v1",)
    assert desk.pending() is None


def test_a_refused_request_is_answered_with_its_reason(airgap: Airgap) -> None:
    """A bundle that a daemon refuses keeps reason and exit code for whoever asked, and does not stop the daemon."""
    bundle = airgap.export("net.tar")
    airgap.join(bundle)
    desk = Desk(StateDir(airgap.state), host_ports().files)
    desk.ask(airgap.folder / "nothing.tar", "b" * 32)
    airgap.node("--json", code=1)
    with pytest.raises(Exception, match=r"nothing\.tar") as refused:
        desk.answer("b" * 32)
    assert type(refused.value).__name__ == "MissingDocument"


def test_a_running_daemon_imports_and_looks_at_once(airgap: Airgap) -> None:
    """Beside a daemon the command asks it, waits for its answer, and the daemon puts the snapshot in force."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    command = [
        str(Path(sys.executable).with_name("reconcile")),
        "--watch",
        "--interval",
        "1h",
        "-c",
        str(airgap.config),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        try:
            for line in daemon.stderr:
                if "Ready" in line:
                    break
            done = airgap.take(bundle)
            assert (done["daemon"], done["models"]) == (True, ["tiny:v1"])
            for line in daemon.stderr:
                if "SourceVerified True" in line:
                    break
            else:
                pytest.fail("the daemon ended without having accepted the snapshot")
        finally:
            daemon.terminate()


def test_killed_at_any_durable_step_the_next_import_finishes(airgap: Airgap) -> None:
    """SIGKILL before each durable write: the node is as before or complete, and the next import completes it (I7)."""
    bundle = airgap.export("net.tar", "--models")
    airgap.join(bundle)
    config = wiring.load_config(airgap.config)
    import os
    import signal
    from dataclasses import replace

    from tests.support.crashing import CountingFiles

    def attempt(point: int) -> bool:
        """Import in a child that is killed before its `point`-th durable call; whether it was."""
        child = os.fork()
        if child == 0:

            def around(number: int, call: object) -> None:
                if number == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                call()  # type: ignore[operator]

            ports = host_ports()
            wiring.host = lambda stop=None: replace(ports, files=CountingFiles(ports.files, around))  # type: ignore[assignment]
            try:
                wiring.import_bundle(config, bundle, silent, StopEvent())
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)

    point = 0
    while attempt(point):
        published = (airgap.state / "imported.git" / "refs" / "heads" / "main").exists()
        assert not published or len(airgap.stored()) == 1
        point += 3
    assert point > 12
    assert len(airgap.stored()) == 1
    assert airgap.sequence() == 1
    assert not (airgap.state / "imports" / "work").exists()
