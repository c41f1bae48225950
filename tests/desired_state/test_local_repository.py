"""A local repository's branch is looked at where git keeps it: what is seen there is what git would say."""

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
from desired_state.local_repository import tip, watched_folders
from runtime.host import host_ports
from schemas.errors import SourceUnreachable
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


def test_a_branch_with_a_file_of_its_own_costs_no_process(repository: Repository) -> None:
    """Git is asked about one that was packed away, and about one that is not there."""
    source, processes = counted()
    commit = repository.commit()
    assert source.head(repository.url, "main") == commit
    assert processes.count == 0
    git(repository.folder, "pack-refs", "--all")
    assert source.head(repository.url, "main") == commit
    assert processes.count == 1
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


def told(made: Repository) -> str:
    """What git says of the branch."""
    listed = git(made.folder, "ls-remote", ".", "refs/heads/main")
    return listed.partition("\t")[0]


@settings(max_examples=12, deadline=None)
@given(moves=st.lists(st.sampled_from(sorted(MOVES)), min_size=3, max_size=9))
def test_whatever_is_done_to_a_branch_git_would_say_the_same(moves: list[str]) -> None:
    """Where a look gives an answer, it is git's."""
    folder = Path(tempfile.mkdtemp())
    try:
        made = Repository(folder / "network")
        made.commit()
        for move in moves:
            with suppress(subprocess.CalledProcessError):  # git refuses what makes no sense here
                MOVES[move](made)
            assert tip(made.url, "main") in ("", told(made)), move
    finally:
        shutil.rmtree(folder)


def test_what_is_laid_out_otherwise_is_for_git_to_tell(tmp_path: Path, repository: Repository) -> None:
    """A linked worktree, a branch that points to another one, and what is not here are git's to answer for."""
    commit = repository.commit()
    assert tip(repository.url, "main") == commit
    assert tip(repository.url, "none") == ""
    git(repository.folder, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    git(repository.folder, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    assert tip(str(tmp_path / "linked"), "main") == ""
    assert tip(repository.url, "alias") == ""
    assert tip(f"file://{tmp_path}/none", "main") == ""
    git(repository.folder, "clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    bare = tmp_path / "bare.git"
    assert tip(str(bare), "main") == "", "a clone comes packed"
    newer = repository.commit()
    git(repository.folder, "push", "--quiet", str(bare), "main")
    assert tip(str(bare), "main") == newer


def test_only_repositories_of_this_machine_are_watched(repository: Repository, tmp_path: Path) -> None:
    """Everything else is polled."""
    assert watched_folders(repository.url) == watched_folders(str(repository.folder))
    assert watched_folders(repository.url)[0].name == "heads"
    for url in ("https://example.org/x.git", "ssh://host/x", "git@host:x", f"file://{tmp_path}/none"):
        assert watched_folders(url) == ()
        assert tip(url, "main") == ""
