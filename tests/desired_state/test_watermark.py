"""The mark survives one loss, says both losses loudly, and never goes down by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from desired_state.watermark import Mark, MarkFile, reconcile_marks
from runtime.host import DurableFiles
from schemas.digests import digest_text
from schemas.errors import StateCorrupt
from schemas.refusals import MarkLost

if TYPE_CHECKING:
    from pathlib import Path


def mark(epoch: int, sequence: int, name: str = "s") -> Mark:
    """A mark."""
    return Mark(epoch=epoch, sequence=sequence, digest=digest_text(name))


@pytest.mark.parametrize(
    ("in_file", "in_journal", "expected"),
    [
        (mark(1, 5), mark(1, 5), mark(1, 5)),
        (mark(1, 5), None, mark(1, 5)),
        (None, mark(1, 5), mark(1, 5)),
        (mark(1, 6), mark(1, 5), mark(1, 6)),
        (mark(1, 4), mark(1, 5), mark(1, 5)),
        (mark(2, 1), mark(1, 900), mark(2, 1)),
    ],
)
@pytest.mark.parametrize("accepted_before", [True, False])
def test_the_higher_copy_counts(
    in_file: Mark | None, in_journal: Mark | None, expected: Mark, accepted_before: bool
) -> None:
    """I1: either copy alone is enough, and the epoch weighs more than the sequence."""
    assert reconcile_marks(in_file, in_journal, accepted_before=accepted_before) == expected


def test_a_fresh_node_has_no_mark() -> None:
    """Nothing accepted, nothing lost."""
    assert reconcile_marks(None, None, accepted_before=False) is None


def test_both_lost_is_loud() -> None:
    """I1: without either copy an old snapshot looks new, so that a person has to decide."""
    with pytest.raises(MarkLost) as caught:
        reconcile_marks(None, None, accepted_before=True)
    assert "--accept-current" in caught.value.hint


def test_copies_that_contradict_each_other_are_refused() -> None:
    """The same position with two digests: one copy was tampered with, and none of them is believed."""
    with pytest.raises(StateCorrupt):
        reconcile_marks(mark(1, 5, "a"), mark(1, 5, "b"), accepted_before=True)


def test_the_file_keeps_the_mark(tmp_path: Path) -> None:
    """What was written is read back, and only the owner may read it."""
    copy = MarkFile(tmp_path / "mark", DurableFiles())
    assert copy.read() is None
    copy.write(mark(2, 7))
    assert copy.read() == mark(2, 7)
    copy.write(mark(2, 8))
    assert copy.read() == mark(2, 8)
    assert (tmp_path / "mark").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{}", b'{"epoch": 1, "sequence": 2}', b"x" * 10_000, b"\xff", b"[" * 3000])
def test_a_damaged_file_is_a_lost_copy(tmp_path: Path, content: bytes) -> None:
    """I7: half a file after a crash, or any other bytes, never count as a mark."""
    (tmp_path / "mark").write_bytes(content)
    assert MarkFile(tmp_path / "mark", DurableFiles()).read() is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A mark that points somewhere else was not written here."""
    target = MarkFile(tmp_path / "target", DurableFiles())
    target.write(mark(1, 1))
    (tmp_path / "mark").symlink_to(tmp_path / "target")
    with pytest.raises(StateCorrupt):
        MarkFile(tmp_path / "mark", DurableFiles()).read()
