"""Engines as processes of this host, each under a small supervisor that outlives the agent.

An instance is a folder `<run>/instances/<name>/` with its `spec.json`, and, once started, a supervisor
(`native_shim.py`) that holds the folder's lock. What runs is therefore read off the kernel, never off a pid file: who
holds the lock, and which processes carry the marks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends import native_processes as processes
from runtime.interfaces import SOCKET_NAME, EngineView
from schemas.digests import digest_text
from schemas.errors import BackendUnavailable, ImageUnavailable, StartFailed
from schemas.observation import Absent, Instance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.interfaces import InstanceSpec, Progress
    from schemas.observation import Observation
    from schemas.ports import Ports, Stop
    from schemas.snapshot import Mode, Unenforced
    from schemas.target import BackendName

SHIM: Final = Path(__file__).with_name("native_shim.py")

START_SECONDS: Final = 30.0
"""From launching a supervisor to its report: 50 ms on a quiet machine."""
KILL_SECONDS: Final = 10.0
"""From SIGKILL to the end; longer only for a process that hangs in a driver."""
PROBE_SECONDS: Final = 10.0

ALWAYS_UNENFORCED: Final = ("filesystem", "memory", "pids", "user")
"""What a plain process is not kept from: the agent's user's files, the host's memory and process table."""

SPEC_LIMIT: Final = 2**20
"""Bytes of a file in an instance's folder."""


