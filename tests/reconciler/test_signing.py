"""Receipts are signed by the node's key, beside everything else, and a key that cannot be used stops nothing (I6)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from desired_state.receipt_signing import sign_statements, typed
from desired_state.signatures import recover
from reconciler.chain import Issuer
from reconciler.identity import create_identity
from reconciler.journal import Journal
from reconciler.signing import LOCKED, ReceiptSigner
from reconciler.state_dir import StateDir
from runtime.host import StopEvent, host_ports
from schemas.errors import ConfigError
from schemas.node import IdentityConfig
from tests.reconciler.test_journal import issue
from tests.support.builders import NOW
from tests.support.simulated_node import SteppingClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemas.ports import Completed, Ports


class CountingProcesses:
    """Real children, counted."""

    def __init__(self, ports: Ports) -> None:
        self._real = ports.processes
        self.count = 0

    def run(self, *arguments: object, **named: object) -> Completed:
        """As the real one."""
        self.count += 1
        return self._real.run(*arguments, **named)  # type: ignore[arg-type]


class House:
    """A node's key, journal and signer."""

    def __init__(self, folder: Path, password: Path | None = None) -> None:
        self.state = StateDir(folder)
        self.clock = SteppingClock()
        ports = host_ports()
        self.processes = CountingProcesses(ports)
        self.ports = replace(ports, clock=self.clock, processes=self.processes)
        self.node = create_identity(self.state, password_file=password, ports=ports)
        self.journal = Journal(self.state.journal)
        self.journal.chain.issuer = Issuer("testnet", self.node, "0.1.0")
        self.password = password

    def signer(self, password: Path | None = None) -> ReceiptSigner:
        """A signer with a configured password file, or none."""
        config = IdentityConfig(password_file=str(password) if password else None)
        return ReceiptSigner(self.state, config, node_id=self.node, journal=self.journal, ports=self.ports)

    def reasons(self) -> list[str]:
        """Reasons of all events."""
        return [event.reason for event in self.journal.events(limit=1000)]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A node with a plain key."""
    made = House(tmp_path / "state")
    yield made
    made.journal.close()


def test_every_statement_gets_the_nodes_signature(house: House) -> None:
    """One child signs all that wait; each signature recovers to the node over the exact bytes that are kept."""
    house.journal.apply((issue(), issue(outcome="fail"), issue(intent="b1")), NOW)
    assert house.journal.chain.pending() == 3
    assert house.signer().run(StopEvent())
    assert house.processes.count == 1
    for row in house.journal.chain.rows():
        assert recover(typed(row.content.encode()), row.signature) == house.node
    assert house.journal.chain.pending() == 0
    assert house.journal.chain.standing()[-1].signed
    assert not house.signer().run(StopEvent())
    assert house.processes.count == 1, "where nothing waits, nothing is started"


def test_a_locked_identity_is_said_once_and_receipts_are_signed_when_it_opens(tmp_path: Path) -> None:
    """Without the password nothing is signed and nothing else stops; with it, what waited is signed (I6)."""
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    house = House(tmp_path / "state", password)
    house.journal.apply((issue(),), NOW)
    wrong = tmp_path / "wrong"
    wrong.write_text("another\n")
    signer = house.signer(wrong)
    before = house.processes.count
    assert not signer.run(StopEvent())
    assert not signer.run(StopEvent())
    assert house.processes.count == before + 1, "a key is not derived again before its time"
    assert house.reasons().count("ReceiptsUnsigned") == 1
    assert "KeyLocked" in house.journal.fact(LOCKED)
    wrong.write_text("correct horse\n")
    assert signer.run(StopEvent()), "somebody touched the password: it is tried at once"
    assert house.journal.fact(LOCKED) == ""
    assert house.journal.chain.pending() == 0
    assert "ReceiptsSigned" in house.reasons()
    house.journal.close()


def test_a_locked_identity_is_tried_again_after_its_time(house: House) -> None:
    """A key that is not there now may come back without anybody touching the configuration."""
    house.journal.apply((issue(),), NOW)
    aside = house.state.root / "aside"
    house.state.identity.rename(aside)
    signer = house.signer()
    assert not signer.run(StopEvent())
    house.clock.moment = house.clock.moment.replace(year=house.clock.moment.year + 1)
    aside.rename(house.state.identity)
    assert signer.run(StopEvent())


def test_another_key_signs_nothing(house: House) -> None:
    """A key that is not the node's, or a statement that is another node's, is refused by the child."""
    house.journal.apply((issue(),), NOW)
    (_, content), *_ = house.journal.chain.unsigned(limit=1)
    key = bytes.fromhex(json.loads(house.state.identity.read_text())["privateKey"][2:])
    for node, private in ((house.node, b"\1" * 32), ("0x" + "1" * 40, key)):
        with pytest.raises(ConfigError, match="could not be signed"):
            sign_statements([content], node=node, private_key=private, processes=house.processes, stop=StopEvent())


def test_stopping_ends_it_without_a_word(house: House) -> None:
    """A daemon that is told to end does not wait for a signature; it is made another time."""
    house.journal.apply((issue(),), NOW)
    stop = StopEvent()
    stop.set()
    assert not house.signer().run(stop)
    assert house.reasons() == []
