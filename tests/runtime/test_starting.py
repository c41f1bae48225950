"""What is said of a start that failed: the engine's own words, the first error first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.simulated import SimulatedEngine
from runtime.host import StopEvent
from runtime.interfaces import InstanceSpec, Launch
from runtime.starting import OUTPUT_IN_ERRORS, start_instance
from schemas.errors import EngineUnreachable, StartFailed
from tests.support.builders import instance, target
from tests.support.scripted import Scripted
from tests.support.simulated_node import SteppingClock

if TYPE_CHECKING:
    from pathlib import Path

CAUSE = "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata"
LOGGED = "(Worker pid=7) ERROR 11-21 17:02:39 [executor.py:953] "
FRAMES = (
    f'{LOGGED}Traceback (most recent call last):\n{LOGGED}  File "x.py", line 1, in load\n{LOGGED}    raise Error: no\n'
)
FOLLOWED = "Traceback (most recent call last):\n" + '  File "utils.py", line 9\n' * 40
LAST = "RuntimeError: Engine core initialization failed. See root cause above.\n"


class Ended:
    """A backend whose instance ended at once, after it had printed something."""

    def __init__(self, printed: str) -> None:
        self._printed = printed

    def create(self, spec: InstanceSpec) -> None:
        """Done."""

    def start(self, name: str) -> None:
        """Done, and over."""

    def inspect(self, name: str) -> Any:
        """Over."""
        return instance(status="exited", exit_code=1)

    def output(self, name: str, *, limit: int) -> str:
        """The end of it."""
        return self._printed[-limit:]


class Mute(SimulatedEngine):
    """An engine that never answers."""

    def ready(self, connection: Any) -> bool:
        """It does not."""
        raise EngineUnreachable("nobody listens")


def failure(printed: str, folder: Path) -> str:
    """What is said of such a start."""
    spec = InstanceSpec(
        name="reconcile-testnet-a1",
        intent="a1",
        network="testnet",
        node_id="a",
        target=target(),
        launch=Launch((), {}),
        model_folder=folder,
        socket_folder=folder,
        log_folder=folder,
        log_limit=2**16,
    )
    backend: Any = Ended(printed)
    with pytest.raises(StartFailed) as caught:
        start_instance(backend, Mute(), spec, Scripted(None), clock=SteppingClock(), stop=StopEvent())
    return caught.value.message


def test_the_first_error_is_said_where_others_followed_from_it(tmp_path: Path) -> None:
    """Whatever a logger puts before it, and however much was printed after; a frame is not taken for an error."""
    said = failure(
        f"Found ulimit; expect errors like `OSError: x`\n{FRAMES}{LOGGED}{CAUSE}\n{FOLLOWED}{LAST}", tmp_path
    )
    assert f"; its first error: {CAUSE}; it printed: " in said
    assert said.endswith(LAST.strip())


@pytest.mark.parametrize(
    "printed", ["", "error: no such file\n", f"{FRAMES}{LOGGED}{CAUSE}\n", f"KeyError: 1\n{FOLLOWED}"]
)
def test_nothing_is_said_twice_or_made_up(printed: str, tmp_path: Path) -> None:
    """Where the first error is among the last words, and where nothing reads like one."""
    said = failure(printed, tmp_path)
    assert "first error" not in said
    assert len(said) <= OUTPUT_IN_ERRORS + 100
