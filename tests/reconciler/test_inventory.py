"""Plans made elsewhere from what a node publishes: the same as the node would make itself."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.fingerprint import fingerprint
from reconciler.fleet import fleet
from reconciler.inventory import facts, labels_of, restore
from reconciler.planner import plan
from schemas.facts import NodeFacts
from schemas.manifest import ManifestDocument
from schemas.memory import Hold, Rejection
from schemas.observation import Absent, PartialModel, Present, Unknown
from schemas.status import NodeStatus
from tests.support import builders
from tests.support.builders import NOW, assignment, desired, good, hardware, manifest_digest, model, node, snapshot
from tests.support.histories import NAMES, mishap, worlds
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from reconciler.desired import Desired
    from schemas.observation import Observed


def published(result_status: NodeStatus) -> NodeStatus:
    """A status after its way through JSON, as an inventory holds it."""
    return NodeStatus.model_validate_json(result_status.to_json())


@settings(max_examples=40, deadline=None)
@given(history=worlds(), lies=st.sets(st.sampled_from(NAMES), max_size=2), following=worlds())
def test_a_plan_from_afar_is_the_nodes_own(
    history: list[tuple[str, Any]], lies: set[str], following: list[tuple[str, Any]]
) -> None:
    """After any history, the published status gives the node's own observation, and its own plan for any snapshot."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = frozenset(manifest_digest(f"{name}:v1") for name in lies)
        simulated = SimulatedNode(Path(folder) / "state", lies=wrong)
        for what, value in history:
            if what == "snapshot":
                simulated.offer(value)
            else:
                mishap(simulated, what, value)
            result = simulated.run()
            restored = restore(published(result.status))
            assert restored is not None
            config, observed = restored
            assert fingerprint(observed) == result.plan.observation
            for document in (value for kind, value in following if kind == "snapshot"):
                wanted = desired(document)
                own = plan(wanted, simulated.node.look("")[1], simulated.config, simulated.clock.now())
                there = plan(wanted, observed, config, simulated.clock.now())
                assert [action.id for action in there.actions] == [action.id for action in own.actions]
                assert [held.reason for held in there.held] == [held.reason for held in own.held]
        simulated.journal.close()


def status(observed: Observed, **fields: Any) -> NodeStatus:
    """What a node with that observation publishes, as far as a plan needs it."""
    machine = observed.state.hardware
    config = node(backends={"native": {}}, **fields)
    return NodeStatus.model_validate(
        {
            "network": "testnet",
            "node": observed.node_id,
            "labels": dict(config.labels),
            "agent": "0.1.0",
            "updated_at": NOW,
            "conditions": (),
            "models": (),
            "held": (),
            "hardware": {
                "platform": machine.platform,
                "processor": machine.processor,
                "cpus": machine.cpus,
                "memory": machine.memory,
                "disk": machine.disk,
                "disk_free": machine.disk_free,
                "gpus": tuple(
                    {"uuid": gpu.uuid, "name": gpu.name, "memory": gpu.memory, "driver": gpu.driver}
                    for gpu in machine.gpus
                ),
            },
            "engines": (),
            "facts": facts(config, observed),
        }
    )


@pytest.mark.parametrize(
    "observed",
    [
        builders.observed(backends={"native": Unknown("no answer"), "docker": Unknown("")}),
        builders.observed(
            images={"docker/a@b": Absent(), "docker/c@d": Present("sha256:1"), "docker/e@f": Unknown("x")}
        ),
        builders.observed(models=((manifest_digest("m:v1"), Unknown("EIO")), (manifest_digest("m:v2"), Absent()))),
        builders.observed(models=((manifest_digest("m:v1"), Present(PartialModel(manifest_digest("m:v1"), 700))),)),
        builders.observed(not_enforced={"native": ("memory", "pids")}),
        builders.observed(holds={"s": Hold("s", "Backoff", "m", 3, NOW)}, suspended="by hand"),
        builders.observed(
            rejections={manifest_digest("s"): Rejection(manifest_digest("s"), "m", "R", "m", NOW, "x")},
            machine=hardware(gpus=(builders.gpu(),)),
            last_known_good=good(),
            earlier_good=good(builders.target("n:v1")),
            retests={manifest_digest("m:v1"): "GPU-1 reported Xid 79"},
        ),
    ],
)
def test_nothing_seen_is_lost_on_the_way(observed: Observed) -> None:
    """Unknown stays unknown and absent absent; holds, rejections, suspension and hardware arrive."""
    restored = restore(published(status(observed)))
    assert restored is not None
    assert fingerprint(restored[1]) == fingerprint(observed)


