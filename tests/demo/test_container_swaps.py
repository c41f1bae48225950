"""The front before real llama.cpp containers of Docker and of Podman: completions, swaps, an agent that is killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.demo.test_swaps import nothing_is_lost_through, settled
from tests.support.container_swapping import ContainerSwappingNode
from tests.support.front import dial
from tests.support.swapping import PROMPTS, ask_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

SWAPS = int(os.environ.get("RECONCILE_TEST_SWAPS", "4"))
"""Swaps under load; 50 where there is time for them."""

TOKENS = 400
"""Of a stream that outlives an agent."""


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("podman", marks=pytest.mark.podman)]
)
def swapping(
    tmp_path: Path,
    tiny_model: Callable[[int], Path],
    test_images: Mapping[str, str],
    request: pytest.FixtureRequest,
) -> Iterator[ContainerSwappingNode]:
    """A node with two models and one engine."""
    host = request.getfixturevalue(f"{request.param}_host")
    models = (tiny_model(1), tiny_model(2))
    made = ContainerSwappingNode(tmp_path, models, name=request.param, host=host, image=test_images["llamacpp"])
    yield made
    made.take_apart()


def test_completions_go_on_through_swaps(swapping: ContainerSwappingNode) -> None:
    """Requests wait while a container is replaced; each gets one right answer, and none is refused (I3, I10)."""
    nothing_is_lost_through(SWAPS, swapping)


def test_a_killed_agent_cuts_no_stream(swapping: ContainerSwappingNode) -> None:
    """A stream begins under an agent that is then killed, and ends under the next one, which has nothing to do."""
    settled(swapping, swapping.wish("a:v1"))
    swapping.journal.close()
    said, says = os.pipe()
    # An agent in a process of its own, which dies without a word.
    agent = os.fork()
    if not agent:
        try:
            swapping.restart()
            os.write(says, b"%d" % swapping.run().exit_code)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(says)
    assert os.read(said, 1) == b"0"
    os.close(said)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = dial(swapping.keeper.address)
    body = json.dumps({**ask_for(PROMPTS[0]), "max_tokens": TOKENS, "stream": True, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    first = response.read(1)
    os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    swapping.restart()
    (before,) = swapping.backend.list()
    assert swapping.run().outcomes == (), "what runs is adopted"
    content = first + response.read()
    connection.close()
    events = [line.removeprefix(b"data: ") for line in content.splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    assert [item.intent for item in swapping.backend.list()] == [before.intent]
