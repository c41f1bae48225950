"""vLLM for real, natively, in an environment that was installed from its lock. A start takes a minute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from examples import tiny_model
from tests.support.simulated_node import conditions, states
from tests.support.vllm import VllmNode, successors, vllm_runtimes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = 8


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[VllmNode]:
    """A node with three models, one of which cannot be loaded."""
    made = VllmNode(tmp_path, vllm_runtimes())
    yield made
    made.take_apart()


def said(seed: int) -> tuple[int, ...]:
    """What a model says after the first syllable."""
    return successors(seed, tiny_model.vocabulary().first_syllable, TOKENS)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # four starts of a minute each where nothing else runs
def test_a_snapshot_becomes_active_is_swapped_and_a_bad_swap_goes_back(vllm: VllmNode) -> None:
    """Two models serve one after the other; a third, which does not load, ends with the second serving (I4, I5).

    The environment is compared before each start, and no start changed it.
    """
    first = vllm.run(vllm.wish("a:v1"))
    assert first.exit_code == 0, [outcome.error for outcome in first.outcomes if outcome.error]
    assert "verify-environment" in [outcome.action.kind for outcome in first.outcomes]
    assert states(first)["a:v1"] == "Active"
    assert vllm.complete(TOKENS) == ("a:v1", said(1))
    second = vllm.run(vllm.wish("b:v1"))
    assert second.exit_code == 0, [outcome.error for outcome in second.outcomes if outcome.error]
    assert vllm.complete(TOKENS) == ("b:v1", said(2))
    bad = vllm.run(vllm.wish("broken:v1"))
    errors = [outcome.error for outcome in bad.outcomes if outcome.error]
    assert errors[0].reason == "StartFailed", errors
    assert conditions(bad)["RolledBack"] == "True"
    assert vllm.complete(TOKENS) == ("b:v1", said(2))
