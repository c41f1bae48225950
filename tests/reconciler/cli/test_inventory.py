"""What a snapshot would do to an inventory of nodes, on the command line: planned, compared and signed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from schemas.digests import digest_text
from schemas.trust import SignatureFile
from tests.reconciler.cli.test_snapshot_judging import node_status
from tests.support.operators import NETWORK
from tests.support.swapping import WEAKER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operators import Operator

VERSION = "9.9"


@pytest.fixture
def network(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """A committed network, seen from inside its working copy."""
    operator.network()
    operator.run("snapshot", "set", "spec.runtimes[0].version", f'"{VERSION}"')
    operator.commit()
    monkeypatch.chdir(operator.root)
    return operator


@pytest.fixture
def inventory(network: Operator) -> Path:
    """Two nodes that could serve, and one that publishes nothing for plans."""
    folder = network.keys / "inventory"
    folder.mkdir()
    backends = {"native": {"allowUnenforced": list(WEAKER)}}
    for number in (1, 2):
        seen = node_status(labels={"zone": "a" if number == 1 else "b"})
        seen["node"] = f"0x{number:040x}"
        seen["hardware"] |= {"memory": "64GiB", "disk": "1000GiB", "diskFree": "500GiB"}  # type: ignore[operator]
        seen["facts"] = {
            "policy": {"modes": ["container", "native"]},
            "configured": backends,
            "engines": [{"engine": "llamacpp", "version": VERSION, "environment": digest_text("engine")}],
            "backends": {"native": {}},
        }
        (folder / f"{number}.json").write_text(json.dumps(seen))
    (folder / "3.json").write_text(json.dumps(node_status(labels={})))
    return folder


def test_plan_for_an_inventory(network: Operator, inventory: Path) -> None:
    """From inside the working copy, without any node's configuration: every node, and the sum."""
    made = network.json("plan", "--inventory", str(inventory))
    assert [node["outcome"] for node in made["nodes"]] == ["changes", "changes", "unknown"]
    assert made["nodes"][0]["after"] == "tiny:v1"
    assert list(made["fetchByHost"]) == ["models.example.org"]
    shown = network.run("plan", "--inventory", str(inventory)).stdout
    assert "2 would change, 0 would be held back" in shown
    assert "1 publish too little to tell" in shown
    assert "nothing -> tiny:v1" in shown


def test_a_large_inventory_is_planned_by_several_processes(
    network: Operator, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to the same as by one, in the same order; what is wrong in a share ends the plan, and is named."""
    alone = network.json("plan", "--inventory", str(inventory))
    monkeypatch.setattr("reconciler.cli.inventory.SHARE", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    together = network.json("plan", "--inventory", str(inventory))
    assert {**together, "madeAt": ""} == {**alone, "madeAt": ""}
    (inventory / "2.json").write_text("{")
    refused = network.run("plan", "--inventory", str(inventory), code=64).stderr
    assert "2.json is not a node's status" in refused
    assert "`reconcile status --json` prints one" in refused


def test_a_document_that_cannot_be_read_is_named_with_the_cause(network: Operator, inventory: Path) -> None:
    """Cut short, of a newer agent, or no file at all: what to do differs (I11)."""
    path = inventory / "2.json"
    content = path.read_text()
    path.write_text(content[:700])
    assert (
        "2.json is not a node's status: Invalid JSON"
        in network.run("plan", "--inventory", str(inventory), code=64).stderr
    )
    path.write_text(json.dumps({**json.loads(content), "moonPhase": "full", "agent": "99.0"}))
    refused = network.run("plan", "--inventory", str(inventory), code=64).stderr
    assert "2.json is not a node's status: moonPhase: " in refused
    assert "written by agent 99.0" in refused
    path.unlink()
    path.symlink_to("nowhere")
    assert "2.json cannot be read: No such file" in network.run("plan", "--inventory", str(inventory), code=64).stderr


def test_plan_for_a_revision(network: Operator, inventory: Path) -> None:
    """A revision is read from git's objects: what the working copy says meanwhile does not matter."""
    network.run("snapshot", "set", "spec.assignments[0].selector", '{"matchLabels": {"zone": "a"}}')
    committed = network.json("plan", "--inventory", str(inventory), "--snapshot", "HEAD")
    edited = network.json("plan", "--inventory", str(inventory))
    assert [node["assignment"] for node in committed["nodes"]] == [1, 1, 0]
    assert [node["assignment"] for node in edited["nodes"]] == [1, 0, 0]
    assert [node["held"][0]["reason"] for node in edited["nodes"] if node["outcome"] == "held"] == ["NoAssignment"]
    missing = network.run("plan", "--inventory", str(inventory), "--snapshot", "no-such", code=64)
    assert "not a revision" in missing.stderr


def test_diff_shows_the_nodes(network: Operator, inventory: Path) -> None:
    """A comparison tells what the newer one would do, whether it lies in a folder or in a commit."""
    assert "2 would change" in network.run("snapshot", "diff", "--inventory", str(inventory)).stdout
    assert "2 would change" in network.run("snapshot", "diff", "HEAD", "HEAD", "--inventory", str(inventory)).stdout
    assert len(network.json("snapshot", "diff", "--inventory", str(inventory))["fleet"]["nodes"]) == 3
    alone = network.keys / "alone.yaml"
    alone.write_bytes(network.snapshot.read_bytes())
    refused = network.run("snapshot", "diff", "HEAD", str(alone), "--inventory", str(inventory), code=64)
    assert "needs the manifests" in refused.stderr


def test_what_was_shown_goes_beside_the_signature(network: Operator, inventory: Path) -> None:
    """A signer who was shown the nodes' plan signs with another `shown` digest than one who was not."""
    network.run("snapshot", "sign", "--key", network.key_file(1), "--yes", "--inventory", str(inventory))
    network.run("snapshot", "sign", "--key", network.key_file(2), "--yes")
    folder = network.root / f"networks/{NETWORK}/snapshot.sigs"
    files = {
        file.signer: file for file in (SignatureFile.model_validate_json(p.read_bytes()) for p in folder.iterdir())
    }
    with_nodes, without = files[network.address(1)], files[network.address(2)]
    assert with_nodes.content == without.content
    assert with_nodes.shown != without.shown
    network.run("snapshot", "verify")


def test_waves_on_the_command_line(network: Operator, inventory: Path) -> None:
    """A rollout by wave is written by `serve`, refused where the wave is unknown, and counted over the inventory."""
    network.run("snapshot", "set", "spec.waves", '[{"name": "canary", "percent": "5%"}]')
    arguments = ("snapshot", "serve", "tiny:v1", "--runtime", "main", "--rollout", "new")
    network.run(*arguments, "--wave", "canary")
    (rollout,) = network.json("plan", "--inventory", str(inventory))["rollouts"]
    assert (rollout["key"], rollout["share"], rollout["nodes"]) == ("new", "5%", 3)
    assert "Rollout new at 5%" in network.run("plan", "--inventory", str(inventory)).stdout
    assert "there is no wave 'late'" in network.run(*arguments, "--wave", "late", code=64).stderr
    network.run(*arguments, "--wave", "canary", "--percent", "3", code=64)
    network.run("snapshot", "serve", "tiny:v1", "--runtime", "main", "--wave", "canary", code=64)
