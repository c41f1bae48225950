"""Reading a network's files, whether from a commit or from a folder: never through links, never beyond limits."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import TypeAdapter, ValidationError

from schemas.base import RelativePath
from schemas.refusals import LimitExceeded, MalformedDocument, MissingDocument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_ENTRIES: Final = 4096
"""Entries of a folder that is listed: a folder of signatures has at most 64, one of trust documents some dozens."""

_PATH: Final = TypeAdapter[str](RelativePath)
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO without a writer must not wait for ever.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DocumentFiles(Protocol):
    """One state of a network's repository, read-only."""

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of one file.

        Args:
            path: relative to the repository's root.
            limit: bytes.

        Raises:
            MissingDocument: not there, or not a regular file (a link, a folder, a submodule).
            LimitExceeded: larger than `limit`.
            MalformedDocument: not a path inside the repository.
        """
        ...

    def read_many(self, wanted: Mapping[str, int]) -> dict[str, bytes]:
        """The bytes of many files at once, in the order asked for.

        Args:
            wanted: limits in bytes, by path.

        Raises:
            MissingDocument, LimitExceeded, MalformedDocument: as `read`, for the first file that is not right.
        """
        ...

    def list(self, folder: str) -> tuple[str, ...]:
        """Names of the regular files in a folder, sorted; empty when there is no such folder.

        Raises:
            LimitExceeded: more than `MAX_ENTRIES` entries.
            MalformedDocument: not a path inside the repository.
        """
        ...


def check_path(path: str) -> str:
    """A path that stays inside the repository, whatever reads it.

    Raises:
        MalformedDocument: absolute, with `..`, empty or hidden segments, or characters that file systems disagree on.
    """
    try:
        return _PATH.validate_python(path, strict=True)
    except ValidationError as error:
        shown = re.sub(r"[^ -~]", "?", path)[:100]
        raise MalformedDocument(f"{shown!r} is not a path inside the repository") from error


class FolderFiles:
    """A folder of the local file system, for looking at what is not committed yet. Follows no link at any level.

    Args:
        root: the folder; it may itself be reached through links.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, limit: int) -> bytes:
        """As `DocumentFiles.read`."""
        folder, _, name = check_path(path).rpartition("/")
        with self._opened(folder, path) as parent:
            try:
                descriptor = os.open(name, _FILE_FLAGS, dir_fd=parent)
            except OSError as error:
                raise _missing(path, error) from error
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise MissingDocument("is not a regular file", file=path)
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    content = file.read(limit + 1)
            finally:
                os.close(descriptor)
        if len(content) > limit:
            raise LimitExceeded(f"has more than {limit} bytes", file=path)
        return content

    def read_many(self, wanted: Mapping[str, int]) -> dict[str, bytes]:
        """As `DocumentFiles.read_many`."""
        return {path: self.read(path, limit) for path, limit in wanted.items()}

    def list(self, folder: str) -> tuple[str, ...]:
        """As `DocumentFiles.list`."""
        check_path(folder)
        try:
            with self._opened(folder, folder) as descriptor, os.scandir(descriptor) as entries:
                names = []
                for number, entry in enumerate(entries):
                    if number >= MAX_ENTRIES:
                        raise LimitExceeded(f"has more than {MAX_ENTRIES} entries", file=folder)
                    if entry.is_file(follow_symlinks=False):
                        names.append(entry.name)
        except MissingDocument:
            return ()
        return tuple(sorted(names))

    @contextmanager
    def _opened(self, folder: str, path: str) -> Iterator[int]:
        """A descriptor of a folder below the root, opened segment by segment without following links."""
        try:
            current = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _missing(str(self._root), error) from error
        try:
            for part in folder.split("/") if folder else ():
                try:
                    below = os.open(part, _FOLDER_FLAGS, dir_fd=current)
                except OSError as error:
                    raise _missing(path, error) from error
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)


def _missing(path: str, error: OSError) -> MissingDocument:
    if error.errno == errno.ENOENT:
        return MissingDocument("is not there", file=path)
    # ELOOP: a link where a file should be; ENOTDIR: a link or a file where a folder should be.
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return MissingDocument("is not a regular file, or lies behind a symbolic link", file=path)
    return MissingDocument(f"cannot be read: {error.strerror}", file=path)
