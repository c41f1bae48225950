"""Fixtures of this folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from desired_state.git_source import GitSettings, GitSource
from runtime.host import host_ports
from tests.desired_state.network import FIRST_TRUST, Repository, snapshot_text

if TYPE_CHECKING:
    from pathlib import Path


def git_source(**changes: object) -> GitSource:
    """The real thing, with bounds that fit a test."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    bounds: dict[str, object] = {"timeout": 60.0, "max_bytes": 2**24, "environment": environment, **changes}
    return GitSource(host_ports(), GitSettings(**bounds))  # type: ignore[arg-type]


@pytest.fixture
def source() -> GitSource:
    """Git, with real processes."""
    return git_source()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A network with trust 1, one signed snapshot and the model that it binds, not committed yet."""
    made = Repository(tmp_path / "network")
    made.put_trust(1, FIRST_TRUST, (1, 2))
    made.put_model()
    made.put_snapshot(snapshot_text())
    return made


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Where the node keeps its copy."""
    return tmp_path / "state" / "repo.git"
