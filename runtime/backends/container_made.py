"""What a container engine said of each container right after it was made: kept beside the sockets, in `run/containers`.

Read at every look, so that what somebody else changes since shows, and a container that was renamed is found again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from schemas.ports import Files

READ_LIMIT: Final = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """One container as it was made."""

    id: str
    """The engine's, which is never used again."""
    settings: Mapping[str, str]
    """`container_drift.settings` of it."""


class Made:
    """The records of one node's containers. One that is damaged or missing says nothing: nothing is compared then."""

    def __init__(self, run_folder: Path | None, files: Files) -> None:
        """Attach to a folder; nothing is touched yet.

        Args:
            run_folder: the node's folder for what runs; None where containers are gone before anybody looks twice.
            files: durable writes.
        """
        self._folder = run_folder / "containers" if run_folder is not None else None
        self._files = files
        self._known: dict[str, Record | None] = {}

    def read(self, name: str) -> Record | None:
        """The record of a container."""
        if name not in self._known:
            self._known[name] = self._load(name)
        return self._known[name]

    def named(self, id_: str) -> str | None:
        """The name that a container was made with."""
        names = [path.stem for path in self._folder.glob("*.json")] if self._folder is not None else []
        return next(
            (name for name in sorted(names) if (known := self.read(name)) is not None and known.id == id_), None
        )

    def write(self, name: str, record: Record) -> None:
        """Keep a record.

        Raises:
            OSError: the disk refused.
        """
        self._known[name] = record
        if self._folder is not None:
            self._files.make_folder(self._folder, mode=0o700)
            content = json.dumps({"id": record.id, "settings": dict(record.settings)}).encode()
            self._files.write(self._folder / f"{name}.json", content, mode=0o600)

    def forget(self, name: str) -> None:
        """The container is gone.

        Raises:
            OSError: the disk refused.
        """
        self._known.pop(name, None)
        if self._folder is not None:
            self._files.remove(self._folder / f"{name}.json")

    def _load(self, name: str) -> Record | None:
        if self._folder is None:
            return None
        try:
            with (self._folder / f"{name}.json").open("rb") as file:
                value = json.loads(file.read(READ_LIMIT))
            return Record(str(value["id"]), {str(key): str(text) for key, text in value["settings"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
