"""What a snapshot would do to ten thousand nodes, before anybody signs it."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from benchmarks.conftest import environment, reconcile
from benchmarks.scaled import scaled_node
from desired_state.signatures import address_of

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.conftest import Figure
    from benchmarks.scaled import ScaledNode

NODES: Final = 10_000
MODELS: Final = 20
SERVED: Final = "tiny:v1"


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScaledNode, Path]:
    """A network of twenty models, and what ten thousand of its nodes published: most as wanted, some not."""
    folder = tmp_path_factory.mktemp("fleet")
    target = folder / "inventory"
    target.mkdir()
    with scaled_node(folder / "network") as node:
        node.grow(MODELS)
        status = json.loads((node.demo.folder / "node" / "status.json").read_bytes())
        chance = random.Random(0)
        for number in range(NODES):
            (target / f"{number:05}.json").write_text(json.dumps(_another(status, chance)), encoding="utf-8")
    return node, target


def _another(status: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Another node's: its own key; one in ten lacks half of the models, one in a hundred has a full disk."""
    models = {item["manifest"]: item["model"] for item in status["models"]}
    made: dict[str, Any] = {**status, "node": address_of(chance.randbytes(32))}
    if chance.random() < 0.1:
        kept = {digest for digest, key in models.items() if key == SERVED or chance.random() < 0.5}
        made["models"] = [item for item in status["models"] if item["manifest"] in kept]
        stored = [item for item in status["facts"]["stored"] if item["manifest"] in kept]
        made["facts"] = {**status["facts"], "stored": stored}
    if chance.random() < 0.01:
        made["hardware"] = {**status["hardware"], "diskFree": "1MiB"}
    return made


def test_fleet_plan_seconds(inventory: tuple[ScaledNode, Path], figure: Figure) -> None:
    """`reconcile plan --inventory`, a whole process; the sum is checked before the time counts."""
    node, folder = inventory
    command = [reconcile(), "plan", "--inventory", str(folder), "--json"]
    begun, cpu = _now()
    done = subprocess.run(command, cwd=node.repo, capture_output=True, text=True, check=False, env=environment())
    ended, cpu_ended = _now()
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    outcomes = [item["outcome"] for item in made["nodes"]]
    assert len(outcomes) == NODES
    assert 0.05 * NODES < outcomes.count("changes") < 0.2 * NODES
    assert outcomes.count("unchanged") > 0.8 * NODES
    figure("fleet_plan_seconds", ended - begun, f"s for {NODES} nodes", goal="< 60")
    print(f"\nfleet_plan_seconds: {ended - begun:.1f} s, {cpu_ended - cpu:.1f} s of processor time")


def _now() -> tuple[float, float]:
    import resource
    import time

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), used.ru_utime + used.ru_stime
