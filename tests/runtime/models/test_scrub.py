"""The scrub: finds what rots on the disk, no faster than it may, and goes on where it was."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from runtime.host import StopEvent, host_ports
from runtime.models import hashing
from runtime.models.install import Rooms
from runtime.models.scrub import Pace, Scrub
from runtime.models.store import DiskModelStore
from schemas.errors import ModelCorrupt
from schemas.manifest import PIECE_SIZE
from schemas.observation import PartialModel, StoredModel
from tests.support.models import OPEN_POLICY, content, gguf, lay_out, make_model, silent

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.interfaces import Model

ONE_FILES = {"model.gguf": gguf(2 * PIECE_SIZE + 5000, seed=1), "notes.txt": b"one"}
TWO_FILES = {"model.gguf": gguf(5000, seed=2)}
ONE = make_model(ONE_FILES, version="v1")
TWO = make_model(TWO_FILES, version="v2")
FAST = 2**40
MONTH = 30 * 86400


class Clock:
    """Stands where it is put; monotonic time moves with each wait."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 2, tzinfo=UTC)
        self.seconds = 0.0

    def now(self) -> datetime:
        """Wall-clock time."""
        return self.moment

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds


class Budget:
    """A `Stop` that is set after so many waits; waiting takes no time."""

    def __init__(self, clock: Clock, waits: int = 10**9) -> None:
        self.waits = waits
        self.waited = 0.0
        self._clock = clock

    def is_set(self) -> bool:
        """Whether all waits are used up."""
        return self.waits <= 0

    def wait(self, seconds: float) -> bool:
        """Move the clock."""
        self.waits -= 1
        self.waited += max(seconds, 0.0)
        self._clock.seconds += max(seconds, 0.0)
        return self.is_set()


class Place:
    """A store with two models, the first one installed a day earlier."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.root = folder / "models"
        self.ports = replace(host_ports(), clock=self.clock)
        self.sources = {model.digest: lay_out(folder / model.digest[-8:], files) for model, files in FILES}
        self.store = self.reopened()
        for model, _ in FILES:
            self.acquire(model)
            self.clock.moment += timedelta(days=1)

    def reopened(self) -> DiskModelStore:
        """A store object as a new process would make one."""
        return DiskModelStore(self.root, ports=self.ports, policy=OPEN_POLICY, stall=5, reserve=0)

    def acquire(self, model: Model) -> None:
        """Install."""
        self.store.acquire(model, [self.sources[model.digest]], progress=silent, stop=StopEvent())

    def rot(self, model: Model, offset: int, path: str = "model.gguf") -> None:
        """Change a byte on the disk as a failing disk does: no stat changes with it."""
        file = self.store.folder(model.digest) / path
        before = file.stat()
        file.chmod(0o644)
        with file.open("r+b") as stream:
            stream.seek(offset)
            byte = stream.read(1)
            stream.seek(offset)
            stream.write(bytes([byte[0] ^ 1]))
            stream.flush()
            os.fsync(stream.fileno())
        file.chmod(0o444)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        # The inode's change time cannot be set by anybody: the stamp is told the present one, as if nothing had moved.
        rooms = Rooms(self.root, self.ports, self.store._archive)
        stamp = rooms.stamps.load(model.digest)
        assert stamp is not None
        files = tuple(
            item.model_copy(update={"seen": item.seen.model_copy(update={"ctime_ns": file.stat().st_ctime_ns})})
            if item.path == path
            else item
            for item in stamp.files
        )
        rooms.stamps.save(stamp.model_copy(update={"files": files}))


FILES = ((ONE, ONE_FILES), (TWO, TWO_FILES))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two models."""
    return Place(tmp_path)


def scrub(place: Place, waits: int = 10**9, rate: int = FAST) -> tuple[object, Budget]:
    """One model's turn."""
    stop = Budget(place.clock, waits)
    return place.reopened().scrub(rate=rate, every=MONTH, stop=stop), stop


def test_nothing_is_due_before_its_time(place: Place) -> None:
    """What was verified within the period is left alone, and not a byte is read."""
    place.clock.moment += timedelta(days=27)
    found, stop = scrub(place)
    assert found is None
    assert stop.waited == 0


