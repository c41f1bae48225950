"""Git as the source: one cheap question per poll, a bounded fetch when something moved, files read from objects.

Nothing is ever checked out, so that no filter, hook, attribute or submodule has a say. What arrives is only bytes;
whether they are believed is decided in `desired_state.trust` and `desired_state.acceptance`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from desired_state import git_mirror, local_repository
from desired_state.git_calls import GitCalls, words
from desired_state.git_files import CommitFiles
from desired_state.git_safety import (
    check_address,
    check_branch,
    met_a_limit,
    scrub,
    transport_options,
)
from schemas.digests import digest_text, short
from schemas.errors import ReconcileError, SourceUnreachable
from schemas.refusals import LimitExceeded, MalformedDocument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from schemas.ports import Completed, Ports

ACCEPTED: Final = "refs/reconcile/accepted/"
"""Refs of the mirror that keep the commits of accepted snapshots from being cleaned up."""
FETCHED: Final = "refs/reconcile/fetched/"
"""Refs of the mirror for what each repository showed last."""

HISTORY: Final = 64
"""Commits, from the newest back, in which an earlier one is looked for: two months of daily timestamps."""

_MAX_COMMITS: Final = 4096
"""Commits that are listed: sixty-four generations with their merges."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LIST_MEMORY: Final = 2**28
"""Bytes that git may allocate for a server's list of branches: room for a million, where one is asked for."""
_FETCH_MEMORY: Final = 2**30
"""Bytes that each process of a fetch may allocate. Files above 1 MiB are streamed, so that only a bomb of deltas needs
more."""
_REFUSED: Final = ("fsck error", "badTree", "is corrupt", "inconsistent")
"""What git says of objects that it does not take."""
_WARNINGS_LIMIT: Final = 2**22
"""Bytes that are read of what a fetch prints, which warns of each object that it finds odd and takes all the same."""


@dataclass(frozen=True, slots=True)
class GitSettings:
    """Bounds, and where the owner's settings come from."""

    timeout: float
    """Seconds of one git operation."""
    max_bytes: int
    """Bytes of one fetch."""
    environment: Mapping[str, str]
    """The agent's own environment: credential helpers, proxies and SSH settings are taken from it."""


