"""The attack table, row by row: real git, real signatures, the real command, a real engine that goes on answering."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attacks.publish import PAGE, page
from tests.attacks.rows import ATTACKS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.attacks.table import Attack
    from tests.attacks.victim import Victim


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=str)
def test_attack(attack: Attack, node: Victim, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """I1, I6: the exact reason and exit code; nothing of the attacker's ran; the last good state serves on."""
    scene = node.scene(tmp_path)
    try:
        attack.change(scene)
        seen = node.enter(scene)
        answer = node.completion()
        reason, said = seen.reason(attack.condition), seen.message(attack.condition)
        record_property("attack", [attack.name, reason, seen.code, bool(answer)])
        assert (reason, seen.code) == (attack.reason, attack.code), said
        assert attack.says in said
        assert not scene.trap.exists(), "the attacker's command ran"
        assert answer == (node.answer if attack.serves else ""), said
        assert seen.accepts == attack.accepts
        if attack.serves:
            assert seen.serving.get("instance", node.instance) == node.instance, "it must not have been restarted"
    finally:
        node.leave()
        if attack.accepts or attack.learns:
            node.forget()
        if not attack.serves:
            node.recover()
    node.goes_on()


def test_the_published_table_is_fresh() -> None:
    """What the documentation says of each row is what the test demands; `make docs` renews it."""
    assert PAGE.read_text(encoding="utf-8") == page()
