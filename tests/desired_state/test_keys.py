"""Key files: encrypted or plain, bounded, and never confused."""

from __future__ import annotations

import json
import os
import resource
from typing import TYPE_CHECKING

import pytest
from eth_account import Account

from desired_state import keys
from runtime.host import host_ports
from schemas.errors import ConfigError, KeyLocked
from schemas.ports import Completed
from tests.desired_state.network import address, key

if TYPE_CHECKING:
    from pathlib import Path

PORTS = host_ports()


def nobody() -> str:
    """Fails the test when a password is asked for."""
    raise AssertionError("no password is needed")


def test_round_trip_and_a_wrong_password() -> None:
    """Law: decrypt(encrypt(key)) is the key, with this password and no other."""
    document = keys.encrypt(key(5), "right", kdf="pbkdf2", processes=PORTS.processes)
    assert keys.decrypt(document, "right", processes=PORTS.processes) == key(5)
    with pytest.raises(KeyLocked):
        keys.decrypt(document, "wrong", processes=PORTS.processes)


def test_derivation_leaves_no_memory_behind() -> None:
    """The 256 MiB of scrypt are taken by a child, not by this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    document = keys.encrypt(key(5), "x", processes=PORTS.processes)
    assert document["crypto"]["kdfparams"]["n"] == 2**18
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 200 * 1024


def test_nothing_secret_is_on_the_command_line() -> None:
    """Password and key go to the child through its standard input."""
    seen: list[object] = []

    class Spy:
        def run(self, argv: object, *, stdin: bytes = b"", env: object = None, **_: object) -> Completed:
            seen.append((argv, env))
            assert b"hush" in stdin
            return Completed(0, b'{"document": {}}', b"")

    keys.encrypt(key(5), "hush", processes=Spy())  # type: ignore[arg-type] # what is not asked for is missing
    assert "hush" not in repr(seen)
    assert key(5).hex() not in repr(seen)


class Forbidden:
    """No process may be started."""

    def run(self, *_: object, **__: object) -> Completed:
        """Fail the test."""
        raise AssertionError("a child was started")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 4}, "not a keystore"),
        ({"crypto": []}, "not a keystore"),
        ({"crypto": {"kdf": "scrypt", "kdfparams": {"n": 2**24, "r": 8, "p": 1}}}, "more memory or time"),
        ({"crypto": {"kdf": "scrypt", "kdfparams": {"n": 2**18, "r": 8, "p": 64}}}, "more memory or time"),
        ({"crypto": {"kdf": "scrypt", "kdfparams": {"n": "many", "r": 8, "p": 1}}}, "no numbers"),
        ({"crypto": {"kdf": "pbkdf2", "kdfparams": {"c": 10**9}}}, "more memory or time"),
    ],
)
def test_a_hostile_keystore_is_refused(change: dict[str, object], message: str) -> None:
    """A file that asks for gigabytes or hours is refused before anything is derived (I11)."""
    document = {"version": 3, "crypto": {"kdf": "pbkdf2", "kdfparams": {"c": 1}}, **change}
    with pytest.raises(ConfigError, match=message):
        keys.decrypt(document, "x", processes=Forbidden())  # type: ignore[arg-type] # as a process runner it is useless


def test_an_unknown_derivation_is_refused() -> None:
    """A keystore of another kind is refused by the child, as one clear error."""
    with pytest.raises(ConfigError, match="not a keystore"):
        keys.decrypt({"version": 3, "crypto": {"kdf": "md5", "kdfparams": {}}}, "x", processes=PORTS.processes)


def test_a_failing_child_is_an_error() -> None:
    """Whatever becomes of the child, the caller gets one clear error."""

    class Broken:
        def __init__(self, outcome: Completed | Exception) -> None:
            self.outcome = outcome

        def run(self, *_: object, **__: object) -> Completed:
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

    for outcome in (Completed(1, b"", b"no module\n"), TimeoutError("late"), OSError("none"), OverflowError("much")):
        with pytest.raises(ConfigError, match="could not be derived"):
            keys.encrypt(key(5), "x", processes=Broken(outcome))  # type: ignore[arg-type]


def test_plain_files(tmp_path: Path) -> None:
    """A plain key needs no password; one that others may read is refused."""
    path = tmp_path / "sub" / "a.json"
    keys.write_key(path, keys.plain(key(5)))
    found = keys.read_key_file(path)
    assert (found.encrypted, found.address) == (False, address(5))
    assert keys.load_key(path, nobody, processes=PORTS.processes) == key(5)
    assert key(5).hex() not in repr(found)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it"):
        keys.load_key(path, nobody, processes=PORTS.processes)


def test_encrypted_files(tmp_path: Path) -> None:
    """An encrypted key asks for its password once."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(Account.encrypt(key(5), "pw", kdf="pbkdf2", iterations=1000)))
    assert keys.read_key_file(path).encrypted
    assert keys.load_key(path, lambda: "pw", processes=PORTS.processes) == key(5)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{" * 100, b"\xff", b'{"kind": "PlainKey"}', b"x" * 2**15])
def test_what_is_no_key_file(tmp_path: Path, content: bytes) -> None:
    """Anything else is one clear error, whatever it holds."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        keys.load_key(path, nobody, processes=PORTS.processes)


def test_a_pipe_is_no_key_file(tmp_path: Path) -> None:
    """A FIFO without a writer does not hang the reader; a folder and nothing are refused too."""
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "nothing"):
        with pytest.raises(ConfigError):
            keys.read_key_file(tmp_path / name)


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    """Writing over a file, or through a link, is refused; both stay as they are."""
    path = tmp_path / "a.json"
    path.write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for target in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="never overwritten"):
            keys.write_key(target, keys.plain(key(5)))
    assert path.read_text() == "precious"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(("content", "password"), [(b"pw\n", "pw"), (b"p w\r\nmore", "p w"), ("ü".encode(), "ü")])
def test_password_files(tmp_path: Path, content: bytes, password: str) -> None:
    """The password is the first line, without its line break."""
    path = tmp_path / "pw"
    path.write_bytes(content)
    assert keys.read_password_file(path) == password


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"x" * 2000])
def test_bad_password_files(tmp_path: Path, content: bytes) -> None:
    """An empty, binary or huge password file is an error, not an empty password."""
    path = tmp_path / "pw"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        keys.read_password_file(path)


def test_new_keys_lie_on_the_curve() -> None:
    """A draw that is no private key is drawn again."""

    class Dice:
        draws = iter([b"\x00" * 32, b"\xff" * 32, key(5)])

        def token(self, length: int) -> str:
            assert length == 32
            return next(self.draws).hex()

    assert keys.new_private_key(Dice()) == key(5)  # type: ignore[arg-type] # jitter is not needed
