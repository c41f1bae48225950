"""What the command line costs: `--help`, a plan with nothing to do, and a pass of the daemon with nothing to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.conftest import Figure, environment, paired, reconcile
from benchmarks.nodes import demo_node, idle_pass_ms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.nodes import Demo

PASSES = 200


@pytest.fixture(scope="module")
def converged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A native node on which a small model serves."""
    with demo_node(tmp_path_factory.mktemp("bench")) as demo:
        yield demo


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
    figure("pass_noop_cpu_ms", idle_pass_ms(converged, models=1, passes=PASSES), "ms", goal="< 20")
