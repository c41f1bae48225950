"""Zstandard: the one place that imports it. The standard library has it from Python 3.14; before, its backport."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from typing_extensions import Buffer

LEVEL: Final = 3
"""Zstandard's own default. Weights are close to noise: higher levels cost ten times as much and give a percent."""

_BOUND: Final = 8
"""Incompressible data grows by less than one part in 2^8, and some bytes (ZSTD_COMPRESSBOUND of zstd.h)."""


def compress(data: Buffer) -> bytes:
    """One complete frame, with a checksum of its content."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    return zstd.compress(data, options=options)


def decompress(frame: Buffer, size: int) -> bytes:
    """The content of one frame, which has to be `size` bytes: no more memory than that is taken.

    Raises:
        ValueError: it is not one whole frame of that size.
    """
    engine = zstd.ZstdDecompressor()
    try:
        # One byte more than it may be, so that a longer content shows.
        data = engine.decompress(frame, size + 1)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(data) != size or not engine.eof or engine.unused_data:
        raise ValueError(f"not one frame of {size} bytes")
    return data


def bound(size: int) -> int:
    """Bytes that a frame of `size` bytes takes at most."""
    return size + (size >> _BOUND) + 2**10


def decoder(window_log: int) -> zstd.ZstdDecompressor:
    """What unpacks one frame of a stream, bit by bit, and takes no more than 2^`window_log` bytes for looking back."""
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})
