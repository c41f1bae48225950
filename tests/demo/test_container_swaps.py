"""The front before real llama.cpp containers of Docker and of Podman: completions, swaps, an agent that is killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import TYPE_CHECKING

import docker.errors

from reconciler.rollback import way_back
from reconciler.verbs import record
from schemas.control import Left, Rollback
from tests.demo.test_swaps import nothing_is_lost_through, settled
from tests.support.front import dial, eventually
from tests.support.swapping import PROMPTS, Asker, ask_for

if TYPE_CHECKING:
    from tests.support.container_swapping import ContainerSwappingNode

SWAPS = int(os.environ.get("RECONCILE_TEST_SWAPS", "4"))
"""Swaps under load; 50 where there is time for them."""

TOKENS = 400
"""Of a stream that outlives an agent."""


def test_completions_go_on_through_swaps(swapping: ContainerSwappingNode) -> None:
    """Requests wait while a container is replaced; each gets one right answer, and none is refused (I3, I10)."""
    nothing_is_lost_through(SWAPS, swapping)


def ask(swapping: ContainerSwappingNode) -> None:
    """Some questions through the front, each answered by what should serve, and rightly."""
    asker = Asker(swapping.keeper.address, swapping.answers, stream=False)
    thread = asker.start()
    eventually(lambda: sum(asker.answered.values()) > 2 or bool(asker.wrong), "it answers")
    asker.stop.set()
    thread.join(60)
    assert asker.wrong == []
    assert set(asker.answered) == {"a:v1"}


def test_what_somebody_else_changes_is_given_back(swapping: ContainerSwappingNode) -> None:
    """A limit and a name while it serves; a container that was made again, by another; each told field by field."""
    settled(swapping, swapping.wish("a:v1"))
    api = swapping.backend._api.client  # type: ignore[attr-defined]
    (serving,) = swapping.backend.list()
    fields = {"name"}
    api.rename(serving.name, f"mine-{serving.intent}")
    try:
        api.update_container(f"mine-{serving.intent}", mem_limit="900m", memswap_limit="900m")
        fields |= {"memory", "memory and swap"}
    except docker.errors.NotFound:
        assert swapping.engine_name == "podman", "Podman's own API changes limits, and nobody is told"
    result = swapping.run()
    assert [item.action.kind for item in result.outcomes] == ["mend-instance"]
    assert {item.field for item in result.drift} == fields
    assert result.exit_code == 0
    (after,) = swapping.backend.list()
    assert (after.name, after.changed) == (serving.name, ())
    assert api.inspect_container(serving.name)["HostConfig"]["Memory"] == 2**30
    assert swapping.run().drift == ()
    detail = api.inspect_container(serving.name)
    api.remove_container(serving.name, force=True)
    host = {**detail["HostConfig"], "ReadonlyRootfs": False, "Binds": None, "Ulimits": None}
    api.create_container_from_config({**detail["Config"], "HostConfig": host}, name=serving.name)
    api.start(serving.name)
    result = swapping.run()
    assert {"container", "read-only root"} <= {item.field for item in result.drift}
    assert result.exit_code == 0
    (another,) = swapping.backend.list()
    assert another.name != serving.name
    assert api.inspect_container(another.name)["HostConfig"]["ReadonlyRootfs"] is True, "as it has to be (I10)"
    ask(swapping)


def test_a_person_goes_back(swapping: ContainerSwappingNode) -> None:
    """`reconcile rollback`: what served before b serves again, validated, and stays."""
    settled(swapping, swapping.wish("a:v1"))
    settled(swapping, swapping.wish("b:v1"))
    accepted = swapping.journal.accepted()
    assert accepted is not None
    desired, observed = swapping.node.look(accepted.digest)
    now = swapping.node.adapters.ports.clock.now()
    back = way_back(desired, observed, swapping.node.config, now)
    accelerator = observed.state.hardware.accelerator
    left = tuple(
        Left(subject=item.subject(accelerator), model=item.model, snapshot=desired.digest) for item in back.leave
    )
    assert record(Rollback(to=back.good.target.model, leave=left), swapping.journal, now) == 1
    result = swapping.run()
    assert result.exit_code == 6
    assert result.status.serving is not None
    assert (result.status.serving.model, result.status.serving.health) == ("a:v1", "healthy")
    assert swapping.run().outcomes == ()
    ask(swapping)


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
