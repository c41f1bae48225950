"""Key files: Ethereum's keystore version 3, or plain. For operators, and for a node's own identity.

Encrypted by default, in the form that every Ethereum wallet reads. Key derivation runs in a child process
(`desired_state.keystore`), so that its 256 MiB do not stay. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from desired_state.tree import parse_json
from schemas.errors import ConfigError, KeyLocked
from schemas.refusals import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from schemas.ports import Processes, Randomness

Kdf = Literal["scrypt", "pbkdf2"]

KEY_LIMIT: Final = 2**14
"""Bytes of a key file: it holds some 600."""
PASSWORD_LIMIT: Final = 2**10
"""Bytes of a password."""

_WORK: Final[Mapping[Kdf, int]] = {
    "scrypt": 2**18,  # the Web3 Secret Storage definition's own: 256 MiB, about a second
    "pbkdf2": 600_000,  # OWASP Password Storage Cheat Sheet, 2023, for HMAC-SHA-256
}
_MOST_SCRYPT_MEMORY: Final = 2**29
"""Bytes that a key file may make us take: twice the usual."""
_MOST_PBKDF2: Final = 10_000_000
"""Rounds that a key file may make us do: some ten seconds."""
_TIMEOUT: Final = 120.0
"""Seconds for one derivation: a hundred times what it takes on a server, ten times a small board."""
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of secp256k1 (SEC 2, section 2.4.1): private keys lie below it."""
_KEY_BYTES: Final = 32
_PLAIN: Final = "PlainKey"
_HEX_KEY: Final = re.compile(r"(0x)?([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file as it lies on the disk: still locked, if it has a lock."""

    path: Path
    address: str
    """Address that the file claims; what counts is the key's own."""
    encrypted: bool
    document: Mapping[str, Any] = field(repr=False)


def new_private_key(randomness: Randomness) -> bytes:
    """A fresh private key of 32 bytes."""
    while True:
        key = bytes.fromhex(randomness.token(_KEY_BYTES))
        if is_private_key(key):  # a draw outside the curve's order happens once in 2^128
            return key


def is_private_key(key: bytes) -> bool:
    """Whether 32 bytes are a private key of the curve."""
    return len(key) == _KEY_BYTES and 0 < int.from_bytes(key) < _ORDER


def parse_private_key(text: str) -> bytes:
    """A private key from 64 hex digits, with or without 0x.

    Raises:
        ConfigError: not one. The text is not repeated.
    """
    match = _HEX_KEY.fullmatch(text.strip())
    key = bytes.fromhex(match.group(2)) if match else b""
    if not is_private_key(key):
        raise ConfigError("a private key is 64 hex digits, with or without 0x in front")
    return key


# --- forms --------------------------------------------------------------------------------------------------------


def encrypt(private_key: bytes, password: str, *, kdf: Kdf = "scrypt", processes: Processes) -> dict[str, Any]:
    """A keystore version 3 document.

    Args:
        private_key: 32 bytes.
        password: not empty.
        kdf: how the password is stretched. `scrypt` is strong and takes 256 MiB and a second; `pbkdf2` takes no memory
            worth naming, for small machines and for tests.
        processes: where the derivation runs.

    Raises:
        ConfigError: the derivation failed.
    """
    request = {"operation": "encrypt", "privateKey": private_key.hex(), "kdf": kdf, "work": _WORK[kdf]}
    document: dict[str, Any] = _ask(request, password, processes)["document"]
    return document


def decrypt(document: Mapping[str, Any], password: str, *, processes: Processes) -> bytes:
    """The private key of a keystore version 3 document.

    Raises:
        KeyLocked: another password.
        ConfigError: not a keystore, or one that asks for too much memory or time.
    """
    _check_cost(document)
    answer = _ask({"operation": "decrypt", "document": document}, password, processes)
    key = bytes.fromhex(answer["privateKey"])
    if not is_private_key(key):
        raise ConfigError("the keystore holds no private key of the curve secp256k1")
    return key


def plain(private_key: bytes) -> dict[str, Any]:
    """A document that holds the key as it is: protected by the file's permissions alone."""
    from desired_state.signatures import address_of  # noqa: PLC0415 - 0.9 s, for new keys only

    return {"kind": _PLAIN, "address": address_of(private_key), "privateKey": "0x" + private_key.hex()}


def _ask(request: dict[str, Any], password: str, processes: Processes) -> dict[str, Any]:
    program = [sys.executable, "-P", str(Path(__file__).with_name("keystore.py"))]
    given = json.dumps(request | {"password": password}).encode()
    try:
        completed = processes.run(program, timeout=_TIMEOUT, max_output=KEY_LIMIT, stdin=given)
    except (TimeoutError, OverflowError, OSError) as error:
        raise ConfigError(f"the key could not be derived: {error}") from error
    if completed.returncode != 0:
        last = completed.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"the key could not be derived: {last or f'exit code {completed.returncode}'}")
    answer: dict[str, Any] = json.loads(completed.stdout)
    if "error" in answer:
        if "MAC mismatch" in answer["error"]:
            raise KeyLocked("the password is wrong", hint="the key file itself is intact; try again")
        raise ConfigError(f"not a keystore of version 3: {answer['error']}")
    return answer


