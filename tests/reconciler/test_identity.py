"""The node's key: made once, never overwritten, readable by nobody else."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from desired_state.signatures import address_of, checksum
from reconciler.identity import create_identity, node_address, unlock_identity
from reconciler.state_dir import StateDir
from runtime.host import host_ports
from schemas.errors import ConfigError, KeyLocked, NotInitialised, StateLocked
from schemas.node import IdentityConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """An empty state directory."""
    return StateDir(tmp_path)


def test_the_node_id_is_the_checksummed_address_of_its_key(state: StateDir) -> None:
    """Who the node is follows from its key alone."""
    address = create_identity(state, password_file=None, ports=host_ports())
    assert node_address(state) == address == checksum(address)
    assert address_of(unlock_identity(state, IdentityConfig(), ports=host_ports())) == address


def test_an_existing_key_is_kept(state: StateDir) -> None:
    """Running `init` again does not make another node of this one."""
    first = create_identity(state, password_file=None, ports=host_ports())
    before = state.identity.read_bytes()
    assert create_identity(state, password_file=None, ports=host_ports()) == first
    assert state.identity.read_bytes() == before


def test_others_cannot_read_the_key(state: StateDir) -> None:
    """Mode 0600 from the first byte; a key that others may read is refused."""
    create_identity(state, password_file=None, ports=host_ports())
    assert stat.S_IMODE(state.identity.stat().st_mode) == 0o600
    state.identity.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        node_address(state)


def test_an_encrypted_key_shows_its_address_and_nothing_else(state: StateDir, tmp_path: Path) -> None:
    """With a password file the key lies encrypted; the id is read without it, the key is not (scrypt, for real)."""
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    address = create_identity(state, password_file=password, ports=host_ports())
    document = json.loads(state.identity.read_text())
    assert "privateKey" not in document
    assert node_address(state) == address
    config = IdentityConfig(password_file=str(password))
    assert address_of(unlock_identity(state, config, ports=host_ports())) == address
    password.write_text("wrong\n")
    with pytest.raises(KeyLocked):
        unlock_identity(state, config, ports=host_ports())
    with pytest.raises(ConfigError):
        unlock_identity(state, IdentityConfig(), ports=host_ports())


def test_no_key_is_no_node(state: StateDir) -> None:
    """Before `init` there is nobody here, and the error says what to do."""
    with pytest.raises(NotInitialised):
        node_address(state)


def test_one_reconciler_per_state_directory(state: StateDir) -> None:
    """A second one is refused while the first lives, and not a moment longer."""
    with state.lock(), pytest.raises(StateLocked), state.lock():
        pass
    with state.lock():
        pass
