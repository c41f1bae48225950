"""The contract of native environments, against a disk with a real pip and the ones of simulated nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from runtime.environments import DiskEnvironments
from runtime.environments_simulated import SimulatedEnvironments
from runtime.host import StopEvent, host_ports
from schemas.digests import digest_bytes
from schemas.errors import EnvironmentChanged, EnvironmentUnavailable
from schemas.target import locked_environment
from tests.support.wheels import lock_of, write_wheel

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.interfaces import EnvironmentStore


class Bench(Protocol):
    """Environments, and what somebody else does to them."""

    lock: bytes
    """Of one package: tinyengine 1.0."""

    def agent(self) -> EnvironmentStore:
        """The store as an agent that was just started sees it."""
        ...

    def harm(self, environment: str) -> None:
        """Change a file of one."""
        ...

    def take_wheels_away(self) -> None:
        """Nothing can be fetched any more."""
        ...


class SimulatedBench:
    """No disk."""

    def __init__(self) -> None:
        self._store = SimulatedEnvironments(brings={"tinyengine": "1.0"})
        self.lock = b"tinyengine==1.0 --hash=sha256:00"

    def agent(self) -> EnvironmentStore:
        """It outlives agents by being the same."""
        return self._store

    def harm(self, environment: str) -> None:
        """Said to be changed."""
        self._store.changed.add(environment)

    def take_wheels_away(self) -> None:
        """Said to be gone."""
        self._store.unavailable = "no wheels"


class RealBench:
    """A folder, and another one of wheels."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        index = folder / "index"
        index.mkdir()
        for name, value in {"FIND_LINKS": str(index), "NO_INDEX": "1", "CONFIG_FILE": "/dev/null"}.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        self._wheel = write_wheel(index, "tinyengine", tinyengine="def main():\n    pass\n")
        self.lock = lock_of(self._wheel)

    def agent(self) -> DiskEnvironments:
        """A store of its own."""
        return DiskEnvironments(self._folder / "runtimes", ports=host_ports())

    def harm(self, environment: str) -> None:
        """Another program in the file."""
        root = self.agent().python(environment).parents[1]
        next(root.glob("lib/*/site-packages/tinyengine.py")).write_text("def main():\n    raise SystemExit\n")

    def take_wheels_away(self) -> None:
        """The folder is empty."""
        self._wheel.unlink()


@pytest.fixture(params=["simulated", "real"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Each of them, with nothing installed."""
    return SimulatedBench() if request.param == "simulated" else RealBench(tmp_path, monkeypatch)


def install(bench: Bench) -> str:
    """Install the lock; the environment's digest."""
    store = bench.agent()
    digest = locked_environment(digest_bytes(bench.lock), store.interpreter)
    store.install(digest, bench.lock, stop=StopEvent())
    return digest


def test_nothing_is_there_at_first(bench: Bench) -> None:
    """Asking about it makes nothing, and what is not installed is no environment."""
    store = bench.agent()
    assert store.list() == {}
    assert store.packages("blake3:" + "0" * 64) == {}
    with pytest.raises(EnvironmentChanged):
        store.verify("blake3:" + "0" * 64)
    store.remove("blake3:" + "0" * 64)


def test_what_is_installed_is_seen_by_the_next_agent(bench: Bench) -> None:
    """With the lock that it was made from; installing again is fine, and verifying says nothing."""
    digest = install(bench)
    assert install(bench) == digest
    seen = bench.agent().list()
    assert set(seen) == {digest}
    assert (seen[digest].environment, seen[digest].lock) == (digest, digest_bytes(bench.lock))
    assert seen[digest].size > 0
    assert bench.agent().packages(digest) == {"tinyengine": "1.0"}
    bench.agent().verify(digest)


def test_what_somebody_changed_is_no_longer_there(bench: Bench) -> None:
    """It is found by verifying, is not listed from then on, and is installed again (I2)."""
    digest = install(bench)
    bench.harm(digest)
    with pytest.raises(EnvironmentChanged):
        bench.agent().verify(digest)
    assert bench.agent().list() == {}
    install(bench)
    bench.agent().verify(digest)


def test_what_cannot_be_fetched_is_not_half_there(bench: Bench) -> None:
    """Whole or not at all; what is installed needs no wheels any more."""
    bench.take_wheels_away()
    with pytest.raises(EnvironmentUnavailable):
        install(bench)
    assert bench.agent().list() == {}


def test_what_is_installed_needs_nothing_any_more(bench: Bench) -> None:
    """A pass that wants what is there asks nobody for it."""
    digest = install(bench)
    bench.take_wheels_away()
    assert install(bench) == digest
    assert set(bench.agent().list()) == {digest}


def test_what_is_removed_is_gone(bench: Bench) -> None:
    """Also for whoever removes it again."""
    digest = install(bench)
    bench.agent().remove(digest)
    bench.agent().remove(digest)
    assert bench.agent().list() == {}
    assert bench.agent().packages(digest) == {}
