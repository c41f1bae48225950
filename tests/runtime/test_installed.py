"""Finding what is installed beside the agent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from runtime.installed import find

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_first_distribution_of_a_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the module path, however the name is written; one without a record is found as well."""
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "other-1.0.dist-info").mkdir(parents=True)
    (first / "My_Engine-1.0.dist-info").mkdir()
    (first / "My_Engine-1.0.dist-info/RECORD").write_text("a,b,c\n")
    (second / "my.engine-2.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nowhere"), str(first), str(second)])
    found = find("my-engine")
    assert found is not None
    assert (found.version, found.record) == ("1.0", "a,b,c\n")
    monkeypatch.setattr(sys, "path", [str(second)])
    found = find("my-engine")
    assert found is not None
    assert (found.version, found.record) == ("2.0", None)
    assert find("another") is None
