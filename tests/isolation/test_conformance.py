"""I10 from inside: a program in the engine's place tries to break out, under every backend."""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import pytest

from runtime.backends import native_permissions
from schemas.runtimes import Unenforced
from tests.contracts.backend_contract import await_exit
from tests.contracts.test_backends import NativeHarness
from tests.contracts.test_container_backends import ContainerHarness
from tests.isolation import prisoner
from tests.isolation.table import PAGE, RESTRICTIONS, page

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.interfaces import Backend, InstanceSpec

Found = dict[str, dict[str, str]]

LIMITS = {"memory": 128 * 2**20, "shm": 2**20, "pids": 48, "cpus": 1}
ENGINE_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock")
HIDDEN_BY_LOAD = "cpu"
"""On a machine with one processor, or none to spare, nothing can be taken."""


@contextmanager
def surroundings(*sockets: str) -> Iterator[dict[str, Any]]:
    """What there is to be reached of the host: listeners, a folder, a file of the agent's."""
    abstract = f"reconcile-{uuid.uuid4().hex}"
    with (
        # Not below pytest's folders: what holds must not be the mode of a folder above.
        TemporaryDirectory(dir="/var/tmp") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as named,
    ):
        outside, secret = Path(folder), Path(folder, "secret")
        outside.chmod(0o777)
        secret.write_text("the node's key")
        secret.chmod(0o600)
        named.bind(f"\0{abstract}")
        named.listen()
        yield {
            "port": listener.getsockname()[1],
            "abstract": abstract,
            "engines": [*ENGINE_SOCKETS, *sockets],
            "outside": str(outside),
            "secret": str(secret),
            "uid": os.geteuid(),
            "agent": os.getpid(),
            **LIMITS,
        }


def imprisoned(spec: InstanceSpec, given: Mapping[str, Any], model: str, folder: str) -> InstanceSpec:
    """The instance with the program in the engine's place, and narrow limits."""
    shutil.copy(prisoner.__file__, spec.model_folder / "engine.py")
    resources = spec.target.resources.model_copy(update=LIMITS)
    argv = spec.launch.argv
    program = argv[: argv.index("--socket")]
    told = json.dumps({**given, "model": model, "folder": folder})
    launch = replace(spec.launch, argv=(*program, told))
    return replace(spec, target=spec.target.model_copy(update={"resources": resources}), launch=launch)


def tried(backend: Backend, spec: InstanceSpec) -> Found:
    """What the program could do."""
    backend.create(spec)
    backend.start(spec.name)
    await_exit(backend, spec)
    printed = backend.output(spec.name, limit=2**16)
    line = next((line for line in printed.splitlines() if line.startswith("FOUND ")), None)
    assert line is not None, f"it was ended before its time: {backend.inspect(spec.name)}, {printed}"
    found: Found = json.loads(line.removeprefix("FOUND "))
    assert set(found) == set(RESTRICTIONS)
    broken = {name: trials for name, trials in found.items() if "the trial itself" in trials}
    assert not broken
    return found


def escapes(found: Found) -> Found:
    """What succeeded, by restriction."""
    return {name: won for name, trials in found.items() if (won := {key: how for key, how in trials.items() if how})}


def hold_together(found: Found, said: tuple[Unenforced, ...]) -> None:
    """Nothing gives way that was not announced."""
    surprises = {name: won for name, won in escapes(found).items() if RESTRICTIONS[name].excuse not in said}
    assert not surprises


def test_native_processes_are_locked_in(tmp_path: Path) -> None:
    """A process of the host cannot break out of what this machine lets it be locked into."""
    harness = NativeHarness(tmp_path / "node")
    try:
        spec, backend = harness.spec("a1"), harness.attach()
        with surroundings() as given:
            found = tried(backend, imprisoned(spec, given, str(spec.model_folder), str(spec.socket_folder)))
        hold_together(found, backend.not_enforced())
    finally:
        harness.close()


def test_what_is_not_enforced_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that permits nothing, the same program escapes from all that is said, and from nothing else."""
    monkeypatch.setattr(native_permissions.Permissions, "found", lambda _: dict(native_permissions.NOTHING))
    harness = NativeHarness(tmp_path / "node")
    try:
        spec, backend = harness.spec("a1"), harness.attach()
        with surroundings() as given:
            found = tried(backend, imprisoned(spec, given, str(spec.model_folder), str(spec.socket_folder)))
        said = backend.not_enforced()
        hold_together(found, said)
        assert {RESTRICTIONS[name].excuse for name in escapes(found)} | {HIDDEN_BY_LOAD} == {*said}
    finally:
        harness.close()


def contained(harness: ContainerHarness) -> None:
    """A container cannot be left."""
    spec, backend = harness.spec("a1"), harness.attach()
    view = backend.view(model_folder=spec.model_folder, socket_folder=spec.socket_folder)
    folder = view.socket.rpartition("/")[0]
    with surroundings(harness.host.removeprefix("unix://")) as given:
        found = tried(backend, imprisoned(spec, given, view.model, folder))
    hold_together(found, backend.not_enforced())


@pytest.mark.docker
def test_docker_containers_are_locked_in(tmp_path: Path, docker_host: str, test_images: Mapping[str, str]) -> None:
    """Docker enforces all of it."""
    harness = ContainerHarness(tmp_path, "docker", docker_host, test_images["base"])
    try:
        contained(harness)
    finally:
        harness.close()


@pytest.mark.podman
def test_podman_containers_are_locked_in(tmp_path: Path, podman_host: str, test_images: Mapping[str, str]) -> None:
    """Podman enforces all of it."""
    harness = ContainerHarness(tmp_path, "podman", podman_host, test_images["base"])
    try:
        contained(harness)
    finally:
        harness.close()


def test_the_page_is_the_table() -> None:
    """docs/isolation.md is what `make docs` writes, and every name that status can list has its row."""
    assert PAGE.read_text(encoding="utf-8") == page()
    assert {row.excuse for row in RESTRICTIONS.values()} == {*get_args(Unenforced)}
    assert list(RESTRICTIONS) == list(prisoner.TRIALS)
