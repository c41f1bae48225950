"""A recording that is killed leaves no engine, no mount and no folder: at once, or with the next one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.cli.scratch import PREFIX, abandoned, scratch
from tests.support.front import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.operators import Operator

PATIENCE = 120.0


def engines(folder: Path) -> list[int]:
    """Engines that run in recordings' folders, by what their supervisors wrote."""
    found = folder.glob(f"{PREFIX}*/run/instances/*/state.json")
    return [int(json.loads(path.read_bytes())["engine"]) for path in found]


def mounts(folder: Path) -> list[str]:
    """What is mounted below a folder."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_recording_that_is_killed(
    operator: Operator, tiny_model: Callable[[int], Path], tmp_path: Path, number: signal.Signals
) -> None:
    """What can unwind takes its engine along; what cannot leaves it to the next recording."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started these tests ignores that signal")
    operator.trust()
    operator.run("snapshot", "new", "--mode", "native")
    data = tiny_model(1) / "tiny.gguf"
    operator.run("model", "add", str(data), "--name", "tiny", "--version", "v1", "--source", "https://m.example/")
    place = tmp_path / "scratch"
    place.mkdir(mode=0o755)
    line = [sys.executable, "-m", "reconciler.cli.main", "probe", "record", "--model", "tiny:v1"]
    line += ["--model-path", str(data), "--threads", "1", "--repo", str(operator.root)]
    env = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: bool(engines(place)) or process.poll() is not None, "its engine runs", seconds=PATIENCE)
        (engine,) = engines(place)
        process.send_signal(number)
        assert process.wait(PATIENCE) != 0
    if number == signal.SIGKILL:
        assert Path(f"/proc/{engine}").exists(), "nobody could stop it"
        subprocess.run(line, env=env, check=True, capture_output=True, timeout=PATIENCE)
    eventually(lambda: not Path(f"/proc/{engine}").exists(), "the engine is gone", seconds=PATIENCE)
    assert list(place.iterdir()) == []
    assert mounts(place) == []


def test_only_folders_of_the_dead_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is in use, one that is just being made and what only looks like one are left alone (I8)."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{PREFIX}young").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(dead)
    with scratch() as used:
        assert used.parent == tmp_path
        assert list(abandoned()) == [dead]
    assert not used.exists()
