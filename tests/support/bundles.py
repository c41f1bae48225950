"""Archives of models, sound ones and hostile ones."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def tar(files: Mapping[str, bytes], *extra: tuple[tarfile.TarInfo, bytes], first: bool = False) -> bytes:
    """A tar archive of files, with other members after them, or before."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in extra if first else ():
            archive.addfile(info, io.BytesIO(data))
        for path, data in files.items():
            archive.addfile(member(path, len(data)), io.BytesIO(data))
        for info, data in () if first else extra:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(path: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """The head of a tar member."""
    info = tarfile.TarInfo(path)
    info.size, info.type, info.linkname = size, kind, target
    return info


def packed(data: bytes) -> bytes:
    """In zstd, as several frames."""
    half = len(data) // 2
    return zstd.compress(data[:half], 1) + zstd.compress(data[half:], 1)


def packed_zeros(size: int) -> bytes:
    """So many zero bytes, in zstd."""
    compressor = zstd.ZstdCompressor(1)
    block = bytes(2**22)
    parts = [compressor.compress(block) for _ in range(size // len(block))]
    return b"".join([*parts, compressor.flush()])


def zipped(files: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for path, data in files:
            archive.writestr(path, data)
    return out.getvalue()


def zip_symlink(path: str, target: str) -> bytes:
    """A zip archive whose member is a symbolic link."""
    out = io.BytesIO()
    info = zipfile.ZipInfo(path)
    info.create_system = 3
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, target)
    return out.getvalue()


def zip_encrypted(data: bytes) -> bytes:
    """The flag for encryption set in every head."""
    changed = bytearray(data)
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = data.find(magic)
        while start >= 0:
            changed[start + offset] |= 1
            start = data.find(magic, start + 1)
    return bytes(changed)


def zip_claiming(data: bytes, size: int) -> bytes:
    """The first member's unpacked size in the list of contents replaced."""
    start = data.find(b"PK\x01\x02")
    return data[: start + 24] + struct.pack("<I", size) + data[start + 28 :]


def zip64_claiming(data: bytes, size: int) -> bytes:
    """A zip64 record appended that claims a list of contents of such a size."""
    end = data.rfind(b"PK\x05\x06")
    record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<IIQI", 0x07064B50, 0, end, 1)
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:end] + record + locator + tail
