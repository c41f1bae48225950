"""Power loss in every moment between two fsyncs, with whatever a disk may then have kept or lost of the rest (I7)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from schemas.errors import DownloadFailed
from schemas.observation import StoredModel
from tests.runtime.models.test_crash import OPERATIONS, act, check_converges, plain, prepare
from tests.support.crashing import ONE, TWO, V2
from tests.support.models import lay_out
from tests.support.power import watching

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.power import Watch


def watched(root: Path, operation: str, monkeypatch: pytest.MonkeyPatch, *, fail: int | None = None) -> Watch:
    """Perform an operation under observation; one of its fsyncs may fail."""
    source = prepare(root, operation)
    with watching(root, monkeypatch, fail=fail) as watch:
        try:
            act(plain(root / "models"), operation, source)
        except DownloadFailed:
            assert fail is not None
        else:
            assert fail is None or fail >= watch.synced
    return watch


def check(folder: Path, watch: Watch, operation: str, source: str = "") -> int:
    """Whatever the disk kept: nothing wrong is published, and the next run converges. How many states there are."""
    count = 0
    for moment in watch.moments:
        for kept, lost in moment.states():
            moment.restore(folder, kept, lost)
            check_converges(folder, operation, source or f"file://{folder}/source")
            shutil.rmtree(folder)
            count += 1
    assert count > len(watch.moments) > 5
    return count


@pytest.mark.parametrize("operation", OPERATIONS)
def test_power_fails_between_any_two_syncs(memory: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """Unsynced names and bytes are lost, kept, torn or mixed, in each moment: the next run converges (I7)."""
    check(memory / "after", watched(memory / "run", operation, monkeypatch), operation)


def test_power_fails_while_and_after_a_download_breaks_off(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a journal calls verified is on the disk: what goes on after power loss is never wrong (I2, I7)."""
    root = memory / "run"
    source = prepare(root, "acquire")
    (root / "source" / "sub" / "a.txt").unlink()
    with watching(root, monkeypatch) as watch, pytest.raises(DownloadFailed):
        act(plain(root / "models"), "acquire", source)
    check(memory / "after", watch, "acquire", lay_out(memory / "whole", V2))


@pytest.mark.parametrize(
    ("operation", "intact"),
    [("acquire", {ONE.digest, TWO.digest}), ("repair", {TWO.digest}), ("remove", {TWO.digest}), ("verify", set())],
)
def test_what_was_reported_done_survives_power_loss(
    memory: Path, monkeypatch: pytest.MonkeyPatch, operation: str, intact: set[str]
) -> None:
    """Once an operation has returned, losing all that was not synced takes nothing of it back (I7)."""
    watch = watched(memory / "run", operation, monkeypatch)
    watch.moments[-1].restore(memory / "after", frozenset(), "zeros")
    for root in (memory / "run", memory / "after"):
        found = plain(root / "models").list().items()
        assert {digest for digest, seen in found if isinstance(seen, StoredModel) and seen.intact} == intact


def test_a_sync_that_failed_is_not_believed_later(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed fsync, and what it should have written gone: an error now, and nothing wrong is published later (I7)."""
    total = watched(memory / "count", "acquire", monkeypatch).synced
    for fail in range(total):
        last = watched(memory / f"run{fail}", "acquire", monkeypatch, fail=fail).moments[-1]
        for names_kept in (False, True):
            last.restore(memory / "after", frozenset(last.names() if names_kept else ()), "zeros")
            check_converges(memory / "after", "acquire", f"file://{memory}/after/source")
            shutil.rmtree(memory / "after")
