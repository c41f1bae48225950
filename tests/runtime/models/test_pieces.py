"""The journal of verified pieces: data first, then the record of it, in batches (I7)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.host import DurableFiles
from runtime.models.pieces import BATCH_BYTES, BATCH_SECONDS, Journal, JournalRecord, Piece, load_journal, split
from schemas.digests import digest_text
from schemas.manifest import PIECE_SIZE
from tests.support.models import gguf, make_model

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

MANIFEST = digest_text("a manifest")


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.time

    def now(self) -> datetime:
        """Not asked for."""
        raise NotImplementedError


class Recording(DurableFiles):
    """A disk that remembers the order of what it was told, and fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failing = ""

    def _note(self, what: str, path: Path) -> None:
        self.calls.append((what, path.name))
        if self.failing == what:
            raise OSError(5, "Input/output error")

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Noted."""
        self._note("write", path)
        super().write(path, data, mode=mode)

    def sync_file(self, path: Path) -> None:
        """Noted."""
        self._note("sync", path)
        super().sync_file(path)


def journal(folder: Path, files: DurableFiles, clock: Hands, *, size: int = 2**40) -> Journal:
    """A new journal."""
    return Journal(folder / "journal", MANIFEST, {}, size=size, files=files, clock=clock)


def piece(number: int, length: int = PIECE_SIZE) -> Piece:
    """A piece of any content."""
    return Piece(number, number * PIECE_SIZE, length, bytes(32))


@given(st.dictionaries(st.integers(0, 5000), st.integers(1, PIECE_SIZE)))
def test_a_record_gives_back_what_it_was_given(lengths: dict[int, int]) -> None:
    """Round trip: numbers and bytes."""
    record = JournalRecord.model_validate_json(JournalRecord.of(MANIFEST, lengths).to_json())
    assert record.numbers() == frozenset(lengths)
    assert record.verified == sum(lengths.values())


def test_data_is_synced_before_it_is_recorded(tmp_path: Path) -> None:
    """Each batch: fsync of every file that has pieces in it, once, then one record (I7)."""
    files, clock = Recording(), Hands()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    kept = journal(tmp_path, files, clock)
    for number in range(3):
        kept.add(piece(number), tmp_path / "a")
    kept.add(piece(3, 7), tmp_path / "b")
    kept.save()
    assert files.calls == [("sync", "a"), ("sync", "b"), ("write", "journal")]
    assert load_journal(tmp_path / "journal", MANIFEST).numbers() == {0, 1, 2, 3}
    assert load_journal(tmp_path / "journal", MANIFEST).verified == 3 * PIECE_SIZE + 7
    kept.save()
    assert len(files.calls) == 3, "nothing new, nothing written"


def test_a_batch_is_due_by_bytes_or_by_time(tmp_path: Path) -> None:
    """After 256 MiB, or two seconds with something to record; never with nothing."""
    clock = Hands()
    kept = journal(tmp_path, Recording(), clock)
    clock.time += 10 * BATCH_SECONDS
    assert not kept.due()
    kept = journal(tmp_path, Recording(), clock)
    for number in range(BATCH_BYTES // PIECE_SIZE):
        assert not kept.due()
        kept.add(piece(number), tmp_path / "a")
    assert kept.due()
    kept = journal(tmp_path, Recording(), clock)
    kept.add(piece(0), tmp_path / "a")
    assert not kept.due()
    clock.time += BATCH_SECONDS
    assert kept.due()


class Slow(DurableFiles):
    """A disk that takes three tenths of a second to sync a file."""

    def __init__(self, clock: Hands) -> None:
        self.clock = clock

    def sync_file(self, path: Path) -> None:
        """Takes its time."""
        self.clock.time += 0.3


def test_a_batch_comes_early_on_a_quick_disk_and_not_on_a_slow_one(tmp_path: Path) -> None:
    """One piece in 256 of a model is recorded at once, unless saving was slow a moment ago."""
    for files_of, again in ((lambda _clock: Recording(), True), (Slow, False)):
        clock = Hands()
        (tmp_path / "a").write_bytes(b"x")
        kept = journal(tmp_path, files_of(clock), clock, size=256 * PIECE_SIZE)
        for number, due in enumerate((True, again)):
            assert not kept.due()
            kept.add(piece(number), tmp_path / "a")
            assert kept.due() == due
            if due:
                kept.save()
        clock.time += BATCH_SECONDS
        assert kept.due() != again


@pytest.mark.parametrize("failing", ["sync", "write"])
def test_after_a_failed_sync_nothing_is_recorded_any_more(tmp_path: Path, failing: str) -> None:
    """A failed fsync may have dropped what it did not write: neither this batch nor a later one is believed (I7)."""
    files, clock = Recording(), Hands()
    (tmp_path / "a").write_bytes(b"x")
    kept = journal(tmp_path, files, clock)
    kept.add(piece(0), tmp_path / "a")
    kept.save()
    kept.add(piece(1), tmp_path / "a")
    files.failing = failing
    with pytest.raises(OSError, match="Input/output"):
        kept.save()
    files.failing = ""
    kept.add(piece(2), tmp_path / "a")
    kept.save()
    assert load_journal(tmp_path / "journal", MANIFEST).numbers() == {0}


def test_a_journal_of_another_model_or_form_counts_as_none(tmp_path: Path) -> None:
    """Another manifest, a damaged seal, no seal, a link: an empty journal."""
    path = tmp_path / "journal"
    kept = journal(tmp_path, DurableFiles(), Hands())
    kept.save({})
    kept.add(piece(0), path)
    kept.save()
    assert load_journal(path, MANIFEST).numbers() == {0}
    assert load_journal(path, digest_text("another")).numbers() == frozenset()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[1:], b"", b"\xff\xfe", whole.replace(b'"01"', b'"03"')):
        path.write_bytes(damaged)
        assert load_journal(path, MANIFEST).numbers() == frozenset()
    assert os.path.lexists(path)


def test_pieces_cover_a_file_exactly() -> None:
    """Offsets, lengths and numbers of the pieces of several files, an empty one among them."""
    files = {"a.gguf": gguf(2 * PIECE_SIZE), "b.txt": b"", "c.gguf": gguf(PIECE_SIZE + 1)}
    listed = split(make_model(files))
    spans = [[(piece.number, piece.offset, piece.length) for piece in file.pieces] for file in listed]
    assert spans == [
        [(0, 0, PIECE_SIZE), (1, PIECE_SIZE, PIECE_SIZE)],
        [],
        [(2, 0, PIECE_SIZE), (3, PIECE_SIZE, 1)],
    ]
