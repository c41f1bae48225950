"""The node under attack, one for each worker, and the table that `make attacks` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.victim import Victim


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A node that serves snapshot 5."""
    pytest.importorskip("gguf", reason="gguf not present")
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    from tests.attacks.victim import victim

    with victim(tmp_path_factory.mktemp("attacks")) as made:
        yield made
