"""Bundles: models packed into a `.tar`, `.tar.zst` or `.zip`, read as a stream of regular files.

An archive is input from outside like any other. Its names are compared with the manifest's and never used to open
anything; links, devices and folders are passed over; what it claims to hold is bounded before it is believed:

    members          counted
    one read         bounded (`ranged.MAX_READ`): no claim of an archive becomes memory
    window of zstd   128 MiB, the format's own recommendation for decoders
    bytes passed over in a compressed stream: bounded, so that a bomb costs seconds
    methods of zip   stored and deflated; nothing encrypted

Reading is left to the standard library's `tarfile` and `zipfile`; unpacking is not: nothing of theirs writes a file.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Final, cast

from runtime.models.sources import SourceError, Unsuitable
from schemas.errors import ReconcileError
from schemas.manifest import MAX_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.models.ranged import RangedFile

SUFFIXES: Final = (".tar.zst", ".tar", ".zip")

_MAX_MEMBERS: Final = 2 * MAX_FILES
_WINDOW_LOG: Final = 27
_CHUNK: Final = 2**17
_OLD_TYPES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive, to be read before the next one is asked for."""

    path: str
    size: int
    """Bytes, as the archive claims."""
    content: IO[bytes]
    """Gives its bytes, from `start` on."""
    start: int
    """Position of its first byte in `content`."""


def split_archive(address: str) -> tuple[str, str, str] | None:
    """Base address, file name and suffix of a bundle; None for the address of a folder."""
    plain, mark, query = address.partition("?")
    base, _, name = plain.rpartition("/")
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)
    return None if suffix is None or base.endswith("/") else (base + mark + query, name, suffix)


def members(file: RangedFile, suffix: str, allowance: int) -> Iterator[Member]:
    """The regular files of an archive, in its order.

    Args:
        file: the archive.
        suffix: what kind it is, one of `SUFFIXES`.
        allowance: bytes that may come out of a compressed stream altogether.

    Raises:
        SourceError: it is not sound, or goes beyond its bounds, or the source failed.
    """
    with sound():
        if suffix == ".zip":
            yield from _zip(file)
        elif suffix == ".tar":
            yield from _tar(cast("IO[bytes]", file))
        else:
            yield from _tar(cast("IO[bytes]", _Unpacked(file, allowance)))


@contextmanager
def sound() -> Iterator[None]:
    """Whatever these parsers raise on hostile input (tarfile, zipfile, zlib, struct, recursion) means one thing.

    Raises:
        Unsuitable: the archive is not sound.
    """
    try:
        yield
    except (SourceError, ReconcileError):
        raise
    except Exception as error:
        raise Unsuitable(f"is not a sound archive: {str(error) or type(error).__name__}") from error


def _tar(stream: IO[bytes]) -> Iterator[Member]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        count = 0
        while (info := archive.next()) is not None:
            count += 1
            if count > _MAX_MEMBERS:
                raise Unsuitable(f"has more than {_MAX_MEMBERS} members")
            archive.members.clear()  # type: ignore[attr-defined]  # its list would grow with the archive
            if info.type in _OLD_TYPES and not info.issparse() and info.size >= 0:
                yield Member(_plain(info.name), info.size, stream, info.offset_data)


def _zip(file: RangedFile) -> Iterator[Member]:
    with zipfile.ZipFile(cast("IO[bytes]", file)) as archive:
        infos = archive.infolist()
        if len(infos) > _MAX_MEMBERS:
            raise Unsuitable(f"has more than {_MAX_MEMBERS} members")
        if not file.ranges:
            raise Unsuitable("is a zip archive on a server that sends whole files only")
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.is_dir() or not _is_regular(info):
                continue
            if info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size:
                with archive.open(info):
                    start = file.tell()  # the last thing that was read is the member's own head
                yield Member(_plain(info.filename), info.file_size, cast("IO[bytes]", file), start)
            elif info.compress_type == zipfile.ZIP_DEFLATED:
                with archive.open(info) as content:
                    yield Member(_plain(info.filename), info.file_size, content, 0)


def _is_regular(info: zipfile.ZipInfo) -> bool:
    """Whether the upper half of the attributes, where Unix keeps the mode, names no other kind of file."""
    kind = info.external_attr >> 28
    return kind in (0, 0o10)


def _plain(name: str) -> str:
    return name.removeprefix("./")


class _Unpacked(io.RawIOBase):
    """What comes out of a zstd stream: forward only."""

    def __init__(self, file: RangedFile, allowance: int) -> None:
        from runtime.models.zstd import decoder  # noqa: PLC0415 - only for streams of this kind

        super().__init__()
        self._file = file
        self._left = allowance
        self._make = partial(decoder, _WINDOW_LOG)
        self._decoder = self._make()
        self._position = 0
        self._ended = False
        self._tail = b""

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence != io.SEEK_SET:
            raise Unsuitable("is not a sound archive: it leads to a place that nobody knows yet")
        if offset < self._position:
            raise Unsuitable("is not a sound archive: it leads back")
        while self._position < offset:
            if not self._produce(min(_CHUNK, offset - self._position)):
                break
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        from runtime.models.ranged import MAX_READ  # noqa: PLC0415 - the other reader's bound holds here, too

        if size is None or size < 0 or size > MAX_READ:
            raise Unsuitable(f"is not a sound archive: it claims more than {MAX_READ} bytes at once")
        parts = bytearray()
        while len(parts) < size and (data := self._produce(size - len(parts))):
            parts += data
        return bytes(parts)

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        data = self.read(min(len(view), _CHUNK))
        view[: len(data)] = data
        return len(data)

    def _produce(self, wanted: int) -> bytes:
        """Up to `wanted` bytes, at least one unless the stream is over."""
        data = b""
        while not data and not self._ended:
            if self._decoder.eof:
                self._tail = self._decoder.unused_data
                if not self._tail:
                    self._tail = self._file.read(_CHUNK)
                if not self._tail:
                    self._ended = True
                    break
                self._decoder = self._make()
            packed, self._tail = self._tail, b""
            if not packed and self._decoder.needs_input:
                packed = self._file.read(_CHUNK)
                if not packed:
                    raise Unsuitable("is not a sound archive: it ends early")
            data = self._decoder.decompress(packed, max_length=wanted)
        self._left -= len(data)
        if self._left < 0:
            raise Unsuitable("unpacks to far more than the model")
        self._position += len(data)
        return data
