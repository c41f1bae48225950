"""A node without a network, from a file to a model that serves, with real git and a real engine."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from demo import NATIVE_IS_WEAKER
from model_server import serving
from tiny_model import write_tiny_model

from tests.demo.test_crash import Crashing

if TYPE_CHECKING:
    from pathlib import Path


def test_a_bundle_alone_makes_a_node_serve(tmp_path: Path) -> None:
    """Export on one side; on the other, with no repository and no mirror, import, plan, one pass: Active (I1, I2)."""
    demo, bundle = Crashing(tmp_path, "native"), tmp_path / "net.tar"
    folder = tmp_path / "models" / "v1"
    folder.mkdir(parents=True)
    write_tiny_model(folder / "tiny.gguf", seed=1, name="tiny-v1")
    with serving(tmp_path / "models") as demo.mirror:
        demo.found_network()
        allowed = ("--allow-http", "--allow-private")
        demo.run("snapshot", "export", str(bundle), "--repository", str(demo.repo), "--models", *allowed)
    shutil.rmtree(demo.repo)
    weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
    try:
        demo.run(
            *("init", "--network", "demo", "--bundle", str(bundle), "--yes", "--state-dir", str(tmp_path / "node")),
            *("--config", str(demo.config), "--backend", "native", *weaker),
        )
        demo.run("snapshot", "import", str(bundle), "--config", str(demo.config))
        bundle.unlink()
        plan = demo.run("plan", "--detailed-exitcode", code=2)
        assert "download" not in plan
        assert "start     tiny:v1" in plan
        demo.reconcile()
        assert demo.serving() == "tiny:v1"
        assert demo.model_state("tiny:v1") == "Active"
        assert demo.complete("Hello")
    finally:
        demo.stop_runtime()
