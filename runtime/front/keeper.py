"""The agent's hand on the front: finds it again, starts it, replaces it, leads it.

Each front has a folder of its own, `run/front/<token>/`, and holds the lock in it while it lives; which of them takes
new clients, the address itself says. So what is there is read off the kernel, as with native instances, and an agent
that was killed anywhere leaves nothing that the next one does not see.
"""

from __future__ import annotations

import json
import platform
import signal
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends import native_processes as processes
from runtime.backends.native_shim import start_ticks
from runtime.connection import UnixConnection
from runtime.front.route import ROUTE_LIMIT, Route
from runtime.installed import find
from runtime.interfaces import FrontCounts
from schemas.digests import digest_bytes, digest_text
from schemas.errors import BackendUnavailable, EngineUnreachable, StartFailed
from schemas.observation import FrontSeen
from schemas.target import FrontLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from schemas.ports import Ports

START_SECONDS: Final = 30.0
"""From launching a front to its report: 0.2 s on a quiet machine."""
ANSWER_SECONDS: Final = 5.0
"""For one question to a front; it takes 2 ms. One that takes longer is not doing its work."""
DRAIN_LOOK_SECONDS: Final = 0.02
"""Between two questions while an instance is drained."""
END_SECONDS: Final = 10.0
FILE_LIMIT: Final = 2**16

PARTS: Final = (
    "front",
    "connection.py",
    "backends/native_shim.py",
    "backends/native_confinement.py",
    "backends/native_group.py",
    "../schemas/errors.py",
)
"""What the program is made of, below this package."""


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """What the node's owner decides about the front."""

    allow: tuple[int, ...] = ()
    """User ids that may use it, besides root and the agent's own."""
    group: int = -1
    """Group of the address, -1 for the agent's own."""
    connections: int = 256
    """Clients at once."""
    max_body: int = 2**22
    """Bytes of a request's body."""


@dataclass(frozen=True, slots=True)
class _Front:
    """A front that lives."""

    folder: Path
    pid: int
    digest: str
    takes_clients: bool


