"""One GPU, one node: the lock as the kernel keeps it, between processes that know nothing of each other (I3)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runtime import gpu_locks
from runtime.gpu_locks import GpuLocks, claim
from schemas.errors import GpuInUse, GpuNotLockable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GPU = "GPU-5f3c2a10-0000-4000-8000-000000000001"
OTHER = "GPU-5f3c2a10-0000-4000-8000-000000000002"
TESTNET = {"network": "testnet", "node_id": "0x" + "1" * 40}
MAINNET = {"network": "mainnet", "node_id": "0x" + "2" * 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The machine's folder; it is made by whoever comes first."""
    return tmp_path / "locks"


def test_a_gpu_of_another_node_is_refused_by_name(folder: Path) -> None:
    """The refusal says who has it; its own node sees nothing in the way; afterwards it is free."""
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    assert theirs.holder(GPU) == ""
    with ours.claimed((GPU,), "reconcile-testnet-a1"):
        assert theirs.holder(GPU) == f"reconcile-testnet-a1 of node {TESTNET['node_id']} (testnet)"
        assert (ours.holder(GPU), theirs.holder(OTHER)) == ("", "")
        with pytest.raises(GpuInUse, match=f"{GPU} is in use by reconcile-testnet-a1 of node 0x1"):
            theirs.claimed((GPU,), "reconcile-mainnet-b1").__enter__()
        with theirs.claimed((OTHER,), "reconcile-mainnet-b1"):
            assert ours.holder(OTHER).startswith("reconcile-mainnet-b1")
    assert theirs.holder(GPU) == ""
    with theirs.claimed((GPU,), "reconcile-mainnet-b2"):
        assert ours.holder(GPU).startswith("reconcile-mainnet-b2")


def test_one_of_two_that_is_taken_leaves_the_other_free(folder: Path) -> None:
    """A claim of several is whole or not at all."""
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    with ours.claimed((OTHER,), "a"):
        with pytest.raises(GpuInUse):
            theirs.claimed((GPU, OTHER), "b").__enter__()
        assert ours.holder(GPU) == ""


def test_two_instances_of_one_node_share_a_gpu(folder: Path) -> None:
    """A planned overlap runs two engines of one node: the GPU is the node's until the last of them has ended."""
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    first = ours.claimed((GPU,), "a")
    first.__enter__()
    with ours.claimed((GPU,), "b"):
        first.__exit__(None, None, None)
        assert theirs.holder(GPU).startswith("b of node")
        with pytest.raises(GpuInUse):
            theirs.claimed((GPU,), "c").__enter__()
    assert theirs.holder(GPU) == ""


@pytest.fixture
def heir(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], GpuLocks]]:
    """A process that inherited a lock from an agent that is gone."""
    ours = GpuLocks(folder, **TESTNET)
    with ours.claimed((GPU,), "a") as held:
        child = subprocess.Popen(["sleep", "3600"], pass_fds=held)
    yield child, ours
    child.kill()
    child.wait()


def test_the_lock_outlives_the_agent_and_ends_with_its_heir(
    folder: Path, heir: tuple[subprocess.Popen[bytes], GpuLocks]
) -> None:
    """SIGKILL to what holds it frees the GPU at once, however it was held."""
    child, _ = heir
    theirs = GpuLocks(folder, **MAINNET)
    assert theirs.holder(GPU)
    with pytest.raises(GpuInUse):
        theirs.claimed((GPU,), "b").__enter__()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert theirs.holder(GPU) == ""
    with theirs.claimed((GPU,), "b"):
        pass


def test_looking_takes_nothing(folder: Path) -> None:
    """A dry run of another user, who may only read, sees the holder and disturbs no claim (I9)."""
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    with ours.claimed((GPU,), "a"):
        pass
    path = folder / f"{GPU}.lock"
    before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(folder.iterdir()))
    assert theirs.holder(GPU) == ""
    assert theirs.holder(OTHER) == ""
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(folder.iterdir())) == before


def test_many_that_claim_at_once_never_share(folder: Path, tmp_path: Path) -> None:
    """Twelve nodes in twelve processes, over and over: at every moment one of them at most has the GPU."""
    program = f"""
import os, sys
from pathlib import Path
from runtime.gpu_locks import GpuLocks
from schemas.errors import GpuInUse
locks = GpuLocks(Path({str(folder)!r}), network="n" + sys.argv[1], node_id="0x" + sys.argv[1])
won = 0
while won < 5:
    try:
        with locks.claimed(({GPU!r},), "a"):
            # Whoever else were here would find it there.
            os.close(os.open({str(tmp_path / "alone")!r}, os.O_CREAT | os.O_EXCL))
            won += 1
            os.unlink({str(tmp_path / "alone")!r})
    except GpuInUse:
        pass
"""
    children = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in range(12)]
    assert [child.wait(300) for child in children] == [0] * 12


