"""The whole story on this machine, with real parts: keys, git, a model, an engine, a swap, and three bad changes.

A network of three operators (two must sign) approves a small language model, made here with random weights. A node
pulls the signed snapshot from git, plans, downloads, verifies, starts llama.cpp, validates it by inference and serves.
Then come a good change, wrong bytes, a model that answers wrongly, and a tampered signature. Every step checks what it
says; the demo fails if anything is not so.

Usage: `make demo`, `make demo BACKEND=docker`, or `python examples/demo.py --backend native --folder FOLDER`
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_server import serving
from telling import BOLD, RESET, DemoError, Telling
from tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = ("alice", "bob", "carol")
SIGNERS = ("alice", "bob")
NATIVE_IS_WEAKER = ("cpu", "filesystem", "memory", "network", "pids", "shm", "socket-size", "user")
"""What a plain process is not kept from; snapshot and node both have to allow it."""


@dataclass
class Demo(Telling):
    """One run, in a folder of its own."""

    backend: str
    mirror: str = ""
    image: str = ""
    known: dict[str, Any] | None = None
    """The node's status after its last pass."""
    began: float = field(default_factory=time.monotonic)

    @property
    def repo(self) -> Path:
        """The network's git repository."""
        return self.folder / "network"

    # --- the network's operators ----------------------------------------------------------------------------------

    def operate(self, *arguments: str) -> None:
        """An operators' command in the network's repository."""
        self.run(*arguments, "--repo", str(self.repo), brief=True)

    def make_keys(self) -> None:
        """Each operator makes a key on a machine of their own."""
        with ThreadPoolExecutor() as pool:
            names = [str(self.folder / f"{name}.key.json") for name in OPERATORS]
            tasks = [pool.submit(self.run, "key", "new", "--out", name, "--no-password", quiet=True) for name in names]
            for name, task in zip(names, tasks, strict=True):
                print(f"{BOLD}$ reconcile key new --out {Path(name).name} --no-password{RESET}")
                print(next(line for line in task.result().splitlines() if line.startswith("Address")))

    def sign(self, what: str) -> None:
        """Two of the three sign, each on their own."""
        with ThreadPoolExecutor() as pool:
            commands = [
                (what, "sign", "--key", str(self.folder / f"{name}.key.json"), "--yes", "--repo", str(self.repo))
                for name in SIGNERS
            ]
            tasks = [pool.submit(self.run, *command, quiet=True) for command in commands]
            for name, task in zip(SIGNERS, tasks, strict=True):
                task.result()
                print(f"{BOLD}$ reconcile {what} sign --key {name}.key.json{RESET}")

    def approve(self, version: str, *, spoiled: bool = False) -> None:
        """Approve a version of the model: manifest, probe, assignment.

        Args:
            version: `v1`, ...
            spoiled: whether its probe is changed after it was recorded, so that no honest model can pass it.
        """
        key, model = f"tiny:{version}", self.folder / "models" / version
        self.operate(
            "model", "add", str(model), "--name", "tiny", "--version", version, "--source", f"{self.mirror}/{version}"
        )
        self.operate("probe", "record", "--model", key, "--model-path", str(model), "--threads", "1")
        if spoiled:
            self.spoil(self.repo / "probes" / f"tiny-{version}.yaml")
        self.operate("model", "set-probe", key, f"probes/tiny-{version}.yaml")
        self.operate("snapshot", "serve", key, "--runtime", "main")

    def spoil(self, probe: Path) -> None:
        """Change one expected token: from now on the probe asks for another model than the one it was recorded from."""
        head, mark, tail = probe.read_text(encoding="utf-8").partition("  greedy:")
        changed, count = re.subn(r"(      tokens: \[)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", tail, count=1)
        self.check("one expected token of the probe was changed", count == 1)
        probe.write_text(head + mark + changed, encoding="utf-8")

    def publish(self, message: str, *, bump: bool = True) -> None:
        """Bump, sign twice, commit."""
        if bump:
            self.operate("snapshot", "bump")
        self.sign("snapshot")
        self.commit(message)

    def commit(self, message: str) -> None:
        """Commit everything in the network's repository."""
        print(f"{BOLD}$ git commit -m '{message}'{RESET}", flush=True)
        for arguments in (("add", "-A"), ("commit", "-q", "-m", message)):
            subprocess.run(["git", "-C", str(self.repo), *arguments], check=True, env=self._git())

    def _git(self) -> dict[str, str]:
        who = {f"GIT_{role}_{what}": "demo" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {**os.environ, **who}

    # --- the node -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the node says about itself; asked once after each pass."""
        if self.known is None:
            self.known = json.loads(self.run("status", "--json", quiet=True))
        return self.known

    def reconcile(self, code: int = 0) -> None:
        """One pass of the node."""
        self.known = None
        self.run(code=code)

    def serving(self) -> str:
        """The model that serves and holds a receipt; empty for none."""
        seen = self.status().get("serving") or {}
        return str(seen.get("model", "")) if seen.get("receipt") else ""

    def condition(self, name: str) -> dict[str, str]:
        """One condition of the node."""
        found: dict[str, str] = next(item for item in self.status()["conditions"] if item["type"] == name)
        return found

    def complete(self, prompt: str) -> str:
        """A completion through the front: OpenAI's API, at an address that stays whatever serves.

        Raises:
            OSError: nothing serves.
        """
        path = Path(self.status()["front"]["socket"])
        # unix(7) has room for 107 bytes of a path; this one is short however deep the folder lies.
        folder = os.open(path.parent, os.O_PATH)
        try:
            connection = http.client.HTTPConnection("localhost", timeout=60)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(f"/proc/self/fd/{folder}/{path.name}")
            body = json.dumps({"prompt": prompt, "max_tokens": 16, "temperature": 0})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            connection.close()
            if response.status != http.client.OK:
                raise ConnectionError(f"the front refuses: {answer}")
        finally:
            os.close(folder)
        return str(answer["choices"][0]["text"])

    def stop_runtime(self) -> None:
        """Runtime and front outlive the agent on purpose; the demo is over, so they are stopped."""
        if self.config.exists():
            stop_node(self.config)

    # --- the story ------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """All six steps."""
        self.make_models()
        with serving(self.folder / "mirror") as self.mirror:
            self.found_network()
            self.first_pass()
            self.good_change()
            self.wrong_bytes()
            self.wrong_answers()
            self.tampered_signature()
            self.look_back()

    def make_models(self) -> None:
        """Four versions of a small language model, and the mirror that serves them."""
        self.title("1. A model, and a mirror that nobody has to trust")
        for seed in range(1, 5):
            folder = self.folder / "models" / f"v{seed}"
            folder.mkdir(parents=True)
            write_tiny_model(folder / "tiny.gguf", seed=seed, name=f"tiny-v{seed}")
        shutil.copytree(self.folder / "models", self.folder / "mirror")
        size = (self.folder / "models" / "v1" / "tiny.gguf").stat().st_size
        self.say(
            f"four versions of a {size / 1e6:.1f} MB Llama with RANDOM weights: it loads, serves, and talks gibberish"
        )

    def found_network(self) -> None:
        """Keys, trust, the first snapshot."""
        self.title("2. Three operators found a network; two of them must sign")
        subprocess.run(["git", "init", "-q", "-b", "main", str(self.repo)], check=True)
        self.make_keys()
        signers = [part for name in OPERATORS for part in ("--signer", str(self.folder / f"{name}.key.json"))]
        self.operate("trust", "init", "--network", "demo", *signers, "--threshold", "2")
        self.sign("trust")
        self.operate("snapshot", "new", "--network", "demo", "--mode", "container", "--mode", "native")
        self.operate("runtime", "set", "main", "--engine", "llamacpp", *self._runtime())
        self.approve("v1")
        self.run("snapshot", "lint", "--repo", str(self.repo))
        self.publish("tiny v1", bump=False)
        self.run("snapshot", "verify", "--repo", str(self.repo), brief=True)

    def _runtime(self) -> list[str]:
        arguments = ["--arg", "contextSize=512", "--arg", "threads=1", "--memory", "1GiB"]
        if self.backend == "native":
            weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
            return [*arguments, "--mode", "native", *weaker]
        return [*arguments, "--mode", "container", "--image", self.image]

    def first_pass(self) -> None:
        """A node joins, plans, and serves."""
        self.title("3. A node joins, plans, downloads, verifies, starts, validates, serves")
        weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
        where = [f"--{self.backend}-socket", engine_socket(self.backend)] if self.backend != "native" else []
        self.run(
            *("init", "--network", "demo", "--repository", f"file://{self.repo}", "--yes"),
            *("--state-dir", str(self.folder / "node"), "--config", str(self.config), "--account", "demo@example.org"),
            # The mirror is on this machine, and speaks plain http.
            *("--allow-http", "--allow-private", "--backend", self.backend, *where),
            *(weaker if self.backend == "native" else ()),
        )
        self.run("plan", "--detailed-exitcode", code=2)
        self.reconcile()
        self.check("tiny:v1 serves, with a receipt of its validation", self.serving() == "tiny:v1")
        self.check("the model is Active", self.model_state("tiny:v1") == "Active")
        audit = self.run("audit")
        self.check("the receipt is signed, and its chain holds", "1 signed" in audit and "The chain holds." in audit)
        self.say(f"asked for a completion through the front, the engine answers: {self.complete('Hello')!r}")
        self.run("plan", "--detailed-exitcode")

    def model_state(self, key: str) -> str:
        """State of one model."""
        return next(item["state"] for item in self.status()["models"] if item["model"] == key)

    def good_change(self) -> None:
        """A second version, swapped in."""
        self.title("4. A good change: version 2, staged while version 1 serves, then swapped")
        before = self.complete("Hello")
        self.approve("v2")
        self.publish("tiny v2")
        self.run("plan")
        self.reconcile()
        self.check("tiny:v2 serves", self.serving() == "tiny:v2")
        self.check("it is another model: it answers differently", self.complete("Hello") != before)

    def wrong_bytes(self) -> None:
        """A third version whose bytes on the mirror are not the manifest's."""
        self.title("5a. A bad change: version 3, whose bytes on the mirror are not the approved ones")
        self.approve("v3")
        file = self.folder / "mirror" / "v3" / "tiny.gguf"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        self.say("one bit of three megabytes was flipped on the mirror")
        self.publish("tiny v3")
        self.reconcile(code=6)
        self.check("tiny:v2 goes on serving", self.serving() == "tiny:v2")
        self.check("tiny:v3 is Failed", self.model_state("tiny:v3") == "Failed")

    def wrong_answers(self) -> None:
        """A fourth version that does not answer as its probe says."""
        self.title("5b. A bad change: version 4 arrives intact, but does not answer as its probe expects")
        self.approve("v4", spoiled=True)
        self.publish("tiny v4")
        self.reconcile(code=6)
        self.check("the node went back to tiny:v2 by itself", self.serving() == "tiny:v2")
        self.check("status says why", self.condition("RolledBack")["reason"] == "ValidationFailed")
        self.run("why", "tiny:v4")

    def tampered_signature(self) -> None:
        """A snapshot whose signature was changed after signing."""
        self.title("5c. An attack: somebody with push access changes a signature")
        self.operate("snapshot", "serve", "tiny:v1", "--runtime", "main")
        self.operate("snapshot", "bump")
        self.sign("snapshot")
        file = min((self.repo / "networks" / "demo" / "snapshot.sigs").glob("*.json"))
        document = json.loads(file.read_text(encoding="utf-8"))
        digit = "0" if document["signature"][10] != "0" else "1"
        document["signature"] = document["signature"][:10] + digit + document["signature"][11:]
        file.write_text(json.dumps(document), encoding="utf-8")
        self.commit("tampered")
        self.reconcile(code=3)
        self.check("refused with exit code 3; tiny:v2 goes on serving", self.serving() == "tiny:v2")

    def look_back(self) -> None:
        """What the node says in the end."""
        self.title("6. What the node says")
        self.run("status")
        self.run("history")


def engine_socket(backend: str) -> str:
    """The unix socket of a container engine on this machine.

    Raises:
        DemoError: there is none.
    """
    told = os.environ.get({"docker": "DOCKER_HOST", "podman": "RECONCILE_TEST_PODMAN"}[backend], "")
    usual = {
        "docker": ("/var/run/docker.sock",),
        # The second is where `.ci/provision` starts it.
        "podman": ("/run/podman/podman.sock", "/run/reconcile-test/podman.sock"),
    }
    for place in (told.removeprefix("unix://"), *usual[backend]):
        if place and Path(place).is_socket():
            return place
    raise DemoError(f"no {backend} socket is there; `.ci/provision` (root, Debian) starts an engine")


def image_reference() -> str:
    """The llama.cpp image, built from Debian packages and wheels, in the registry on loopback.

    Raises:
        DemoError: there is no engine, no registry, or no right to build.
    """
    done = subprocess.run(
        [str(ROOT / "runtime" / "images" / "build.py"), "llamacpp"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(
            f"the image cannot be built: {done.stderr.strip()}\n`.ci/provision` (root, Debian) brings what it needs"
        )
    return str(json.loads(done.stdout)["llamacpp"])


def stop_node(path: Path) -> None:
    """Stop what a node has running: its engine, and its front."""
    from reconciler.cli import wiring
    from reconciler.identity import node_address
    from reconciler.state_dir import StateDir

    config = wiring.load_config(path)
    state = StateDir(Path(config.state_dir))
    for backend in wiring.build_backends(config, state, node_address(state), wiring.host()).values():
        for instance in backend.list():
            backend.stop(instance.name, grace=1)
            backend.remove(instance.name)
    front = wiring.build_front(config, state, wiring.host())
    if front is not None:
        front.stop()


def main() -> int:
    """Tell the story; the exit code says whether all of it was true."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("native", "docker", "podman"), default="native")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="where everything is made")
    arguments = parser.parse_args()
    demo = Demo(arguments.folder.resolve(), arguments.backend)
    if demo.folder.exists():
        with suppress(Exception):
            # What an earlier run left; if it cannot be reached any more, there is nothing to stop.
            demo.stop_runtime()
        shutil.rmtree(demo.folder)
    demo.folder.mkdir(parents=True)
    try:
        if arguments.backend != "native":
            engine_socket(arguments.backend)
            demo.image = image_reference()
        demo.tell()
        seconds = time.monotonic() - demo.began
        print(f"\n{BOLD}All of it was true.{RESET} {seconds:.0f} s; everything lies in {demo.folder}.")
    except DemoError as error:
        print(f"\n{BOLD}The demo failed:{RESET} {error}", file=sys.stderr)
        return 1
    finally:
        demo.stop_runtime()
    return 0


if __name__ == "__main__":
    sys.exit(main())
