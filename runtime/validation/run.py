"""Asks a running model what its probe asks. Collects evidence; judges nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from runtime.interfaces import Engine, EngineConnection
    from schemas.ports import Stop
    from schemas.probe import ProbeDocument


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the model answered, case by case, in the probe's order."""

    rendered: tuple[tuple[int, ...], ...]
    """Token ids of each rendered conversation."""
    continued: tuple[tuple[int, ...], ...]
    """Token ids of each greedy continuation."""


def run_probe(engine: Engine, connection: EngineConnection, probe: ProbeDocument, *, stop: Stop) -> Evidence:
    """Run every case of a probe against a running instance.

    Args:
        engine: how the instance is asked.
        connection: to the instance, its peer checked.
        probe: the cases.
        stop: looked at between cases.

    Raises:
        EngineUnreachable: the instance does not answer, or stopping was requested.
    """
    rendered: list[tuple[int, ...]] = []
    for case in probe.spec.tokenizer:
        _go_on(stop)
        rendered.append(engine.render(connection, case.messages))
    continued: list[tuple[int, ...]] = []
    for greedy in probe.spec.greedy:
        _go_on(stop)
        continued.append(engine.greedy(connection, greedy.prompt, tokens=len(greedy.tokens)))
    return Evidence(tuple(rendered), tuple(continued))


def _go_on(stop: Stop) -> None:
    if stop.is_set():
        raise EngineUnreachable("stopped while validating")
