"""What every model store does, the one on disk and the one in memory alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from runtime.host import StopEvent, host_ports
from runtime.models.simulated import SimulatedModelStore, SimulatedShelf
from runtime.models.store import DiskModelStore
from schemas.errors import DownloadFailed, ModelCorrupt, NoSpace
from schemas.observation import ArchivedModel, PartialModel, StoredModel
from tests.support.models import OPEN_POLICY, gguf, lay_out, make_model, silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.interfaces import Model, ModelStore

CONFIG = b'{"the": "same in both versions"}'
V1 = {"config.json": CONFIG, "model.gguf": gguf(5000, seed=1)}
V2 = {"config.json": CONFIG, "model.gguf": gguf(7000, seed=2)}
ONE = make_model(V1, version="v1")
TWO = make_model(V2, version="v2")


class Bench(Protocol):
    """A store, sources for it, and the means to break both."""

    store: ModelStore

    def source(self, files: Mapping[str, bytes], *, corrupt: bool = False) -> str:
        """Address of a source that has these files, or something else under their names."""
        ...

    def dead(self) -> str:
        """Address of a source that does not answer."""
        ...

    def touch(self, model: Model) -> None:
        """Change a stored model's stat, and not its bytes."""
        ...

    def taint(self, model: Model) -> None:
        """Change a stored model's weights."""
        ...

    def fill(self) -> None:
        """Leave no space."""
        ...


class DiskBench:
    """The real store, on a real disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sources = 0
        self.store: ModelStore = self._open(0)

    def _open(self, reserve: int) -> DiskModelStore:
        ports = host_ports()
        return DiskModelStore(self._folder / "models", ports=ports, policy=OPEN_POLICY, stall=1, reserve=reserve)

    def source(self, files: Mapping[str, bytes], *, corrupt: bool = False) -> str:
        """A folder."""
        self._sources += 1
        sent = {path: bytes([data[0] ^ 1]) + data[1:] for path, data in files.items()} if corrupt else files
        return lay_out(self._folder / f"source{self._sources}", sent)

    def dead(self) -> str:
        """A port on which nobody listens (the discard service's)."""
        return "http://127.0.0.1:9"

    def touch(self, model: Model) -> None:
        """Another modification time."""
        path = self.store.folder(model.digest) / "model.gguf"
        path.touch()

    def taint(self, model: Model) -> None:
        """Another last byte."""
        path = self.store.folder(model.digest) / "model.gguf"
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"!")

    def fill(self) -> None:
        """As if everything had to be left free."""
        self.store = self._open(2**60)


class SimulatedBench:
    """The store in memory."""

    def __init__(self) -> None:
        self._shelf = SimulatedShelf()
        self._sources = 0
        self.store: ModelStore = SimulatedModelStore(self._shelf)

    def source(self, files: Mapping[str, bytes], *, corrupt: bool = False) -> str:
        """A name."""
        self._sources += 1
        address = f"simulated://{self._sources}"
        if corrupt:
            self._shelf.corrupt_addresses.add(address)
        return address

    def dead(self) -> str:
        """A name that is known to be dead."""
        self._shelf.dead_addresses.add("simulated://dead")
        return "simulated://dead"

    def touch(self, model: Model) -> None:
        """Mark."""
        self._shelf.touch(model.digest)

    def taint(self, model: Model) -> None:
        """Mark."""
        self._shelf.taint(model.digest)

    def fill(self) -> None:
        """No capacity."""
        self._shelf.capacity = 0


