"""Many models: the whole process of `reconcile plan` beside `terraform plan`, verification, polls and passes."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from benchmarks.conftest import Figure, environment, paired, run_once
from benchmarks.nodes import idle_pass_ms
from benchmarks.scaled import NETWORK, ScaledNode, scaled_node
from desired_state.acceptance import accept_snapshot
from desired_state.git_source import GitSettings, GitSource
from desired_state.load import load_candidate
from desired_state.trust import verify_first, walk
from desired_state.watermark import Mark
from reconciler.cli import wiring
from reconciler.documents import bound_documents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MODELS = 1_000
"""Models, and resources of the peer."""
SIZES = (100, 300, 1_000, 3_000, 10_000)
COMMITS = 100_000
ROUNDS = 11
PASSES = 100


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaledNode]:
    """A node of 1,000 models."""
    with scaled_node(tmp_path_factory.mktemp("grown")) as node:
        node.grow(MODELS)
        yield node


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaledNode]:
    """A node of one model; the benchmark of 100 lets it grow, and comes last."""
    with scaled_node(tmp_path_factory.mktemp("single")) as node:
        yield node


_METER = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""Runs a command below a small process: a process begins with the peak memory of the one that started it (Linux), and
this one has the models of every network in it."""


def _measured(command: Sequence[str]) -> tuple[float, float]:
    """Processor seconds of a whole process with its children, and MiB of the largest of them."""
    meter = [sys.executable, "-S", "-c", _METER, *command]
    printed = subprocess.run(meter, check=True, capture_output=True, env=environment()).stdout
    code, seconds, peak = json.loads(printed)
    assert code == 0, command
    return seconds, peak


# --- beside terraform ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[str]]:
    """The command `terraform plan` over a number of resources that are as they should be."""
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform is not installed")
    folder = tmp_path_factory.mktemp("terraform")

    def command(count: int) -> list[str]:
        place = folder / str(count)
        if not place.exists():
            place.mkdir()
            blocks = (f'resource "terraform_data" "r{number}" {{\n  input = {number}\n}}\n' for number in range(count))
            (place / "main.tf").write_text("\n".join(blocks), encoding="utf-8")
            for arguments in (["init", "-backend=false"], ["apply", "-auto-approve"]):
                subprocess.run([program, f"-chdir={place}", *arguments], check=True, capture_output=True)
            plan = [program, f"-chdir={place}", "plan", "-no-color"]
            said = subprocess.run(plan, check=True, capture_output=True, text=True).stdout
            assert "No changes." in said, said[-500:]
        return [program, f"-chdir={place}", "plan"]

    return command


def test_plan_1000_vs_terraform(grown: ScaledNode, terraform: Callable[[int], list[str]], figure: Figure) -> None:
    """Whole process, 1,000 models of which none changed, beside as many resources."""
    grown.check(MODELS)
    ours, theirs = paired(grown.plan, terraform(MODELS), rounds=ROUNDS)
    figure(
        "plan_1000_vs_terraform",
        ours,
        "s",
        goal="at most half of the peer",
        peer="terraform plan, 1,000 terraform_data",
        peer_value=theirs,
    )


def test_plan_marginal_vs_terraform(
    grown: ScaledNode, single: ScaledNode, terraform: Callable[[int], list[str]], figure: Figure
) -> None:
    """What each further model costs, beside each further resource: (1,000 - 1) / 999, all four in turn."""
    grown.check(MODELS)
    single.check(1)
    commands = (grown.plan, single.plan, terraform(MODELS), terraform(1))
    for command in commands:
        run_once(command)
    rounds = [[run_once(command) for command in commands] for _ in range(ROUNDS)]
    many, one, peer_many, peer_one = (statistics.median(column) for column in zip(*rounds, strict=True))
    figure(
        "plan_marginal_vs_terraform",
        (many - one) / (MODELS - 1) * 1000,
        "ms per model",
        goal="at most a quarter of the peer",
        peer="terraform plan, each further terraform_data",
        peer_value=(peer_many - peer_one) / (MODELS - 1) * 1000,
    )


# --- verification -------------------------------------------------------------------------------------------------


def test_verify_snapshot_ms(grown: ScaledNode, figure: Figure) -> None:
    """From git objects to a believed snapshot with all that it binds: 1,000 models, two signatures, 2,001 files.

    Cold: nothing is recorded, and the Ethereum SDK is loaded (it takes half a second once in a process). Warm: the
    branch moved, and the snapshot is the one in force.
    """
    grown.check(MODELS)
    verification = _Verification(grown)
    verification.cold(MODELS)
    cold = statistics.median(_timed(lambda: verification.cold(MODELS)) for _ in range(ROUNDS))
    warm = statistics.median(_timed(verification.warm) for _ in range(ROUNDS))
    figure("verify_snapshot_ms", cold * 1000, "ms", goal="cold, 1,000 models: known")
    figure("verify_snapshot_warm_ms", warm * 1000, "ms", goal="below cold", peer="cold", peer_value=cold * 1000)


