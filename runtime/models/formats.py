"""What a model may consist of: headers parsed and bounded before publish, pickles and program code refused.

Digests prove that bytes are the manifest's; they do not make them harmless. Loaders that trust a length in a header,
unpickle, or import code from the model's folder have been the way in (CVE-2024-23496 in a GGUF parser, torch's
pickles). Nothing here loads a tensor: headers are read with fixed bounds, every length is checked before its use.
"""

from __future__ import annotations

import json
import os
import re
import struct
from typing import TYPE_CHECKING, Final

from runtime.models.layout import open_regular
from schemas.errors import Incompatible

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from runtime.interfaces import Model

PICKLES: Final = frozenset(
    {"bin", "ckpt", "dill", "joblib", "npy", "npz", "pickle", "pkl", "pt", "pth", "mar", "h5", "keras", "msgpack"}
)
"""File name extensions of formats that run code when loaded, or hold weights outside of the manifest's format."""

CODE: Final = frozenset({"py", "pyc", "pyd", "so", "dll", "dylib", "sh", "exe", "ipynb", "pyz", "whl", "egg"})
"""File name extensions of program code: `trust_remote_code` finds nothing to trust."""

_SAFETENSORS_DEPTH: Final = 4
"""Nesting of a header: an object of tensors, each an object with lists; or of metadata."""
_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
"""A text, which may hold any bracket, or a bracket that counts."""

_SAFETENSORS_HEADER: Final = 100_000_000
"""Longest header, bytes: the limit of the safetensors library itself."""

_GGUF_VERSIONS: Final = (2, 3)
_GGUF_HEADER: Final = 2**28
"""Longest header, bytes: the largest vocabularies take about 20 MB."""
_GGUF_TENSORS: Final = 2**20
_GGUF_KEYS: Final = 2**16
_GGUF_TEXT: Final = 2**24
_GGUF_ARRAY: Final = 2**24
_GGUF_DEPTH: Final = 4
_GGUF_VALUES: Final = 2**21
"""Values that are walked one by one; the largest vocabularies have some 300,000 tokens and twice as many merges."""
_GGUF_DIMENSIONS: Final = 4
_GGUF_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the value types of fixed size (ggml, docs/gguf.md)."""
_GGUF_STRING: Final = 8
_GGUF_LIST: Final = 9

_DTYPES: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one element (safetensors, `Dtype`)."""


class _Bad(Exception):
    """A header that is not what its format says; becomes `Incompatible` with the file's name."""


def check_names(model: Model) -> None:
    """Refuse a model whose file list says enough, before anything is fetched.

    Raises:
        Incompatible: it lists a pickle or program code, or nothing in the format that it claims.
    """
    metadata, spec = model.manifest.metadata, model.manifest.spec
    label = f"{metadata.name}:{metadata.version}"
    for file in spec.files:
        extension = _extension(file.path)
        if extension in PICKLES:
            raise Incompatible(f"{label} lists {file.path}: formats that can run code when loaded are refused")
        if extension in CODE:
            raise Incompatible(f"{label} lists {file.path}: program code in a model is refused")
    if not any(_extension(file.path) == spec.format for file in spec.files):
        raise Incompatible(f"{label} says that it is {spec.format}, and lists no .{spec.format} file")


def check_content(model: Model, base: Path, paths: Iterable[str]) -> None:
    """Look into verified files before they are published.

    Args:
        model: the model.
        base: folder with its files.
        paths: the files to look into.

    Raises:
        Incompatible: a weights file's header is not sound, or a file is a pickle or an archive under another name.
        OSError: a file cannot be read.
    """
    metadata = model.manifest.metadata
    for path in paths:
        file = open_regular(base, path)
        try:
            _check(file, _extension(path))
        except _Bad as error:
            raise Incompatible(f"{metadata.name}:{metadata.version}: {path}: {error}") from error
        finally:
            os.close(file)


def header_size(base: Path, path: str, here: int) -> int | None:
    """Bytes at the beginning of a file that `check_content` looks at; None while they go beyond those that are here.

    Args:
        base: folder with the file.
        path: the file.
        here: bytes of its beginning that are there.

    Raises:
        OSError: it cannot be read.
    """
    file = open_regular(base, path)
    try:
        match _extension(path):
            case "gguf":
                walked = _Gguf(file, here)
                walked.walk()
                end = walked.position
            case "safetensors":
                (length,) = struct.unpack("<Q", _read(file, 0, 8))
                end = 8 + int(length) if length <= _SAFETENSORS_HEADER else 8
            case _:
                end = 4
    except _Bad:
        return None
    finally:
        os.close(file)
    return end if end <= here else None


