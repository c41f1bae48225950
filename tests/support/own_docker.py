"""A Docker engine of a test's own, which may be stopped, killed and started again, with nobody else's containers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.containers import engine_answers
from tests.support.front import eventually


class OwnDocker:
    """A dockerd with folders of its own, without a network of its own, below some other dockerd's feet."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs yet.

        Args:
            folder: for everything; the path of a socket in it has to be short.
        """
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started, and not ended since."""
        return self._process is not None

    def start(self) -> None:
        """Start it, and return once it answers."""
        # A pid file that outlived its process would keep the next one from starting once the number is taken.
        (self.folder / "pid").unlink(missing_ok=True)
        command = ["dockerd", "--host", self.host, "--data-root", str(self.folder / "data")]
        command += ["--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "pid")]
        command += ["--bridge", "none", "--iptables=false", "--ip-masq=false", "--userland-proxy=false"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        eventually(lambda: engine_answers(self.host) or self._process.poll() is not None, "dockerd answers")  # type: ignore[union-attr] # set above
        if self._process.poll() is not None:
            said = (self.folder / "log").read_text(errors="replace")
            pytest.fail(f"dockerd does not start: {said[-2000:]}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, with its containers; or kill it, which leaves them running.

        Args:
            number: SIGTERM or SIGKILL.
        """
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(120)
        self._process = None
        if number == signal.SIGKILL:
            self._end_containerd()

    def take_apart(self) -> None:
        """End it and all that came of it, and remove its folders."""
        if self._process is None:
            # What a killed one has left running is ended by the next one.
            self.start()
        self.end()
        for line in reversed(_mounts_below(self.folder)):
            subprocess.run(["umount", "--lazy", line], check=False, capture_output=True, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_containerd(self) -> None:
        """End the containerd of a dockerd that was killed: nobody may reap it, and the next would take it for alive."""
        path = self.folder / "exec/containerd/containerd.pid"
        try:
            process = int(path.read_text())
            os.kill(process, signal.SIGKILL)
        except (OSError, ValueError):
            return
        eventually(lambda: _is_over(process), "containerd ends")
        path.unlink(missing_ok=True)


def _is_over(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state in "ZX"


def _mounts_below(folder: Path) -> list[str]:
    with open("/proc/self/mounts", encoding="utf-8") as file:  # noqa: PTH123 - a kernel file
        return [point for line in file if (point := line.split()[1]).startswith(f"{folder}/")]