def test_the_model_verified_longest_ago_comes_first(place: Place) -> None:
    """Models take turns by the age of their verification, and a sound one is fresh again."""
    place.clock.moment += timedelta(days=40)
    order = [scrub(place)[0] for _ in range(3)]
    assert [getattr(found, "model", None) for found in order] == ["tiny:v1", "tiny:v2", None]
    assert not any(getattr(found, "bad", "") for found in order)


def test_a_byte_that_rotted_is_found_and_its_piece_alone_is_fetched(place: Place) -> None:
    """Bit rot without a trace in the stat: found by piece, then quarantined and repaired into a new file (I2)."""
    place.rot(ONE, PIECE_SIZE + 7)
    folder = place.store.folder(ONE.digest)
    inode = (folder / "model.gguf").stat().st_ino
    seen = place.store.list()[ONE.digest]
    assert isinstance(seen, StoredModel)
    assert seen.intact, "nothing but a scrub can know"
    place.clock.moment += timedelta(days=40)
    found, _ = scrub(place)
    assert f"model.gguf, in the piece at byte {PIECE_SIZE}" in getattr(found, "bad", "")
    seen = place.store.list()[ONE.digest]
    assert isinstance(seen, StoredModel)
    assert not seen.intact
    assert "scrub" in seen.doubt
    with (folder / "model.gguf").open("rb") as engine:
        with pytest.raises(ModelCorrupt):
            place.store.verify(ONE, progress=silent, stop=StopEvent())
        assert len(engine.read()) == len(ONE_FILES["model.gguf"]), "whoever has it open keeps what it has"
    waiting = place.store.list()[ONE.digest]
    assert isinstance(waiting, PartialModel)
    assert waiting.quarantined
    assert place.store.missing(ONE) == PIECE_SIZE
    place.acquire(ONE)
    assert content(place.store.folder(ONE.digest)) == ONE_FILES
    assert (place.store.folder(ONE.digest) / "model.gguf").stat().st_ino != inode, "never in place"
    assert scrub(place)[0] is not None, "the other one is next"


def test_doubt_is_settled_on_the_disk_not_in_memory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that a scrub doubts is hashed past the page cache, which may still have what the disk has lost."""
    place.rot(ONE, 5)
    place.clock.moment += timedelta(days=40)
    scrub(place)
    ways = []
    honest = hashing.is_good

    def watched(base: Path, path: str, piece: object, reader: object = None) -> bool:
        ways.append(reader is not None)
        return honest(base, path, piece, reader)  # type: ignore[arg-type] # passed through

    monkeypatch.setattr(hashing, "is_good", watched)
    with pytest.raises(ModelCorrupt):
        place.store.verify(ONE, progress=silent, stop=StopEvent())
    assert ways
    assert all(ways)


def test_a_stop_is_heeded_within_a_window_and_the_place_is_kept(place: Place) -> None:
    """Asked to stop it reads no further window; a new process goes on with the piece it was at."""
    place.clock.moment += timedelta(days=40)
    windows = PIECE_SIZE // hashing.WINDOW
    found, stop = scrub(place, waits=windows + 3, rate=2**20)
    assert found is None
    assert stop.waits == 0
    assert stop.waited == pytest.approx(windows + 3)
    found, stop = scrub(place, rate=2**20)
    assert getattr(found, "model", "") == "tiny:v1"
    rest = ONE.manifest.size - PIECE_SIZE
    assert stop.waited == pytest.approx(rest / 2**20), "the first piece is not read again"


def test_the_rate_is_kept(tmp_path: Path) -> None:
    """Bytes are paid for in time; time that was not used gives no burst."""
    clock = Clock()
    stop = Budget(clock)
    pace = Pace(1000, clock, stop)
    for _ in range(4):
        assert pace.spend(500)
    assert stop.waited == pytest.approx(2)
    clock.seconds += 100
    pace.spend(500)
    pace.spend(500)
    assert stop.waited == pytest.approx(3)


def test_a_model_that_is_replaced_while_it_is_read_is_no_bit_rot(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that somebody changes openly is for the planner, which sees it in the stat: the scrub says nothing."""
    place.clock.moment += timedelta(days=40)

    def changed(self: Scrub, *_: object) -> bool:
        path = place.store.folder(ONE.digest) / "notes.txt"
        path.touch()
        return False

    monkeypatch.setattr(Scrub, "_look", changed)
    assert scrub(place)[0] is None
    seen = place.store.list()[ONE.digest]
    assert isinstance(seen, StoredModel)
    assert not seen.doubt
