"""Makes a model's manifest in one read of its data: BLAKE3 of every piece and file, and SHA-256 beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import TypeAdapter, ValidationError

from runtime.models.formats import CODE, PICKLES
from schemas.base import RelativePath
from schemas.digests import Hasher, digest_bytes, raw_hash
from schemas.errors import Incompatible
from schemas.manifest import PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_READAHEAD: Final = 2
"""Pieces in memory at once: one that is hashed while the next is read."""
_PATH: Final = TypeAdapter[str](RelativePath)

Format = Literal["gguf", "safetensors"]
Told = Callable[[str, int, int], None]
"""Called with a file, its bytes done, and its bytes in all."""


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
    """Files and folders that were left out."""


def build(path: Path, *, told: Told | None = None) -> BuiltManifest:
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
    kind = format_of([name for name, _ in found])
    return assemble(kind, (_describe(name, file, told) for name, file in found), skipped)


def assemble(kind: Format, described: Iterable[tuple[dict[str, Any], bytes]], skipped: Iterable[str]) -> BuiltManifest:
    """Put the files of a model together.

    Args:
        kind: how the weights are stored.
        described: each file's entry and the hashes of its pieces, sorted by path.
        skipped: what was left out.
    """
    entries: list[dict[str, Any]] = []
    pieces = bytearray()
    for entry, hashes in described:
        entries.append(entry)
        pieces += hashes
    return BuiltManifest(
        format=kind,
        files=tuple(entries),
        pieces=bytes(pieces),
        pieces_digest=digest_bytes(bytes(pieces)),
        size=sum(int(entry["size"]) for entry in entries),
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


def format_of(names: Sequence[str]) -> Format:
    """How the weights of these files are stored.

    Raises:
        Incompatible: there are none.
    """
    extensions = {name.rpartition(".")[2].lower() for name in names}
    if "gguf" in extensions:
        return "gguf"
    if "safetensors" in extensions:
        return "safetensors"
    raise Incompatible("there is neither a .gguf nor a .safetensors file")


def _describe(name: str, file: Path, told: Told | None) -> tuple[dict[str, Any], bytes]:
    """One file's entry and the hashes of its pieces, from one read."""
    size = file.stat().st_size
    with file.open("rb", buffering=0) as source, Describer(name) as describer:
        buffers = [bytearray(PIECE_SIZE) for _ in range(_READAHEAD)]
        number = 0
        while read := _fill(source, view := memoryview(buffers[number % _READAHEAD])):
            describer.add(view[:read])
            number += 1
            if told is not None:
                told(name, describer.size, size)
        return describer.entry(), describer.hashes


class Describer:
    """Takes a file's content piece by piece, and has its digests.

    The three hashes run beside each other, and beside the reading of the next piece.
    """

    def __init__(self, name: str) -> None:
        """Begin.

        Args:
            name: path of the file in its model.
        """
        self._name = name
        self._whole = Hasher(max_threads=Hasher.AUTO)
        self._sha256 = hashlib.sha256()
        self._hashes = bytearray()
        self._pool = ThreadPoolExecutor(3)
        self._pending: list[Any] = []
        self.size = 0
        """Bytes so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def add(self, piece: memoryview) -> None:
        """The next piece; it must stay as it is until the one after the next is added, or all are."""
        self._settle()
        work: tuple[Callable[[memoryview], Any], ...] = (self._whole.update, self._sha256.update, raw_hash)
        self._pending = [self._pool.submit(task, piece) for task in work]
        self.size += len(piece)

    @property
    def hashes(self) -> bytes:
        """The BLAKE3 of every piece."""
        self._settle()
        return bytes(self._hashes)

    @property
    def sha256(self) -> str:
        """SHA-256 of everything, hex."""
        self._settle()
        return self._sha256.hexdigest()

    def entry(self) -> dict[str, Any]:
        """The file's entry in the manifest, in wire form."""
        self._settle()
        return {
            "path": self._name,
            "size": self.size,
            "blake3": f"blake3:{self._whole.hexdigest()}",
            "sha256": f"sha256:{self.sha256}",
        }

    def _settle(self) -> None:
        for task in self._pending:
            result = task.result()
            self._hashes += result if isinstance(result, bytes) else b""
        self._pending = []


def _fill(source: Any, view: memoryview) -> int:
    filled = 0
    while filled < len(view):
        read = source.readinto(view[filled:])
        if not read:
            break
        filled += read
    return filled
