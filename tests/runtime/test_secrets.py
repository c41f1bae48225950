"""Secrets of the node: read where they are, believed only where nobody else can read them, never shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime.secrets import Secrets
from schemas.access import SecretRef
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hf_VerySecretToken"


def _file(path: Path, content: bytes = SECRET.encode() + b"\n", mode: int = 0o600) -> Secrets:
    path.write_bytes(content)
    path.chmod(mode)
    return Secrets({"hub": SecretRef(file=str(path))}, {})


def test_a_secret_comes_from_its_place(tmp_path: Path) -> None:
    """A private file, a variable, a systemd credential; the line break at the end does not belong to it."""
    assert _file(tmp_path / "token").read("hub") == SECRET
    assert Secrets({"hub": SecretRef(environment="HUB")}, {"HUB": SECRET}).read("hub") == SECRET
    (tmp_path / "hub-token").write_text(SECRET)
    places = {"hub": SecretRef(credential="hub-token")}
    assert Secrets(places, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).read("hub") == SECRET


def test_a_rotated_secret_counts_at_once(tmp_path: Path) -> None:
    """Nothing is remembered from one use to the next."""
    secrets = _file(tmp_path / "token")
    assert secrets.read("hub") == SECRET
    (tmp_path / "token").write_text("another")
    assert secrets.read("hub") == "another"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o666])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Whether they can read or write it; the error says what to do, and not what it holds."""
    with pytest.raises(ConfigError, match="must be 0600") as caught:
        _file(tmp_path / "token", mode=mode).read("hub")
    assert "chmod 600" in caught.value.hint
    assert SECRET not in repr(caught.value)


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """Root's and one's own are believed, anybody else's could be changed by them."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    secrets = _file(tmp_path / "token")
    os.chown(tmp_path / "token", 12345, 0)
    with pytest.raises(ConfigError, match="another user"):
        secrets.read("hub")


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"two\nlines", b"carriage\rreturn", b"header\r\nX-Evil: 1", b"\xff\xfe", b"nul\0", b"x" * 20_000],
)
def test_what_cannot_be_a_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, more than one line, not printable, endless: a line break would become a header of its own."""
    with pytest.raises(ConfigError, match="hub") as caught:
        _file(tmp_path / "token", content).read("hub")
    assert "Evil" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_secret_that_is_not_there_says_where_it_should_be(tmp_path: Path) -> None:
    """Missing files, folders and pipes in their place, unset variables, no credentials, unknown names."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    places = {
        "file": SecretRef(file=str(tmp_path / "none")),
        "folder": SecretRef(file=str(tmp_path)),
        "pipe": SecretRef(file=str(tmp_path / "pipe")),
        "variable": SecretRef(environment="NONE"),
        "credential": SecretRef(credential="none"),
    }
    secrets = Secrets(places, {})
    for name, said in {
        "file": "No such file",
        "folder": "not a regular file",
        "pipe": "not a regular file",
        "variable": "NONE",
        "credential": "was given none",
        "unknown": "no secret 'unknown'",
    }.items():
        with pytest.raises(ConfigError, match=said):
            secrets.read(name)
