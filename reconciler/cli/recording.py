"""Records a probe from engines that are started for it, under several honest circumstances."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.cli.momentary import Circumstances, running
from runtime.validation.calibrate import calibrate
from runtime.validation.platform import platform_of
from runtime.validation.record import answers, honest_run, record
from runtime.validation.texts import PASSAGES
from schemas.probe import Golden, Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.cli.momentary import Subject
    from runtime.interfaces import EngineConnection
    from runtime.validation.evidence import Platform
    from schemas.ports import Ports
    from schemas.probe import Calibration, Distribution, ForcedCase, ProbeSpec
    from schemas.target import ServingTarget

LOAD: Final = 3
"""Requests that are answered besides, where load is the circumstance."""


class Recorder:
    """One recording: starts the engine as often as there are circumstances."""

    def __init__(self, subject: Subject, ports: Ports, given: dict[str, Any]) -> None:
        """Describe it; nothing is started.

        Args:
            subject: what is recorded.
            ports: the outside.
            given: the command's options.
        """
        self._subject = subject
        self._ports = ports
        self._given = given

    def new(self) -> ProbeSpec:
        """A probe with thresholds for this platform.

        Raises:
            ValidationFailed: the engine does not repeat what must not vary.
        """
        first, *others = self._circumstances()
        with running(self._subject, first, self._ports) as (connection, target):
            platform = self._platform(target)
            spec = self._ask(connection, platform)
            found = self._runs(connection, spec.forced)
        if not spec.forced:
            return spec
        found += self._elsewhere(others, spec.forced)
        reference = [case.top for case in spec.forced]
        return spec.model_copy(update={"calibrations": (self._calibrate(spec.forced, reference, found, platform),)})

    def onto(self, before: ProbeSpec, *, golden: bool) -> ProbeSpec:
        """A recorded probe, with thresholds for this platform as well, and with its own answers as a golden.

        Raises:
            UsageError: the probe has nothing to compare with.
        """
        from schemas.errors import UsageError

        if not before.forced:
            raise UsageError("that probe has no forced cases: record it anew")
        first, *others = self._circumstances()
        with running(self._subject, first, self._ports) as (connection, target):
            platform = self._platform(target)
            own = answers(self._subject.engine, connection, before.forced, seed="golden") if golden else []
            found = self._runs(connection, before.forced)
        found += self._elsewhere(others, before.forced)
        reference = [case.top for case in before.forced]
        added = self._calibrate(before.forced, reference, found, platform)
        kept = tuple(item for item in before.calibrations if _key(item) != _key(added))
        changes: dict[str, Any] = {"calibrations": (*kept, added)}
        if golden:
            mine = Golden(
                calibration=self._calibrate(before.forced, own, found, platform),
                forced=tuple(tuple(case) for case in own),
            )
            others_ = tuple(
                item
                for item in before.goldens
                if (*_key(item.calibration), item.calibration.version) != (*_key(added), added.version)
            )
            changes["goldens"] = (*others_, mine)
        # Checked as a whole: a copy is not.
        return type(before).model_validate(before.model_copy(update=changes).model_dump())

    def _ask(self, connection: EngineConnection, platform: Platform) -> ProbeSpec:
        subject = self._subject
        reference = None
        engine, version = platform.engine, platform.version
        if self._given["reference"]:
            from runtime.validation.reference import transformers_reference

            folder = subject.files if subject.files.is_dir() else subject.files.parent
            python = str(self._given["reference_python"] or sys.executable)
            reference = transformers_reference(self._ports.processes, python, folder)
            engine, version = "transformers", "float32"
        recorded = Provenance(
            engine=engine,
            version=version,
            manifest=subject.digest,
            machine=_machine(),
            architecture=platform.architecture,
            dtype="float32" if reference is not None else platform.dtype,
        )
        chosen = self._given["passages"]
        passages = _passages(chosen) if chosen is not None else PASSAGES
        return record(subject.engine, connection, recorded, reference=reference, passages=passages)

    def _runs(self, connection: EngineConnection, cases: Sequence[ForcedCase]) -> list[list[list[Distribution]]]:
        """In another order, and under load."""
        if not cases:
            return []
        engine = self._subject.engine
        return [
            answers(engine, connection, cases, seed="order"),
            answers(engine, connection, cases, seed="load", load=LOAD),
        ]

    def _elsewhere(
        self, others: Sequence[Circumstances], cases: Sequence[ForcedCase]
    ) -> list[list[list[Distribution]]]:
        """Started otherwise: threads, batches, kernels."""
        found: list[list[list[Distribution]]] = []
        for how in others:
            with running(self._subject, how, self._ports) as (connection, _):
                found.append(answers(self._subject.engine, connection, cases, seed="started otherwise", load=LOAD))
        return found

    def _circumstances(self) -> list[Circumstances]:
        size, threads = self._given["context_size"], self._given["threads"]
        if self._subject.engine.name == "vllm":
            # Each start takes about a minute: compiled kernels, and none.
            return [Circumstances(size), Circumstances(size, eager=True)]
        other = 1 if threads != 1 else 2
        return [Circumstances(size, threads), Circumstances(size, other, parallel=LOAD + 1)]

    def _calibrate(
        self,
        cases: Sequence[ForcedCase],
        reference: Sequence[Sequence[Distribution]],
        found: Sequence[Sequence[Sequence[Distribution]]],
        platform: Platform,
    ) -> Calibration:
        runs = [honest_run(cases, reference, run) for run in found]
        return calibrate(runs, platform, margin=self._given["margin"], false_rejects=self._given["false_rejects"])

    def _platform(self, target: ServingTarget) -> Platform:
        from runtime.hardware import HostHardware

        return platform_of(target, HostHardware(Path("/")).read())


def _key(item: Calibration) -> tuple[str, str, str]:
    return item.engine, item.architecture, item.dtype


def _machine() -> str:
    from runtime.hardware import HostHardware

    return HostHardware(Path("/")).read().accelerator


def _passages(path: Path) -> list[str]:
    return [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]
