"""The real machine behind the ports: durable files, bounded subprocesses, bounded threads."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.host import (
    DurableFiles,
    HostProcesses,
    StopEvent,
    SystemClock,
    SystemRandomness,
    ThreadedConcurrency,
    host_ports,
)

if TYPE_CHECKING:
    from schemas.ports import Completed


class Died(BaseException):
    """Stands for a crash: nothing may catch it and carry on."""


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records fsync and rename with the kind and name of what they were applied to, in order."""
    seen: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append(f"fsync {'folder' if target.is_dir() else 'file'} {target.name}")
        real["fsync"](descriptor)

    def rename(source: Path, target: Path) -> None:
        seen.append(f"rename {Path(source).name} {Path(target).name}")
        real["rename"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", rename)
    return seen


class TestDurableFiles:
    """Atomic and durable."""

    def test_write_syncs_the_file_before_the_rename_and_the_folder_after_it(
        self, tmp_path: Path, calls: list[str]
    ) -> None:
        """The order that survives power loss: data, name, folder (I7)."""
        DurableFiles().write(tmp_path / "mark", b"42")
        assert calls == ["fsync file .mark.new", "rename .mark.new mark", f"fsync folder {tmp_path.name}"]
        assert (tmp_path / "mark").read_bytes() == b"42"
        assert names(tmp_path) == ["mark"]

    @pytest.mark.parametrize("step", ["write", "ftruncate", "fchmod", "fsync", "replace"])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_crash_at_any_step_leaves_the_old_or_the_new_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
    ) -> None:
        """A reader never sees a mixture, and the next write succeeds over what the crash left (I7)."""
        path = tmp_path / "status.json"
        path.write_bytes(b"old")
        real = getattr(os, step)

        def dies(*args: object, **kwargs: object) -> object:
            if when == "after":
                real(*args, **kwargs)
            raise Died

        monkeypatch.setattr(os, step, dies)
        with pytest.raises(Died):
            DurableFiles().write(path, b"new")
        monkeypatch.setattr(os, step, real)
        expected = b"new" if (step, when) == ("replace", "after") else b"old"
        assert path.read_bytes() == expected
        DurableFiles().write(path, b"newer")
        assert path.read_bytes() == b"newer"
        assert names(tmp_path) == ["status.json"]

    def test_a_longer_leftover_of_a_crash_does_not_shine_through(self, tmp_path: Path) -> None:
        """The temporary file that a crash left is emptied before it is used again."""
        (tmp_path / ".mark.new").write_bytes(b"x" * 1000)
        DurableFiles().write(tmp_path / "mark", b"42")
        assert (tmp_path / "mark").read_bytes() == b"42"

    def test_concurrent_writers_take_turns(self, tmp_path: Path) -> None:
        """Many writers of one path: every reader sees one of the contents in full, and no file is left behind."""
        path = tmp_path / "route"
        contents = [bytes([65 + number]) * 100_000 for number in range(8)]
        threads = [threading.Thread(target=DurableFiles().write, args=(path, content)) for content in contents * 4]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if path.exists():
                assert path.read_bytes() in contents
        for thread in threads:
            thread.join()
        assert path.read_bytes() in contents
        assert names(tmp_path) == ["route"]

    def test_a_planted_link_is_not_written_through(self, tmp_path: Path) -> None:
        """A symlink under the temporary name is refused, and what it points at stays as it was."""
        (tmp_path / "victim").write_bytes(b"precious")
        (tmp_path / ".mark.new").symlink_to(tmp_path / "victim")
        with pytest.raises(OSError, match="symbolic links"):
            DurableFiles().write(tmp_path / "mark", b"42")
        assert (tmp_path / "victim").read_bytes() == b"precious"

    def test_the_mode_holds_whatever_the_umask(self, tmp_path: Path) -> None:
        """A key asked for with 0600 is 0600, and a published file asked for with 0644 is readable."""
        before = os.umask(0o077)
        try:
            DurableFiles().write(tmp_path / "open", b"", mode=0o644)
            DurableFiles().make_folder(tmp_path / "a" / "b", mode=0o755)
        finally:
            os.umask(before)
        DurableFiles().write(tmp_path / "key", b"", mode=0o600)
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "key", "a", "a/b")]
        assert modes == [0o644, 0o600, 0o755, 0o755]

    def test_make_folder_syncs_every_parent_it_changed(self, tmp_path: Path, calls: list[str]) -> None:
        """A new folder survives power loss only if the folder that names it was synced; existing ones are fine."""
        DurableFiles().make_folder(tmp_path / "a" / "b")
        assert calls == [f"fsync folder {tmp_path.name}", "fsync folder a"]
        DurableFiles().make_folder(tmp_path / "a" / "b")
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FileExistsError):
            DurableFiles().make_folder(tmp_path / "file")

    def test_rename_syncs_both_folders(self, tmp_path: Path, calls: list[str]) -> None:
        """Neither the new nor the old name may come back differently after power loss."""
        for name in ("from", "to"):
            (tmp_path / name).mkdir()
        (tmp_path / "from" / "x").write_bytes(b"1")
        DurableFiles().rename(tmp_path / "from" / "x", tmp_path / "to" / "y")
        assert calls == ["rename x y", "fsync folder to", "fsync folder from"]
        assert (tmp_path / "to" / "y").read_bytes() == b"1"

    def test_link_is_idempotent_but_never_replaces_another_file(self, tmp_path: Path, calls: list[str]) -> None:
        """Linking again after a crash is fine; a different file under the name is an error."""
        (tmp_path / "blob").write_bytes(b"1")
        (tmp_path / "other").write_bytes(b"2")
        for _ in range(2):
            DurableFiles().link(tmp_path / "blob", tmp_path / "name")
        assert (tmp_path / "name").samefile(tmp_path / "blob")
        assert calls == [f"fsync folder {tmp_path.name}"] * 2
        with pytest.raises(FileExistsError):
            DurableFiles().link(tmp_path / "other", tmp_path / "name")

    def test_remove_takes_read_only_trees_and_follows_no_link(self, tmp_path: Path, calls: list[str]) -> None:
        """A published model (read-only folders) can be removed; what a link points at is not ours to remove (I8)."""
        outside = tmp_path / "outside"
        outside.mkdir(mode=0o555)
        model = tmp_path / "model"
        (model / "sub").mkdir(parents=True)
        (model / "sub" / "weights").write_bytes(b"1")
        (model / "link").symlink_to(outside)
        (model / "sub").chmod(0o555)
        model.chmod(0o555)
        DurableFiles().remove(model)
        assert not model.exists()
        assert stat.S_IMODE(outside.stat().st_mode) == 0o555
        assert calls == [f"fsync folder {tmp_path.name}"]
        (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
        DurableFiles().remove(tmp_path / "dangling")
        DurableFiles().remove(tmp_path / "dangling")
        assert names(tmp_path) == ["outside"]


def run(code: str, *, timeout: float = 60, **options: Any) -> Completed:
    """Run Python code as a subprocess of the port."""
    return HostProcesses().run([sys.executable, "-I", "-c", code], timeout=timeout, **options)


def gone(pid: int) -> bool:
    """Whether no live process has this id, waiting up to 30 s; a zombie that waits for its reaper counts as gone."""
    for _ in range(3000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


class TestHostProcesses:
    """Bounded, and nothing survives."""

    def test_output_exit_code_and_input_come_through(self, tmp_path: Path) -> None:
        """Both streams, a chosen exit code, standard input larger than a pipe, environment and folder."""
        data = os.urandom(300_000)
        done = run(
            "import os,sys,hashlib;d=hashlib.md5(sys.stdin.buffer.read()).hexdigest();"
            "print(d,os.getcwd(),sorted(os.environ));"
            "print('err',file=sys.stderr);sys.exit(7)",
            stdin=data,
            env={"ONLY": "1", "LC_CTYPE": "C.UTF-8"},
            cwd=tmp_path,
        )
        assert done.returncode == 7
        assert done.stdout.decode().split()[0] == hashlib.md5(data).hexdigest()
        assert str(tmp_path) in done.stdout.decode()
        assert "['LC_CTYPE', 'ONLY']" in done.stdout.decode()
        assert done.stderr == b"err\n"

    def test_without_input_it_reads_the_end_at_once(self) -> None:
        """The caller's standard input is never inherited."""
        assert run("import sys;print(repr(sys.stdin.read()))").stdout == b"''\n"

    def test_a_program_that_ignores_its_input_is_no_error(self) -> None:
        """A closed pipe ends the feeding, not the call."""
        assert run("import os;os.close(0);print('fine')", stdin=b"x" * 1_000_000).stdout == b"fine\n"

    def test_time_kills_the_whole_group(self, tmp_path: Path) -> None:
        """Beyond the time the program and its children are gone, even when they ignore SIGTERM."""
        code = (
            "import os,signal,time,pathlib;signal.signal(signal.SIGTERM,signal.SIG_IGN);p=os.fork();"
            f"pathlib.Path({str(tmp_path)!r},str(os.getpid())).touch();time.sleep(600)"
        )
        with pytest.raises(TimeoutError, match="within 5 s"):
            run(code, timeout=5)
        pids = [int(name) for name in names(tmp_path)]
        assert len(pids) == 2
        assert all(gone(pid) for pid in pids)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_output_beyond_the_limit_kills_it(self, stream: str) -> None:
        """An endless printer is stopped, whichever stream it uses (I11)."""
        with pytest.raises(OverflowError, match="more than 100000 bytes"):
            run(f"import sys\nwhile True: sys.{stream}.write('x'*5000)", max_output=100_000)

    def test_memory_beyond_the_limit_is_refused(self) -> None:
        """A program that would take all memory is told that there is no more, and so are its children (I11)."""
        code = "import subprocess,sys\nsubprocess.run([sys.executable,'-c','bytearray(2**30)'])\nbytearray(2**30)"
        done = run(f"import time;time.sleep(0.2)\n{code}", memory=2**28)
        assert done.returncode == 1
        assert done.stderr.count(b"MemoryError") == 2

    def test_a_child_left_behind_ends_the_call_and_is_killed(self) -> None:
        """A background child that keeps the pipe open neither blocks the call nor survives it."""
        done = run("import os,time\np=os.fork()\nif p: print(p,flush=True)\nelse: time.sleep(600)")
        assert done.returncode == 0
        assert gone(int(done.stdout))

    def test_a_missing_program_is_an_os_error(self) -> None:
        """Not started is told apart from failed."""
        with pytest.raises(FileNotFoundError):
            HostProcesses().run(["/nonexistent/program"], timeout=1)

    def test_death_by_signal_is_a_negative_code(self) -> None:
        """As in subprocess: minus the signal."""
        assert run("import os;os.kill(os.getpid(),9)").returncode == -9


class TestConcurrency:
    """Bounded parallel work."""

    @pytest.mark.parametrize("limit", [1, 3, 100])
    def test_results_come_in_order(self, limit: int) -> None:
        """Whatever finishes first."""
        assert ThreadedConcurrency().map(lambda number: number * number, range(50), limit=limit) == [
            number * number for number in range(50)
        ]

    def test_at_most_limit_run_at_once(self) -> None:
        """Three may meet at a barrier of three, and a fourth never runs beside them."""
        running, most, lock, meeting = 0, 0, threading.Lock(), threading.Barrier(3, timeout=60)

        def work(_: int) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            meeting.wait()
            with lock:
                running -= 1

        ThreadedConcurrency().map(work, range(9), limit=3)
        assert most == 3

    def test_the_first_error_stops_the_rest(self) -> None:
        """Running calls end, waiting ones never start, and the first exception is the one raised."""
        begun: list[int] = []
        failed = threading.Event()

        def work(number: int) -> None:
            begun.append(number)
            if number == 0:
                failed.set()
                raise ValueError("first")
            failed.wait(60)

        with pytest.raises(ValueError, match="first"):
            ThreadedConcurrency().map(work, range(1000), limit=2)
        assert len(begun) < 1000


class TestSmallPorts:
    """Clock, chance, stop."""

    def test_clock_is_aware_and_monotonic(self) -> None:
        """Times are UTC, and the monotonic clock does not go back."""
        clock = SystemClock()
        assert clock.now().utcoffset() is not None
        assert clock.monotonic() <= clock.monotonic()

    def test_chance_has_the_asked_shape(self) -> None:
        """Tokens have two digits a byte and differ; uniform numbers stay in [low, high)."""
        chance = SystemRandomness()
        assert len(chance.token(8)) == 16
        assert chance.token(16) != chance.token(16)
        drawn = [chance.uniform(-2, 3) for _ in range(1000)]
        assert min(drawn) >= -2
        assert max(drawn) < 3
        assert max(drawn) - min(drawn) > 1

    def test_stop_wakes_a_sleeper(self) -> None:
        """A wait of a minute returns True as soon as stopping is requested, and False when time just passes."""
        stop = StopEvent()
        assert not stop.wait(0)
        threading.Thread(target=stop.set).start()
        assert stop.wait(60)
        assert host_ports(stop).stop.is_set()
        assert not host_ports().stop.is_set()
