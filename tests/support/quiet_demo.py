"""The demo's network and node with real parts, without its story: what tests of whole nodes begin from."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo import NATIVE_IS_WEAKER, OPERATORS, SIGNERS, Demo

from reconciler.cli import wiring
from reconciler.cli.main import cli
from reconciler.identity import node_address
from reconciler.state_dir import StateDir
from runtime.backends import native_processes
from schemas.digests import digest_text

if TYPE_CHECKING:
    from schemas.observation import Instance


class QuietDemo(Demo):
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
        self.join("--network", "demo", "--repository", f"file://{self.repo}")

    def join(self, *arguments: str) -> None:
        """Make the node, and let it serve."""
        weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
        self.run(
            *("init", *arguments, "--yes"),
            *("--state-dir", str(self.folder / "node"), "--config", str(self.config)),
            *("--allow-http", "--allow-private", "--backend", "native", *weaker),
        )
        self.reconcile()

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
