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

from runtime import logs
from runtime.backends import native_drift as drift
from runtime.backends import native_processes as processes
from runtime.backends.native_confinement import unmount
from runtime.backends.native_group import Group, sweep
from runtime.backends.native_order import order
from runtime.backends.native_permissions import SHIM, Permissions, boot_id, read, read_what_is_sound
from runtime.gpu_locks import claim
from runtime.interfaces import SOCKET_NAME, EngineView
from schemas.digests import digest_text
from schemas.errors import BackendUnavailable, ImageUnavailable, StartFailed
from schemas.observation import Absent, Instance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.gpu_locks import GpuLocks
    from runtime.interfaces import InstanceSpec, Progress
    from schemas.observation import Observation
    from schemas.ports import Ports, Stop
    from schemas.runtimes import Mode, Unenforced
    from schemas.target import BackendName


START_SECONDS: Final = 30.0
"""From launching a supervisor to its report: 50 ms on a quiet machine."""
KILL_SECONDS: Final = 10.0
"""From SIGKILL to the end; longer only for a process that hangs in a driver."""


class NativeBackend:
    """Instances as host processes. Keeps nothing in memory that another agent would need."""

    name: BackendName = "native"
    mode: Mode = "native"

    def __init__(
        self, run_folder: Path, *, network: str, node_id: str, ports: Ports, locks: GpuLocks | None = None
    ) -> None:
        """Attach to a folder; nothing is touched yet.

        Args:
            run_folder: the node's folder for what runs; instances live below `instances/`.
            network: the network of this node.
            node_id: this node. Processes of other nodes on the same host are none of ours.
            ports: durable writes and short subprocesses.
            locks: of this machine's GPUs; without them no instance is given one.
        """
        self._locks = locks
        self._folder = run_folder / "instances"
        self._marks = {"network": network, "node": node_id}
        self._owner = digest_text(f"native/1|{network}|{node_id}")
        self._ports = ports
        self._changing = threading.Lock()
        self._permissions = Permissions(run_folder / "namespaces", ports)

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
        """What this host cannot keep a process from, as it was found by trying."""
        return self._permissions.not_enforced()

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

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        """The files that the supervisor writes."""
        try:
            spec = self._spec(name)
        except (OSError, ValueError, KeyError) as error:
            raise BackendUnavailable(f"{name} cannot be seen: {error}") from error
        if spec is None:
            return
        folder = Path(spec["logFolder"])
        if follow:
            runs = iter(lambda: self._is_supervised(name), None)
            yield from logs.follow(folder, lines=lines, stop=stop, goes_on=runs)
        else:
            yield from logs.read(folder, lines=lines)

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
                    self._permissions.remember()
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
                # Older agents wrote only whether there are any.
                gpus = spec["gpus"] if isinstance(spec["gpus"], list) else []
                with claim(self._locks, gpus, name) as held:
                    answer = self._launch(name, spec, held)
                if answer != "ok":
                    # It reports before it ends: whoever looks next should see that nothing runs.
                    self._end_supervisor(name, ((None, KILL_SECONDS),))
            except (OSError, ValueError, KeyError) as error:
                raise StartFailed(f"{name} cannot be started: {error}") from error
        if answer != "ok":
            raise StartFailed(f"{name} cannot be started: {answer or 'its supervisor ended'}")

    def mend(self, name: str) -> None:
        """Write the limits into its control groups again."""
        try:
            spec = self._spec(name)
            refused = drift.mend(spec) if spec is not None and self._is_supervised(name) else ()
        except (OSError, ValueError, KeyError) as error:
            raise StartFailed(f"the limits of {name} cannot be set: {error}") from error
        if refused:
            raise StartFailed(f"the limits of {name} cannot be set: {', '.join(refused)} refused")

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
                self._release(name)
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
        spec = read(self._folder / name / "spec.json")
        return spec if spec is not None and spec["marks"] == self._marks else None

    def _is_foreign(self, name: str) -> bool:
        """Whether the folder is another node's. A damaged one is ours to clear away: nobody else writes here."""
        try:
            spec = read(self._folder / name / "spec.json")
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
        # Locks and marks say whether it runs; without these it is only not known since when, or how it ended.
        state, end = read_what_is_sound(folder / "state.json"), read_what_is_sound(folder / "exit.json")
        left = self._left(name, state) if marked and not shim else []
        if spec is None:
            # Its folder is gone and it runs on: it must be seen, or a second would be started beside it (I3).
            return self._orphan(left[0]) if left else None
        started = datetime.fromtimestamp(state["startedAt"], UTC) if state is not None else None
        gpus = tuple(spec["gpus"]) if isinstance(spec["gpus"], list) else ()
        base = Instance(name, spec["intent"], self.name, spec["specDigest"], "created", started_at=started, gpus=gpus)
        if shim:
            changed = drift.differences(spec, state["engine"]) if state is not None else ()
            return replace(base, status="running", changed=changed)
        if left:
            return replace(
                base, status="running", health="unhealthy", detail="its supervisor is gone, processes of it remain"
            )
        if end is not None:
            return replace(base, status="exited", exit_code=_code(end), detail=_words(end))
        return replace(base, status="exited", detail=self._lost(state)) if state is not None else base

    def _is_supervised(self, name: str) -> bool:
        return processes.lock_holder(self._folder / name / "lock") != 0

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
        if state is not None and state["boot"] == boot_id():
            found.update(processes.session_members(state["engine"], state["engineTicks"]))
        return sorted(found)

    def _lost(self, state: dict[str, Any]) -> str:
        return "killed with its supervisor" if state["boot"] == boot_id() else "the machine was restarted"

    # --- inside: life ---------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Remove what a crash left: folders without a spec, from which nothing can have been started; empty groups."""
        sweep()
        for name in self._names():
            if not (self._folder / name / "spec.json").exists():
                self._ports.files.remove(self._folder / name)

    def _write(self, spec: InstanceSpec) -> None:
        folder = self._folder / spec.name
        value = order(spec, folder, marks=self._marks, owner=self._owner, permitted=self._permissions.found())
        self._ports.files.make_folder(folder, mode=0o700)
        for name in ("tmp", "root"):
            self._ports.files.make_folder(folder / name, mode=0o700)
        self._ports.files.write(folder / "spec.json", json.dumps(value).encode(), mode=0o600)

    def _release(self, name: str) -> None:
        """Give back what a supervisor that was killed could not."""
        try:
            spec = self._spec(name) or {}
        except (OSError, ValueError, KeyError):
            spec = {}
        if spec.get("group"):
            Group(spec["group"]).remove()
        for folder in (spec.get("folder", ""), str(self._folder.parent / name)):
            if folder and os.path.ismount(folder):
                unmount(folder)

    def _launch(self, name: str, spec: dict[str, Any], locks: Sequence[int]) -> str:
        """Start the supervisor detached, with the locks that it holds while it lives; what it reports."""
        folder = self._folder / name
        return processes.launch(
            lambda told: (sys.executable, "-I", "-S", str(SHIM), str(folder / "spec.json"), str(told)),
            env={key: spec["env"][key] for key in spec["env"] if key.startswith("RECONCILE_")},
            log=folder / "shim.log",
            seconds=START_SECONDS,
            keep=locks,
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
        state = read_what_is_sound(self._folder / name / "state.json")
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
