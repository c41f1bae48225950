"""vLLM for real, natively and in a container: the packages of one lock, behind the front. A start takes a minute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.simulated_node import conditions, states
from tests.support.vllm import ContainerVllmNode, VllmNode, one_vllm, vllm_image, vllm_runtimes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reconciler.loop import PassResult

TOKENS = 8
WHOLE = ("tokenizer", "texts", "weights", "continuation", "cache", "sampler", "json", "tools")
"""Every test that a validation makes."""


@pytest.fixture(scope="module")
def runtimes() -> Path:
    """Where vLLM is installed; skips by name where it is not."""
    return vllm_runtimes()


@pytest.fixture
def native(runtimes: Path, tmp_path: Path) -> Iterator[VllmNode]:
    """A node with three models, one of which cannot be loaded."""
    with one_vllm():
        made = VllmNode(tmp_path, runtimes)
        yield made
        made.take_apart()


@pytest.fixture
def contained(runtimes: Path, docker_host: str, registry: str, tmp_path: Path) -> Iterator[ContainerVllmNode]:
    """The same with containers."""
    with one_vllm():
        made = ContainerVllmNode(tmp_path, host=docker_host, image=vllm_image(registry, runtimes))
        yield made
        made.take_apart()


def errors(result: PassResult) -> list[tuple[str, str, str]]:
    """What went wrong in a pass: the action, the reason, and the words."""
    wrong = [(outcome.action, outcome.error) for outcome in result.outcomes if outcome.error]
    return [(action.id, error.reason, error.message) for action, error in wrong]


def swap_and_go_back(vllm: VllmNode) -> None:
    """Two models serve one after the other; a third, which does not load, ends with the second serving (I4, I5).

    Each becomes active by a probe that was recorded from another engine: tokens, weights, sampler, caches, tasks.
    """
    first = vllm.run(vllm.wish("a:v1"))
    assert (first.exit_code, errors(first)) == (0, [])
    assert states(first)["a:v1"] == "Active"
    before = vllm.doing()
    assert vllm.complete("a:v1", TOKENS) == ("a:v1", vllm.models["a:v1"].continued(TOKENS))
    after = vllm.doing()
    assert (after.running, after.waiting) == (0, 0)
    assert after.tokens == before.tokens + len(vllm.models["a:v1"].prompt) + TOKENS
    verdict = vllm.judged("a:v1")
    assert (verdict.outcome, [(item.test, item.outcome) for item in verdict.findings]) == (
        "pass",
        [(test, "pass") for test in WHOLE],
    ), verdict
    second = vllm.run(vllm.wish("b:v1"))
    assert (second.exit_code, errors(second)) == (0, [])
    assert vllm.complete("b:v1", TOKENS) == ("b:v1", vllm.models["b:v1"].continued(TOKENS))
    # The same tokenizer, the same shape: told by what it would write, and by nothing before that.
    other = vllm.judged("a:v1")
    assert [(item.test, item.outcome) for item in other.findings][-1] == ("weights", "fail"), other
    bad = vllm.run(vllm.wish("broken:v1"))
    ((action, reason, message),) = errors(bad)
    assert (action, reason) == ("start/broken:v1", "StartFailed")
    assert "SafetensorError" in message, "the cause, and not the last of the errors that followed from it"
    assert conditions(bad)["RolledBack"] == "True"
    assert states(bad)["b:v1"] == "Active"
    assert vllm.complete("b:v1", TOKENS) == ("b:v1", vllm.models["b:v1"].continued(TOKENS))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(2400)  # four starts of a minute each where nothing else runs
def test_natively_a_snapshot_becomes_active_is_swapped_and_a_bad_swap_goes_back(native: VllmNode) -> None:
    """In the environment that its lock names, which is compared before each start, and which no start changed."""
    kept = native.node.adapters.environments.list()
    swap_and_go_back(native)
    (environment,) = native.node.adapters.environments.list()
    native.node.adapters.environments.verify(environment)
    assert native.node.adapters.environments.list() == kept


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.timeout(4000)  # the same, and the image the first time
def test_in_a_container_a_snapshot_becomes_active_is_swapped_and_a_bad_swap_goes_back(
    contained: ContainerVllmNode,
) -> None:
    """Without a network, a capability, a compiler, or a place to write to but its memory (I10)."""
    swap_and_go_back(contained)
