"""The demo's node as a systemd service: installed from a wheel, joined and looked after as the pages say."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import sysconfig
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from demo import NATIVE_IS_WEAKER, ROOT

from tests.support.front import PATIENCE, dial, eventually
from tests.support.quiet_demo import QuietDemo

if TYPE_CHECKING:
    from tests.support.systemd import Machine

PROGRAM: Final = "/opt/reconcile/bin/reconcile"
CONFIG: Final = "/etc/reconcile/node.yaml"
STATE: Final = "/var/lib/reconcile"
UNIT: Final = "/etc/systemd/system/reconcile.service"

SOURCES: Final = ("desired_state", "reconciler", "runtime", "schemas")


LIBRARIES: Final = "/opt/libraries"
"""Below a folder that engines see in their own root, as those of an ordinary installation are."""


def needed_of_this_machine(*more: Path) -> dict[Path, str]:
    """What a machine of a test's own has to share for the agent's Python and its libraries to be there; by place."""
    places = [Path(sys.prefix), Path(sys.base_prefix), *more]
    same = {place: str(place) for place in places if place not in (Path("/usr"), Path("/"))}
    return {**same, Path(sysconfig.get_path("purelib")): LIBRARIES}


class SystemdNode(QuietDemo):
    """A network on this machine, and a node on another whose service manager is systemd."""

    machine: Machine

    @property
    def wheels(self) -> Path:
        """Where the agent's wheels are."""
        return self.folder / "wheels"

    @property
    def front(self) -> Path:
        """The front's address, as this machine reaches it."""
        return Path(f"{self.machine.root}{STATE}/run/front.sock")

    # --- making it ------------------------------------------------------------------------------------------------

    def build(self, version: str = "") -> Path:
        """A wheel of this code.

        Args:
            version: another one than its own, whose front is another program too.
        """
        source = ROOT
        if version:
            source = self.folder / f"source-{version}"
            for name in SOURCES:
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("README.md", "LICENSE"):
                shutil.copy(ROOT / name, source)
            project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            (source / "pyproject.toml").write_text(project.replace('\nversion = "', f'\nversion = "{version}" # "', 1))
            with (source / "runtime/front/program.py").open("a", encoding="utf-8") as file:
                file.write("# another one\n")
        before = set(self.wheels.glob("*.whl"))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*command, "--wheel-dir", str(self.wheels), str(source)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (made,) = set(self.wheels.glob("*.whl")) - before
        return made

    def install(self, wheel: Path) -> None:
        """Install the agent, or replace it; its libraries are this machine's."""
        run = self.machine.run
        if not Path(f"{self.machine.root}{PROGRAM}").exists():
            run(sys.executable, "-m", "venv", "--without-pip", "/opt/reconcile")
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            packages = Path(f"{self.machine.root}/opt/reconcile/lib/{version}/site-packages")
            (packages / "libraries.pth").write_text(f"{LIBRARIES}\n")
        pip = (sys.executable, "-m", "pip", "--python", "/opt/reconcile/bin/python")
        run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel))

    def enrol(self) -> None:
        """Make the node, with its unit."""
        weaker = [part for name in NATIVE_IS_WEAKER for part in ("--allow-unenforced", name)]
        self.machine.run(
            *(PROGRAM, "init", "--network", "demo", "--repository", f"file://{self.repo}", "--yes"),
            *("--state-dir", STATE, "--config", CONFIG, "--allow-http", "--allow-private"),
            *("--backend", self.backend, *(weaker if self.backend == "native" else ())),
        )
        self.write_unit()

    def write_unit(self, *options: str) -> None:
        """Save what `reconcile service` prints, which systemd's own checker must like."""
        text = self.machine.run(PROGRAM, "service", "--config", CONFIG, *options)
        Path(f"{self.machine.root}{UNIT}").write_text(text)
        said = self.machine.attempt("systemd-analyze", "verify", "--man=no", UNIT)
        assert (said.returncode, said.stderr) == (0, "")
        self.machine.run("systemctl", "daemon-reload")

    def drop_in(self, name: str, *lines: str) -> None:
        """Save settings beside the unit's own, as `systemctl edit` does; without lines, take them away."""
        file = Path(f"{self.machine.root}{UNIT}.d/{name}.conf")
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(("[Service]", *lines, "")))
        if not lines:
            file.unlink()
        self.machine.run("systemctl", "daemon-reload")

    # --- looking at it --------------------------------------------------------------------------------------------

    def ctl(self, verb: str) -> None:
        """`systemctl VERB reconcile`, which has to succeed."""
        done = self.machine.attempt("systemctl", verb, "reconcile")
        assert done.returncode == 0, f"{verb}: {done.stderr}\n{self.logged()[-3000:]}"

    def main_pid(self) -> int:
        """The agent's process, in the machine's numbers; 0 for none."""
        return int(self.machine.show("reconcile", "MainPID")["MainPID"])

    def logged(self) -> str:
        """What the journal has of the service."""
        return self.machine.run("journalctl", "--unit=reconcile", "--output=cat", "--no-pager")

    def told(self) -> dict[str, Any]:
        """The published status."""
        with suppress(FileNotFoundError):
            told: dict[str, Any] = json.loads(Path(f"{self.machine.root}{STATE}/status.json").read_bytes())
            return told
        return {}

    def await_serving(self, model: str) -> dict[str, Any]:
        """Wait until a model serves with a receipt, is healthy, and answers; its entry in the status."""

        def serves() -> bool:
            seen = self.told().get("serving") or {}
            if seen.get("model") != model or not seen.get("receipt") or seen.get("health") != "healthy":
                return False
            with suppress(OSError, ValueError, KeyError, http.client.HTTPException):
                return ask(self.front)[0] == model
            return False

        try:
            eventually(serves, f"{model} serves", seconds=2 * PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logged()[-4000:]}") from error
        return dict(self.told()["serving"])

    def await_pass_of(self, agent: int) -> None:
        """Wait until an agent has told systemd how its first pass ended."""

        def told() -> bool:
            seen = self.machine.show("reconcile", "MainPID", "StatusText")
            return int(seen["MainPID"]) == agent and seen["StatusText"].startswith("Serving:")

        eventually(told, f"agent {agent} has made a pass", seconds=2 * PATIENCE)

    def engine(self) -> tuple[int, str]:
        """The process that computes, in the machine's numbers, and when it was started: one only."""
        return self._container() if self.backend == "docker" else self._process()

    def _container(self) -> tuple[int, str]:
        names = self.machine.run("docker", "ps", "--quiet").split()
        (line,) = self.machine.run(
            "docker", "inspect", "--format={{.State.Pid}} {{.State.StartedAt}}", *names
        ).splitlines()
        pid, started = line.split()
        return int(pid), started

    def _process(self) -> tuple[int, str]:
        folder = Path(f"{self.machine.root}{STATE}/run/instances")
        states = [json.loads(file.read_bytes()) for file in folder.glob("*/state.json")]
        alive = [
            (int(state["engine"]), str(state["engineTicks"]))
            for state in states
            if self.machine.attempt("test", "-e", f"/proc/{state['engine']}").returncode == 0
        ]
        (one,) = alive
        return one


