"""Make a network's repository as its operators would: signers, runtimes, models, waves, windows, an inventory.

`examples/network/` was made by this program; its keys were thrown away. It uses the command line only, and real parts:
probes are recorded from a running llama.cpp, and the inventory begins with a node that made a real pass. The other
nodes of the inventory are that one's status under other names and labels.

Usage: `python examples/make_network.py TARGET`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo import stop_node
from model_server import serving
from tiny_model import write_tiny_model

EXAMPLE = Path(__file__).with_name("network")
WRITTEN = ("README.md", "ci", ".github")
"""What a person wrote there: how changes are made, the check of pull requests, and the workflow that calls it."""

SIGNERS = ("alice", "bob", "carol")
WEAKER = ("cpu", "filesystem", "memory", "network", "pids", "shm", "socket-size", "user")
IMAGE = "ghcr.io/example/llamacpp@sha256:" + "5e" * 32
YEARS = "3650d"
NODES = {
    "berlin-1": {"region": "eu", "tier": "edge"},
    "berlin-2": {"region": "eu", "tier": "edge"},
    "oregon-1": {"region": "us", "tier": "edge"},
    "oregon-2": {"region": "us", "tier": "canary"},
}


class Operators:
    """Three people, and the one repository that they share."""

    def __init__(self, work: Path, target: Path) -> None:
        self.work = work
        self.repo = target

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """A `reconcile` command, in the repository."""
        return self.call([str(Path(sys.executable).with_name("reconcile")), *arguments], codes=codes)

    def git(self, *arguments: str) -> str:
        """A git command, in the repository."""
        who = [part for item in ("user.name=operators", "user.email=ops@example.org") for part in ("-c", item)]
        return self.call(["git", *who, *arguments])

    def call(self, command: list[str], *, codes: tuple[int, ...] = (0,)) -> str:
        """A command; what it printed."""
        done = subprocess.run(command, cwd=self.repo, capture_output=True, text=True, check=False)
        if done.returncode not in codes:
            raise SystemExit(f"[{done.returncode}] {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def key(self, name: str) -> str:
        """Where somebody keeps a key."""
        return str(self.work / f"{name}.key.json")

    def sign(self) -> None:
        """Two of three sign."""
        for name in SIGNERS[:2]:
            self.run("snapshot", "sign", "--key", self.key(name), "--yes")

    def commit(self, message: str) -> None:
        """What everybody sees from now on."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)


def found(operators: Operators) -> None:
    """Three signers, of whom two must agree."""
    for name in SIGNERS:
        operators.run("key", "new", "--out", operators.key(name), "--no-password")
    signers = [part for name in SIGNERS for part in ("--signer", operators.key(name))]
    operators.run("trust", "init", "--network", "edge", *signers, "--threshold", "2", "--valid", YEARS)
    for name in SIGNERS[:2]:
        operators.run("trust", "sign", "--key", operators.key(name), "--yes")
    operators.run("snapshot", "new", "--mode", "container", "--mode", "native")


def approve(operators: Operators, mirror: str) -> None:
    """Two ways to serve, three models."""
    operators.run(
        *("runtime", "set", "gateway", "--engine", "llamacpp", "--mode", "container", "--image", IMAGE),
        *("--memory", "4GiB", "--arg", "contextSize=1024", "--start-timeout", "5m"),
    )
    weaker = [part for name in WEAKER for part in ("--allow-unenforced", name)]
    operators.run(
        *("runtime", "set", "bench", "--engine", "llamacpp", "--mode", "native", "--memory", "1GiB"),
        *("--arg", "contextSize=512", *weaker),
    )
    for key, seed in (("chat:v1", 1), ("chat:v2", 2), ("code:v1", 3)):
        name, _, version = key.partition(":")
        folder = operators.work / "mirror" / name / version
        folder.mkdir(parents=True)
        write_tiny_model(folder / f"{name}.gguf", seed=seed, name=name)
        source = f"{mirror}/{name}/{version}"
        operators.run(
            "model", "add", str(folder), "--name", name, "--version", version, "--source", source, "--task", "chat"
        )
        operators.run("probe", "record", "--model", key, "--model-path", str(folder))


