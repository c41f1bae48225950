"""Fixtures that every test may ask for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.containers import docker_host, podman_host, registry, test_images
from tests.support.engines import tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["docker_host", "podman_host", "registry", "test_images", "tiny_model"]


@pytest.fixture(scope="session", autouse=True)
def leave_no_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Detach what engines that were killed with their agent left mounted: no later run could remove the folders."""
    yield
    below = f"{tmp_path_factory.getbasetemp()}/"
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed([point for point in mounts if point.startswith(below)]):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True, timeout=20)
