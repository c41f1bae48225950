"""The node's key and name. The address of its key is its id; the key itself is needed only to sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state.keys import encrypt, load_key, new_private_key, plain, read_key_file, read_password_file, write_key
from schemas.errors import ConfigError, NotInitialised

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.state_dir import StateDir
    from schemas.node import IdentityConfig
    from schemas.ports import Ports


def node_address(state: StateDir) -> str:
    """The node's id: the checksummed address of its key, read without unlocking it.

    Raises:
        NotInitialised: there is no key yet.
        ConfigError: the file is not a key, or others may read it.
    """
    if not state.identity.exists():
        raise NotInitialised(f"{state.identity} does not exist", hint="run `reconcile init` first")
    address = read_key_file(state.identity).address
    if not address:
        raise ConfigError(f"{state.identity} does not name its address")
    return address


def create_identity(state: StateDir, *, password_file: Path | None, ports: Ports) -> str:
    """Make the node's key pair, or keep the one that is there: an existing key is never overwritten.

    Args:
        state: the state directory.
        password_file: encrypts the key; None leaves it protected by its mode alone.
        ports: chance, and a process for the derivation.

    Returns:
        The checksummed address.
    """
    if state.identity.exists():
        return node_address(state)
    from desired_state.signatures import address_of  # noqa: PLC0415 - 0.9 s, once in a node's life

    key = new_private_key(ports.randomness)
    address = address_of(key)
    if password_file is None:
        write_key(state.identity, plain(key))
        return address
    document = encrypt(key, read_password_file(password_file), processes=ports.processes)
    # With its checksum, so that nobody has to compute it to know who this node is.
    write_key(state.identity, {**document, "address": address.removeprefix("0x")})
    return address


def unlock_identity(state: StateDir, config: IdentityConfig, *, ports: Ports) -> bytes:
    """The node's private key, for signing.

    Raises:
        KeyLocked: the key is encrypted, and no password file is configured or its password is wrong.
    """
    from pathlib import Path  # noqa: PLC0415 - for typing only elsewhere

    def password() -> str:
        if config.password_file is None:
            raise ConfigError("the node's key is encrypted, and identity.passwordFile is not set")
        return read_password_file(Path(config.password_file))

    return load_key(state.identity, password, processes=ports.processes)
