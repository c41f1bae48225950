"""What containers print: its end, all of it as it comes, and what is kept of it when the container goes."""

from __future__ import annotations

import os
from collections import deque
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends.container_answers import LABEL, status
from runtime.backends.monitor_log import MonitorLog
from runtime.backends.stamped_lines import Place
from schemas.errors import BackendUnavailable, StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.backends.docker_api import DockerApi
    from schemas.ports import Files, Stop

LOOK_SECONDS: Final = 0.5
"""Between two questions for what a container has printed since; one costs some milliseconds."""

OUTPUT_LIMIT: Final = 2**20


class ContainerOutput:
    """Of the containers of one engine."""

    def __init__(self, api: DockerApi, look: Callable[[str], dict[str, Any] | None]) -> None:
        """Describe it; nothing is asked yet.

        Args:
            api: the engine.
            look: what the engine knows of a container of this node's, by the node's name for it.
        """
        self._api = api
        self._look = look

    def end(self, name: str, limit: int) -> str:
        """The end of what the container printed."""
        try:
            with self._api.translated():
                tail = self._api.client.logs(self._at(name), stdout=True, stderr=True, tail=200)
        except (BackendUnavailable, StartFailed):
            return ""
        return bytes(tail)[-limit:].decode(errors="replace")

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        """What the engine's own capped log has of it.

        Of Podman's monitor the file itself, where the agent can read it. Else asked again and again, by time: followed
        across a rotation of its log, Docker (28) repeats lines and Podman loses some.
        """
        with self._api.translated():
            detail = self._look(name)
        if detail is None:
            return
        path = self._monitored(detail)
        if path is not None:
            yield from self._from_file(name, path, lines=lines, follow=follow, stop=stop)
            return
        place = Place()
        tail: int | str = lines  # the SDK takes a number in a string for "all"
        while True:
            asked = {"since": place.second} if place.second else {"tail": tail}
            text = b""
            with self._api.translated():
                detail = self._look(name)
            if detail is None:
                return
            # Podman refuses to read a log that it is rotating: the next look finds what there is then.
            with suppress(StartFailed) if follow else nullcontext(), self._api.translated():
                text = bytes(self._api.client.logs(self._at(name), stdout=True, stderr=True, timestamps=True, **asked))
            last = not follow or not detail["State"].get("Running")
            yield from place.news(text, whole=last)
            tail = "all"
            if last or stop.wait(LOOK_SECONDS):
                return

    def keep(self, name: str, detail: dict[str, Any], files: Files) -> None:
        """Write what it printed into its log folder: the engine's own log goes with the container."""
        labels = detail["Config"].get("Labels") or {}
        folder, limit = labels.get(f"{LABEL}log-folder"), labels.get(f"{LABEL}log-limit", "")
        if not folder or not Path(folder).is_dir():
            return
        kept = bytearray()
        bound = min(int(limit) if limit.isdigit() else OUTPUT_LIMIT, 64 * OUTPUT_LIMIT)
        for part in self._all_output(name, detail):
            kept += part
            del kept[:-bound]
        files.write(Path(folder) / "output.log", bytes(kept), mode=0o600)

    def _monitored(self, detail: dict[str, Any]) -> Path | None:
        """The log file of a container's monitor; None for an engine without one, or where it lies out of reach."""
        path = str(detail.get("LogPath") or "") if self._api.name == "podman" else ""
        return Path(path) if path and os.access(path, os.R_OK) else None

    def _from_file(self, name: str, path: Path, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        with MonitorLog(path) as log:
            known = deque(log.news(), maxlen=lines)
            yield from known
            runs = follow
            while runs and not stop.wait(LOOK_SECONDS):
                # Asked first: what it printed before it ended is in the file by then.
                with self._api.translated():
                    detail = self._look(name)
                runs = detail is not None and status(detail) == "running"
                yield from log.news()
            if lines:
                yield from log.last()

    def _all_output(self, name: str, detail: dict[str, Any]) -> Iterator[bytes]:
        path = self._monitored(detail)
        if path is not None:
            with MonitorLog(path) as log:
                yield from log.news()
                yield from log.last()
            return
        yield from self._api.client.logs(self._at(name), stdout=True, stderr=True, stream=True, follow=False)

    def _at(self, name: str) -> str:
        detail = self._look(name)
        return str(detail["Id"]) if detail is not None else name