def _extension(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[2].lower()


def _check(file: int, extension: str) -> None:
    size = os.fstat(file).st_size
    if extension == "gguf":
        _Gguf(file, size).check()
    elif extension == "safetensors":
        _check_safetensors(file, size)
    else:
        start = os.pread(file, 4, 0)
        # A pickle of protocol 2 and above begins with PROTO and its number; torch wraps pickles into zip archives.
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise _Bad("begins like a pickle, which can run code when loaded")
        if start == b"PK\x03\x04":
            raise _Bad("is a zip archive, which may hold a pickle")
        if start == b"\x7fELF":
            raise _Bad("is a program")


# --- safetensors ----------------------------------------------------------------------------------------------------


def _check_safetensors(file: int, size: int) -> None:
    """Header length, JSON, and every tensor within the file, without holes or overlaps (safetensors, format)."""
    start = os.pread(file, 8, 0)
    if len(start) < 8:  # noqa: PLR2004 - the length field itself
        raise _Bad("is too short for a safetensors file")
    (length,) = struct.unpack("<Q", start)
    if length > min(_SAFETENSORS_HEADER, size - 8):
        raise _Bad(f"claims a header of {length} bytes")
    try:
        text = _read(file, 8, length)
        _bound_depth(text)
        header = json.loads(text, object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _Bad(f"has a header that is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _Bad("has a header that is not an object")
    spans = sorted(_span(name, entry) for name, entry in header.items() if name != "__metadata__")
    position = 0
    for begin, end in spans:
        if begin != position:
            raise _Bad("has tensors that overlap, or bytes that belong to none")
        position = end
    if position != size - 8 - length:
        raise _Bad("has tensors that do not end where the file does")


def _bound_depth(text: bytes) -> None:
    """Refuse nesting before the parser meets it: how deep its C code may go is not ours to rely on."""
    depth = 0
    for found in _BRACKET.finditer(text):
        bracket = found.group()
        depth += (bracket in b"[{") - (bracket in b"]}") if len(bracket) == 1 else 0
        if depth > _SAFETENSORS_DEPTH:
            raise _Bad(f"has a header that is nested deeper than {_SAFETENSORS_DEPTH}")


def _span(name: str, entry: object) -> tuple[int, int]:
    """First byte of a tensor and the one after its last."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in _DTYPES:
            bits = _DTYPES[dtype]
            for dimension in shape:
                if type(dimension) is not int or not 0 <= dimension <= 2**48 or bits > 2**56:
                    raise _Bad(f"has an impossible shape for tensor {name[:80]!r}")
                bits *= dimension
            if 0 <= begin <= end and (end - begin) * 8 == bits:
                return begin, end
    raise _Bad(f"describes tensor {name[:80]!r} wrongly")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is listed twice")
    return found


# --- GGUF -----------------------------------------------------------------------------------------------------------


class _Gguf:
    """Walks a GGUF header (ggml, docs/gguf.md) without keeping it."""

    def __init__(self, file: int, size: int) -> None:
        self._file = file
        self._size = size
        self._limit = min(size, _GGUF_HEADER)
        self.position = 0
        self._buffer = b""
        self._buffered_from = 0
        self._values = 0

    def check(self) -> None:
        """Every count and length within bounds, every tensor's beginning within the file."""
        tensors, alignment, furthest = self.walk()
        if not alignment or alignment % 8 or alignment > 2**16:
            raise _Bad(f"claims an alignment of {alignment}")
        data = -(-self.position // alignment) * alignment
        if tensors and data + furthest >= self._size:
            raise _Bad("has a tensor beyond the end of the file")

    def walk(self) -> tuple[int, int, int]:
        """To the end of the header: how many tensors, their alignment, and where the last one begins in the data."""
        if self._take(4) != b"GGUF":
            raise _Bad("is not a GGUF file")
        version = self._number("<I")
        if version not in _GGUF_VERSIONS:
            raise _Bad(f"is GGUF version {version}; {_GGUF_VERSIONS[0]} and {_GGUF_VERSIONS[1]} are known")
        tensors = self._count(_GGUF_TENSORS, "tensors")
        keys = self._count(_GGUF_KEYS, "keys")
        alignment = 32
        for _ in range(keys):
            key = self._text()
            kind = self._number("<I")
            if key == b"general.alignment" and kind == 4:  # noqa: PLR2004 - uint32, as the format prescribes
                alignment = self._number("<I")
            else:
                self._skip_value(kind, 0)
        furthest = max((self._tensor() for _ in range(tensors)), default=0)
        return tensors, alignment, furthest

    def _tensor(self) -> int:
        """Skip a tensor's description; its offset within the data."""
        self._text()
        dimensions = self._number("<I")
        if dimensions > _GGUF_DIMENSIONS:
            raise _Bad(f"claims a tensor of {dimensions} dimensions")
        self._skip(8 * dimensions + 4)
        return self._number("<Q")

    def _skip_value(self, kind: int, depth: int) -> None:
        self._values += 1
        if self._values > _GGUF_VALUES:
            raise _Bad(f"lists more than {_GGUF_VALUES} values")
        if kind in _GGUF_SIZES:
            self._skip(_GGUF_SIZES[kind])
        elif kind == _GGUF_STRING:
            self._text()
        elif kind == _GGUF_LIST and depth < _GGUF_DEPTH:
            inner = self._number("<I")
            count = self._count(_GGUF_ARRAY, "array elements")
            if inner in _GGUF_SIZES:
                self._skip(_GGUF_SIZES[inner] * count)
                return
            for _ in range(count):
                self._skip_value(inner, depth + 1)
        else:
            raise _Bad(f"has a value of unknown type {kind}")

    def _text(self) -> bytes:
        length = self._count(_GGUF_TEXT, "bytes of text")
        if length > 256:  # noqa: PLR2004 - longer than any key that matters here
            self._skip(length)
            return b""
        return self._take(length)

    def _count(self, limit: int, what: str) -> int:
        count = self._number("<Q")
        if count > limit:
            raise _Bad(f"claims {count} {what}")
        return count

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _skip(self, length: int) -> None:
        self.position += length
        if self.position > self._limit:
            raise _Bad("has a header that does not end within the file, or is far too long")

    def _take(self, length: int) -> bytes:
        start = self.position
        self._skip(length)
        begin = start - self._buffered_from
        if not 0 <= begin <= len(self._buffer) - length:
            self._buffer = os.pread(self._file, max(length, 2**20), start)
            self._buffered_from, begin = start, 0
        return self._buffer[begin : begin + length]


def _read(file: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(file, length, offset)
        if not part:
            raise _Bad("ends within its header")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return b"".join(parts)
