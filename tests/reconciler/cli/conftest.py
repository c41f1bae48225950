"""Fixtures of the commands' tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.operators import Operator

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator in an empty git repository, with keys elsewhere."""
    root, keys = tmp_path / "network", tmp_path / "keys"
    root.mkdir()
    keys.mkdir()
    monkeypatch.chdir(root)
    for name in ("RECONCILE_KEY_PASSWORD", "RECONCILE_DEBUG", "RECONCILE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    made = Operator(root, keys)
    made.git("init", "--quiet", "--initial-branch=main")
    return made