class _Verification:
    """Verifies what a repository shows, as a pass does after its fetch."""

    def __init__(self, node: ScaledNode) -> None:
        self._config = wiring.load_config(node.demo.config)
        self._git = _source()
        self._repository = node.repo / ".git"
        self._commit = self._git.head(f"file://{node.repo}", "main")
        self._mark: Mark | None = None

    def cold(self, models: int) -> None:
        """Believe everything anew."""
        files = self._git.files(self._repository, self._commit)
        candidate = load_candidate(files, NETWORK, trust_version=0)
        now = datetime.now(UTC)
        first = verify_first(candidate.trust[0].content, self._config.trust.digest, NETWORK)
        self._trust = walk(first, candidate.trust, network=NETWORK, now=now).trust
        snapshot = accept_snapshot(
            content=candidate.content,
            signatures=candidate.signatures,
            trust=self._trust,
            mark=None,
            network=NETWORK,
            now=now,
            agent_version=wiring.agent_version(),
        )
        documents = bound_documents(files, snapshot.document)
        # A manifest and its pieces for each model, and the probe that they share.
        assert (len(snapshot.signers), len(documents)) == (2, 2 * models + 1)
        metadata = snapshot.document.metadata
        self._mark = Mark(epoch=metadata.epoch, sequence=metadata.sequence, digest=snapshot.digest)

    def warm(self) -> None:
        """Recognise what is in force."""
        files = self._git.files(self._repository, self._commit)
        candidate = load_candidate(files, NETWORK, trust_version=self._trust.version)
        snapshot = accept_snapshot(
            content=candidate.content,
            signatures=candidate.signatures,
            trust=self._trust,
            mark=self._mark,
            network=NETWORK,
            now=datetime.now(UTC),
            agent_version=wiring.agent_version(),
        )
        assert self._mark is not None
        assert snapshot.digest == self._mark.digest


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _source() -> GitSource:
    settings = GitSettings(timeout=60, max_bytes=2**28, environment=dict(os.environ))
    return GitSource(wiring.host(), settings)


# --- polls --------------------------------------------------------------------------------------------------------


def test_poll_noop_ms(tmp_path: Path, figure: Figure) -> None:
    """Asking git whether a branch of 100,000 commits moved, beside the same question about one of one commit.

    Both are packed, so that a look at the branch's file does not tell (`desired_state.local_repository`).
    """
    long, tip = _history(tmp_path / "long.git", COMMITS)
    short, first = _history(tmp_path / "short.git", 1)
    source = _source()
    assert (source.head(long, "main"), source.head(short, "main")) == (tip, first)
    pairs = [(_timed(lambda: source.head(long, "main")), _timed(lambda: source.head(short, "main"))) for _ in range(51)]
    ours, theirs = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    figure("poll_noop_ms", ours, "ms", goal="a few ms", peer="a repository of one commit", peer_value=theirs)


def _history(folder: Path, count: int) -> tuple[str, str]:
    """A repository with so many commits on its branch; its address, and the tip."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(folder)], check=True)
    who = "committer bench <bench@example.org>"
    commits = (
        f"commit refs/heads/main\n{who} {number} +0000\ndata 1\n.\nM 644 inline f\ndata 6\n{number:06}\n"
        for number in range(count)
    )
    subprocess.run(
        ["git", f"--git-dir={folder}", "fast-import", "--quiet"], input="".join(commits).encode(), check=True
    )
    asked = ["git", f"--git-dir={folder}", "log", "-1", "--format=%H", "main"]
    tip = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    counted = subprocess.run(
        ["git", f"--git-dir={folder}", "rev-list", "--count", "main"], check=True, capture_output=True, text=True
    )
    assert int(counted.stdout) == count
    subprocess.run(["git", f"--git-dir={folder}", "pack-refs", "--all"], check=True)
    return f"file://{folder}", tip


# --- growth -------------------------------------------------------------------------------------------------------


def test_plan_growth_exponent(tmp_path: Path, single: ScaledNode, figure: Figure) -> None:
    """How processor time grows from 100 to 10,000 models, and what 10,000 take at most: a fit in log-log.

    `plan_growth_exponent` fits what comes on top of a node of one model, which is harder than the whole: the constant
    cost of a start would flatten the line. Also gives `plan_10000_peak_mib`, of the largest process of the plan.
    """
    single.check(1)
    whole, further = [], []
    with scaled_node(tmp_path) as node:
        for size in SIZES:
            node.grow(size)
            cost, base = _cheapest(node, single)
            assert cost > base, "this machine is too busy to tell 100 models from one"
            whole.append((size, cost))
            further.append((size, cost - base))
        peak = max(_measured(node.plan)[1] for _ in range(3))
        verification = _Verification(node)
        verification.cold(SIZES[-1])
        verify = statistics.median(_timed(lambda: verification.cold(SIZES[-1])) for _ in range(3))
    figure(
        "plan_growth_exponent", _exponent(further), "", goal="at most 1.1", peer="whole", peer_value=_exponent(whole)
    )
    figure("plan_10000_cpu_seconds", whole[-1][1], "s", goal="known")
    figure("plan_10000_peak_mib", peak, "MiB", goal="< 300")
    figure("verify_10000_ms", verify * 1000, "ms", goal="cold, 10,000 manifests: known")


def _cheapest(*nodes: ScaledNode) -> list[float]:
    """Processor seconds of a plan on each node, in turn: the least of several, because noise only ever adds."""
    rounds = [[_measured(node.plan)[0] for node in nodes] for _ in range(9)]
    return [min(column) for column in zip(*rounds, strict=True)]


def _exponent(points: Sequence[tuple[int, float]]) -> float:
    """The slope of a straight line through the logarithms (least squares)."""
    slope, _ = statistics.linear_regression(
        [math.log(size) for size, _ in points], [math.log(cost) for _, cost in points]
    )
    return slope


# --- a daemon -----------------------------------------------------------------------------------------------------


def test_pass_noop_100_cpu_ms(single: ScaledNode, figure: Figure) -> None:
    """A pass of a running daemon over 100 models with nothing to do: processor time of the agent and its git."""
    single.grow(100)
    figure("pass_noop_100_cpu_ms", idle_pass_ms(single.demo, models=100, passes=PASSES), "ms", goal="< 10")
