"""What a changed configuration may not do to a node that lives already: cut it off from what it runs (I3).

Instances are found by their network, their node and their backend. A configuration in which one of them is another, or
gone, would leave what serves running unseen, and start a second beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.errors import ConfigError
from schemas.refusals import MissingDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.documents import JournalDocuments
    from reconciler.journal import Journal
    from schemas.node import NodeConfig
    from schemas.target import BackendName

SOCKETS: Final = "engine sockets"
"""The fact that says at which sockets this node's container engines were, as JSON."""


def kept(config: NodeConfig, journal: Journal, documents: JournalDocuments) -> BackendName | None:
    """The backend that its owner turned off while it holds what served last: it is looked at, and starts nothing.

    Args:
        config: the configuration as it is now.
        journal: of the node that it is for.
        documents: of its snapshots.

    Raises:
        ConfigError: the node is of another network, or what it runs could not be seen with this configuration.
    """
    _same_network(config, journal, documents)
    good = journal.last_known_good()
    if good is None or good.target.backend in config.backends.usable():
        return None
    name = good.target.backend
    if name == "native":
        return name
    settings = {"docker": config.backends.docker, "podman": config.backends.podman}.get(name)
    socket = settings.socket if settings is not None else known_sockets(journal).get(name, "")
    if not socket or not Path(socket).exists():
        # The engine is gone from the machine, and what it ran with it.
        return None
    if settings is None:
        raise ConfigError(
            f"backends.{name} is gone, and what served last was started there: {good.target.model}",
            hint=f"keep `{name}: {{enabled: false, socket: {socket}}}` until something else serves",
        )
    return name


def known_sockets(journal: Journal) -> Mapping[str, str]:
    """By name, where the container engines were that this node was last run with."""
    found: Mapping[str, str] = json.loads(journal.fact(SOCKETS) or "{}")
    return found


def remember(config: NodeConfig, journal: Journal) -> None:
    """Keep where the container engines are, for a configuration that does not say so any more."""
    engines = {"docker": config.backends.docker, "podman": config.backends.podman}
    named = {name: settings.socket for name, settings in engines.items() if settings is not None}
    before = known_sockets(journal)
    if {**before, **named} != before:
        journal.set_fact(SOCKETS, json.dumps({**before, **named}, sort_keys=True))


def _same_network(config: NodeConfig, journal: Journal, documents: JournalDocuments) -> None:
    accepted = journal.accepted()
    if accepted is None:
        return
    try:
        network = documents.snapshot(accepted.digest).metadata.network
    except MissingDocument:
        return
    if network != config.network:
        raise ConfigError(
            f"{config.state_dir} is a node of the network {network!r}, and the configuration is for {config.network!r}",
            hint="a node of another network has a state directory of its own: `reconcile init`",
        )