class FrontKeeper:
    """The front of one node. Keeps nothing in memory that another agent would need."""

    def __init__(
        self,
        run_folder: Path,
        settings: FrontSettings,
        *,
        uid: int,
        ports: Ports,
        blind: Callable[[], str] = lambda: "",
    ) -> None:
        """Attach to a folder; nothing is touched yet.

        Args:
            run_folder: the node's folder for what runs.
            settings: the owner's.
            uid: the agent's own user.
            ports: the outside.
            blind: why a front could not tell who listens on a runtime's socket from here; empty where it can.
        """
        self._blind = blind
        self.address = run_folder / "front.sock"
        self._route = run_folder / "route.json"
        self._folder = run_folder / "front"
        self._ports = ports
        self._group = settings.group
        self._settings: Mapping[str, Any] = {
            "route": str(self._route),
            "allow": sorted({0, uid, *settings.allow}),
            "connections": settings.connections,
            "max_body": settings.max_body,
        }
        self._digest = ""

    # --- looking --------------------------------------------------------------------------------------------------

    def look(self) -> FrontSeen:
        """What is there, read off locks and files.

        Raises:
            BackendUnavailable: it cannot be told, or a front would be of no use here.
        """
        if blind := self._blind():
            # One that was started all the same would refuse every request, in the place of one that may still serve.
            raise BackendUnavailable(f"no front can lead anywhere from here: {blind}")
        try:
            current = any(front.takes_clients and front.digest == self._program() for front in self._alive())
            # What is damaged leads nowhere that is known: it is written again.
            route = self._read_route() or Route()
        except (OSError, ValueError, KeyError) as error:
            raise BackendUnavailable(f"the front cannot be seen: {error}") from error
        limits = FrontLimits(
            max_tokens=route.max_tokens,
            max_queue=route.max_queue,
            timeout=int(route.timeout),
            hold=int(route.hold),
        )
        return FrontSeen(current, route.state, route.intent, limits)

    def counts(self) -> FrontCounts | None:
        """What all fronts are doing; None when none answers."""
        try:
            stats = [self._ask(front) for front in self._alive()]
        except (OSError, ValueError, KeyError, EngineUnreachable):
            return None
        if not stats:
            return None
        total: Counter[str] = Counter()
        for item in stats:
            total.update({name: value for name, value in item.items() if type(value) is int})
        return FrontCounts(
            connections=total["connections"],
            in_flight=total["inFlight"],
            held=total["held"],
            served=total["served"],
            refused=total["refused"],
            unavailable=total["unavailable"],
            failed=total["failed"],
            gone=total["gone"],
            cut=total["cut"],
            cut_by_drain=total["cutByDrain"],
        )

    # --- life -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Start a front unless this agent's takes clients; tell the others to end; clear away what is dead."""
        try:
            alive = list(self._alive())
            wanted = next((front for front in alive if front.takes_clients and front.digest == self._program()), None)
            if wanted is None:
                self._start()
            for front in alive:
                if front is not wanted:
                    self._retire(front)
            self._sweep()
        except (OSError, ValueError, KeyError) as error:
            raise StartFailed(f"the front cannot be started: {error}") from error

    def stop(self) -> None:
        """End every front at once: for whoever takes a node apart."""
        for front in list(self._alive()):
            self._kill(front)
        self._sweep()
        self.address.unlink(missing_ok=True)

    # --- leading --------------------------------------------------------------------------------------------------

    def lead(self, route: Route) -> None:
        """Replace the route file."""
        try:
            if route.pid:
                route = replace(route, ticks=start_ticks(route.pid))
            self._ports.files.write(self._route, route.to_json(), mode=0o600)
        except (OSError, ValueError) as error:
            raise StartFailed(f"the front cannot be led to {route.instance or 'nothing'}: {error}") from error

    def hold(self, instance: str) -> bool:
        """Turn a route to this instance into waiting."""
        try:
            route = self._read_route()
        except OSError as error:
            raise StartFailed(f"the route cannot be read: {error}") from error
        if route is None:
            # It may have led there.
            self.lead(Route(state="holding", instance=instance))
            return True
        if route.instance != instance or route.state == "none":
            return False
        if route.state != "holding":
            self.lead(replace(route, state="holding", pid=0, ticks=0))
        return True

    def drain(self, instance: str, *, seconds: float) -> int:
        """Ask how many requests the instance still has, until none is left or the time is up."""
        clock, stop = self._ports.clock, self._ports.stop
        until = clock.monotonic() + seconds
        left = self._in_flight(instance)
        while left and clock.monotonic() < until and not stop.wait(DRAIN_LOOK_SECONDS):
            left = self._in_flight(instance)
        return left

    # --- inside ---------------------------------------------------------------------------------------------------

    def _alive(self) -> Iterator[_Front]:
        """Fronts that live, the older ones first."""
        try:
            inode = self.address.lstat().st_ino
        except FileNotFoundError:
            inode = 0
        for folder in self._folders():
            pid = processes.lock_holder(folder / "lock")
            if pid:
                told, state = _read(folder / "settings.json"), _read(folder / "state.json")
                yield _Front(folder, pid, str(told.get("digest")), bool(inode) and state.get("inode") == inode)

    def _folders(self) -> list[Path]:
        try:
            return sorted(entry for entry in self._folder.iterdir() if entry.is_dir())
        except FileNotFoundError:
            return []

    def _read_route(self) -> Route | None:
        """The route as it lies there; None for one that is damaged.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with self._route.open("rb") as file:
                return Route.from_json(file.read(ROUTE_LIMIT))
        except FileNotFoundError:
            return Route()
        except (ValueError, TypeError):
            return None

    def _program(self) -> str:
        """Digest of everything that a running front cannot change: its code and its settings."""
        if not self._digest:
            here = Path(__file__).parents[1]
            files = [file for part in PARTS for file in _python_files(here / part)]
            parser = find("httptools")
            lines = [
                "front/1",
                platform.python_version(),
                parser.version if parser is not None else "",
                *(digest_bytes(file.read_bytes()) for file in files),
                json.dumps({**self._settings, "group": self._group}, sort_keys=True),
            ]
            self._digest = digest_text("\n".join(lines))
        return self._digest

    def _start(self) -> None:
        files, clock = self._ports.files, self._ports.clock
        token = f"{clock.now():%Y%m%dT%H%M%S}-{self._ports.randomness.token(4)}"
        folder = self._folder / token
        # Clients pass through the folder of the address; nobody but the agent enters the fronts' own.
        files.make_folder(self._folder.parent, mode=0o711)
        files.make_folder(self._folder, mode=0o700)
        files.make_folder(folder, mode=0o700)
        value = {
            "digest": self._program(),
            "address": str(self.address),
            "group": self._group,
            "settings": self._settings,
        }
        files.write(folder / "settings.json", json.dumps(value).encode(), mode=0o600)
        # -I: no environment variable and no folder of the user's adds code to it.
        program = (sys.executable, "-I", "-m", "runtime.front.program", str(folder / "settings.json"))
        answer = processes.launch(
            lambda told: (*program, str(told)),
            env={"LANG": "C.UTF-8", "RECONCILE_FRONT": str(self.address)},
            log=folder / "output.log",
            seconds=START_SECONDS,
        )
        if answer != "ok":
            raise StartFailed(f"the front cannot be started: {answer or _tail(folder / 'output.log') or 'it ended'}")

    def _retire(self, front: _Front) -> None:
        """Let a front end with its last answer; one that does not listen ends at once."""
        try:
            self._ask(front, "POST", "/retire")
        except EngineUnreachable:
            self._kill(front)

    def _kill(self, front: _Front) -> None:
        lock = front.folder / "lock"
        with processes.held(front.pid, lambda: processes.lock_holder(lock) == front.pid) as process:
            if process is not None:
                processes.send(process, signal.SIGKILL)
                processes.ended_within(process, END_SECONDS)

    def _sweep(self) -> None:
        """Remove the folders of fronts that have ended."""
        for folder in self._folders():
            if not processes.lock_holder(folder / "lock"):
                self._ports.files.remove(folder)

    def _in_flight(self, instance: str) -> int:
        """Requests that an instance still has, over all fronts; one that does not answer is taken to have one."""
        total = 0
        for front in self._alive():
            try:
                total += int(self._ask(front)["inFlightBy"].get(instance, 0))
            except EngineUnreachable:
                total += processes.lock_holder(front.folder / "lock") == front.pid
        return total

    def _ask(self, front: _Front, method: str = "GET", path: str = "/stats") -> dict[str, Any]:
        connection = UnixConnection(front.folder / "control.sock", is_peer=lambda pid: pid == front.pid)
        answer = connection.request(method, path, timeout=ANSWER_SECONDS, limit=FILE_LIMIT)
        if not isinstance(answer, dict):
            raise EngineUnreachable("the front answers something else")
        return answer


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.py"))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of a front's folder; empty when it is not there yet, or damaged: then another front is started."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(FILE_LIMIT))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _tail(path: Path) -> str:
    return path.read_bytes()[-600:].decode(errors="replace").strip() if path.exists() else ""
