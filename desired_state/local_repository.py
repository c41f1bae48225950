"""Repositories on this machine: where their branches leave a trace when they move.

git keeps a branch in a file of its own, or in `packed-refs` (gitrepository-layout(5)). What is laid out otherwise, as
a linked worktree or with reftables, leaves no trace that is known here, and git is asked.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_COMMIT: Final = re.compile(rb"(?:[0-9a-f]{40}|[0-9a-f]{64})\n?")
_LONGEST: Final = 128
"""Bytes that are read of a branch's file: a commit needs 65."""

Trace = tuple[bytes, tuple[int, ...]]


def watched_folders(url: str, branch: str = "") -> tuple[Path, ...]:
    """The folders in which a branch that moves leaves a trace; empty for a repository elsewhere.

    Args:
        url: the repository.
        branch: its branch; one with a slash has a folder of its own, as long as it was never packed.
    """
    git = _git_folder(url)
    if git is None:
        return ()
    heads = git / "refs" / "heads"
    own = (heads / branch).parent
    # Branches move in refs/heads; `git gc` moves them into packed-refs, beside HEAD.
    return (own if branch and own.is_dir() else heads, git)


def trace(url: str, branch: str) -> Trace | None:
    """What is different when a branch has moved: three system calls, where asking git is a process.

    Args:
        url: the repository.
        branch: its branch.

    Returns:
        The branch's own file, word for word, and the identity of `packed-refs`; None where neither would tell.
    """
    git = _git_folder(url)
    if git is None:
        return None
    try:
        own = _read(git / "refs" / "heads" / branch)
        packed = _identity(git / "packed-refs")
    except OSError:
        return None
    if own and not _COMMIT.fullmatch(own):
        return None  # it points to another one
    # Where a branch has a file, nothing else counts; without one, the packed ones do.
    return (own, ()) if own else (b"", packed) if packed else None


def _git_folder(url: str) -> Path | None:
    path = url.removeprefix("file://")
    if "://" in path or not path.startswith("/"):
        return None
    git = Path(path) / ".git"
    if not git.is_dir():
        git = Path(path)
    return git if (git / "refs" / "heads").is_dir() else None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except FileNotFoundError:
        return b""


def _identity(path: Path) -> tuple[int, ...]:
    """A stat: git replaces this file, and never changes it."""
    try:
        seen = os.stat(path)  # noqa: PTH116 - at each look
    except FileNotFoundError:
        return ()
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns
