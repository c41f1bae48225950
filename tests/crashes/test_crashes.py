"""The agent dies by SIGKILL at points of every operation, on real git, journal, store, processes, containers and front.

I1 to I11 are judged after each. Here a sample that is the same in every run; `make crashes` tries every point.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crashes.scenes import SCENES

if TYPE_CHECKING:
    from collections.abc import Mapping

EVERY = {"install": 8, "swap": 8, "rollback": 8, "rotation": 4, "gc": 12, "scrub": 12, "signing": 24}
"""Every how-manyth point is tried."""
REACHED = 0.8
"""Share of the chosen points at which an agent really has to die: a slow machine asks an engine more or less often."""


IN_DOCKER = {"swap": 20, "rollback": 40}
"""The same for containers, each of which costs the better part of a second."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scene", SCENES)
def test_a_node_converges_wherever_its_agent_dies(scene: str) -> None:
    """After each death the checker finds nothing wrong, and new agents come to what the network wants (I3, I4, I7)."""
    converges(scene, EVERY[scene])


@pytest.mark.docker
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scene", IN_DOCKER)
def test_a_node_of_containers_converges_wherever_its_agent_dies(
    scene: str, docker_host: str, test_images: Mapping[str, str]
) -> None:
    """The same with real containers: one runtime, or the last known good, and no orphan (I3, I4, I7)."""
    assert docker_host
    assert "llamacpp" in test_images
    converges(scene, IN_DOCKER[scene], "--backend", "docker")


def converges(scene: str, every: int, *options: str) -> None:
    """Try every how-manyth point of a scene."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes", "--scenes", scene, "--every", str(every), *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["points"] > 50
    assert told["deaths"] >= REACHED * told["points"] / every, done.stdout
