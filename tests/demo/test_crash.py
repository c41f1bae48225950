"""SIGKILL of a real agent between any two actions of a real swap: one more run, and all is as it should be (I7)."""

from __future__ import annotations

import json
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo import NATIVE_IS_WEAKER, OPERATORS, RECONCILE, SIGNERS, Demo
from model_server import serving

from reconciler.cli import wiring
from reconciler.cli.main import cli
from reconciler.identity import node_address
from reconciler.journal import Journal
from reconciler.state_dir import StateDir
from runtime.backends import native_processes
from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.observation import Instance


class Crashing(Demo):
    """The demo's network and node, without its story."""

    def title(self, text: str) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def run(self, *arguments: str, code: int = 0, brief: bool = False, quiet: bool = False) -> str:
        """As the demo, but the operators' commands in this process: they import much, and are not what is tested."""
        if not arguments or arguments[0] not in ("key", "trust", "snapshot", "model", "runtime"):
            return super().run(*arguments, code=code, brief=brief, quiet=quiet)
        with redirect_stdout(StringIO()) as output, redirect_stderr(output), pytest.raises(SystemExit) as ended:
            cli.main(list(arguments), prog_name="reconcile")
        assert ended.value.code == code, output.getvalue()
        return output.getvalue()

    def make_keys(self) -> None:
        """One after the other: what is printed belongs to the process."""
        for name in OPERATORS:
            self.run("key", "new", "--out", str(self.folder / f"{name}.key.json"), "--no-password")

    def sign(self, what: str) -> None:
        """One after the other."""
        for name in SIGNERS:
            self.run(what, "sign", "--key", str(self.folder / f"{name}.key.json"), "--yes", "--repo", str(self.repo))

    def found(self) -> None:
        """A network and a node that serves version 1."""
        self.found_network()
        weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
        self.run(
            *("init", "--network", "demo", "--repository", f"file://{self.repo}", "--yes"),
            *("--state-dir", str(self.folder / "node"), "--config", str(self.config)),
            *("--allow-http", "--allow-private", "--backend", "native", *weaker),
        )
        self.reconcile()

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

    def instances(self) -> tuple[Instance, ...]:
        """What the native backend sees."""
        config = wiring.load_config(self.config)
        state = StateDir(Path(config.state_dir))
        backends = wiring.build_backends(config, state, node_address(state), wiring.host())
        return backends["native"].list()

    def engines(self) -> set[str]:
        """Instances of which a process is alive, by their marks in the process table: nothing hides from it."""
        node_id = node_address(StateDir(self.folder / "node"))
        owner = digest_text(f"native/1|demo|{node_id}")
        return {process.instance for process in native_processes.marked(owner)}


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