def test_an_owners_mirrors_are_nobodys_business() -> None:
    """Fallback addresses may hold what others should not read: they are not published."""
    config = node(policy={"sources": {"fallback": ("https://user:secret@mirror.example.org/",)}})
    assert "secret" not in facts(config, builders.observed()).to_json()
    assert NodeFacts.model_validate_json(facts(config, builders.observed()).to_json()).policy.reserve == 2**28


def with_sizes(wanted: Desired) -> Desired:
    """A desired state whose models have 1,000 bytes each."""
    assert wanted.document is not None
    return replace(wanted, manifests={spec.manifest.digest: manifest(1000) for spec in wanted.document.spec.models})


def manifest(size: int) -> ManifestDocument:
    """A manifest of one file."""
    file = {"path": "m.gguf", "size": size, "blake3": builders.PIN, "sha256": "sha256:" + "0" * 64}
    return ManifestDocument.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "ModelManifest",
            "metadata": {"name": "m", "version": "v1"},
            "spec": {
                "format": "gguf",
                "files": (file,),
                "pieces": {"path": "models/m.pieces", "digest": builders.PIN},
            },
        }
    )


def test_a_fleet_adds_up() -> None:
    """Each node has its own outlook; bytes are summed by host, held reasons and rollouts are counted."""
    document = snapshot(
        models=(model(), model(version="v2")),
        assignments=(
            assignment("m:v2", rollout={"wave": "half", "key": "k"}),
            assignment("m:v2", selector={"matchLabels": {"zone": "a"}}),
            assignment("m:v1"),
        ),
        waves=({"name": "half", "percent": "50%"}, {"name": "all", "percent": "100%"}),
    )
    addresses = [f"0x{number:040x}" for number in range(40)]
    half_done = Present(PartialModel(manifest_digest("m:v2"), 400))
    seen = [replace(builders.converged(), node_id=address) for address in addresses]
    seen[3] = replace(
        seen[3], state=replace(seen[3].state, models={**seen[3].state.models, manifest_digest("m:v2"): half_done})
    )
    nodes = [status(one, labels={"zone": "a"} if number == 3 else {}) for number, one in enumerate(seen)]
    old = status(replace(builders.observed(), node_id="0x" + "f" * 40)).model_copy(update={"facts": None})
    elsewhere = nodes[0].model_copy(update={"network": "mainnet"})
    made = fleet(with_sizes(desired(document)), [*nodes, old, elsewhere], NOW)
    outcomes = [one.outcome for one in made.nodes]
    assert len(made.nodes) == 41
    assert outcomes[-1] == "unknown"
    swapped = [one for one in made.nodes if one.downtime == "swap"]
    (rollout,) = made.rollouts
    assert 10 < rollout.reached < 31
    assert {one.assignment for one in made.nodes} == {0, 1, 2, 3} or {one.assignment for one in made.nodes} == {0, 1, 3}
    assert outcomes.count("changes") == len(swapped)
    assert made.nodes[3].fetch == 600, "what is here of a partial download is not fetched again"
    assert made.fetch_by_host == {"models.example.org": sum(one.fetch for one in made.nodes)}
    assert sum(wave.nodes for wave in rollout.waves) == rollout.nodes == 41
    assert {one.after for one in swapped} == {"m:v2"}


def test_labels_for_selectors() -> None:
    """An inventory's node has its labels and the facts that a node would have."""
    labels = labels_of(status(builders.observed(), labels={"zone": "a"}))
    assert (labels["zone"], labels["fact/engine-llamacpp"], labels["fact/backend-native"]) == ("a", "1.0", "true")
