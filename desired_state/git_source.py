"""Git as the source: one cheap question per poll, a bounded fetch when something moved, files read from objects.

Nothing is ever checked out, so that no filter, hook, attribute or submodule has a say. What arrives is only bytes;
whether they are believed is decided in `desired_state.trust`.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from desired_state import git_mirror, local_repository
from desired_state.files import MAX_ENTRIES, check_path
from desired_state.git_safety import (
    check_address,
    check_branch,
    environment,
    met_a_limit,
    scrub,
    transport_options,
)
from schemas.digests import digest_text, short
from schemas.errors import ReconcileError, SourceUnreachable
from schemas.refusals import LimitExceeded, MalformedDocument, MissingDocument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from schemas.ports import Completed, Ports

ACCEPTED: Final = "refs/reconcile/accepted/"
"""Refs of the mirror that keep the commits of accepted snapshots from being cleaned up."""
FETCHED: Final = "refs/reconcile/fetched/"
"""Refs of the mirror for what each repository showed last."""

HISTORY: Final = 64
"""Commits, from the newest back, in which an earlier one is looked for: two months of daily timestamps."""

_MAX_COMMITS: Final = 4096
"""Commits that are listed: sixty-four generations with their merges."""
_ROOT: Final = Path("/")
"""Where git runs: in no repository, so that no repository's configuration applies."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LOCAL_TIMEOUT: Final = 30.0
"""Seconds for reading objects of the mirror: a thousand times what it takes."""
_LISTED: Final = re.compile(r"([0-7]{6}) [a-z]+ ([0-9a-f]{40}|[0-9a-f]{64}) +([0-9]{1,18}|-|BAD)\t(.+)", re.DOTALL)
"""A line of `git ls-tree -l -z`: mode, type, object, size (`-` for a folder, `BAD` where the object is gone), path."""
_LIST_MEMORY: Final = 2**28
"""Bytes that git may allocate for a server's list of branches: room for a million, where one is asked for."""
_FETCH_MEMORY: Final = 2**30
"""Bytes that each process of a fetch may allocate. Files above 1 MiB are streamed, so that only a bomb of deltas needs
more."""
_REFUSED: Final = ("fsck error", "badTree", "is corrupt", "inconsistent")
"""What git says of objects that it does not take."""
_WORDS_LIMIT: Final = 2**16
"""Bytes that are read of what git prints about a server: a commit, or why there is none."""
_WARNINGS_LIMIT: Final = 2**22
"""The same of a fetch, which warns of each object that it finds odd and takes all the same."""
_PATHS: Final = 256
"""Paths asked for in one call: at 255 characters each within the bounds of a command line."""
_LISTING: Final = 2**25
"""Bytes of a listing of whole folders: 10,000 models with their files take 2 MiB."""
_BATCH: Final = 2**26
"""Bytes of content read in one call, unless a single file is larger."""
_ENTRY: Final = 400
"""Bytes of one line about a path: mode, type, digest, size, and a path of 255."""


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
        self._ports = ports
        self._settings = settings
        self._environment = environment(settings.environment)

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
        done = self._remote(("git", *command), url, memory=_LIST_MEMORY)
        if done.returncode != 0:
            if met_a_limit(done.stderr.decode(errors="replace")):
                raise LimitExceeded(f"lists more branches than fit into {_LIST_MEMORY >> 20} MiB", file=scrub(url))
            raise SourceUnreachable(f"{scrub(url)}: {_words(done)}")
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
            done = self._remote(command, url, memory=_FETCH_MEMORY, file_size=limit, max_output=_WARNINGS_LIMIT)
            if done.returncode != 0:
                cut = git_mirror.was_cut(into, limit)
                git_mirror.drop_leftovers(into)
                raise _refused(done, url, limit, cut=cut)
        except OSError as error:
            raise SourceUnreachable(f"{scrub(url)}: {scrub(str(error))}") from error
        named = ("rev-parse", "--verify", f"{name}^{{commit}}")
        return local_repository.own_commit(into / name) or self.objects(into, named).decode().strip()

    def _prepare(self, url: str, into: Path, borrow: Path | None) -> None:
        """Make sure that there is a repository to fetch into, which is not larger than it has to be."""
        git_mirror.drop_leftovers(into)
        due = git_mirror.work_due(into, self._settings.max_bytes)
        # A scratch folder is gone in a moment: there is nothing to tidy.
        if due == "make" or (due == "repack" and borrow is None):
            command = (sys.executable, "-P", "-m", git_mirror.__name__, due, str(into))
            package = str(Path(__file__).resolve().parent.parent)
            done = self._remote(command, url, extra={"PYTHONPATH": package})
            # Tidying up is no condition of fetching: a failure there shows again where it matters.
            if done.returncode != 0 and due == "make":
                raise SourceUnreachable(f"{scrub(url)}: no mirror could be made: {_words(done)}")
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
            return old in self.objects(into, listed).decode().split()
        except ReconcileError:
            return None

    def _parents(self, into: Path, commit: str) -> tuple[str, ...]:
        """The parents that a commit names, also where its history was left out."""
        head, _, _ = self.objects(into, ("cat-file", "commit", commit)).decode(errors="replace").partition("\n\n")
        lines = (line.partition(" ") for line in head.splitlines())
        return tuple(value for name, _, value in lines if name == "parent")

    def has(self, repository: Path, commit: str) -> bool:
        """Whether a commit is in a local repository."""
        if not repository.is_dir() or not _COMMIT.fullmatch(commit):
            return False
        return self._git((f"--git-dir={repository}", "cat-file", "-e", f"{commit}^{{tree}}"), "").returncode == 0

    def keep(self, repository: Path, commits: Iterable[str]) -> None:
        """Keep exactly these commits in the mirror, besides what each repository showed last.

        Args:
            repository: the mirror.
            commits: commits of the snapshots that may still be needed.

        Raises:
            SourceUnreachable: the mirror is damaged.
        """
        wanted = {ACCEPTED + commit: commit for commit in commits}
        git_dir = f"--git-dir={repository}"
        listed = self._checked((git_dir, "for-each-ref", "--format=%(refname)", ACCEPTED), repository)
        present = listed.stdout.decode().split()
        lines = [f"delete {ref}" for ref in present if ref not in wanted]
        lines += [f"update {ref} {commit}" for ref, commit in sorted(wanted.items()) if ref not in present]
        if lines:
            self._checked((git_dir, "update-ref", "--stdin"), repository, stdin="\n".join([*lines, ""]).encode())

    def files(self, repository: Path, commit: str) -> CommitFiles:
        """The files of one commit.

        Args:
            repository: a local repository that has it.
            commit: its id.
        """
        return CommitFiles(self, repository, commit)

    # --- calling git ----------------------------------------------------------------------------------------------

    def objects(
        self, repository: Path, arguments: Sequence[str], *, stdin: bytes = b"", max_output: int = 2**20
    ) -> bytes:
        """What a git command prints about objects of a local repository.

        Raises:
            SourceUnreachable: the repository is damaged.
        """
        command = (f"--git-dir={repository}", *arguments)
        return self._checked(command, repository, stdin=stdin, max_output=max_output).stdout

    def _checked(
        self, arguments: Sequence[str], repository: Path, *, stdin: bytes = b"", max_output: int = 2**20
    ) -> Completed:
        done = self._git(arguments, str(repository), stdin=stdin, max_output=max_output)
        if done.returncode != 0:
            raise SourceUnreachable(
                f"{repository}: {_words(done)}", hint="the mirror can be removed; it is fetched again"
            )
        return done

    def _git(
        self,
        arguments: Sequence[str],
        subject: str,
        *,
        stdin: bytes = b"",
        timeout: float = _LOCAL_TIMEOUT,
        max_output: int = 2**20,
    ) -> Completed:
        return self._run(("git", *arguments), subject, stdin=stdin, timeout=timeout, max_output=max_output)

    def _remote(
        self,
        command: Sequence[str],
        url: str,
        *,
        extra: Mapping[str, str] | None = None,
        memory: int | None = None,
        file_size: int | None = None,
        max_output: int = _WORDS_LIMIT,
    ) -> Completed:
        """Run what talks to somebody else's server, whose lists and words need not end."""
        try:
            return self._run(
                command,
                url,
                timeout=self._settings.timeout,
                max_output=max_output,
                extra=extra,
                memory=memory,
                file_size=file_size,
            )
        except SourceUnreachable as error:
            if isinstance(error.__cause__, OverflowError):
                raise LimitExceeded(f"says more than {max_output} bytes", file=scrub(url)) from error
            raise

    def _run(
        self,
        command: Sequence[str],
        subject: str,
        *,
        timeout: float,
        max_output: int,
        stdin: bytes = b"",
        extra: Mapping[str, str] | None = None,
        memory: int | None = None,
        file_size: int | None = None,
    ) -> Completed:
        try:
            return self._ports.processes.run(
                command,
                timeout=timeout,
                max_output=max_output,
                env={**self._environment, **(extra or {})},
                cwd=_ROOT,
                stdin=stdin,
                memory=memory,
                file_size=file_size,
            )
        except TimeoutError as error:
            raise SourceUnreachable(f"{scrub(subject)}: no answer within {timeout:g} seconds") from error
        except OverflowError as error:
            raise SourceUnreachable(f"{scrub(subject)}: git printed more than {max_output} bytes") from error
        except OSError as error:
            raise SourceUnreachable(f"git cannot be started: {error.strerror}", hint="install git") from error