@pytest.fixture(params=["disk", "simulated"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Each store in turn."""
    return DiskBench(tmp_path) if request.param == "disk" else SimulatedBench()


def acquire(bench: Bench, model: Model, *sources: str, stop: StopEvent | None = None) -> None:
    """Install."""
    bench.store.acquire(model, sources, progress=silent, stop=stop or StopEvent())


def verify(bench: Bench, model: Model) -> None:
    """Hash again."""
    bench.store.verify(model, progress=silent, stop=StopEvent())


def is_stored(bench: Bench, model: Model) -> bool:
    """Whether the whole model is there."""
    return isinstance(bench.store.list().get(model.digest), StoredModel)


def test_an_empty_store_has_nothing(bench: Bench) -> None:
    """Nothing is listed, everything is missing, no folder is given."""
    assert bench.store.list() == {}
    assert bench.store.missing(ONE) == ONE.manifest.size
    with pytest.raises(KeyError):
        bench.store.folder(ONE.digest)


def test_acquired_is_stored_and_intact(bench: Bench) -> None:
    """After `acquire` the model is listed with its size, intact, nothing is missing, and it has a folder (I2)."""
    acquire(bench, ONE, bench.source(V1))
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=True, size=ONE.manifest.size)}
    assert bench.store.missing(ONE) == 0
    assert bench.store.folder(ONE.digest).is_absolute()


def test_acquiring_again_needs_no_source(bench: Bench) -> None:
    """What is stored and intact is left alone."""
    acquire(bench, ONE, bench.source(V1))
    acquire(bench, ONE, bench.dead())
    assert is_stored(bench, ONE)


def test_a_corrupt_source_publishes_nothing(bench: Bench) -> None:
    """Wrong bytes are `ModelCorrupt`, and no model (I2)."""
    with pytest.raises(ModelCorrupt):
        acquire(bench, ONE, bench.source(V1, corrupt=True))
    assert not is_stored(bench, ONE)


def test_a_dead_source_is_a_failed_download(bench: Bench) -> None:
    """A source that does not answer is `DownloadFailed`, to be tried again."""
    with pytest.raises(DownloadFailed):
        acquire(bench, ONE, bench.dead())
    assert not is_stored(bench, ONE)


def test_the_next_source_makes_up_for_a_bad_one(bench: Bench) -> None:
    """One honest source is enough."""
    acquire(bench, ONE, bench.dead(), bench.source(V1))
    acquire(bench, TWO, bench.source(V2, corrupt=True), bench.source(V2))
    assert is_stored(bench, ONE)
    assert is_stored(bench, TWO)


def test_a_corrupt_and_a_dead_source_may_work_later(bench: Bench) -> None:
    """As long as one source was not heard, the failure is not final."""
    with pytest.raises(DownloadFailed):
        acquire(bench, ONE, bench.source(V1, corrupt=True), bench.dead())
    assert not is_stored(bench, ONE)


def test_no_space_is_said_before_anything_is_fetched(bench: Bench) -> None:
    """A disk that cannot hold the model is `NoSpace`; what was there stays."""
    acquire(bench, ONE, bench.source(V1))
    bench.fill()
    with pytest.raises(NoSpace):
        acquire(bench, TWO, bench.source(V2))
    assert is_stored(bench, ONE)
    assert not is_stored(bench, TWO)
    assert bench.store.missing(TWO) == len(V2["model.gguf"])


def test_a_stop_publishes_nothing(bench: Bench) -> None:
    """A stop that was requested before the start: `DownloadFailed`, nothing stored."""
    stop = StopEvent()
    stop.set()
    with pytest.raises(DownloadFailed):
        acquire(bench, ONE, bench.source(V1), stop=stop)
    assert not is_stored(bench, ONE)
    acquire(bench, ONE, bench.source(V1))
    assert is_stored(bench, ONE)


def test_a_file_that_two_versions_share_is_fetched_once(bench: Bench) -> None:
    """Of the second version only what differs is missing."""
    acquire(bench, ONE, bench.source(V1))
    assert bench.store.missing(TWO) == len(V2["model.gguf"])
    acquire(bench, TWO, bench.source(V2))
    assert all(isinstance(seen, StoredModel) and seen.intact for seen in bench.store.list().values())


def test_removing_one_version_leaves_the_other_whole(bench: Bench) -> None:
    """Shared content goes with its last user only, and the other version needs no hashing (I8)."""
    acquire(bench, ONE, bench.source(V1))
    acquire(bench, TWO, bench.source(V2))
    bench.store.remove(ONE.digest)
    assert bench.store.list() == {TWO.digest: StoredModel(TWO.digest, intact=True, size=TWO.manifest.size)}
    verify(bench, TWO)
    assert bench.store.missing(ONE) == len(V1["model.gguf"])


def test_removing_what_is_gone_is_fine(bench: Bench) -> None:
    """Removal may be repeated, and may be asked for what never was."""
    bench.store.remove(ONE.digest)
    acquire(bench, ONE, bench.source(V1))
    bench.store.remove(ONE.digest)
    bench.store.remove(ONE.digest)
    assert bench.store.list() == {}


def test_a_touched_model_is_not_intact_until_verified(bench: Bench) -> None:
    """A changed stat is noticed by `list`, and settled by hashing (I2)."""
    acquire(bench, ONE, bench.source(V1))
    bench.touch(ONE)
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=False, size=ONE.manifest.size)}
    verify(bench, ONE)
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=True, size=ONE.manifest.size)}


def test_a_tainted_model_is_quarantined_and_can_be_had_again(bench: Bench) -> None:
    """Changed bytes: not intact, then `ModelCorrupt` and no longer stored, then installed anew (I2, I5)."""
    acquire(bench, ONE, bench.source(V1))
    bench.taint(ONE)
    seen = bench.store.list()[ONE.digest]
    assert isinstance(seen, StoredModel)
    assert not seen.intact
    with pytest.raises(ModelCorrupt):
        verify(bench, ONE)
    assert not is_stored(bench, ONE)
    with pytest.raises(KeyError):
        bench.store.folder(ONE.digest)
    acquire(bench, ONE, bench.source(V1))
    verify(bench, ONE)
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=True, size=ONE.manifest.size)}


def test_verifying_what_is_not_stored_is_a_key_error(bench: Bench) -> None:
    """There is nothing to hash."""
    with pytest.raises(KeyError):
        verify(bench, ONE)


def test_a_stopped_verification_says_nothing_about_the_model(bench: Bench) -> None:
    """A stop is no verdict: the model stays as it was."""
    acquire(bench, ONE, bench.source(V1))
    bench.touch(ONE)
    stop = StopEvent()
    stop.set()
    with pytest.raises(DownloadFailed):
        bench.store.verify(ONE, progress=silent, stop=stop)
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=False, size=ONE.manifest.size)}


def test_a_model_goes_to_cold_storage_and_comes_back_without_a_source(bench: Bench) -> None:
    """Archived it takes no place among the stored, and is not missing; `acquire` needs no source to bring it back."""
    acquire(bench, ONE, bench.source(V1))
    bench.store.archive(ONE, progress=silent, stop=StopEvent())
    bench.store.archive(ONE, progress=silent, stop=StopEvent())
    assert bench.store.list() == {ONE.digest: ArchivedModel(ONE.digest, ONE.manifest.size)}
    assert bench.store.missing(ONE) == 0
    assert bench.store.room(ONE) == ONE.manifest.size
    with pytest.raises(KeyError):
        bench.store.folder(ONE.digest)
    acquire(bench, ONE)
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=True, size=ONE.manifest.size)}
    verify(bench, ONE)


def test_what_shares_content_with_an_archived_model_stays_whole(bench: Bench) -> None:
    """Moving one version away takes nothing from another (I8)."""
    acquire(bench, ONE, bench.source(V1))
    acquire(bench, TWO, bench.source(V2))
    bench.store.archive(ONE, progress=silent, stop=StopEvent())
    assert bench.store.list()[TWO.digest] == StoredModel(TWO.digest, intact=True, size=TWO.manifest.size)
    verify(bench, TWO)


def test_a_tainted_model_is_not_archived(bench: Bench) -> None:
    """Wrong bytes never reach cold storage: the model is quarantined like any other (I2)."""
    acquire(bench, ONE, bench.source(V1))
    bench.taint(ONE)
    with pytest.raises(ModelCorrupt):
        bench.store.archive(ONE, progress=silent, stop=StopEvent())
    seen = bench.store.list()[ONE.digest]
    assert isinstance(seen, PartialModel)
    assert seen.quarantined


def test_no_cold_space_leaves_the_model_where_it_is(bench: Bench) -> None:
    """`NoSpace` before anything is written, and the model serves on."""
    acquire(bench, ONE, bench.source(V1))
    bench.fill()
    with pytest.raises(NoSpace):
        bench.store.archive(ONE, progress=silent, stop=StopEvent())
    assert is_stored(bench, ONE)


def test_archiving_what_is_not_there_is_a_key_error(bench: Bench) -> None:
    """There is nothing to move."""
    with pytest.raises(KeyError):
        bench.store.archive(ONE, progress=silent, stop=StopEvent())


def test_a_stopped_archiving_changes_nothing(bench: Bench) -> None:
    """The model stays stored, and cold storage has nothing of it."""
    acquire(bench, ONE, bench.source(V1))
    stop = StopEvent()
    stop.set()
    with pytest.raises(DownloadFailed):
        bench.store.archive(ONE, progress=silent, stop=stop)
    assert bench.store.list() == {ONE.digest: StoredModel(ONE.digest, intact=True, size=ONE.manifest.size)}


def test_removal_reaches_cold_storage(bench: Bench) -> None:
    """What is removed is gone from there as well."""
    acquire(bench, ONE, bench.source(V1))
    bench.store.archive(ONE, progress=silent, stop=StopEvent())
    bench.store.remove(ONE.digest)
    assert bench.store.list() == {}
    assert bench.store.missing(ONE) == ONE.manifest.size


def test_a_scrub_that_was_stopped_says_nothing(bench: Bench) -> None:
    """A stop is no verdict, and nothing is due right after an installation."""
    acquire(bench, ONE, bench.source(V1))
    stop = StopEvent()
    assert bench.store.scrub(rate=2**30, every=3600, stop=stop) is None
    stop.set()
    assert bench.store.scrub(rate=2**30, every=3600, stop=stop) is None


def test_listing_is_sorted(bench: Bench) -> None:
    """By digest, whatever came first, unfinished ones included."""
    acquire(bench, ONE, bench.source(V1))
    with pytest.raises(DownloadFailed):
        acquire(bench, TWO, bench.dead())
    listed = bench.store.list()
    assert list(listed) == sorted(listed)
    assert isinstance(listed.get(TWO.digest, PartialModel(TWO.digest, 0)), PartialModel)