def assign(operators: Operators) -> None:
    """Everybody serves chat:v1; chat:v2 comes in waves; the canaries serve code. Swaps happen at night."""
    operators.run(
        "snapshot",
        "set",
        "spec.waves",
        "[{name: canary, percent: 10%}, {name: half, percent: 50%}, {name: all, percent: 100%}]",
    )
    operators.run("snapshot", "serve", "chat:v1", "--runtime", "bench")
    operators.run("snapshot", "serve", "code:v1", "--runtime", "bench", "--match", "tier=canary")
    window = '{days: [mon, tue, wed, thu, fri], from: "02:00", to: "05:00", zone: UTC}'
    operators.run("snapshot", "set", "spec.policy.windows", f"{{stage: [], swap: [{window}]}}")
    operators.run("snapshot", "set", "spec.policy.gc.grace", "48h")


def live(operators: Operators) -> dict[str, Any]:
    """A real node of the network makes a pass, and says how it is."""
    config, state = operators.work / "node.yaml", operators.work / "node"
    weaker = [part for name in WEAKER for part in ("--allow-unenforced", name)]
    operators.run(
        *("init", "--network", "edge", "--repository", f"file://{operators.repo}", "--yes", "--backend", "native"),
        *("--config", str(config), "--state-dir", str(state), "--label", "region=eu", "--label", "tier=edge"),
        *("--allow-http", "--allow-private", *weaker),
    )
    try:
        operators.run("--config", str(config))
        status: dict[str, Any] = json.loads(operators.run("status", "--json", "--config", str(config)))
    finally:
        stop_node(config)
    return status


def publish(operators: Operators, status: dict[str, Any], mirror: str) -> None:
    """The inventory: what the nodes published last, without this machine's paths."""
    folder = operators.repo / "inventory"
    folder.mkdir()
    for number, (name, labels) in enumerate(NODES.items()):
        text = json.dumps({**status, "labels": labels}, indent=1, sort_keys=True)
        text = text.replace(str(operators.work), "/var/lib").replace(mirror, "https://models.example.org")
        other = status["node"] if number == 0 else f"0x{number:040x}"
        (folder / f"{name}.json").write_text(text.replace(status["node"], other) + "\n", encoding="utf-8")


def make(target: Path) -> None:
    """Make the repository in an empty folder."""
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise SystemExit(f"{target} is not empty")
    with tempfile.TemporaryDirectory(prefix="reconcile-network-") as name:
        work = Path(name)
        (work / "mirror").mkdir()
        operators = Operators(work, target)
        operators.git("init", "--quiet", "--initial-branch", "main")
        for item in WRITTEN:
            copy = shutil.copytree if (EXAMPLE / item).is_dir() else shutil.copyfile
            copy(EXAMPLE / item, target / item)
        with serving(work / "mirror") as mirror:
            found(operators)
            approve(operators, mirror)
            assign(operators)
            operators.run("snapshot", "set", "metadata.expiresAt", f'"{_far()}"')
            operators.sign()
            operators.commit("Found the network")
            status = live(operators)
        # The published addresses, from here on.
        snapshot = operators.repo / "networks" / "edge" / "snapshot.v1alpha1.yaml"
        text = snapshot.read_text(encoding="utf-8").replace(mirror, "https://models.example.org")
        snapshot.write_text(text, encoding="utf-8")
        operators.run("snapshot", "bump")
        operators.run("snapshot", "set", "metadata.expiresAt", f'"{_far()}"')
        operators.sign()
        publish(operators, status, mirror)
        operators.commit("Fetch models from the network's own mirror; publish the inventory")


def _far() -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(days=3000)).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    os.environ.pop("RECONCILE_CONFIG", None)
    make(parser.parse_args().target.absolute())


if __name__ == "__main__":
    main()