class GitSource:
    """A network's repositories, through git.

    Args:
        ports: the outside.
        settings: bounds.
    """

    def __init__(self, ports: Ports, settings: GitSettings) -> None:
        self._settings = settings
        self.calls = GitCalls(ports, timeout=settings.timeout, settings=settings.environment)
        """The way to git, for whatever else is done to a repository of ours."""

    def head(self, url: str, branch: str) -> str:
        """The commit at the tip of a branch: one bare `git ls-remote`, or a look at a local branch's file.

        Raises:
            SourceUnreachable: the repository does not answer, or has no such branch.
            LimitExceeded: its answer does not end.
            ConfigError: the address or the branch is not one.
        """
        ref = f"refs/heads/{check_branch(branch)}"
        options = transport_options(check_address(url))
        # A daemon looks after every change of anything: a process each time would cost more than the rest of it.
        return local_repository.tip(url, branch) or self._ask(url, ref, options)

    def _ask(self, url: str, ref: str, options: tuple[str, ...]) -> str:
        command = ("ls-remote", "--quiet", *options, "--", url, ref)
        done = self.calls.remote(("git", *command), url, memory=_LIST_MEMORY)
        if done.returncode != 0:
            if met_a_limit(done.stderr.decode(errors="replace")):
                raise LimitExceeded(f"lists more branches than fit into {_LIST_MEMORY >> 20} MiB", file=scrub(url))
            raise SourceUnreachable(f"{scrub(url)}: {words(done)}")
        for line in done.stdout.decode(errors="replace").splitlines():
            commit, _, name = line.partition("\t")
            if name == ref and _COMMIT.fullmatch(commit):
                return commit
        raise SourceUnreachable(f"{scrub(url)} has no branch {ref.removeprefix('refs/heads/')!r}")

    def fetch(self, url: str, branch: str, into: Path, *, borrow: Path | None = None, ref: str = "") -> str:
        """Bring the tip of a branch, without its history, into a bare repository.

        Args:
            url: the repository.
            branch: the branch.
            into: the mirror, or a scratch folder; made if it is not there.
            borrow: a mirror whose objects need not be fetched again. Nothing is written to it (I9).
            ref: the ref that then names the commit; one of the mirror's own for this repository if not given.

        Returns:
            The commit that was fetched: the branch may have moved since `head`.

        Raises:
            SourceUnreachable: the repository does not answer, is too slow, or has no such branch.
            LimitExceeded: it sends more than it may.
            MalformedDocument: it sends objects that git itself refuses.
            ConfigError: the address or the branch is not one.
        """
        return self._fetch(url, branch, into, borrow=borrow, depth=1, ref=ref)

    def _fetch(self, url: str, branch: str, into: Path, *, borrow: Path | None, depth: int, ref: str = "") -> str:
        name = ref or FETCHED + short(digest_text(f"{url} {branch}"), 16)
        refspec = f"+refs/heads/{check_branch(branch)}:{name}"
        options = transport_options(check_address(url))
        limit = self._settings.max_bytes
        try:
            self._prepare(url, into, borrow)
            command = (
                *("git", f"--git-dir={into}", "fetch", "--quiet", f"--depth={depth}"),
                *("--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--force", *options),
                *("--", url, refspec),
            )
            # git hands the bounds on to what it starts: a pack that grows too large, or a bomb that would need too
            # much memory, ends the fetch and nothing else.
            done = self.calls.remote(command, url, memory=_FETCH_MEMORY, file_size=limit, max_output=_WARNINGS_LIMIT)
            if done.returncode != 0:
                cut = git_mirror.was_cut(into, limit)
                git_mirror.drop_leftovers(into)
                raise _refused(done, url, limit, cut=cut)
        except OSError as error:
            raise SourceUnreachable(f"{scrub(url)}: {scrub(str(error))}") from error
        return local_repository.own_commit(into / name) or self._named(into, name)

    def _named(self, into: Path, name: str) -> str:
        """The commit that a ref of the mirror names."""
        asked = ("rev-parse", "--verify", f"{name}^{{commit}}")
        commit = self.calls.objects(into, asked).decode(errors="replace").strip()
        if not _COMMIT.fullmatch(commit):
            raise SourceUnreachable(
                f"{into}: git names no commit", hint="the mirror can be removed; it is fetched again"
            )
        return commit

    def _prepare(self, url: str, into: Path, borrow: Path | None) -> None:
        """Make sure that there is a repository to fetch into, which is not larger than it has to be."""
        git_mirror.drop_leftovers(into)
        due = git_mirror.work_due(into, self._settings.max_bytes)
        # A scratch folder is gone in a moment: there is nothing to tidy.
        if due == "make" or (due == "repack" and borrow is None):
            command = (sys.executable, "-P", "-m", git_mirror.__name__, due, str(into))
            package = str(Path(__file__).resolve().parent.parent)
            done = self.calls.remote(command, url, extra={"PYTHONPATH": package})
            # Tidying up is no condition of fetching: a failure there shows again where it matters.
            if done.returncode != 0 and due == "make":
                raise SourceUnreachable(f"{scrub(url)}: no mirror could be made: {words(done)}")
        if borrow is not None:
            git_mirror.borrow(borrow, into)

    def follows(self, url: str, branch: str, into: Path, *, old: str, new: str) -> bool | None:
        """Whether a commit that was fetched continues the history of an earlier one: False after a force-push.

        A commit names its parents, so that one push of one commit, or of a merge, costs nothing to tell. Otherwise the
        last `HISTORY` commits are fetched; a push of more than that looks like a new history.

        Args:
            url: the repository.
            branch: the branch.
            into: the mirror.
            old: a commit that the branch had once.
            new: the commit that was fetched last.

        Returns:
            None when it cannot be told: nothing rests on it, so that is no error.
        """
        try:
            if old in self._parents(into, new):
                return True
            self._fetch(url, branch, into, borrow=None, depth=HISTORY)
            listed = ("log", "--no-show-signature", "--format=%H", f"--max-count={_MAX_COMMITS}", new, "--")
            return old in self.calls.objects(into, listed).decode().split()
        except ReconcileError:
            return None

    def _parents(self, into: Path, commit: str) -> tuple[str, ...]:
        """The parents that a commit names, also where its history was left out."""
        head, _, _ = self.calls.objects(into, ("cat-file", "commit", commit)).decode(errors="replace").partition("\n\n")
        lines = (line.partition(" ") for line in head.splitlines())
        return tuple(value for name, _, value in lines if name == "parent")

    def has(self, repository: Path, commit: str) -> bool:
        """Whether a commit is in a local repository."""
        if not repository.is_dir() or not _COMMIT.fullmatch(commit):
            return False
        return self.calls.local(repository, ("cat-file", "-e", f"{commit}^{{tree}}")).returncode == 0

    def keep(self, repository: Path, commits: Iterable[str]) -> None:
        """Keep exactly these commits in the mirror, besides what each repository showed last.

        Args:
            repository: the mirror.
            commits: commits of the snapshots that may still be needed.

        Raises:
            SourceUnreachable: the mirror is damaged.
        """
        wanted = {ACCEPTED + commit: commit for commit in commits}
        listed = self.calls.objects(repository, ("for-each-ref", "--format=%(refname)", ACCEPTED))
        present = listed.decode().split()
        lines = [f"delete {ref}" for ref in present if ref not in wanted]
        lines += [f"update {ref} {commit}" for ref, commit in sorted(wanted.items()) if ref not in present]
        if lines:
            self.calls.objects(repository, ("update-ref", "--stdin"), stdin="\n".join([*lines, ""]).encode())

    def files(self, repository: Path, commit: str) -> CommitFiles:
        """The files of one commit.

        Args:
            repository: a local repository that has it.
            commit: its id.
        """
        return CommitFiles(self.calls, repository, commit)


def _refused(done: Completed, url: str, limit: int, *, cut: bool) -> ReconcileError:
    """Why a fetch failed."""
    said = done.stderr.decode(errors="replace")
    if cut or met_a_limit(said):
        return LimitExceeded(f"sends more than {limit} bytes, or more than fits in memory", file=scrub(url))
    if any(sign in said for sign in _REFUSED):
        return MalformedDocument(scrub(said), file=scrub(url))
    return SourceUnreachable(f"{scrub(url)}: {words(done)}")
