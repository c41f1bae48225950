"""What is installed beside the agent, by its folder's name: `importlib.metadata` would parse a mail header for it.

That parser and its imports take 25 ms, of which every `plan` would pay its share. The layout is the standard's: Binary
distribution format and Recording installed projects, packaging.python.org.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed distribution."""

    version: str
    record: str | None
    """Content of its RECORD, None where the installer kept none."""


_read: dict[str, tuple[tuple[int, ...], str]] = {}
"""By path: a RECORD, and its file's stat."""
_listed: dict[str, tuple[tuple[int, ...], list[tuple[str, str, str]]]] = {}
"""By folder of the module path: its distributions, and the folder's stat, which changes when one comes or goes."""

_SETTLED_NS: Final = 10**9
"""What changed more recently may change again without its stat's showing it: file systems count time in ticks."""


def find(name: str) -> Installed | None:
    """The first distribution of a name on the module path, None if there is none.

    Args:
        name: as the project is called; upper case, `-`, `_` and `.` make no difference.
    """
    wanted = _plain(name)
    for place in sys.path:
        for called, version, info in _dist_infos(place or "."):
            if called == wanted and version:
                return Installed(version, _record(f"{place or '.'}/{info}/RECORD"))
    return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _record(path: str) -> str | None:
    """A RECORD, read again only when its file is another; None where there is none."""
    try:
        seen = _identity(path)
        known = _read.get(path)
        if known is not None and known[0] == seen:
            return known[1]
        content = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    if seen:
        _read[path] = (seen, content)
    return content


def _dist_infos(folder: str) -> list[tuple[str, str, str]]:
    """Installed distributions: plain name, version and folder's name, sorted; nothing where there is no folder.

    A daemon asks at every look, of folders of hundreds, of which none has changed.
    """
    try:
        seen = _identity(folder)
        known = _listed.get(folder)
        if known is not None and known[0] == seen:
            return known[1]
        names = sorted(name for name in os.listdir(folder) if name.endswith(".dist-info"))  # noqa: PTH208 - as said
    except OSError:
        return []
    split = [(name, *name.removesuffix(".dist-info").partition("-")) for name in names]
    found = [(_plain(called), version, name) for name, called, _, version in split]
    if seen:
        _listed[folder] = (seen, found)
    return found


def _identity(path: str) -> tuple[int, ...]:
    """What changes whenever a file or a folder does; nothing, which is no known one's, where that just happened."""
    seen = os.stat(path)  # noqa: PTH116 - as said
    if time.time_ns() - seen.st_ctime_ns < _SETTLED_NS:
        return ()
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
