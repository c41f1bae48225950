"""Ending the runtime with the agent, where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.executor import execute
from reconciler.fingerprint import fingerprint
from schemas.plan import Plan, StopInstance

if TYPE_CHECKING:
    from reconciler.executor import Reporter
    from reconciler.node import Node
    from schemas.errors import ReconcileError

_CAUSE: Final = "the daemon was told to end, and to stop the runtime"
DRAIN_SECONDS: Final = 30
"""For what is under way, where no target says how long; service managers wait a minute and a half by default."""


def stop_instances(node: Node, reporter: Reporter) -> list[ReconcileError]:
    """Stop every instance that this node created (I8), as a pass of its own.

    Returns:
        What could not be stopped, and why.
    """
    accepted = node.journal.accepted()
    _, observed = node.look(accepted.digest if accepted is not None else "")
    good = observed.memory.last_known_good
    drain = good.target.timeouts.drain if good is not None else DRAIN_SECONDS
    actions = tuple(
        StopInstance(
            id=f"stop/{item.name}",
            cause=_CAUSE,
            backend=item.backend,  # type: ignore[arg-type] # checked by the model at run time
            instance=item.name,
            intent=item.intent,
            spec_digest=item.spec_digest,
            drain=drain if item.status == "running" else 0,
        )
        for item in observed.state.instances
        if item.intent in observed.memory.intents
    )
    if not actions:
        return []
    plan = Plan(
        network=node.config.network,
        node=observed.node_id,
        observation=fingerprint(observed),
        actions=actions,
        made_at=node.adapters.ports.clock.now().replace(microsecond=0),
    )
    execution = execute(
        plan,
        observed=observed,
        node=node.config,
        adapters=node.adapters,
        journal=node.journal,
        sources={},
        reporter=reporter,
    )
    return [outcome.error for outcome in execution.failed if outcome.error is not None]
