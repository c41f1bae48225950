"""The six steps of the demo, with real parts: what the README promises is what runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"

CLAIMS = (
    "tiny:v1 serves, with a receipt of its validation",
    "the model is Active",
    "the receipt is signed, and its chain holds",
    "tiny:v2 serves",
    "it is another model: it answers differently",
    "tiny:v2 goes on serving",
    "tiny:v3 is Failed",
    "the node went back to tiny:v2 by itself",
    "status says why",
    "refused with exit code 3; tiny:v2 goes on serving",
)


def tell(folder: Path, backend: str) -> None:
    """Run the demo to its end, which checks each of its claims itself, and see that it made all of them."""
    # As a newcomer's shell would: no colour, no configuration of this machine.
    env = {key: value for key, value in os.environ.items() if not key.startswith("RECONCILE_CONFIG")}
    command = [sys.executable, str(DEMO), "--backend", backend, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for claim in CLAIMS:
        assert f"# checked: {claim}\n" in done.stdout, claim
    assert "All of it was true." in done.stdout


def test_native(tmp_path: Path) -> None:
    """From keys to rollback on this host's processes (I1, I2, I4, I5, I6)."""
    tell(tmp_path / "demo", "native")


@pytest.mark.docker
@pytest.mark.usefixtures("docker_host", "test_images")
def test_docker(tmp_path: Path) -> None:
    """The same in Docker containers, with an image pulled by digest from a real registry (I10)."""
    tell(tmp_path / "demo", "docker")


@pytest.mark.podman
@pytest.mark.usefixtures("podman_host", "test_images")
def test_podman(tmp_path: Path) -> None:
    """The same in Podman's containers."""
    tell(tmp_path / "demo", "podman")
