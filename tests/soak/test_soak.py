"""The short soak, for every run; `make soak` is the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.soak.soak import check, soaking

if TYPE_CHECKING:
    from pathlib import Path

WARM_UP = 2
SWAPS = 4
PASSES = 40


@pytest.mark.timeout(900)  # half a minute alone; engines wait for processors that others have
def test_nothing_grows_over_swaps_and_passes(tmp_path: Path) -> None:
    """A real daemon holds after a while what it held in the beginning: memory, files, threads, processes (I11)."""
    with soaking(tmp_path) as node:
        for _ in range(WARM_UP):
            node.swap()
        before = node.measure()
        for _ in range(SWAPS):
            node.swap()
            for _ in range(PASSES // SWAPS):
                node.look()
        check(before, node.measure())