def _check_cost(document: Mapping[str, Any]) -> None:
    """A key file from elsewhere must not be able to take all memory, or an hour."""
    # Early wallets wrote keys of the document in capitals ("Crypto").
    folded = {str(key).lower(): value for key, value in document.items()}
    crypto = folded.get("crypto")
    if folded.get("version") != 3 or not isinstance(crypto, dict):  # noqa: PLR2004 - the only version of secp256k1
        raise ConfigError("not a keystore of version 3")
    parameters = crypto.get("kdfparams")
    numbers = parameters if isinstance(parameters, dict) else {}
    try:
        memory = 128 * int(numbers.get("n", 0)) * int(numbers.get("r", 0)) * max(1, int(numbers.get("p", 1)))
        rounds = int(numbers.get("c", 0))
    except (TypeError, ValueError) as error:
        raise ConfigError("not a keystore of version 3: kdfparams are no numbers") from error
    if memory > _MOST_SCRYPT_MEMORY or rounds > _MOST_PBKDF2:
        raise ConfigError("the keystore asks for more memory or time than any wallet does; it is refused")


# --- files --------------------------------------------------------------------------------------------------------


def read_key_file(path: Path) -> KeyFile:
    """Read a key file without unlocking it.

    Raises:
        ConfigError: not there, not readable, not a key file, or a plain key that others may read.
    """
    content, mode = _bounded(path)
    try:
        tree, _ = parse_json(content, file=str(path), limit=KEY_LIMIT)
    except DocumentError as error:
        raise ConfigError(error.message, hint="key files are made by `reconcile key new`") from error
    document = tree if isinstance(tree, dict) else {}
    encrypted = document.get("kind") != _PLAIN
    if encrypted:
        _check_cost(document)
    elif mode & 0o077:
        raise ConfigError(f"{path} holds a plain key, and others may read it", hint=f"chmod 600 {path}")
    return KeyFile(path, _address(document), encrypted, document)


def load_key(path: Path, password: Callable[[], str], *, processes: Processes) -> bytes:
    """The private key of a key file.

    Args:
        path: the file.
        password: asked for the password, only if the file is encrypted.
        processes: where the derivation runs.

    Raises:
        KeyLocked: another password.
        ConfigError: not there, not readable, not a key file.
    """
    return unlock(read_key_file(path), password, processes=processes)


def unlock(file: KeyFile, password: Callable[[], str], *, processes: Processes) -> bytes:
    """The private key of a key file that was read; arguments and errors as `load_key`."""
    if not file.encrypted:
        return parse_private_key(str(file.document.get("privateKey", "")))
    return decrypt(file.document, password(), processes=processes)


def write_key(path: Path, document: Mapping[str, Any]) -> None:
    """Write a key file with mode 0600, durably. An existing file is never touched.

    Raises:
        ConfigError: something of that name exists, or the folder cannot be written to.
    """
    content = json.dumps(document, indent=2).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists, and a key is never overwritten", hint="choose another name") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        # Not `Files.write`: that replaces, and a key must not replace anything.
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, content)
        os.fsync(descriptor)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise ConfigError(f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_password_file(path: Path) -> str:
    """The password in a file: its first line, without the line break.

    Raises:
        ConfigError: not there, not readable, empty, too long, or not UTF-8.
    """
    content, _ = _bounded(path, limit=PASSWORD_LIMIT)
    try:
        password = content.decode().partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8") from error
    if not password:
        raise ConfigError(f"{path} is empty: a password is expected on its first line")
    return password


def _bounded(path: Path, *, limit: int = KEY_LIMIT) -> tuple[bytes, int]:
    """Content and mode of a small regular file."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a regular file")
        content = os.read(descriptor, limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes: not a file of this kind")
    return content, found.st_mode


def _address(document: Mapping[str, Any]) -> str:
    """The address that a document claims, checksummed; empty if it claims none (the standard leaves it optional)."""
    claimed = document.get("address")
    digits = str(claimed or "").removeprefix("0x")
    if not digits:
        return ""
    if digits.lower() != digits and digits.upper() != digits:
        return "0x" + digits
    from desired_state.signatures import checksum  # noqa: PLC0415 - 0.9 s, for other wallets' files only

    try:
        return checksum("0x" + digits.lower())
    except ValueError as error:
        raise ConfigError(f"the key file's address {claimed!r} is not one") from error
