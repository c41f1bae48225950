"""A network whose bundles are tested: one model, and no assignment, so that a pass accepts and starts nothing."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.desired_state.network import git
from tests.support.models import gguf, noise
from tests.support.operators import NETWORK, Operator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

LARGE = 17 * 2**20
"""Bytes of a file of two pieces."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """Serve whole files while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Airgap:
    """Operators on one side, a node on the other, and files that are carried between them."""

    folder: Path
    operator: Operator
    mirror: str = ""

    @property
    def config(self) -> Path:
        """The node's configuration."""
        return self.folder / "node.yaml"

    @property
    def state(self) -> Path:
        """The node's state directory."""
        return self.folder / "node"

    def publish(self, note: str = "") -> None:
        """Bump, sign and commit."""
        self.operator.run("snapshot", "bump")
        if note:
            self.operator.run("snapshot", "set", "spec.extensions.note", note)
        self.operator.sign(1, 2)
        self.operator.commit()

    def export(self, name: str, *arguments: str, code: int = 0, allow: bool = True) -> Path:
        """Export the network's repository."""
        out = self.folder / name
        allowed = ("--allow-http", "--allow-private") if allow else ()
        repository = ("--repository", str(self.operator.root))
        self.operator.run("snapshot", "export", str(out), *repository, *allowed, *arguments, code=code)
        return out

    def node(self, *arguments: str, code: int = 0) -> Result:
        """A command of the node."""
        return self.operator.run(*arguments, code=code, env={"RECONCILE_CONFIG": str(self.config)})

    def take(self, bundle: Path, code: int = 0) -> Any:
        """Import a bundle; the document that is printed."""
        return json.loads(self.node("snapshot", "import", str(bundle), "--json", code=code).stdout)

    def join(self, bundle: Path) -> None:
        """Make a node that knows nothing but a bundle."""
        self.node(
            *("init", "--network", NETWORK, "--bundle", str(bundle), "--yes", "--backend", "native"),
            *("--state-dir", str(self.state), "--config", str(self.config)),
        )

    def sequence(self) -> int:
        """Sequence of what is in force after a pass."""
        self.node("--json", code=6)  # no assignment matches: accepted, and nothing to do
        return int(json.loads((self.state / "status.json").read_text())["snapshot"]["sequence"])

    def stored(self) -> list[str]:
        """Models in the node's store."""
        return sorted(path.parent.name for path in (self.state / "models").glob("*/*@*"))


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is still to be signed, made once, and copied by every test."""
    root = tmp_path_factory.mktemp("founded")
    operator = Operator(root / "network", root / "keys")
    for folder in (operator.root, operator.keys, root / "mirror"):
        folder.mkdir()
    git(operator.root, "init", "--quiet", "--initial-branch=main")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(operator.root)
        operator.trust()
        for number in (1, 2):
            operator.run("trust", "sign", "--key", operator.key_file(number), "--yes")
        operator.run("snapshot", "new", "--mode", "native")
        operator.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1.0", "--mode", "native")
        (root / "mirror" / "tiny.gguf").write_bytes(gguf(LARGE, 1))
        (root / "mirror" / "vocabulary.txt").write_bytes(noise(1000))
        source = ("--source", "http://127.0.0.1:9/tiny")
        operator.run("model", "add", str(root / "mirror"), "--name", "tiny", "--version", "v1", *source)
        operator.probe()
        operator.run("model", "set-probe", "tiny:v1", "probes/tiny-v1.yaml")
    return root


@pytest.fixture
def airgap(founded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Airgap]:
    """A network of its own, with a mirror that serves its model; commands run in its working copy."""
    for name in ("network", "keys", "mirror"):
        shutil.copytree(founded / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "network")
    with mirror(tmp_path / "mirror") as address:
        operator = Operator(tmp_path / "network", tmp_path / "keys")
        made = Airgap(tmp_path, operator, address)
        operator.run("snapshot", "set", "spec.models[tiny:v1].sources", f'["{address}"]')
        operator.sign(1, 2)
        operator.commit()
        yield made
