"""`reconcile key`: make, import and look at signing keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import emit, next_steps, paint, say, warn
from reconciler.cli.lazy import OrderedGroup
from reconciler.cli.operators import password, password_options, ports
from reconciler.cli.options import json_option
from schemas.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_INPUT_LIMIT = 2**14
"""Bytes read from standard input: a key is 66."""


@click.group(cls=OrderedGroup)
def key() -> None:
    """Make, import and look at signing keys.

    Keys are Ethereum keys in encrypted files that any wallet reads. Passwords come from --password-file, from
    RECONCILE_KEY_PASSWORD or from a prompt, and are never given on the command line.
    """


def _writing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        click.option("--no-password", is_flag=True, help="Write the key unencrypted, protected by its mode alone."),
        click.option(
            "--kdf",
            type=click.Choice(["scrypt", "pbkdf2"]),
            default="scrypt",
            show_default=True,
            help="How the password is stretched. scrypt takes 256 MiB; pbkdf2 is for small machines.",
        ),
        password_options,
        click.option("--out", required=True, type=click.Path(path_type=Path), help="The key file to write."),
    ):
        function = option(function)
    return function


@key.command()
@_writing_options
def new(out: Path, **given: Any) -> None:
    """Make a new key."""
    from desired_state.keys import new_private_key

    _refuse_existing(out)
    _write(new_private_key(ports().randomness), out, **given)


@key.command("import")
@_writing_options
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File to import.")
@click.option(
    "--from-password-file", type=click.Path(path_type=Path), help="Password of the imported file, if it has one."
)
def import_(out: Path, source: Path | None, from_password_file: Path | None, **given: Any) -> None:
    """Import a private key: hex from standard input or a file, or another wallet's key file."""
    _refuse_existing(out)
    _write(_imported(source, from_password_file), out, **given)


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def show(file: Path, *, as_json: bool) -> None:
    """Show a key file's address. Needs no password, and prints no secret."""
    from desired_state.keys import read_key_file

    found = read_key_file(file)
    if as_json:
        emit({"address": found.address or None, "encrypted": found.encrypted, "path": str(file)})
        return
    say(
        f"Address    {paint(found.address or 'not named in the file', 'bold')}",
        f"Encrypted  {'yes' if found.encrypted else 'no: protected by its mode alone'}",
    )


def _refuse_existing(out: Path) -> None:
    """Before a password is asked for."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists, and a key is never overwritten", hint="choose another name")


def _imported(source: Path | None, password_file: Path | None) -> bytes:
    from desired_state.keys import KEY_LIMIT, parse_private_key, read_key_file, unlock

    if source is None:
        if sys.stdin.isatty():
            return parse_private_key(click.prompt("Private key (hex)", hide_input=True, err=True))
        return parse_private_key(sys.stdin.read(_INPUT_LIMIT))
    with source.open("rb") as file:
        content = file.read(KEY_LIMIT + 1)
    if not content.lstrip().startswith(b"{"):
        return parse_private_key(content.decode(errors="replace"))
    return unlock(read_key_file(source), lambda: password(password_file), processes=ports().processes)


def _write(
    private_key: bytes, out: Path, *, password_file: Path | None, kdf: Any, no_password: bool, as_json: bool
) -> None:
    from desired_state.keys import encrypt, plain, write_key
    from desired_state.signatures import address_of

    if no_password and password_file is not None:
        raise click.UsageError("--password-file and --no-password exclude each other")
    address = address_of(private_key)
    if no_password:
        document = plain(private_key)
    else:
        given = password(password_file, confirm=True)
        encrypted = encrypt(private_key, given, kdf=kdf, processes=ports().processes)
        document = {**encrypted, "address": address.removeprefix("0x")}
    write_key(out, document)
    if no_password:
        warn(f"{out} is not encrypted: whoever can read it can sign")
    if _would_be_committed(out):
        warn(f"{out} lies in a git repository and is not ignored: keep keys out of it")
    if as_json:
        emit({"address": address, "encrypted": not no_password, "path": str(out)})
        return
    say(f"Wrote {out} ({'not encrypted' if no_password else 'encrypted'}, mode 0600)")
    say(f"Address {paint(address, 'bold')}")
    next_steps(
        f"give the address to whoever writes the trust: `reconcile trust init --network NAME --signer {address}`",
        f"sign with `reconcile snapshot sign --key {out}`",
    )


def _would_be_committed(path: Path) -> bool:
    """Whether `git add .` would take the key along."""
    try:
        done = ports().processes.run(
            ["git", "check-ignore", "--quiet", path.name], timeout=10, cwd=path.absolute().parent
        )
    except (OSError, TimeoutError, OverflowError):
        return False
    # 0: ignored, 1: not ignored, 128: no repository here (git-check-ignore(1)).
    return done.returncode == 1
