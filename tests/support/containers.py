"""What tests need of a machine with containers: engines, the loopback registry, images to run.

`.ci/provision` brings all of it to a Debian machine. Where something is missing, the tests that ask for it are skipped
by name; under `REQUIRE_DOCKER=1` and `REQUIRE_PODMAN=1`, as in CI, they fail instead, so that a machine which lost its
engine does not pass by testing nothing.

A conftest imports the fixtures: `docker_host`, `podman_host`, `registry`, `test_images`.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILD = Path(__file__).parents[2] / "runtime" / "images" / "build.py"

# Where `.ci/provision` puts things when nobody said otherwise, so that `make test` finds them without its environment.
DOCKER_SOCKET = "unix:///var/run/docker.sock"
PODMAN_SOCKET = "unix:///run/reconcile-test/podman.sock"
REGISTRY = "127.0.0.1:5000"

_ANSWER_SECONDS = 10
# From cold on two cores with a near package archive the build takes 35 s; a far one may be much slower.
_BUILD_SECONDS = 280


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a unix socket: a ping must not depend on the SDK that the tests are about."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _answers(connection: http.client.HTTPConnection, path: str) -> bool:
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def engine_answers(address: str) -> bool:
    """Whether an engine with Docker's API answers at `unix://PATH`."""
    return address.startswith("unix://") and _answers(_SocketConnection(address.removeprefix("unix://")), "/_ping")


def _missing(what: str, *requirements: str) -> NoReturn:
    """Skip the asking test by name; fail it if one of the `REQUIRE_...` variables says that this may not be missing."""
    for requirement in requirements:
        if os.environ.get(requirement) == "1":
            pytest.fail(f"{what}, and {requirement}=1")
    pytest.skip(what)


@pytest.fixture(scope="session")
def docker_host() -> str:
    """The address of a Docker engine that answers."""
    address = os.environ.get("DOCKER_HOST") or DOCKER_SOCKET
    if not engine_answers(address):
        _missing(f"Docker engine not present at {address}", "REQUIRE_DOCKER")
    return address


@pytest.fixture(scope="session")
def podman_host() -> str:
    """The address of Podman's Docker-compatible service that answers."""
    address = os.environ.get("RECONCILE_TEST_PODMAN") or PODMAN_SOCKET
    if not engine_answers(address):
        _missing(f"Podman service not present at {address}", "REQUIRE_PODMAN")
    return address


@pytest.fixture(scope="session")
def registry() -> str:
    """The address, `host:port`, of an image registry on loopback that answers without a password."""
    address = os.environ.get("RECONCILE_TEST_REGISTRY") or REGISTRY
    if not _answers(http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS), "/v2/"):
        _missing(f"image registry not present at {address}", "REQUIRE_DOCKER", "REQUIRE_PODMAN")
    return address


@pytest.fixture(scope="session")
def test_images(registry: str) -> Mapping[str, str]:
    """The images of `runtime/images/`, built unless the registry has them: reference by digest, by name.

    Every test worker asks; the build holds a lock of its own, so that one of them builds and the others find.
    """
    try:
        return built_images(registry)
    except RuntimeError as error:
        _missing(str(error), "REQUIRE_DOCKER", "REQUIRE_PODMAN")


def built_images(registry: str) -> Mapping[str, str]:
    """The images of `runtime/images/` in a registry: reference by digest, by name. What is not there is built.

    Args:
        registry: `host:port`.

    Raises:
        RuntimeError: they cannot be built.
    """
    command = [sys.executable, str(BUILD), "--registry", registry]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"test images cannot be built: {done.stderr.strip()}")
    images: Mapping[str, str] = json.loads(done.stdout)
    return images
