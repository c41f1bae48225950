"""Fixtures of several stories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.container_swapping import ContainerSwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("podman", marks=pytest.mark.podman)]
)
def swapping(
    tmp_path: Path,
    tiny_model: Callable[[int], Path],
    test_images: Mapping[str, str],
    request: pytest.FixtureRequest,
) -> Iterator[ContainerSwappingNode]:
    """A node with two models and one engine."""
    host = request.getfixturevalue(f"{request.param}_host")
    models = (tiny_model(1), tiny_model(2))
    made = ContainerSwappingNode(tmp_path, models, name=request.param, host=host, image=test_images["llamacpp"])
    yield made
    made.take_apart()
