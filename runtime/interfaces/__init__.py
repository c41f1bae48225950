"""The protocols behind which everything outside stands: backends, engines, the model store.

`reconciler` knows these and nothing else of `runtime`; `reconciler.cli.wiring` chooses the implementations. Each
protocol has one contract suite in `tests/contracts/`, passed by every implementation, the simulated ones included.
Every method may be called again after a crash at any point: each is idempotent, or says what it expects.
"""

from __future__ import annotations

from runtime.interfaces.backends import SOCKET_NAME, Backend, EngineView, Follower, InstanceSpec, Launch
from runtime.interfaces.engines import Activity, Answers, Engine, EngineConnection
from runtime.interfaces.front import Front, FrontCounts
from runtime.interfaces.machine import EnvironmentStore, HardwareProbe
from runtime.interfaces.models import Model, ModelStore, Scrubbed
from runtime.interfaces.telling import Progress

__all__ = [
    "SOCKET_NAME",
    "Activity",
    "Answers",
    "Backend",
    "Engine",
    "EngineConnection",
    "EngineView",
    "EnvironmentStore",
    "Follower",
    "Front",
    "FrontCounts",
    "HardwareProbe",
    "InstanceSpec",
    "Launch",
    "Model",
    "ModelStore",
    "Progress",
    "Scrubbed",
]
