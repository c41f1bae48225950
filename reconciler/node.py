"""One node, wired, and how it looks at itself: everything that a decision is made from, at one moment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reconciler.desired import Desired
from reconciler.kinds.base import Situation
from reconciler.kinds.runtime import serving_instance
from reconciler.kinds.validation import waits_for_quiet
from reconciler.memory import RESTART_WINDOW, as_of
from reconciler.observe import observe
from reconciler.proof import current
from reconciler.target import choose
from runtime.interfaces import SOCKET_NAME
from schemas.errors import EngineUnreachable
from schemas.refusals import MissingDocument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reconciler.documents import JournalDocuments
    from reconciler.journal import Journal
    from reconciler.kinds.base import Adapters
    from reconciler.state_dir import StateDir
    from runtime.interfaces import Backend, HardwareProbe
    from schemas.manifest import ManifestDocument
    from schemas.node import NodeConfig
    from schemas.observation import Instance, Observed
    from schemas.target import ServingTarget


@dataclass(frozen=True, slots=True)
class Node:
    """One node, wired."""

    config: NodeConfig
    node_id: str
    agent: str
    state: StateDir
    journal: Journal
    documents: JournalDocuments
    adapters: Adapters
    hardware: HardwareProbe

    def look(
        self, document_digest: str, *, verified: bool = True, cleared: Sequence[str] = ()
    ) -> tuple[Desired, Observed]:
        """Both arguments of a decision, for a snapshot whose documents are at hand.

        Args:
            document_digest: the snapshot's digest; empty for none.
            verified: False for a working copy that nobody signed.
            cleared: subjects whose rejection the snapshot would clear once it is accepted.
        """
        now = self.adapters.ports.clock.now()
        memory = as_of(self.journal.memory(starts_since=now - RESTART_WINDOW), now)
        if cleared:
            kept = {subject: item for subject, item in memory.rejections.items() if subject not in cleared}
            memory = replace(memory, rejections=kept)
        document = self.documents.snapshot(document_digest) if document_digest else None
        observed = observe(
            node=self.config,
            node_id=self.node_id,
            memory=memory,
            document=document,
            documents=self.documents,
            hardware=self.hardware,
            backends=self.adapters.backends,
            engines=self.adapters.engines,
            store=self.adapters.store,
            environments=self.adapters.environments,
            front=self.adapters.front,
            judge=self._judge,
        )
        desired = Desired(
            document, document_digest, verified=verified and document is not None, manifests=self._manifests(observed)
        )
        choice = choose(desired, observed, self.config)
        observed = current(observed, choice, document)
        situation = Situation(desired, observed, self.config, now, choice)
        if waits_for_quiet(situation):
            observed = replace(observed, state=replace(observed.state, quiet=self._is_quiet(situation)))
        return desired, observed

    def _is_quiet(self, situation: Situation) -> bool | None:
        """Whether what serves has nothing to do, as it says itself; None where it cannot say."""
        serving, target = serving_instance(situation), situation.choice.target
        if serving is None or target is None:
            return None
        adapters = self.adapters
        backend, engine = adapters.backends[target.backend], adapters.engines[target.engine]
        try:
            connection = adapters.connect(backend, serving.name, adapters.run_folder / serving.name / SOCKET_NAME)
            activity = engine.activity(connection)
        except EngineUnreachable:
            return None
        if activity is not None:
            return not (activity.running or activity.waiting)
        counts = adapters.front.counts() if adapters.front is not None else None
        return not (counts.in_flight or counts.held) if counts is not None else None

    def _judge(self, backend: Backend, item: Instance, target: ServingTarget) -> Instance:
        engine = self.adapters.engines.get(target.engine)
        if engine is None or self.adapters.health is None:
            return item
        connection = self.adapters.connect(backend, item.name, self.adapters.run_folder / item.name / SOCKET_NAME)
        return self.adapters.health.look(item, engine, connection, stall=target.timeouts.stall)

    def _manifests(self, observed: Observed) -> Mapping[str, ManifestDocument]:
        manifests: dict[str, ManifestDocument] = {}
        for digest in observed.state.missing:
            try:
                manifests[digest] = self.documents.model(digest).manifest
            except MissingDocument:
                continue
        return manifests
