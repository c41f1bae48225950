"""A real node on which a small model serves, and what its passes cost: shared by several benchmarks."""

from __future__ import annotations

import os
import resource
import statistics
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from reconciler.cli import wiring
from reconciler.cli.progress import LineDisplay
from reconciler.loop import Reconciler
from reconciler.state_dir import StateDir
from runtime.backends.native import NativeBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from demo import NATIVE_IS_WEAKER, Demo, engine_socket, image_reference
from model_server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def demo_node(folder: Path, backend: str = "native") -> Iterator[Demo]:
    """A network of three operators, and a node that serves what they signed."""
    demo = Demo(folder, backend)
    os.environ["RECONCILE_CONFIG"] = str(demo.config)
    demo.make_models()
    if backend != "native":
        demo.image = image_reference()
    weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
    where = weaker if backend == "native" else [f"--{backend}-socket", engine_socket(backend)]
    with serving(folder / "mirror") as demo.mirror:
        demo.found_network()
        demo.run(
            *("init", "--network", "demo", "--repository", f"file://{demo.repo}", "--yes"),
            *("--state-dir", str(folder / "node"), "--config", str(demo.config)),
            *("--allow-http", "--allow-private", "--backend", backend, *where),
            quiet=True,
        )
        demo.run()
        try:
            yield demo
        finally:
            demo.stop_runtime()


def cpu_seconds() -> float:
    """Processor time of this process, and of those that it started and waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


@contextmanager
def agent(demo: Demo) -> Iterator[Reconciler]:
    """The agent of a node, in this process."""
    config = wiring.load_config(demo.config)
    journal = wiring.open_journal(StateDir(Path(config.state_dir)), readonly=False)
    node = wiring.build_node(config, journal, ports=wiring.host(), progress=lambda *_: None)
    try:
        yield Reconciler(node, wiring.build_source(node), LineDisplay())
    finally:
        journal.close()


def idle_pass_ms(demo: Demo, *, models: int, passes: int) -> float:
    """Median processor time of a pass with nothing to do over so many models, the git that it starts included.

    Each asks the backend once what there is.
    """
    samples = []
    looked = patch.object(NativeBackend, "list", autospec=True, side_effect=NativeBackend.list)
    with agent(demo) as reconciler, looked as looks:
        for number in range(passes + 5):
            before = cpu_seconds()
            result = reconciler.run_pass()
            if number >= 5:  # the first ones import, and fill caches
                samples.append((cpu_seconds() - before) * 1000)
            assert (result.exit_code, result.outcomes, len(result.status.models)) == (0, (), models)
            assert looks.call_count == number + 1
    return statistics.median(samples)