class NativeBackend:
    """Instances as host processes. Keeps nothing in memory that another agent would need."""

    name: BackendName = "native"
    mode: Mode = "native"

    def __init__(self, run_folder: Path, *, network: str, node_id: str, ports: Ports) -> None:
        """Attach to a folder; nothing is touched yet.

        Args:
            run_folder: the node's folder for what runs; instances live below `instances/`.
            network: the network of this node.
            node_id: this node. Processes of other nodes on the same host are none of ours.
            ports: durable writes and short subprocesses.
        """
        self._folder = run_folder / "instances"
        self._remembered = run_folder / "namespaces"
        self._marks = {"network": network, "node": node_id}
        self._owner = digest_text(f"native/1|{network}|{node_id}")
        self._ports = ports
        self._changing = threading.Lock()
        self._permitted: str | None = None

    # --- looking --------------------------------------------------------------------------------------------------

    def list(self) -> tuple[Instance, ...]:
        """Every instance of this node: folders, and processes that carry its marks without having one."""
        try:
            alive = {process.instance for process in processes.marked(self._owner)}
            names = sorted({*self._names(), *alive})
            seen = [self._look(name, marked=name in alive) for name in names]
        except (OSError, ValueError, KeyError) as error:
            raise BackendUnavailable(f"native instances cannot be seen: {error}") from error
        return tuple(instance for instance in seen if instance is not None)

    def inspect(self, name: str) -> Instance | None:
        """One instance."""
        return next((instance for instance in self.list() if instance.name == name), None)

    def view(self, *, model_folder: Path, socket_folder: Path) -> EngineView:  # noqa: ARG002 - it is where it runs
        """Host paths, the socket's relative to the folder in which the engine runs.

        So a deep state directory does not make it longer than the 107 bytes that unix(7) allows.
        """
        return EngineView(str(model_folder), SOCKET_NAME)

    def not_enforced(self) -> tuple[Unenforced, ...]:
        """What this host cannot keep a process from."""
        return tuple(sorted((*ALWAYS_UNENFORCED, *(("network",) if self._namespaces() == "none" else ()))))

    def is_peer(self, name: str, pid: int) -> bool:
        """Whether a process came from the instance's supervisor."""
        try:
            shim = processes.lock_holder(self._folder / name / "lock")
        except OSError as error:
            raise BackendUnavailable(f"{name} cannot be seen: {error}") from error
        return shim not in (0, pid) and processes.descends_from(pid, shim)

    def output(self, name: str, *, limit: int) -> str:
        """The end of what the instance printed."""
        try:
            spec = self._spec(name)
            if spec is None:
                return ""
            log = Path(spec["logFolder"], "output.log")
            tail = _tail(log, limit)
            if len(tail) < limit:
                tail = _tail(log.with_suffix(".log.1"), limit - len(tail)) + tail
        except (OSError, ValueError, KeyError):
            return ""
        return tail.decode(errors="replace")

    def image(self, ref: str) -> Observation[str]:  # noqa: ARG002 - there are none
        """Host processes need no image."""
        return Absent()

    def pull(self, ref: str, *, progress: Progress, stop: Stop) -> None:  # noqa: ARG002 - there are none
        """Host processes need no image."""
        raise ImageUnavailable(f"{ref}: native instances have no images")

    # --- life -----------------------------------------------------------------------------------------------------

    def create(self, spec: InstanceSpec) -> None:
        """Write the instance's folder; fine if it is there with the same spec."""
        with self._changing:
            try:
                known = self._spec(spec.name)
                if known is None:
                    self._sweep()
                    self._write(spec)
                    self._remember_namespaces()
                elif (known["intent"], known["specDigest"]) != (spec.intent, spec.target.spec_digest):
                    raise StartFailed(f"another instance is called {spec.name}")
            except (OSError, ValueError, KeyError) as error:
                raise StartFailed(f"{spec.name} cannot be prepared: {error}") from error

    def start(self, name: str) -> None:
        """Launch the supervisor, and wait for its word that the engine's program runs."""
        with self._changing:
            try:
                spec = self._spec(name)
                if spec is None:
                    raise StartFailed(f"there is no instance {name}")
                answer = self._launch(name, spec)
                if answer != "ok":
                    # It reports before it ends: whoever looks next should see that nothing runs.
                    self._end_supervisor(name, ((None, KILL_SECONDS),))
            except (OSError, ValueError, KeyError) as error:
                raise StartFailed(f"{name} cannot be started: {error}") from error
        if answer != "ok":
            raise StartFailed(f"{name} cannot be started: {answer or 'its supervisor ended'}")

    def stop(self, name: str, *, grace: float) -> None:
        """SIGTERM to the engine's process group, SIGKILL after `grace` seconds, then to whatever is left."""
        if self._is_foreign(name):
            return
        try:
            self._stop_supervised(name, grace)
            self._kill_left(name)
        except (OSError, ValueError, KeyError) as error:
            raise BackendUnavailable(f"{name} cannot be stopped: {error}") from error

    def remove(self, name: str) -> None:
        """Remove the instance's folder; what still runs is killed first."""
        if self._is_foreign(name):
            return
        self.stop(name, grace=0)
        with self._changing:
            try:
                self._ports.files.remove(self._folder / name)
            except OSError as error:
                raise BackendUnavailable(f"{name} cannot be removed: {error}") from error

    # --- inside: looking ------------------------------------------------------------------------------------------

    def _names(self) -> Sequence[str]:
        try:
            return [entry.name for entry in self._folder.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []

    def _spec(self, name: str) -> dict[str, Any] | None:
        """An instance's spec, None if there is none or another node's."""
        spec = _read(self._folder / name / "spec.json")
        return spec if spec is not None and spec["marks"] == self._marks else None

    def _is_foreign(self, name: str) -> bool:
        """Whether the folder is another node's. A damaged one is ours to clear away: nobody else writes here."""
        try:
            spec = _read(self._folder / name / "spec.json")
        except (OSError, ValueError):
            return False
        return spec is not None and spec.get("marks") != self._marks

    def _look(self, name: str, *, marked: bool) -> Instance | None:
        """One instance.

        Args:
            name: of a folder, or from a process's marks.
            marked: whether live processes carried its name a moment ago; asking again costs a look at all processes.
        """
        folder = self._folder / name
        spec = self._spec(name)
        # Asked in this order: an instance that ends meanwhile is seen with its end, never as one that did not start.
        shim = processes.lock_holder(folder / "lock") if spec is not None else 0
        state, end = _read(folder / "state.json"), _read(folder / "exit.json")
        left = self._left(name, state) if marked and not shim else []
        if spec is None:
            # Its folder is gone and it runs on: it must be seen, or a second would be started beside it (I3).
            return self._orphan(left[0]) if left else None
        started = datetime.fromtimestamp(state["startedAt"], UTC) if state is not None else None
        base = Instance(name, spec["intent"], self.name, spec["specDigest"], "created", started_at=started)
        if shim:
            return replace(base, status="running")
        if left:
            return replace(
                base, status="running", health="unhealthy", detail="its supervisor is gone, processes of it remain"
            )
        if end is not None:
            return replace(base, status="exited", exit_code=_code(end), detail=_words(end))
        return replace(base, status="exited", detail=self._lost(state)) if state is not None else base

    def _orphan(self, pid: int) -> Instance | None:
        found = next((process for process in processes.marked(self._owner) if process.pid == pid), None)
        if found is None:
            return None
        return Instance(
            found.instance, found.intent, self.name, found.spec, "running", "unhealthy", detail="its folder is gone"
        )

    def _left(self, name: str, state: dict[str, Any] | None) -> Sequence[int]:
        """Processes of an instance, its supervisor included: by their marks, and by the session of its engine."""
        found = {process.pid for process in processes.marked(self._owner) if process.instance == name}
        if state is not None and state["boot"] == _boot_id():
            found.update(processes.session_members(state["engine"], state["engineTicks"]))
        return sorted(found)

    def _lost(self, state: dict[str, Any]) -> str:
        return "killed with its supervisor" if state["boot"] == _boot_id() else "the machine was restarted"

    def _namespaces(self) -> str:
        """How this host lets a process leave its network: asked by doing it, once, and again after a restart."""
        if self._permitted is None:
            boot, _, known = self._remembered.read_text().partition(" ") if self._remembered.exists() else ("", "", "")
            self._permitted = known if boot == _boot_id() and known in ("plain", "user", "none") else None
        if self._permitted is None:
            try:
                done = self._ports.processes.run(
                    (sys.executable, "-I", "-S", str(SHIM), "--probe"), timeout=PROBE_SECONDS, env={}
                )
                self._permitted = str(json.loads(done.stdout)["namespaces"])
            except (OSError, TimeoutError, OverflowError, ValueError, KeyError):
                self._permitted = "none"
        return self._permitted

    def _remember_namespaces(self) -> None:
        """Spare the next process the question, which takes 40 ms. Only where something is created anyway (I9)."""
        text = f"{_boot_id()} {self._namespaces()}"
        if not self._remembered.exists() or self._remembered.read_text() != text:
            self._ports.files.write(self._remembered, text.encode())

    # --- inside: life ---------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Remove folders that a crash left before their spec was written: nothing can have been started from them."""
        for name in self._names():
            if not (self._folder / name / "spec.json").exists():
                self._ports.files.remove(self._folder / name)

    def _write(self, spec: InstanceSpec) -> None:
        marks = {
            processes.OWNER: self._owner,
            processes.INSTANCE: spec.name,
            processes.INTENT: spec.intent,
            processes.SPEC: spec.target.spec_digest,
        }
        folder = self._folder / spec.name
        value = {
            "marks": self._marks,
            "intent": spec.intent,
            "specDigest": spec.target.spec_digest,
            "argv": list(spec.launch.argv),
            # The marks come first: a look at the host's processes reads no more than the beginning.
            "env": {
                **marks,
                **spec.launch.env,
                "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
                "TMPDIR": str(folder / "tmp"),
                # Nothing of the agent's user is read or left behind: caches and settings go with the instance.
                "HOME": str(folder / "tmp"),
            },
            "folder": str(spec.socket_folder),
            "cpus": spec.target.resources.cpus or 0,
            "namespaces": self._namespaces(),
            "logFolder": str(spec.log_folder),
            "logLimit": spec.log_limit,
        }
        self._ports.files.make_folder(folder, mode=0o700)
        self._ports.files.make_folder(folder / "tmp", mode=0o700)
        self._ports.files.write(folder / "spec.json", json.dumps(value).encode(), mode=0o600)

    def _launch(self, name: str, spec: dict[str, Any]) -> str:
        """Start the supervisor detached; what it reports."""
        folder = self._folder / name
        return processes.launch(
            lambda told: (sys.executable, "-I", "-S", str(SHIM), str(folder / "spec.json"), str(told)),
            env={key: spec["env"][key] for key in spec["env"] if key.startswith("RECONCILE_")},
            log=folder / "shim.log",
            seconds=START_SECONDS,
        )

    def _stop_supervised(self, name: str, grace: float) -> None:
        steps = (
            (signal.SIGTERM, grace),
            (signal.SIGUSR1, KILL_SECONDS),
            # The supervisor itself hangs: the kernel kills the engine with it.
            (signal.SIGKILL, KILL_SECONDS),
        )
        if not self._end_supervisor(name, steps):
            raise BackendUnavailable(f"the supervisor of {name} does not end")

    def _end_supervisor(self, name: str, steps: Sequence[tuple[signal.Signals | None, float]]) -> bool:
        """Send signals (None: only wait), each with its seconds, until the supervisor has ended; whether it has."""
        lock = self._folder / name / "lock"
        shim = processes.lock_holder(lock)
        if shim == 0:
            return True
        with processes.held(shim, lambda: processes.lock_holder(lock) == shim) as process:
            if process is None:
                return True
            for number, seconds in steps:
                if number is not None:
                    processes.send(process, number)
                if processes.ended_within(process, seconds):
                    return True
        return False

    def _kill_left(self, name: str) -> None:
        """Kill what no supervisor looks after any more, until nothing is left."""
        state = _read(self._folder / name / "state.json")
        clock = self._ports.clock
        deadline = clock.monotonic() + KILL_SECONDS
        while left := self._left(name, state):
            for pid in left:
                with processes.held(pid, partial(self._is_left, name, state, pid)) as process:
                    if process is not None:
                        processes.send(process, signal.SIGKILL)
                        processes.ended_within(process, deadline - clock.monotonic())
            if clock.monotonic() > deadline:
                raise BackendUnavailable(f"process {left[0]} of {name} does not die")

    def _is_left(self, name: str, state: dict[str, Any] | None, pid: int) -> bool:
        return pid in self._left(name, state)


# --- small parts --------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file of an instance's folder, None if it is not there.

    Raises:
        ValueError: not JSON, or not an object.
    """
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(SPEC_LIMIT))
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not what was written there")  # noqa: TRY004 - a damaged file, not a wrong argument
    return value


def _tail(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - limit, 0))
            return file.read(limit)
    except FileNotFoundError:
        return b""


def _code(end: dict[str, Any]) -> int:
    """The exit code as shells and containers tell it: 128 more than the number of a signal."""
    return int(end["code"]) if end["code"] is not None else 128 + int(end["signal"])


def _words(end: dict[str, Any]) -> str:
    if end["code"] is not None:
        return f"exit code {end['code']}"
    return f"signal {end['signal']}" + (", perhaps out of memory" if end["outOfMemory"] else "")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