def _words(done: Completed) -> str:
    return scrub(done.stderr.decode(errors="replace")) or f"git ended with status {done.returncode}"


def _refused(done: Completed, url: str, limit: int, *, cut: bool) -> ReconcileError:
    """Why a fetch failed."""
    words = done.stderr.decode(errors="replace")
    if cut or met_a_limit(words):
        return LimitExceeded(f"sends more than {limit} bytes, or more than fits in memory", file=scrub(url))
    if any(sign in words for sign in _REFUSED):
        return MalformedDocument(scrub(words), file=scrub(url))
    return SourceUnreachable(f"{scrub(url)}: {_words(done)}")


@dataclass(frozen=True, slots=True)
class _Blob:
    """One entry of a tree."""

    mode: str
    object: str
    size: int
    name: str


_KINDS: Final = {"120000": "a symbolic link", "160000": "a submodule", "040000": "a folder"}


class CommitFiles:
    """The files of one commit, read from git objects: a `DocumentFiles`."""

    def __init__(self, source: GitSource, repository: Path, commit: str) -> None:
        self._source = source
        self._repository = repository
        self.commit = commit
        self._listed: dict[str, _Blob] = {}
        """Files of folders that were listed: a commit does not change, and asking git again is another process."""

    def read(self, path: str, limit: int) -> bytes:
        """As `DocumentFiles.read`."""
        return self.read_many({path: limit})[path]

    def read_many(self, wanted: Mapping[str, int]) -> dict[str, bytes]:
        """As `DocumentFiles.read_many`: two git processes, however many files; one where their folder was listed."""
        paths = [check_path(path) for path in wanted]
        entries = {path: self._listed[path] for path in paths if path in self._listed}
        if unknown := [path for path in paths if path not in entries]:
            entries.update((entry.name, entry) for entry in self._entries(unknown))
        blobs = [_regular(entries.get(path), path, wanted[path]) for path in paths]
        found: dict[str, bytes] = {}
        for batch in _batches(blobs):
            found.update(self._contents(batch))
        return found

    def _entries(self, paths: Sequence[str]) -> Iterator[_Blob]:
        """Entries of files, and perhaps of others beside them."""
        if len(paths) > _PATHS:
            # Git holds every entry that it meets against every path that it was asked for, which is quadratic; many
            # paths are found sooner by listing all that lies where they lie.
            folders = sorted({path.partition("/")[0] for path in paths})
            if len(folders) <= _PATHS:
                with suppress(LimitExceeded):
                    yield from self._tree(folders, "-r", max_output=_LISTING)
                    return
        for start in range(0, len(paths), _PATHS):
            yield from self._tree(paths[start : start + _PATHS])

    def list(self, folder: str) -> tuple[str, ...]:
        """As `DocumentFiles.list`."""
        prefix = check_path(folder) + "/"
        entries = self._tree([prefix], max_output=(MAX_ENTRIES + 1) * _ENTRY)
        if len(entries) > MAX_ENTRIES:
            raise LimitExceeded(f"has more than {MAX_ENTRIES} entries", file=folder)
        self._listed.update((entry.name, entry) for entry in entries)
        return tuple(sorted(entry.name.removeprefix(prefix) for entry in entries if entry.mode.startswith("100")))

    def folders(self, folder: str) -> tuple[str, ...]:
        """Names of the folders in a folder, sorted; empty when there is no such folder. Errors as `list`."""
        prefix = check_path(folder) + "/"
        entries = self._tree([prefix], max_output=(MAX_ENTRIES + 1) * _ENTRY)
        return tuple(sorted(entry.name.removeprefix(prefix) for entry in entries if entry.mode == "040000"))

    def _tree(self, paths: Sequence[str], *options: str, max_output: int = (_PATHS + 1) * _ENTRY) -> tuple[_Blob, ...]:
        arguments = ("ls-tree", "-z", "-l", "--full-tree", *options, self.commit, "--", *paths)
        try:
            printed = self._source.objects(self._repository, arguments, max_output=max_output)
        except SourceUnreachable as error:
            if isinstance(error.__cause__, OverflowError):
                raise LimitExceeded("has too many entries", file=paths[0]) from error
            raise
        return tuple(_entry(line) for line in printed.decode(errors="replace").split("\0") if line)

    def _contents(self, blobs: Sequence[_Blob]) -> Iterator[tuple[str, bytes]]:
        asked = "".join(f"{blob.object}\n" for blob in blobs).encode()
        bound = sum(blob.size for blob in blobs) + _ENTRY * len(blobs)
        printed = self._source.objects(self._repository, ("cat-file", "--batch"), stdin=asked, max_output=bound)
        position = 0
        for blob in blobs:
            header = f"{blob.object} blob {blob.size}\n".encode()
            start = position + len(header)
            position = start + blob.size + 1
            if not printed.startswith(header, start - len(header)) or printed[position - 1 : position] != b"\n":
                raise SourceUnreachable(
                    f"{self._repository}: the object of {blob.name} is damaged",
                    hint="the mirror can be removed; it is fetched again",
                )
            yield blob.name, printed[start : start + blob.size]


def _entry(line: str) -> _Blob:
    """One line of `git ls-tree -l`: mode, type, object and size, then a tab and the path.

    Raises:
        SourceUnreachable: it is none.
    """
    match = _LISTED.fullmatch(line)
    if match is None:
        raise SourceUnreachable("git lists a tree in an unknown form", hint="is another program called `git`?")
    mode, digest, size, name = match.groups()
    return _Blob(mode, digest, int(size) if size.isdecimal() else 0, name)


def _regular(entry: _Blob | None, path: str, limit: int) -> _Blob:
    if entry is None:
        raise MissingDocument("is not in the repository", file=path)
    if not entry.mode.startswith("100"):
        kind = _KINDS.get(entry.mode, "something else")
        raise MissingDocument(f"is {kind} where a regular file should be", file=path)
    if entry.size > limit:
        raise LimitExceeded(f"has {entry.size} bytes, and at most {limit} are read", file=path)
    return entry


def _batches(blobs: Sequence[_Blob]) -> Iterator[list[_Blob]]:
    """Groups of blobs that are read in one call, bounded in bytes."""
    batch: list[_Blob] = []
    size = 0
    for blob in blobs:
        if batch and size + blob.size > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(blob)
        size += blob.size
    if batch:
        yield batch
