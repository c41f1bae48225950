"""Records a probe: from an engine that is started for it, several times otherwise, or from what serves on a node."""

from __future__ import annotations

import sys
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.cli.momentary import Circumstances, running
from runtime.validation.calibrate import calibrate
from runtime.validation.platform import platform_of
from runtime.validation.record import answers, honest_run, record
from runtime.validation.texts import PASSAGES
from schemas.probe import Golden, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from reconciler.cli.momentary import Subject
    from runtime.interfaces import Engine, EngineConnection
    from runtime.validation.evidence import Platform
    from schemas.ports import Ports
    from schemas.probe import Calibration, Distribution, ForcedCase, ProbeSpec
    from schemas.target import ServingTarget

    Running = Callable[[], AbstractContextManager[tuple[EngineConnection, ServingTarget]]]
    """Has an instance for as long as it is asked."""

LOAD: Final = 3
"""Requests that are answered besides, where load is the circumstance."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is asked."""

    engine: Engine
    digest: str
    """Content digest of the model's manifest."""
    files: Path
    """The model's file, or its folder: what a reference implementation loads."""
    first: Running
    others: tuple[Running, ...] = ()
    """The same, started otherwise: threads, batches, kernels."""


def started(subject: Subject, ports: Ports, *, context_size: int, threads: int | None) -> Source:
    """An engine on a model's files, started for each circumstance and stopped after it."""
    if subject.engine.name == "vllm":
        # Each start takes about a minute: compiled kernels, and none.
        how = [Circumstances(context_size), Circumstances(context_size, eager=True)]
    else:
        other = 1 if threads != 1 else 2
        how = [Circumstances(context_size, threads), Circumstances(context_size, other, parallel=LOAD + 1)]
    first, *others = (partial(running, subject, item, ports) for item in how)
    return Source(subject.engine, subject.digest, subject.files, first, tuple(others))


@contextmanager
def served(config_file: str, key: str, digest: str) -> Iterator[Source]:
    """What serves on a node, as it is: other requests go on meanwhile, and nothing on the node is changed.

    Args:
        config_file: the node's.
        key: the model, as people call it.
        digest: content digest of its manifest.

    Raises:
        UsageError: something else serves, or nothing.
    """
    from reconciler.cli import wiring
    from reconciler.cli.validating import connected, silent
    from reconciler.state_dir import StateDir
    from schemas.errors import UsageError

    config = wiring.load_config(wiring.config_path(config_file))
    with closing(wiring.open_journal(StateDir(Path(config.state_dir)), readonly=True)) as journal:
        node = wiring.build_node(config, journal, ports=wiring.host(), progress=silent)
        accepted = journal.accepted()
        _desired, observed = node.look(accepted.digest if accepted is not None else "")
        target, _platform, connection = connected(node, observed, key)
        if target.manifest != digest:
            raise UsageError(f"the {key} that serves there has another manifest than the repository's")
        engine = node.adapters.engines[target.engine]
        yield Source(engine, digest, node.adapters.store.folder(digest), lambda: nullcontext((connection, target)))


class Recorder:
    """One recording: asks the source under as many circumstances as it has."""

    def __init__(self, source: Source, ports: Ports, given: dict[str, Any]) -> None:
        """Describe it; nothing is asked.

        Args:
            source: what is recorded.
            ports: the outside.
            given: the command's options.
        """
        self._source = source
        self._ports = ports
        self._given = given

    def new(self) -> ProbeSpec:
        """A probe with thresholds for this platform.

        Raises:
            ValidationFailed: the engine does not repeat what must not vary.
        """
        with self._source.first() as (connection, target):
            platform = self._platform(target)
            spec = self._ask(connection, platform)
            found = self._runs(connection, spec.forced)
        if not spec.forced:
            return spec
        found += self._elsewhere(spec.forced)
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
        with self._source.first() as (connection, target):
            platform = self._platform(target)
            own = answers(self._source.engine, connection, before.forced, seed="golden") if golden else []
            found = self._runs(connection, before.forced)
        found += self._elsewhere(before.forced)
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
        source = self._source
        reference = None
        engine, version = platform.engine, platform.version
        if self._given["reference"]:
            from runtime.validation.reference import transformers_reference

            folder = source.files if source.files.is_dir() else source.files.parent
            python = str(self._given["reference_python"] or sys.executable)
            reference = transformers_reference(self._ports.processes, python, folder)
            engine, version = "transformers", "float32"
        recorded = Provenance(
            engine=engine,
            version=version,
            manifest=source.digest,
            machine=_machine(),
            architecture=platform.architecture,
            dtype="float32" if reference is not None else platform.dtype,
        )
        chosen = self._given["passages"]
        passages = _passages(chosen) if chosen is not None else PASSAGES
        return record(source.engine, connection, recorded, reference=reference, passages=passages)

    def _runs(self, connection: EngineConnection, cases: Sequence[ForcedCase]) -> list[list[list[Distribution]]]:
        """In another order, and under load."""
        if not cases:
            return []
        engine = self._source.engine
        return [
            answers(engine, connection, cases, seed="order"),
            answers(engine, connection, cases, seed="load", load=LOAD),
        ]

    def _elsewhere(self, cases: Sequence[ForcedCase]) -> list[list[list[Distribution]]]:
        """Started otherwise."""
        found: list[list[list[Distribution]]] = []
        for start in self._source.others:
            with start() as (connection, _):
                found.append(answers(self._source.engine, connection, cases, seed="started otherwise", load=LOAD))
        return found

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
