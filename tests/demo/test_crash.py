"""SIGKILL of a real agent between any two actions of a real swap: one more run, and all is as it should be (I7)."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from model_server import serving
from telling import RECONCILE

from reconciler.journal import Journal
from tests.support.quiet_demo import QuietDemo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Crashing(QuietDemo):
    """A node that can be killed at a chosen point of its work."""

    def killed_at(self, point: int) -> bool:
        """Run a pass, and SIGKILL it when it reports its `point`-th beginning or end of an action.

        Returns:
            Whether it lived that long: False when the pass ended by itself.
        """
        command = [str(RECONCILE), "--json"]
        with subprocess.Popen(
            command, cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=self._env()
        ) as agent:
            assert agent.stderr is not None
            seen = 0
            for line in agent.stderr:
                event = json.loads(line).get("event") if line.startswith(b"{") else None
                seen += event in ("started", "finished")
                if seen == point:
                    agent.kill()
                    return True
        return False


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Crashing]:
    """A node that serves version 1, and a network that approved two others."""
    demo = Crashing(tmp_path, "native")
    demo.make_models()
    with serving(tmp_path / "mirror") as demo.mirror:
        try:
            demo.found()
            demo.approve("v2")
            demo.approve("v3")
            yield demo
        finally:
            demo.stop_runtime()


def test_sigkill_at_every_step_of_a_swap(node: Crashing) -> None:
    """However far the agent came: afterwards one runtime serves the wanted model, nothing is orphaned (I3, I7, I8)."""
    point, killed = 0, True
    while killed:
        point += 1
        # The first swaps bring downloads; later ones go round. Between two, a model would be started too often.
        wanted = f"v{point % 3 + 1}"
        node.operate("snapshot", "serve", f"tiny:{wanted}", "--runtime", "main")
        node.publish(f"{wanted}, to be killed at {point}")
        killed = node.killed_at(point)
        assert len(node.engines()) <= 1, f"two runtimes after a kill at point {point}"
        node.reconcile()
        assert node.serving() == f"tiny:{wanted}", f"after a kill at point {point}"
        assert node.complete("Hello"), "the front leads to it"
        (instance,) = node.instances()
        assert instance.status == "running"
        assert node.engines() == {instance.name}
        folders = {path.name for path in (node.folder / "node" / "run").iterdir() if path.name.startswith("reconcile-")}
        assert folders == {instance.name}, "a folder was left behind"
        node.run("plan", "--detailed-exitcode", quiet=True)
    assert point > 6, "the swap has at least three actions, each with a beginning and an end"
    journal = Journal(node.folder / "node" / "state.db", readonly=True)
    outcomes = [item.outcome for item in journal.history()]
    journal.close()
    assert "running" not in outcomes
    # A kill at the end of the last action may come after the pass was closed; most cut it short.
    assert outcomes.count("interrupted") >= 3
