"""A store on a real disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.host import StopEvent, host_ports
from runtime.models.store import DiskModelStore
from tests.support.models import OPEN_POLICY, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.interfaces import Model
    from schemas.ports import Files, Ports


@dataclass
class Shop:
    """A store, and short ways to use it."""

    root: Path
    options: dict[str, Any] = field(default_factory=dict)
    files: Files | None = None

    @property
    def ports(self) -> Ports:
        """Real ports, with another disk where the test brings one."""
        real = host_ports()
        return real if self.files is None else replace(real, files=self.files)

    @property
    def store(self) -> DiskModelStore:
        """A new store object, as a new process would make one."""
        options = {"policy": OPEN_POLICY, "stall": 1, "reserve": 0, **self.options}
        return DiskModelStore(self.root, ports=self.ports, **options)

    def acquire(self, model: Model, sources: Sequence[str]) -> None:
        """Install, watched by nobody, never stopped."""
        self.store.acquire(model, sources, progress=silent, stop=StopEvent())

    def verify(self, model: Model) -> None:
        """Hash again."""
        self.store.verify(model, progress=silent, stop=StopEvent())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A store that does not exist yet."""
    return Shop(tmp_path / "models")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system in memory where there is one: sweeps wait for thousands of fsyncs."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK) or shutil.disk_usage(shared).free < 2**28:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="reconcile-test-") as folder:
        yield Path(folder)
