"""A local repository's branch leaves a trace when it moves: git is asked then, and not otherwise."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desired_state.git_source import GitSettings, GitSource
from desired_state.local_repository import trace, watched_folders
from runtime.host import host_ports
from schemas.errors import SourceUnreachable
from tests.desired_state.conftest import git_source
from tests.desired_state.network import GIT_ENVIRONMENT, Repository, git

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.ports import Completed, Processes


class Counting:
    """Real processes, counted."""

    def __init__(self, real: Processes) -> None:
        self._real = real
        self.count = 0

    def run(self, argv: Sequence[str], **named: Any) -> Completed:
        """Run, and count."""
        self.count += 1
        return self._real.run(argv, **named)


def counted() -> tuple[GitSource, Counting]:
    """A source, and how often it has asked git."""
    ports = host_ports()
    processes = Counting(ports.processes)
    settings = GitSettings(timeout=60, max_bytes=2**24, environment=GIT_ENVIRONMENT)
    return GitSource(replace(ports, processes=processes), settings), processes


def test_what_has_not_moved_is_asked_once(repository: Repository) -> None:
    """Looking again starts nothing, whether the branch has a file of its own or is packed."""
    source, processes = counted()
    commit = repository.commit()
    for expected in (1, 1):
        assert source.head(repository.url, "main") == commit
        assert processes.count == expected
    git(repository.folder, "pack-refs", "--all")
    for expected in (2, 2):
        assert source.head(repository.url, "main") == commit
        assert processes.count == expected
    with pytest.raises(SourceUnreachable):
        source.head(repository.url, "other")


MOVES = {
    "commit": lambda made: made.commit(),
    "amend": lambda made: made.commit_amended(),
    "pack": lambda made: git(made.folder, "pack-refs", "--all"),
    "gc": lambda made: git(made.folder, "gc", "--quiet", "--prune=now"),
    "back": lambda made: git(made.folder, "reset", "--quiet", "--hard", "HEAD~1"),
    "away": lambda made: git(made.folder, "branch", "--quiet", "-M", "main", "elsewhere"),
    "home": lambda made: git(made.folder, "branch", "--quiet", "-M", "main"),
    "other": lambda made: git(made.folder, "branch", "--quiet", "--force", "other"),
    "link": lambda made: git(made.folder, "symbolic-ref", "refs/heads/main", "refs/heads/other"),
    "unlink": lambda made: git(made.folder, "symbolic-ref", "--delete", "refs/heads/main"),
}
"""What operators and git itself do to a branch. Some are refused at times, which is part of it."""


def answer(source: GitSource, url: str) -> str:
    """What a source says, a refusal included."""
    try:
        return source.head(url, "main")
    except SourceUnreachable as error:
        return error.reason


@settings(max_examples=12, deadline=None)
@given(moves=st.lists(st.sampled_from(sorted(MOVES)), min_size=3, max_size=9))
def test_whatever_is_done_to_a_branch_is_noticed(moves: list[str]) -> None:
    """The answer of a source that remembers is the answer of one that asks for the first time."""
    folder = Path(tempfile.mkdtemp())
    try:
        made = Repository(folder / "network")
        made.commit()
        remembering = git_source()
        for move in moves:
            with suppress(subprocess.CalledProcessError):  # git refuses what makes no sense here
                MOVES[move](made)
            assert answer(remembering, made.url) == answer(git_source(), made.url), move
    finally:
        shutil.rmtree(folder)


def test_what_is_laid_out_otherwise_leaves_no_trace(tmp_path: Path, repository: Repository) -> None:
    """A linked worktree, a branch that points to another one, and what is not here are git's to answer for."""
    repository.commit()
    assert trace(repository.url, "main") is not None
    assert trace(repository.url, "none") is None
    git(repository.folder, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    git(repository.folder, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    assert trace(str(tmp_path / "linked"), "main") is None
    assert trace(repository.url, "alias") is None
    assert trace(f"file://{tmp_path}/none", "main") is None
    git(repository.folder, "clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    assert trace(str(tmp_path / "bare.git"), "main") is not None


def test_only_repositories_of_this_machine_are_watched(repository: Repository, tmp_path: Path) -> None:
    """Everything else is polled."""
    assert watched_folders(repository.url) == watched_folders(str(repository.folder))
    assert watched_folders(repository.url)[0].name == "heads"
    for url in ("https://example.org/x.git", "ssh://host/x", "git@host:x", f"file://{tmp_path}/none"):
        assert watched_folders(url) == ()
        assert trace(url, "main") is None
