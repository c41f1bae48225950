"""Makes a model's manifest in one read of its data: BLAKE3 of every piece and file, and SHA-256 beside it."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from runtime.models.formats import CODE, PICKLES
from schemas.base import RelativePath
from schemas.digests import Hasher, digest_bytes, raw_hash
from schemas.errors import Incompatible
from schemas.manifest import PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_READAHEAD: Final = 2
"""Pieces in memory at once: one that is hashed while the next is read."""
_PATH: Final = TypeAdapter[str](RelativePath)

Format = Literal["gguf", "safetensors"]


class Readable(Protocol):
    """Bytes in order."""

    def readinto(self, view: memoryview, /) -> int | None:
        """Fill some of the buffer; the number of bytes, 0 at the end."""
        ...


@dataclass(frozen=True, slots=True)
class BuiltManifest:
    """A manifest's `spec` without the reference to its pieces, and the pieces themselves."""

    format: Format
    files: tuple[dict[str, Any], ...]
    """Entries of `spec.files`, in wire form, sorted by path."""
    pieces: bytes
    """Content of the side file."""
    pieces_digest: str
    size: int
    """Bytes of all files."""
    skipped: tuple[str, ...]
    """Hidden files and folders that were left out."""


def build(path: Path, *, told: Callable[[str, int, int], None] | None = None) -> BuiltManifest:
    """Read a model and describe it.

    Args:
        path: a file, or a folder with the model's files.
        told: called with (file, bytes done, bytes in all).

    Raises:
        Incompatible: there is nothing to serve, a file runs code when it is loaded, a name is not portable, or a link
            leads out of the folder.
        OSError: a file cannot be read.
    """
    root = path.resolve(strict=True)
    found, skipped = _files(root)
    kind = _format([name for name, _ in found])
    described = []
    for name, file in found:
        with file.open("rb", buffering=0) as source:
            described.append(_describe(name, source, file.stat().st_size, told))
    return _built(kind, described, skipped)


def build_stream(
    name: str, source: Readable, size: int, *, told: Callable[[str, int, int], None] | None = None
) -> BuiltManifest:
    """Describe a model of one file that is read from somewhere else than a disk; errors as `build`, and the source's.

    Args:
        name: the file's name.
        source: gives its bytes, once.
        size: how many there are, for `told`.
        told: called with (file, bytes done, bytes in all).
    """
    kind = _format([check_name(name)])
    return _built(kind, [_describe(name, source, size, told)], ())


def _built(kind: Format, described: Sequence[tuple[dict[str, Any], bytes]], skipped: Sequence[str]) -> BuiltManifest:
    pieces = b"".join(hashes for _, hashes in described)
    return BuiltManifest(
        format=kind,
        files=tuple(entry for entry, _ in described),
        pieces=pieces,
        pieces_digest=digest_bytes(pieces),
        size=sum(int(entry["size"]) for entry, _ in described),
        skipped=tuple(skipped),
    )


def _files(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    if root.is_file():
        return [(check_name(root.name), root)], []
    found: list[tuple[str, Path]] = []
    skipped: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=False):
        for name in sorted(folders):
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if name.startswith("."):
                skipped.append(f"{relative}/")
                folders.remove(name)
            elif (Path(folder) / name).is_symlink():
                raise Incompatible(f"{relative} is a link to a folder; put the files themselves there")
        for name in names:
            file = Path(folder) / name
            relative = file.relative_to(root).as_posix()
            if name.startswith("."):
                skipped.append(relative)
                continue
            found.append((check_name(relative), _target(file, root, relative)))
    return sorted(found), sorted(skipped)


def _target(file: Path, root: Path, relative: str) -> Path:
    """The file itself, or what a link within the folder leads to."""
    try:
        target = file.resolve(strict=True)
    except OSError as error:
        raise Incompatible(f"{relative} is a link to nothing") from error
    if not target.is_relative_to(root):
        raise Incompatible(f"{relative} is a link that leads out of the folder")
    if not target.is_file():
        raise Incompatible(f"{relative} is not a regular file")
    return target


def check_name(name: str) -> str:
    """The name of a model's file, if nodes can take it.

    Raises:
        Incompatible: it runs code when it is loaded, or is not portable.
    """
    extension = name.rpartition(".")[2].lower()
    if extension in PICKLES | CODE:
        raise Incompatible(f"{name} may run code when it is loaded; weights belong into safetensors or gguf")
    try:
        return _PATH.validate_python(name, strict=True)
    except ValidationError as error:
        raise Incompatible(f"{name!r} is not a name that every file system can hold") from error


def _format(names: Sequence[str]) -> Format:
    extensions = {name.rpartition(".")[2].lower() for name in names}
    if "gguf" in extensions:
        return "gguf"
    if "safetensors" in extensions:
        return "safetensors"
    raise Incompatible("there is neither a .gguf nor a .safetensors file")


def _describe(
    name: str, source: Readable, size: int, told: Callable[[str, int, int], None] | None
) -> tuple[dict[str, Any], bytes]:
    """One file's entry and the hashes of its pieces, from one read; the three hashes run beside each other."""
    whole, sha256, hashes = Hasher(max_threads=Hasher.AUTO), hashlib.sha256(), bytearray()
    done = 0
    with ThreadPoolExecutor(3) as pool:
        buffers = [bytearray(PIECE_SIZE) for _ in range(_READAHEAD)]
        pending: list[Any] = []
        number = 0
        while True:
            view = memoryview(buffers[number % _READAHEAD])
            read = _fill(source, view)
            for task in pending:
                result = task.result()
                hashes += result if isinstance(result, bytes) else b""
            if not read:
                break
            data = view[:read]
            pending = [pool.submit(whole.update, data), pool.submit(sha256.update, data), pool.submit(raw_hash, data)]
            done += read
            number += 1
            if told is not None:
                told(name, done, size)
    entry = {
        "path": name,
        "size": done,
        "blake3": f"blake3:{whole.hexdigest()}",
        "sha256": f"sha256:{sha256.hexdigest()}",
    }
    return entry, bytes(hashes)


def _fill(source: Readable, view: memoryview) -> int:
    filled = 0
    while filled < len(view):
        read = source.readinto(view[filled:])
        if not read:
            break
        filled += read
    return filled
