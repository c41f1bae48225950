"""What the command line costs: `--help`, a plan with nothing to do, and a pass of the daemon with nothing to do."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.conftest import Figure, environment, paired, reconcile

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from demo import NATIVE_IS_WEAKER, Demo
from model_server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSES = 200


@pytest.fixture(scope="module")
def converged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A native node on which a small model serves."""
    folder = tmp_path_factory.mktemp("bench")
    demo = Demo(folder, "native")
    os.environ["RECONCILE_CONFIG"] = str(demo.config)
    demo.make_models()
    with serving(folder / "mirror") as demo.mirror:
        demo.found_network()
        weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
        demo.run(
            *("init", "--network", "demo", "--repository", f"file://{demo.repo}", "--yes"),
            *("--state-dir", str(folder / "node"), "--config", str(demo.config)),
            *("--allow-http", "--allow-private", "--backend", "native", *weaker),
            quiet=True,
        )
        demo.run()
        yield demo
        demo.stop_runtime()


def test_help_seconds(figure: Figure) -> None:
    """`reconcile --help`, whole process, beside the interpreter alone."""
    seconds, peer = paired([reconcile(), "--help"], [sys.executable, "-c", "pass"], rounds=21)
    figure("help_seconds", seconds, "s", goal="< 0.150", peer="python -c pass", peer_value=peer)


def test_plan_noop_seconds(converged: Demo, figure: Figure, tmp_path: Path) -> None:
    """`reconcile plan` with nothing to do, whole process, beside `terraform plan` of one resource where it is there."""
    ours = [reconcile(), "plan", "--config", str(converged.config), "--detailed-exitcode"]
    done = subprocess.run(ours, capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, "No changes." in done.stdout) == (0, True), done.stdout + done.stderr
    peer, name = _terraform(tmp_path)
    seconds, other = paired(ours, peer, rounds=15)
    figure("plan_noop_seconds", seconds, "s", goal="< 0.400", peer=name, peer_value=other)


def _terraform(folder: Path) -> tuple[list[str], str]:
    terraform = shutil.which("terraform")
    if terraform is None:
        return [sys.executable, "-c", "import pydantic, click, yaml"], "python importing pydantic, click, yaml"
    (folder / "main.tf").write_text('resource "terraform_data" "one" {\n  input = 1\n}\n', encoding="utf-8")
    for arguments in (["init", "-backend=false"], ["apply", "-auto-approve"]):
        subprocess.run([terraform, f"-chdir={folder}", *arguments], check=True, capture_output=True)
    return [terraform, f"-chdir={folder}", "plan"], "terraform plan, 1 resource"


def test_pass_noop_cpu_ms(converged: Demo, figure: Figure) -> None:
    """A pass of a running daemon with nothing to do: processor time of the agent and of the git that it starts."""
    from reconciler.cli import wiring
    from reconciler.cli.progress import LineDisplay
    from reconciler.loop import Reconciler
    from reconciler.state_dir import StateDir

    config = wiring.load_config(converged.config)
    journal = wiring.open_journal(StateDir(Path(config.state_dir)), readonly=False)
    node = wiring.build_node(config, journal, ports=wiring.host(), progress=lambda *_: None)
    reconciler = Reconciler(node, wiring.build_source(node), LineDisplay())
    for _ in range(5):
        assert reconciler.run_pass().outcomes == ()
    samples = []
    for _ in range(PASSES):
        before = _cpu()
        result = reconciler.run_pass()
        samples.append((_cpu() - before) * 1000)
        assert (result.exit_code, result.outcomes) == (0, ())
    journal.close()
    figure("pass_noop_cpu_ms", statistics.median(samples), "ms", goal="< 20")


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