def ask(address: Path) -> tuple[str, str]:
    """One question on a connection of its own: who answers, and what.

    Raises:
        OSError: nobody answers, or with a refusal.
    """
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    connection.sock = dial(address)
    try:
        body = json.dumps({"prompt": "Hello", "max_tokens": 8, "temperature": 0, "cache_prompt": False})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ConnectionError(f"{response.status} {content[:300]!r}")
    answer = json.loads(content)
    return str(answer["model"]), str(answer["choices"][0]["text"])


class Client:
    """Asks one question after the other, each on a connection of its own, and notes every one that goes wrong."""

    def __init__(self, address: Path) -> None:
        """It asks nothing yet."""
        self.wrong: list[str] = []
        self.answers: dict[str, str] = {}
        """By model, the one answer that it gives."""
        self.count = 0
        self._address = address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End with the answer to the last question."""
        self._ended.set()
        self._thread.join(2 * PATIENCE)

    def asked_again(self) -> None:
        """Wait until two more questions were answered, so that one was asked since."""
        until = self.count + 2
        eventually(lambda: self.count >= until or bool(self.wrong), "clients are answered", seconds=2 * PATIENCE)

    def _ask_on(self) -> None:
        while not self._ended.wait(0.05):
            try:
                model, text = ask(self._address)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                continue
            if self.answers.setdefault(model, text) != text:
                self.wrong.append(f"{model} said {text!r}, and {self.answers[model]!r} before")
            self.count += 1
