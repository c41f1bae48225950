"""A Docker engine that is stopped, killed and restarted: unknown is not absent, and nothing is downgraded."""

from __future__ import annotations

import shutil
import signal
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.backends.native import NativeBackend
from tests.support.builders import node
from tests.support.container_swapping import ContainerSwappingNode
from tests.support.faulting import during, judged, running, serves_alone
from tests.support.own_docker import OwnDocker
from tests.support.swapping import WEAKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from schemas.snapshot import SnapshotDocument

PASSES = 6
"""Within which a node has to converge once its engine is back; between two, waits come to their end."""


class EitherWay(ContainerSwappingNode):
    """A node that may run everything natively as well, and a network that allows it."""

    def restart(self) -> None:
        """Both backends; containers come first."""
        super().restart()
        adapters = self.node.adapters
        native = NativeBackend(self.node.state.run, network="testnet", node_id=self.mark, ports=adapters.ports)
        docker = {"socket": self.engine_socket, "allowUnenforced": WEAKER}
        config = node(backends={"docker": docker, "native": {"allowUnenforced": WEAKER}}, policy={"overlap": True})
        adapters = replace(adapters, backends={**adapters.backends, "native": native})
        self.node = replace(self.node, config=config, adapters=adapters)
        self.wire()

    def wish(self, key: str, *, overlap: bool = False, **fields: Any) -> SnapshotDocument:
        """Containers or processes: the node's choice."""
        isolation = {"allowUnenforced": WEAKER, "overlap": overlap}
        return super().wish(key, isolation=isolation, modes=("container", "native"), native={}, **fields)

    def take_apart(self) -> None:
        """Nothing is left running, wherever it was started."""
        native = self.node.adapters.backends["native"]
        for instance in native.list():
            native.remove(instance.name)
        super().take_apart()

    def natively(self) -> int:
        """How many processes of this node run without a container."""
        return len(self.node.adapters.backends["native"].list())


@pytest.fixture
def engine(docker_host: str) -> Iterator[OwnDocker]:
    """An engine of this test's own; like the one that all share, it needs a machine that lets Docker run."""
    assert docker_host
    if shutil.which("dockerd") is None:
        pytest.skip("there is no dockerd to start: the engine at hand runs elsewhere")
    # Not pytest's folder, which is too deep for a socket's path.
    own = OwnDocker(Path(tempfile.mkdtemp(prefix="own-docker-")))
    try:
        own.start()
        yield own
    finally:
        own.take_apart()


@pytest.mark.docker
def test_an_engine_that_goes_and_comes_back(
    tmp_path: Path, tiny_model: Callable[[int], Path], test_images: Mapping[str, str], engine: OwnDocker
) -> None:
    """Nothing starts anywhere while it cannot be seen (I3); once it can, one runtime serves, the right one (I7)."""
    models = (tiny_model(1), tiny_model(2))
    swapping = EitherWay(tmp_path, models, name="docker", host=engine.host, image=test_images["llamacpp"])
    try:
        assert swapping.run(swapping.wish("a:v1")).exit_code == 0
        serves_alone(swapping, "a:v1")
        stopped_while_it_serves(swapping, engine)
        killed_while_the_next_one_starts(swapping, engine)
        restarted_while_the_last_one_stops(swapping, engine)
    finally:
        if not engine.runs:
            engine.start()
        swapping.take_apart()


def stopped_while_it_serves(swapping: EitherWay, engine: OwnDocker) -> None:
    """Its containers end with it."""
    engine.end()
    sees_nothing_and_starts_nothing(swapping)
    engine.start()
    converges(swapping, "a:v1")


def killed_while_the_next_one_starts(swapping: EitherWay, engine: OwnDocker) -> None:
    """Its containers live on, with nobody to say so, until the next one ends them."""
    during(swapping, "start-instance", lambda: engine.end(signal.SIGKILL))
    swapping.run(swapping.wish("b:v1"))
    sees_nothing_and_starts_nothing(swapping)
    engine.start()
    converges(swapping, "b:v1")


def restarted_while_the_last_one_stops(swapping: EitherWay, engine: OwnDocker) -> None:
    """It goes and is back before the action that needed it is over."""

    def restart() -> None:
        engine.end()
        engine.start()

    during(swapping, "stop-instance", restart)
    swapping.run(swapping.wish("a:v1"))
    converges(swapping, "a:v1")


def sees_nothing_and_starts_nothing(swapping: EitherWay) -> None:
    """However often the node looks, and however late."""
    for _ in range(3):
        swapping.real_clock.ahead += timedelta(minutes=11)
        result = swapping.run()
        assert "BackendUnavailable" in [item.reason for item in result.status.held]
        assert [outcome.action.id for outcome in result.outcomes if outcome.action.kind == "start-instance"] == []
        assert swapping.natively() == 0
        assert judged(swapping) == []


def converges(swapping: EitherWay, model: str) -> None:
    """By itself, soon, and wholly."""
    for _ in range(PASSES):
        swapping.real_clock.ahead += timedelta(minutes=11)
        result = swapping.run()
        assert len(running(swapping)) <= 1
        if result.exit_code == 0:
            break
    assert result.exit_code == 0, result.status.to_json()
    serves_alone(swapping, model)
    assert swapping.natively() == 0
