"""The archive: where its parts lie, and reading it from somebody who may be hostile.

An archive has one form for given contents, so that a reader never parses what an attacker wrote freely. The index's
header says how long the index is; from there on every header, every padding byte and the length of the whole file are
known, and compared. What tar could say beyond that (links, devices, sparse files, long names, owners, members after the
end) is refused for being different, not for being recognised.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.archive import BLOCK, END, Span, header, padding
from schemas.bundle import INDEX_NAME, BundleIndex
from schemas.digests import Hasher
from schemas.refusals import AgentTooOld, DigestMismatch, LimitExceeded, MalformedDocument, MissingDocument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from schemas.bundle import BundleEntry

INDEX_LIMIT: Final = 2**25
"""Bytes of an index: as many entries as it may have, twice over."""
WINDOW: Final = 2**20
"""Bytes read at a time."""

_VERSION: Final = re.compile(rb'\{"formatVersion":"([0-9]{1,9})"')


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything lies in an archive with a given index."""

    index: bytes
    """The index's exact bytes."""
    spans: Mapping[str, Span]
    """By path, in order; the index itself is the first."""
    size: int
    """Bytes of the whole archive."""


def lay_out(index: BundleIndex) -> Plan:
    """The one archive that an index describes."""
    content = index.to_json().encode() + b"\n"
    spans: dict[str, Span] = {}
    position = 0
    for path, size in [(INDEX_NAME, len(content)), *((entry.path, entry.size) for entry in index.entries)]:
        spans[path] = Span(position + BLOCK, size)
        position += BLOCK + size + padding(size)
    return Plan(content, spans, position + len(END))


class Bundle:
    """An open bundle whose form was checked. Its contents were not: each reader checks what it reads."""

    def __init__(self, path: Path, file: int, index: BundleIndex, plan: Plan) -> None:
        self.path = path
        self.file = file
        """Its descriptor; only ever read with `pread`, from any thread."""
        self.index = index
        self._plan = plan
        self._entries = {entry.digest: entry for entry in index.entries}

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self._plan.size

    @property
    def documents(self) -> BundleEntry:
        """The git bundle."""
        return self.index.entries[0]

    def entry(self, digest: str) -> BundleEntry | None:
        """What has this digest, None if there is none."""
        return self._entries.get(digest)

    def span(self, entry: BundleEntry) -> Span:
        """Where it lies."""
        return self._plan.spans[entry.path]

    def windows(self, entry: BundleEntry) -> Iterator[bytes]:
        """The bytes of an entry, window by window, hashed on the way.

        Raises:
            DigestMismatch: they are others than the index says; raised after the last window.
            MalformedDocument: the file shrank meanwhile.
        """
        hasher = Hasher() if entry.digest.startswith("blake3:") else hashlib.sha256()
        span = self.span(entry)
        done = 0
        while done < span.size:
            window = os.pread(self.file, min(WINDOW, span.size - done), span.offset + done)
            if not window:
                raise self._malformed("ended while it was read")
            hasher.update(window)
            yield window
            done += len(window)
        if hasher.hexdigest() != entry.digest.partition(":")[2]:
            raise DigestMismatch(f"{entry.path} is not what the index says: damaged, or changed", file=str(self.path))

    def read(self, entry: BundleEntry, limit: int) -> bytes:
        """The bytes of a small entry.

        Raises:
            LimitExceeded: larger than `limit`.
            DigestMismatch, MalformedDocument: as `windows`.
        """
        if entry.size > limit:
            raise LimitExceeded(
                f"{entry.path} has {entry.size} bytes, and at most {limit} are read", file=str(self.path)
            )
        return b"".join(self.windows(entry))

    def _malformed(self, what: str) -> MalformedDocument:
        return MalformedDocument(what, file=str(self.path))


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """Open a bundle and check its form.

    Args:
        path: the file.

    Raises:
        MissingDocument: it is not there, not a regular file, or not readable.
        LimitExceeded: its index is larger than any.
        MalformedDocument: it is not a bundle, or has been cut, extended or changed in form.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MissingDocument(f"cannot be opened: {error.strerror}", file=str(path)) from error
    try:
        seen = os.fstat(file)
        if not stat.S_ISREG(seen.st_mode):
            raise MissingDocument("is not a regular file", file=str(path))
        index = _index(path, file)
        plan = lay_out(index)
        _check_form(path, file, plan, seen.st_size)
        yield Bundle(path, file, index, plan)
    finally:
        os.close(file)


def _index(path: Path, file: int) -> BundleIndex:
    start = _pread(path, file, BLOCK, 0)
    try:
        info = tarfile.TarInfo.frombuf(start, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeError, ValueError) as error:
        raise MalformedDocument("is not a bundle: it does not begin like a tar archive", file=str(path)) from error
    if info.name != INDEX_NAME or not info.size > 0:
        raise MalformedDocument(f"is not a bundle: it does not begin with {INDEX_NAME}", file=str(path))
    if info.size > INDEX_LIMIT:
        raise LimitExceeded(f"has an index of {info.size} bytes, and at most {INDEX_LIMIT} are read", file=str(path))
    content = _pread(path, file, info.size, BLOCK)
    version = _VERSION.match(content)
    if version is not None and version.group(1) != b"1":
        raise AgentTooOld(f"{path} is a bundle of form {version.group(1).decode()}; this agent reads form 1")
    try:
        index = BundleIndex.model_validate_json(content)
    except ValueError as error:
        raise MalformedDocument(f"has an index that is not one: {_words(error)}", file=str(path)) from error
    if index.to_json().encode() + b"\n" != content:
        raise MalformedDocument("has an index that is written in another way than bundles are", file=str(path))
    return index


def _check_form(path: Path, file: int, plan: Plan, size: int) -> None:
    """Compare everything but the contents with the one form that the index allows."""
    if size != plan.size:
        how = "was cut" if size < plan.size else "goes on after its end"
        raise MalformedDocument(f"{how}: it has {size} bytes where its index makes {plan.size}", file=str(path))
    end = 0
    for name, span in plan.spans.items():
        wanted = bytes(span.offset - BLOCK - end) + header(name, span.size)
        if _pread(path, file, len(wanted), end) != wanted:
            raise MalformedDocument(f"has something else where {name} should begin", file=str(path))
        end = span.offset + span.size
    if _pread(path, file, plan.size - end, end) != bytes(plan.size - end):
        raise MalformedDocument("does not end as archives do", file=str(path))


def _pread(path: Path, file: int, length: int, offset: int) -> bytes:
    parts = []
    while length:
        try:
            part = os.pread(file, length, offset)
        except OSError as error:
            raise MissingDocument(f"cannot be read: {error.strerror}", file=str(path)) from error
        if not part:
            raise MalformedDocument("is not a whole bundle: it ends early", file=str(path))
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)


def _words(error: ValueError) -> str:
    from pydantic import ValidationError  # noqa: PLC0415 - only to say what is wrong

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:4])
        return ascii(f"{where}: {first['msg']}" if where else first["msg"])[1:-1][:200]
    return type(error).__name__
