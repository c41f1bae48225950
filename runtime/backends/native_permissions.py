"""How far this machine lets a native engine be locked in: found out by doing it, once per boot, and remembered."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from runtime.backends.native_confinement import mounts_end_with_us
from schemas.digests import digest_bytes, digest_text

if TYPE_CHECKING:
    from schemas.ports import Ports
    from schemas.runtimes import Unenforced

SHIM: Final = Path(__file__).with_name("native_shim.py")
PARTS: Final = tuple(Path(__file__).with_name(f"native_{part}.py") for part in ("confinement", "group"))

PROBE_SECONDS: Final = 10.0
SPEC_LIMIT: Final = 2**20
"""Bytes of a file of ours that are read."""

NOTHING: Final = {
    "namespaces": "none",
    "root": False,
    "user": False,
    "refused": ["cpu", "memory", "pids"],
    "capped": False,
}
"""What is permitted where the question itself fails."""


class Permissions:
    """What a machine permits, asked when it is first needed."""

    def __init__(self, remembered: Path, ports: Ports) -> None:
        """Ask nothing yet.

        Args:
            remembered: file for the answer; only `remember` writes it.
            ports: durable writes and short subprocesses.
        """
        self._remembered = remembered
        self._ports = ports
        self._permitted: dict[str, Any] | None = None

    def not_enforced(self) -> tuple[Unenforced, ...]:
        """The restrictions of I10 that an engine can be under nowhere on this machine, sorted."""
        permitted = self.found()
        # Without a control group, processes are counted per user: of a user of its own, or of a namespace's.
        counted = permitted["user"] or (permitted["namespaces"] == "user" and permitted["root"])
        missing: dict[Unenforced, bool] = {
            "cpu": "cpu" in permitted["refused"],
            "filesystem": not permitted["root"],
            "memory": "memory" in permitted["refused"],
            "network": permitted["namespaces"] == "none",
            "pids": "pids" in permitted["refused"] and not counted,
            "shm": not permitted["root"],
            "socket-size": not permitted["capped"],
            "user": not permitted["user"],
        }
        return tuple(sorted(name for name, is_missing in missing.items() if is_missing))

    def found(self) -> dict[str, Any]:
        """What `native_confinement.probe` found, here and since the machine was started."""
        if self._permitted is None:
            self._permitted = self._recalled() or self._probed()
        return self._permitted

    def _recalled(self) -> dict[str, Any] | None:
        try:
            known = read(self._remembered)
        except ValueError:
            return None
        # Another agent's, another user's or an earlier boot's answer says nothing about this one.
        if known is None or known.get("asked") != self._asked() or not isinstance(known.get("permitted"), dict):
            return None
        permitted: dict[str, Any] = known["permitted"]
        return permitted

    def _probed(self) -> dict[str, Any]:
        try:
            with TemporaryDirectory(prefix="reconcile-") as folder:
                done = self._ports.processes.run(
                    (sys.executable, "-I", "-S", str(SHIM), "--probe", folder), timeout=PROBE_SECONDS, env={}
                )
            permitted: dict[str, Any] = json.loads(done.stdout)
        except (OSError, TimeoutError, OverflowError, ValueError):
            return dict(NOTHING)
        return permitted

    def _asked(self) -> str:
        """What an answer holds for."""
        where = f"{boot_id()}|{os.geteuid()}|{mounts_end_with_us()}"
        return digest_text(f"{where}|{[digest_bytes(part.read_bytes()) for part in PARTS]}")

    def remember(self) -> None:
        """Spare the next process the question, which takes 100 ms. Only where something is created anyway (I9)."""
        text = json.dumps({"asked": self._asked(), "permitted": self.found()})
        if not self._remembered.exists() or self._remembered.read_text() != text:
            self._ports.files.write(self._remembered, text.encode())


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file of ours, None if it is not there.

    Raises:
        ValueError: not JSON, or not an object.
    """
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(SPEC_LIMIT))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not what was written there")  # noqa: TRY004 - a damaged file, not a wrong argument
    return value


def read_what_is_sound(path: Path) -> dict[str, Any] | None:
    """As `read`, None for a damaged one too: for what can be found out otherwise."""
    try:
        return read(path)
    except ValueError:
        return None


def boot_id() -> str:
    """Identifies this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
