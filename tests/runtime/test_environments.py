"""Native environments on a disk: installed from a lock with a real pip, compared, repaired, removed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.environments import DiskEnvironments
from runtime.host import StopEvent, host_ports
from schemas.digests import digest_bytes
from schemas.errors import EnvironmentChanged, EnvironmentUnavailable
from schemas.target import locked_environment
from tests.support.wheels import lock_of, write_wheel

if TYPE_CHECKING:
    from pathlib import Path

SAYS = "def main():\n    print('it runs')\n\nif __name__ == '__main__':\n    main()\n"


class Index:
    """A folder of wheels that is this machine's whole pip configuration."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        settings = {"PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        self.wheel = write_wheel(folder, "tinyengine", tinyengine=SAYS)
        self.lock = lock_of(self.wheel)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """One wheel."""
    return Index(tmp_path / "index", monkeypatch)


@pytest.fixture
def environments(tmp_path: Path) -> DiskEnvironments:
    """An empty folder of them."""
    return DiskEnvironments(tmp_path / "runtimes", ports=host_ports())


def installed(environments: DiskEnvironments, lock: bytes) -> str:
    """Install; its digest."""
    digest = locked_environment(digest_bytes(lock), environments.interpreter)
    environments.install(digest, lock, stop=StopEvent())
    return digest


def module(environments: DiskEnvironments, digest: str) -> Path:
    """The file of the one package."""
    return next(environments.python(digest).parents[1].glob("lib/*/site-packages/tinyengine.py"))


def test_what_is_installed_runs_and_is_whole(environments: DiskEnvironments, index: Index) -> None:
    """The package runs from its final place, its script too, and nothing else is there, pip included."""
    digest = installed(environments, index.lock)
    python = environments.python(digest)
    for argv in ((python, "-I", "-m", "tinyengine"), (python.parent / "tinyengine",)):
        done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "it runs\n"), done.stderr
    assert environments.packages(digest) == {"tinyengine": "1.0"}
    seen = environments.list()[digest]
    assert (seen.environment, seen.lock) == (digest, digest_bytes(index.lock))
    environments.verify(digest)


def test_running_it_leaves_it_as_it_was(environments: DiskEnvironments, index: Index) -> None:
    """Nothing is compiled into it by a start without -B either: that was done when it was installed."""
    digest = installed(environments, index.lock)
    subprocess.run([str(environments.python(digest)), "-I", "-c", "import tinyengine"], check=True)
    environments.verify(digest)


def test_a_wheel_with_another_hash_is_refused(environments: DiskEnvironments, index: Index) -> None:
    """The index offers other bytes under the same name: nothing is installed, and the words say why (I2)."""
    write_wheel(index.folder, "tinyengine", tinyengine="evil = 1\n")
    with pytest.raises(EnvironmentUnavailable, match=r"(?i)do not match the hashes"):
        installed(environments, index.lock)
    assert environments.list() == {}


def test_sources_are_never_built(environments: DiskEnvironments, index: Index) -> None:
    """Where only an archive of sources is to be had, nothing runs its program."""
    index.wheel.unlink()
    (index.folder / "tinyengine-1.0.tar.gz").write_bytes(b"sources")
    with pytest.raises(EnvironmentUnavailable, match="tinyengine"):
        installed(environments, index.lock)
    assert environments.list() == {}


def change(file: Path) -> None:
    """Other bytes of the same size and time."""
    before = file.stat()
    file.write_text(SAYS.replace("runs", "lies"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("harm", ["change", "add", "remove", "link"])
def test_a_changed_tree_is_found_and_installed_again(environments: DiskEnvironments, index: Index, harm: str) -> None:
    """Whatever is done to its files, it is no longer listed, and the next installation makes it good (I2)."""
    digest = installed(environments, index.lock)
    file, python = module(environments, digest), environments.python(digest)
    if harm == "change":
        change(file)
    elif harm == "add":
        file.with_name("sitecustomize.py").write_text("evil = 1\n")
    elif harm == "remove":
        file.unlink()
    else:
        python.unlink()
        python.symlink_to("/bin/true")
    with pytest.raises(EnvironmentChanged, match=r"tinyengine\.py|sitecustomize\.py|bin/python"):
        environments.verify(digest)
    assert environments.list() == {}
    installed(environments, index.lock)
    environments.verify(digest)


def test_a_file_that_was_only_touched_is_hashed_and_believed(environments: DiskEnvironments, index: Index) -> None:
    """Another stat with the same bytes is no change, and costs one hashing."""
    digest = installed(environments, index.lock)
    module(environments, digest).touch()
    environments.verify(digest)
    assert digest in environments.list()


def test_an_attempt_that_was_cut_off_leaves_nothing_that_counts(environments: DiskEnvironments, index: Index) -> None:
    """Killed before the record is written, the tree is not an environment; the next attempt replaces it (I7)."""

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(host_ports().files, name)

        def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
            if path.suffix == ".json":
                raise KeyboardInterrupt
            host_ports().files.write(path, data, mode=mode)

    folder = environments.python("blake3:x").parents[2]
    dying = DiskEnvironments(folder, ports=replace(host_ports(), files=Dying()))
    with pytest.raises(KeyboardInterrupt):
        installed(dying, index.lock)
    assert environments.list() == {}
    digest = installed(environments, index.lock)
    environments.verify(digest)
    assert not (folder / "building" / digest.partition(":")[2]).exists()


def test_stopping_ends_an_installation(environments: DiskEnvironments, index: Index) -> None:
    """A request to stop ends it, and nothing is listed."""
    stop = StopEvent()
    stop.set()
    digest = locked_environment(digest_bytes(index.lock), environments.interpreter)
    with pytest.raises(EnvironmentUnavailable, match="told to stop"):
        environments.install(digest, index.lock, stop=stop)
    assert environments.list() == {}


def test_what_is_removed_is_gone(environments: DiskEnvironments, index: Index) -> None:
    """All of it, and removing it again is fine."""
    digest = installed(environments, index.lock)
    environments.remove(digest)
    environments.remove(digest)
    assert environments.list() == {}
    assert sorted(path.name for path in environments.python(digest).parents[2].iterdir()) == ["building"]


def test_nothing_of_the_agent_is_in_it(environments: DiskEnvironments, index: Index) -> None:
    """The agent's own packages cannot be imported there (I10)."""
    digest = installed(environments, index.lock)
    argv = [str(environments.python(digest)), "-I", "-c", "import pydantic"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ModuleNotFoundError" in done.stderr
