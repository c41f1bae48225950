"""An operator at the command line: the real commands, in-process, in a folder of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from desired_state.keys import plain, write_key
from reconciler.cli.main import cli
from tests.desired_state.network import address, git, key
from tests.support.models import gguf

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

NETWORK = "testnet"
SNAPSHOT = f"networks/{NETWORK}/snapshot.v1alpha1.yaml"


@dataclass
class Operator:
    """A working copy of a network, and three signers with plain key files beside it."""

    root: Path
    """The working copy."""
    keys: Path
    """Folder of the keys."""

    def run(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None, stdin: str = "") -> Result:
        """Run `reconcile ...`; fails the test on another exit code than expected."""
        runner = CliRunner(env={"NO_COLOR": "1", **(env or {})})
        result = runner.invoke(cli, list(arguments), prog_name="reconcile", input=stdin)
        assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The document that a command prints with `--json`."""
        document = json.loads(self.run(*arguments, "--json", code=code).stdout)
        assert document["formatVersion"] == "1"
        return document

    def key_file(self, number: int) -> str:
        """The key file of a signer."""
        path = self.keys / f"{number}.json"
        if not path.exists():
            write_key(path, plain(key(number)))
        return str(path)

    def address(self, number: int) -> str:
        """The address of a signer."""
        return address(number)

    @property
    def snapshot(self) -> Path:
        """The snapshot's file."""
        return self.root / SNAPSHOT

    @property
    def text(self) -> str:
        """The snapshot's text."""
        return self.snapshot.read_text()

    def git(self, *arguments: str) -> str:
        """Run git in the working copy."""
        return git(self.root, *arguments)

    def commit(self) -> str:
        """Commit everything; the commit's id."""
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message=change")
        return self.git("rev-parse", "HEAD")

    # --- a network, step by step

    def trust(self, *, signers: tuple[int, ...] = (1, 2, 3), threshold: int = 2) -> None:
        """Write version 1 of the trust."""
        named = [part for number in signers for part in ("--signer", self.address(number))]
        self.run("trust", "init", "--network", NETWORK, *named, "--threshold", str(threshold))

    def model(self, name: str = "tiny", version: str = "v1", seed: int = 0, **options: str) -> Path:
        """Approve a small sound model, with a probe that names it; returns its file."""
        data = self.keys / f"{name}-{version}-{seed}.gguf"
        data.write_bytes(gguf(4096, seed))
        extra = [part for option, value in options.items() for part in (f"--{option}", value)]
        source = ["--source", "https://models.example.org/"]
        self.run("model", "add", str(data), "--name", name, "--version", version, *source, *extra)
        self.probe(name, version)
        self.run("model", "set-probe", f"{name}:{version}", f"probes/{name}-{version}.yaml")
        return data

    def probe(self, name: str = "tiny", version: str = "v1") -> Path:
        """Write a probe for a model whose manifest is there; what it expects is made up."""
        from desired_state.authoring import render
        from schemas.digests import digest_bytes

        manifest = (self.root / "models" / name / f"{version}.yaml").read_bytes()
        recorded = {"engine": "llamacpp", "version": "1", "manifest": digest_bytes(manifest), "machine": "cpu"}
        document = {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Probe",
            "metadata": {"name": name, "model": f"{name}:{version}"},
            "spec": {"recorded": recorded, "greedy": [{"prompt": [1], "tokens": [2]}]},
        }
        path = self.root / "probes" / f"{name}-{version}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(document))
        return path

    def network(self) -> None:
        """A complete unsigned network: trust, a runtime, a model that is served."""
        self.trust()
        self.run("snapshot", "new", "--mode", "native")
        self.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1.0", "--mode", "native")
        self.model()
        self.run("snapshot", "serve", "tiny:v1", "--runtime", "main")

    def sign(self, *numbers: int) -> None:
        """Sign the snapshot as several signers."""
        for number in numbers:
            self.run("snapshot", "sign", "--key", self.key_file(number), "--yes")
