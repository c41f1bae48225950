"""`reconcile key`: keys are made, imported and shown, and nothing secret leaks."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

from eth_account import Account

from tests.desired_state.network import address, key

if TYPE_CHECKING:
    import pytest

    from tests.support.operators import Operator

PASSWORD = {"RECONCILE_KEY_PASSWORD": "correct horse"}


def test_a_new_key_is_encrypted_and_opens_elsewhere(operator: Operator) -> None:
    """The default key file is a keystore that another implementation opens with the same password."""
    path = operator.keys / "a.json"
    found = operator.run("key", "new", "--out", str(path), "--kdf", "pbkdf2", env=PASSWORD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    private_key = Account.decrypt(path.read_text(), PASSWORD["RECONCILE_KEY_PASSWORD"])
    assert Account.from_key(private_key).address in found.stdout
    assert private_key.hex() not in found.output
    assert PASSWORD["RECONCILE_KEY_PASSWORD"] not in found.output
    assert "Next:" in found.stdout


def test_scrypt_is_the_default(operator: Operator) -> None:
    """Without a choice the password is stretched by scrypt, with the parameters that wallets use."""
    path = operator.keys / "a.json"
    operator.run("key", "new", "--out", str(path), env=PASSWORD)
    crypto = json.loads(path.read_text())["crypto"]
    assert (crypto["kdf"], crypto["kdfparams"]["n"]) == ("scrypt", 2**18)


def test_an_existing_file_is_never_touched(operator: Operator) -> None:
    """Neither a key nor anything else of that name is overwritten, not even through a link."""
    path = operator.keys / "a.json"
    path.write_text("precious")
    link = operator.keys / "link.json"
    link.symlink_to(operator.keys / "nowhere.json")
    for target in (path, link):
        operator.run("key", "new", "--out", str(target), "--no-password", code=64)
    assert path.read_text() == "precious"
    assert not (operator.keys / "nowhere.json").exists()


def test_without_anybody_to_ask_there_is_no_key(operator: Operator) -> None:
    """No password means no file, never an unencrypted one by accident."""
    path = operator.keys / "a.json"
    found = operator.run("key", "new", "--out", str(path), code=1)
    assert "KeyLocked" in found.stderr
    assert not path.exists()


def test_a_plain_key_is_said_to_be_one(operator: Operator) -> None:
    """`--no-password` writes a file for its owner alone, and warns."""
    path = operator.keys / "a.json"
    found = operator.run("key", "new", "--out", str(path), "--no-password")
    assert "is not encrypted" in found.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    operator.run("key", "new", "--out", str(operator.keys / "b.json"), "--no-password", "--password-file", "x", code=64)


def test_a_key_in_the_repository_is_warned_about(operator: Operator) -> None:
    """A key that `git add` would take along is warned about; an ignored one is not."""
    assert "lies in a git repository" in operator.run("key", "new", "--out", "a.json", "--no-password").stderr
    (operator.root / ".gitignore").write_text("b.json\n")
    assert "lies in a git" not in operator.run("key", "new", "--out", "b.json", "--no-password").stderr


def test_show_needs_no_password_and_prints_no_secret(operator: Operator) -> None:
    """The address is read off the file, encrypted or not."""
    path = operator.keys / "a.json"
    made = operator.json("key", "new", "--out", str(path), "--no-password")
    found = operator.run("key", "show", str(path))
    assert made["address"] in found.stdout
    assert json.loads(path.read_text())["privateKey"] not in found.output
    assert operator.json("key", "show", str(path)) == {**made, "formatVersion": "1"}


def test_import_from_standard_input(operator: Operator) -> None:
    """Hex digits from standard input become a key file of the same address."""
    path = operator.keys / "a.json"
    operator.run("key", "import", "--out", str(path), "--no-password", stdin=f"0x{key(7).hex()}\n")
    assert operator.json("key", "show", str(path))["address"] == address(7)


def test_import_of_a_wallets_file(operator: Operator) -> None:
    """A keystore that another implementation wrote, with a lower-case address, is imported with its password."""
    foreign = operator.keys / "geth.json"
    document = Account.encrypt(key(7), "old", kdf="pbkdf2", iterations=1000)
    foreign.write_text(json.dumps({**document, "address": address(7)[2:].lower()}))
    assert operator.json("key", "show", str(foreign))["address"] == address(7)
    old = operator.keys / "old.txt"
    old.write_text("old\n")
    imported = operator.keys / "b.json"
    arguments = ("key", "import", "--from", str(foreign), "--from-password-file", str(old), "--out", str(imported))
    operator.run(*arguments, "--kdf", "pbkdf2", env=PASSWORD)
    assert Account.decrypt(imported.read_text(), PASSWORD["RECONCILE_KEY_PASSWORD"]) == key(7)


def test_nonsense_is_refused_without_being_repeated(operator: Operator) -> None:
    """What is not a key is refused; whatever it was, it is not printed."""
    path = operator.keys / "a.json"
    for text in ("0x1234secret", "00" * 32, "ff" * 32):
        found = operator.run("key", "import", "--out", str(path), "--no-password", code=1, stdin=text)
        assert "ConfigError" in found.stderr
        assert text not in found.output
    assert not path.exists()


def test_prompts_are_used_on_a_terminal(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a person there, the password is asked for twice, and does not appear."""
    from reconciler.cli import operators

    asked = []

    def prompt(text: str, **options: object) -> str:
        asked.append((text, options["hide_input"], options["confirmation_prompt"]))
        return "typed"

    monkeypatch.setattr(operators.sys, "stdin", type("Terminal", (), {"isatty": lambda _: True})())
    monkeypatch.setattr(operators.click, "prompt", prompt)
    assert operators.password(None, confirm=True) == "typed"
    assert asked == [("Password", True, True)]
