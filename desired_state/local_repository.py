"""Repositories on this machine, seen without git: where a branch leaves a trace when it moves, and where it stands.

git keeps a branch in a file of its own, which it replaces, until it packs it away (gitrepository-layout(5)). Where
there is no such file, as in a linked worktree, with reftables and after `git pack-refs`, git is asked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_COMMIT: Final = re.compile(rb"(?:[0-9a-f]{40}|[0-9a-f]{64})\n?")
_LONGEST: Final = 128
"""Bytes that are read of a branch's file: a commit needs 65."""


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


def tip(url: str, branch: str) -> str:
    """The commit that a branch's own file names: a system call or two, where asking git is a process.

    Args:
        url: the repository.
        branch: its branch.

    Returns:
        Empty where only git can tell: elsewhere, packed, or pointing to another branch.
    """
    git = _git_folder(url)
    return own_commit(git / "refs" / "heads" / branch) if git is not None else ""


def own_commit(ref: Path) -> str:
    """The commit that a ref's own file names; empty where it has none, or names something else."""
    try:
        with ref.open("rb") as file:
            content = file.read(_LONGEST)
    except OSError:
        return ""
    return content.strip().decode() if _COMMIT.fullmatch(content) else ""


def _git_folder(url: str) -> Path | None:
    path = url.removeprefix("file://")
    if "://" in path or not path.startswith("/"):
        return None
    git = Path(path) / ".git"
    if not git.is_dir():
        git = Path(path)
    return git if (git / "refs" / "heads").is_dir() else None