def test_what_a_container_holds_is_taken_even_when_its_keeper_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names the container: while it runs, nobody else starts on its GPU, and its own node still may."""
    container = "c" * 64
    running = {container}
    monkeypatch.setattr(gpu_locks, "processes_of", lambda name: [1] if name in running else [])
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    with ours.claimed((GPU,), "a", container=container):
        pass  # its keeper dies with this descriptor
    assert theirs.holder(GPU).startswith("a of node")
    with pytest.raises(GpuInUse, match="a of node"):
        theirs.claimed((GPU,), "b").__enter__()
    with ours.claimed((GPU,), "a2"):
        pass
    assert theirs.holder(GPU).startswith("a2 of node"), "what runs is not forgotten by the next claim"
    running.clear()
    assert theirs.holder(GPU) == ""


@pytest.mark.parametrize("content", [b"", b"\x1b[2J", b"{}", b'{"network": "x\\n", "node": 1}', b"[" * 5000])
def test_a_file_that_anybody_may_have_written_is_no_program(folder: Path, content: bytes) -> None:
    """What is no record of a node is nobody's when it is free, and somebody's when it is not."""
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    with ours.claimed((GPU,), "a") as held:
        os.ftruncate(held[0], 0)
        os.pwrite(held[0], content, 0)
        assert theirs.holder(GPU) == "a node that does not say who it is"
        with pytest.raises(GpuInUse, match="does not say who it is"):
            theirs.claimed((GPU,), "b").__enter__()
    assert theirs.holder(GPU) == ""
    with theirs.claimed((GPU,), "b"):
        assert json.loads((folder / f"{GPU}.lock").read_bytes())["network"] == "mainnet"


def test_planted_files_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """A link, a name of something else, a pipe: nothing is opened, written or waited for, and nothing is started."""
    ours, victim = GpuLocks(folder, **TESTNET), tmp_path / "victim"
    victim.write_text("precious")
    folder.mkdir()
    path = folder / f"{GPU}.lock"
    for plant in (lambda: path.symlink_to(victim), lambda: path.hardlink_to(victim), lambda: os.mkfifo(path)):
        plant()
        with pytest.raises(GpuNotLockable):
            ours.claimed((GPU,), "a").__enter__()
        path.unlink()
    assert victim.read_text() == "precious"
    path.symlink_to(victim)
    assert "cannot be looked at" in ours.holder(GPU)
    for uuid in ("../victim", "", "GPU-1/..", "a" * 200):
        assert ours.holder(uuid)
        with pytest.raises(GpuNotLockable):
            ours.claimed((uuid,), "a").__enter__()


def test_a_folder_that_somebody_could_pull_away_is_not_used(tmp_path: Path) -> None:
    """A link to a folder, or a stranger's: the lock would be worth nothing, and the refusal says how to make it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(GpuNotLockable, match="no folder of root's or of this user's"):
        GpuLocks(tmp_path / "link", **TESTNET).claimed((GPU,), "a").__enter__()
    with pytest.raises(GpuNotLockable):
        GpuLocks(tmp_path / "missing" / "locks", **TESTNET).claimed((GPU,), "a").__enter__()
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 65534, 65534)
        with pytest.raises(GpuNotLockable):
            GpuLocks(tmp_path / "theirs", **TESTNET).claimed((GPU,), "a").__enter__()


@pytest.mark.parametrize(("mode", "file"), [(0o1777, 0o666), (0o2770, 0o660), (0o755, 0o644)])
def test_who_may_use_the_folder_may_use_the_locks(folder: Path, mode: int, file: int) -> None:
    """Whatever the umask: every user, a group, or only root, as the folder says."""
    folder.mkdir()
    folder.chmod(mode)
    before = os.umask(0o077)
    try:
        with GpuLocks(folder, **TESTNET).claimed((GPU,), "a"):
            pass
    finally:
        os.umask(before)
    assert (folder / f"{GPU}.lock").stat().st_mode & 0o777 == file


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
def test_nodes_of_two_users_keep_off_each_other(folder: Path) -> None:
    """Whoever comes first, root or not: the other one is refused, and gets the GPU afterwards."""
    ours = GpuLocks(folder, **TESTNET)
    with ours.claimed((GPU,), "a"):
        pass
    program = f"""
import os, sys
from pathlib import Path
from runtime.gpu_locks import GpuLocks
locks = GpuLocks(Path({str(folder)!r}), network="mainnet", node_id="0x2")
# Its programs are read before it is another user: where they lie may be open to root alone.
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
with locks.claimed(({GPU!r},), "b"), locks.claimed(({OTHER!r},), "b"):
    print("mine", flush=True)
    sys.stdin.readline()
"""
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "mine\n"
    for uuid in (GPU, OTHER):
        assert ours.holder(uuid) == "b of node 0x2 (mainnet)"
        with pytest.raises(GpuInUse):
            ours.claimed((uuid,), "a").__enter__()
    child.communicate("\n", timeout=60)
    with ours.claimed((GPU, OTHER), "a"):
        pass


def test_a_replaced_file_keeps_nobody_out_and_is_not_relied_upon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed between opening and locking: the claim is made on the file that has the name."""
    ours, theirs = GpuLocks(folder, **TESTNET), GpuLocks(folder, **MAINNET)
    path = folder / f"{GPU}.lock"
    real, removed = GpuLocks._begin, []

    def begin(self: GpuLocks, descriptor: int, uuid: str, deadline: float) -> None:
        real(self, descriptor, uuid, deadline)
        if not removed:
            removed.append(path.unlink())

    monkeypatch.setattr(GpuLocks, "_begin", begin)
    with ours.claimed((GPU,), "a") as held:
        assert os.path.samestat(os.fstat(held[0]), path.stat())
        assert theirs.holder(GPU)


def test_a_claim_that_never_ends_is_refused_in_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local user who sits on the lock file cannot make a node hang."""
    ours = GpuLocks(folder, **TESTNET)
    with ours.claimed((GPU,), "a"):
        pass
    monkeypatch.setattr(gpu_locks, "CLAIM_SECONDS", 0.05)
    with (folder / f"{GPU}.lock").open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, gpu_locks._LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        with pytest.raises(GpuInUse, match="does not come to an end"):
            ours.claimed((GPU,), "a").__enter__()


def test_without_locks_no_gpu_is_given() -> None:
    """An agent that was given no locks starts nothing on a GPU, and everything else."""
    with claim(None, (), "a") as held:
        assert held == ()
    with pytest.raises(GpuNotLockable):
        claim(None, (GPU,), "a").__enter__()
