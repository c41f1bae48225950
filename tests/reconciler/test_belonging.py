"""A configuration that changes under a node that lives: what it runs is never lost from sight (I3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reconciler import belonging
from schemas.errors import ConfigError
from tests.reconciler.test_pipeline import A, B
from tests.support.builders import node as node_config
from tests.support.simulated_node import SimulatedNode, conditions

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.node import NodeConfig
    from schemas.target import BackendName

OFF = {"native": {"enabled": False}}


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """A node that serves, natively."""
    made = SimulatedNode(tmp_path / "state")
    made.run(A)
    return made


def changed(node: SimulatedNode, config: NodeConfig) -> None:
    """Start the agent again with another configuration."""
    node.config = config
    node.restart()


def asked(node: SimulatedNode, config: NodeConfig) -> BackendName | None:
    """Which backend is still looked at."""
    return belonging.kept(config, node.journal, node.documents)  # type: ignore[arg-type] # the same methods


def test_a_backend_that_was_turned_off_keeps_what_it_serves(node: SimulatedNode) -> None:
    """What serves goes on (I6); nothing new is started there, and nothing crashes because of it."""
    changed(node, node_config(backends=OFF))
    result = node.run()
    assert node.serving() == ["a:v1"]
    assert result.status.serving is not None
    assert [held.reason for held in result.status.held] == ["NoMode"]
    result = node.run(B)
    assert node.serving() == ["a:v1"]
    assert conditions(result)["Ready"] == "False"


def test_nothing_is_started_on_a_backend_that_was_turned_off(node: SimulatedNode) -> None:
    """What ended there is not started again: the owner said no."""
    changed(node, node_config(backends=OFF))
    node.room.kill(node.room.running()[0].name)
    for _ in range(3):
        node.later(minutes=10)
        result = node.run()
        assert node.serving() == []
    assert conditions(result)["Stalled"] == "True"
    changed(node, node_config(backends={"native": {}}))
    node.later(hours=1)
    node.run()
    assert node.serving() == ["a:v1"], "turned on again, it serves again"


def test_what_served_last_is_looked_at(node: SimulatedNode) -> None:
    """Also where the configuration has ceased to name its backend."""
    assert asked(node, node_config(backends={"native": {}})) is None
    assert asked(node, node_config(backends=OFF)) == "native"
    assert asked(node, node_config(backends={"docker": {"socket": "/run/docker.sock"}})) == "native"


def test_another_network_is_refused(node: SimulatedNode) -> None:
    """Instances carry their network: with another, what serves would not be found, and a second would be started."""
    with pytest.raises(ConfigError, match=r"'testnet'.*'elsewhere'"):
        asked(node, node_config(network="elsewhere", backends={"native": {}}))


def test_an_engine_that_is_still_there_is_not_forgotten(node: SimulatedNode, tmp_path: Path) -> None:
    """Its entry may be turned off; gone, it would take the socket along at which what serves is found."""
    socket = tmp_path / "docker.sock"
    socket.touch()
    on = node_config(backends={"docker": {"socket": str(socket)}, "native": {}})
    off = node_config(backends={"docker": {"socket": str(socket), "enabled": False}, "native": {}})
    gone = node_config(backends={"native": {}})
    words = ('"backend":"native"', '"backend":"docker"')
    node.journal._db.execute("UPDATE last_known_good SET target = replace(target, ?, ?)", words)
    good = node.journal.last_known_good()
    assert good is not None
    assert good.target.backend == "docker"
    belonging.remember(on, node.journal)
    assert asked(node, on) is None
    assert asked(node, off) == "docker"
    with pytest.raises(ConfigError, match=r"backends\.docker is gone") as refused:
        asked(node, gone)
    assert f"socket: {socket}" in refused.value.hint
    socket.unlink()
    assert asked(node, gone) is None, "with the engine gone from the machine, nothing of it runs"
