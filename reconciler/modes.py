"""How and where a runtime is run: mode and backend. Pure, each answer with its reason.

The order of precedence is LocalAIStack's: what the runtime declares, what network and owner allow, what this node has;
then the owner's preference, the snapshot's, the configured default, container, native.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from schemas.node import NodeConfig
    from schemas.policy import Policy
    from schemas.runtimes import Mode, RuntimeSpec
    from schemas.target import BackendName


@dataclass(frozen=True, slots=True)
class ModeChoice:
    """A mode with its backend, or why there is none."""

    mode: Mode | None
    backend: BackendName | None
    reason: str


def choose_mode(runtime: RuntimeSpec, network: Policy, node: NodeConfig, backends: Sequence[BackendName]) -> ModeChoice:
    """Choose mode and backend for a runtime.

    Configuration decides, not whether a backend happens to answer: a container engine that is down must not turn an
    isolated runtime into a native one (I3).

    Args:
        runtime: the runtime's declaration.
        network: the network's policy.
        node: the node's configuration.
        backends: the backends of this node, in order of preference.
    """
    allowed = [mode for mode in runtime.modes if mode in network.modes and mode in node.policy.modes]
    usable = [mode for mode in allowed if _backend(mode, backends) is not None]
    if not usable:
        return ModeChoice(
            None,
            None,
            f"the runtime runs as {_list(runtime.modes)}, the network allows {_list(network.modes)}, "
            f"the node allows {_list(node.policy.modes)} and has {_list(backends)}: nothing is left",
        )
    order = (
        (node.policy.prefer, "preferred by the node's owner"),
        (runtime.preferred, "preferred by the snapshot"),
        (node.policy.default, "the node's default"),
        ("container", "containers before native"),
        ("native", "the only mode left"),
    )
    mode, reason = next((mode, reason) for mode, reason in order if mode in usable)
    return ModeChoice(mode, _backend(mode, backends), f"{mode}: {reason}")


def usable(names: Iterable[str], node: NodeConfig) -> tuple[BackendName, ...]:
    """Those backends that may start something here, in order of preference.

    Args:
        names: what is looked at. Present or unknown alike: the configuration named it, so it is one of this node's. One
            that was turned off is looked at as long as it holds something, and starts nothing.
        node: the node's configuration.
    """
    order: tuple[BackendName, ...] = ("docker", "podman", "simulated", "native")
    known, on = frozenset(names), node.backends.usable() | {"simulated"}
    return tuple(name for name in order if name in known and name in on)


def _backend(mode: Mode, backends: Sequence[BackendName]) -> BackendName | None:
    return next((name for name in backends if (name == "native") == (mode == "native")), None)


def _list(names: Sequence[str]) -> str:
    return " and ".join(names) or "nothing"
