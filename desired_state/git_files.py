"""The files of one commit, read from git objects: never from a checkout, and nothing larger than was asked for."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from desired_state.files import MAX_ENTRIES, check_path
from schemas.errors import SourceUnreachable
from schemas.refusals import LimitExceeded, MissingDocument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from desired_state.git_calls import GitCalls

_LISTED: Final = re.compile(r"([0-7]{6}) [a-z]+ ([0-9a-f]{40}|[0-9a-f]{64}) +([0-9]{1,18}|-|BAD)\t(.+)", re.DOTALL)
"""A line of `git ls-tree -l -z`: mode, type, object, size (`-` for a folder, `BAD` where the object is gone), path."""
_PATHS: Final = 256
"""Paths asked for in one call: at 255 characters each within the bounds of a command line."""
_LISTING: Final = 2**25
"""Bytes of a listing of whole folders: 10,000 models with their files take 2 MiB."""
_BATCH: Final = 2**26
"""Bytes of content read in one call, unless a single file is larger."""
_ENTRY: Final = 400
"""Bytes of one line about a path: mode, type, digest, size, and a path of 255."""


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

    def __init__(self, calls: GitCalls, repository: Path, commit: str) -> None:
        """Name them; nothing is read yet.

        Args:
            calls: the way to git.
            repository: a local repository that has the commit.
            commit: its id, or that of a tree.
        """
        self._calls = calls
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
            printed = self._calls.objects(self._repository, arguments, max_output=max_output)
        except SourceUnreachable as error:
            if isinstance(error.__cause__, OverflowError):
                raise LimitExceeded("has too many entries", file=paths[0]) from error
            raise
        return tuple(_entry(line) for line in printed.decode(errors="replace").split("\0") if line)

    def _contents(self, blobs: Sequence[_Blob]) -> Iterator[tuple[str, bytes]]:
        asked = "".join(f"{blob.object}\n" for blob in blobs).encode()
        bound = sum(blob.size for blob in blobs) + _ENTRY * len(blobs)
        printed = self._calls.objects(self._repository, ("cat-file", "--batch"), stdin=asked, max_output=bound)
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
