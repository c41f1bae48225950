"""What the model store costs beside the fastest clients that verify nothing, and beside `b3sum`.

One file of 2 GiB and 64 small ones; nginx on loopback serves them from memory, and every client writes into memory.
Clients run in turn, in whole processes, and whatever they report is compared with what was served.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from benchmarks import mirror as clients
from runtime.host import host_ports
from runtime.models.manifest_builder import build
from runtime.models.store import DiskModelStore
from schemas.base import FileRef
from schemas.manifest import PIECE_SIZE, ManifestDocument, ManifestFile, ManifestMetadata, ManifestSpec
from schemas.node import SourcePolicy
from schemas.observation import StoredModel
from tests.support.models import gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.conftest import Figure
    from benchmarks.mirror import Cost, Mirror

LARGE: Final = 2**31
SMALL: Final = 2**20
SMALL_FILES: Final = 64
ROUNDS: Final = 5
MEMORY: Final = Path("/dev/shm")
KILLED: Final = -9
SHARED: Final = 0.95


@dataclass(frozen=True)
class Bench:
    """A model that is served."""

    folder: Path
    mirror: Mirror
    names: tuple[str, ...]
    manifest: Path
    size: int

    @property
    def target(self) -> Path:
        """An empty folder to download into."""
        target = self.folder / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        return target

    def check(self, folder: Path) -> None:
        """Assert that a folder holds exactly what was served."""
        same, differing, failed = filecmp.cmpfiles(self.mirror.files, folder, self.names, shallow=False)
        assert (sorted(same), differing, failed) == (sorted(self.names), [], [])


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """2 GiB and 64 small files in memory, served by nginx."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.skip("nginx is not installed")
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 4 * LARGE:
        pytest.skip("needs 8 GiB of memory below /dev/shm")
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="reconcile-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx reads as another user where it is started by root
        files = folder / "www"
        files.mkdir()
        write_large(files / "model.gguf")
        for number in range(SMALL_FILES):
            (files / f"part-{number:02}.txt").write_bytes(random.Random(number).randbytes(SMALL))
        names = tuple(sorted(path.name for path in files.iterdir()))
        manifest = describe(files, folder / "v1.json")
        clients.serve_repository(files, names)
        with clients.serving(folder) as mirror:
            size = sum((files / name).stat().st_size for name in names)
            yield Bench(folder, mirror, names, manifest, size)


def write_large(path: Path) -> None:
    """A GGUF file of which no two pieces are alike."""
    block = random.Random(0).randbytes(SMALL)
    with path.open("wb") as stream:
        stream.write(gguf(SMALL))
        for number in range(1, LARGE // SMALL):
            stream.write(number.to_bytes(8, "little") + block[8:])


def describe(files: Path, manifest: Path, *, version: str = "v1") -> Path:
    """The manifest of a folder, with its pieces beside it."""
    built = build(files)
    document = ManifestDocument(
        api_version="reconcile/v1alpha1",
        kind="ModelManifest",
        metadata=ManifestMetadata(name="bench", version=version),
        spec=ManifestSpec(
            format=built.format,
            files=tuple(ManifestFile.model_validate(entry) for entry in built.files),
            pieces=FileRef(path=f"models/bench/{version}.pieces", digest=built.pieces_digest),
        ),
    )
    manifest.write_text(document.to_json(), encoding="utf-8")
    manifest.with_suffix(".pieces").write_bytes(built.pieces)
    return manifest


def store(root: Path) -> DiskModelStore:
    """A store as the client has it."""
    return DiskModelStore(root, ports=host_ports(), policy=SourcePolicy(allow_http=True, allow_private=True))


# --- downloads ------------------------------------------------------------------------------------------------------


def fetch_ours(bench: Bench) -> tuple[Cost, Path]:
    """Our own download; the folder that it published."""
    root = bench.target / "models"
    cost = clients.measure(clients.ours(root, bench.manifest, bench.mirror.url))
    model = clients.load_model(bench.manifest)
    seen = store(root).list()[model.digest]
    assert isinstance(seen, StoredModel)
    assert seen.intact
    return cost, store(root).folder(model.digest)


def fetch_raw(bench: Bench) -> tuple[Cost, Path]:
    """The best unverified ranged fetch."""
    target = bench.target
    return clients.measure(clients.raw(target, bench.names, bench.mirror.url)), target


def fetch_aria2c(bench: Bench) -> tuple[Cost, Path]:
    """`aria2c`, eight connections."""
    target = bench.target
    return clients.measure(clients.aria2c(target, bench.names, bench.mirror.url)), target


def fetch_hf(bench: Bench) -> tuple[Cost, Path]:
    """`hf download`, from a local endpoint."""
    target = bench.target
    environment = {
        "HF_ENDPOINT": bench.mirror.url,
        "HF_HOME": str(target / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    program = find("hf")
    assert program is not None
    return clients.measure(clients.hf(program, target / "model"), environment=environment), target / "model"


def find(program: str) -> str | None:
    """A program on PATH or in the environment that runs this."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def downloads(bench: Bench) -> dict[str, list[Cost]]:
    """What every client that is there took, in turn; what it fetched is compared byte by byte each time."""
    every: dict[str, Callable[[Bench], tuple[Cost, Path]]] = {"ours": fetch_ours, "raw": fetch_raw}
    every |= {"aria2c": fetch_aria2c} if find("aria2c") else {}
    every |= {"hf": fetch_hf} if find("hf") else {}
    costs: dict[str, list[Cost]] = {name: [] for name in every}
    for _ in range(ROUNDS):
        for name, fetch in every.items():
            cost, folder = fetch(bench)
            bench.check(folder)
            costs[name].append(cost)
    return costs


def rates(seconds: list[float], size: int) -> float:
    """The median of gigabytes a second."""
    return statistics.median(size / value for value in seconds) / 1e9


@pytest.mark.parametrize(
    ("peer", "goal", "what"),
    [("aria2c", "> 2.5 x", "aria2c -x8 -s8, unverified"), ("hf", "> 3.5 x", "hf download, local endpoint")],
    ids=["download_vs_aria2c", "download_vs_hf"],
)
def test_rate(bench: Bench, downloads: dict[str, list[Cost]], figure: Figure, peer: str, goal: str, what: str) -> None:
    """Verified, durable and published, beside clients that verify nothing: whole processes."""
    if peer not in downloads:
        pytest.skip(f"{peer} is not installed")
    ours, theirs = (rates([cost.seconds for cost in downloads[name]], bench.size) for name in ("ours", peer))
    figure(f"download_vs_{peer}", ours, "GB/s", goal=goal, peer=what, peer_value=theirs)


def test_download_vs_raw(bench: Bench, downloads: dict[str, list[Cost]], figure: Figure) -> None:
    """The same beside the best fetch that we could write; without the start of the interpreter that both have."""
    ours, theirs = (rates([cost.said[0] for cost in downloads[name]], bench.size) for name in ("ours", "raw"))
    figure("download_vs_raw", ours, "GB/s", goal="> 0.9 x", peer="best unverified ranged fetch", peer_value=theirs)


def test_download_cpu_vs_aria2c(bench: Bench, downloads: dict[str, list[Cost]], figure: Figure) -> None:
    """Processor seconds for a gigabyte, of the whole process."""
    if "aria2c" not in downloads:
        pytest.skip("aria2c is not installed")
    ours, theirs = (
        statistics.median(cost.cpu for cost in downloads[name]) / bench.size * 1e9 for name in ("ours", "aria2c")
    )
    figure("download_cpu_vs_aria2c", ours, "s/GB", goal="< 1 x", peer="aria2c -x8 -s8", peer_value=theirs)


def test_download_peak_mib(downloads: dict[str, list[Cost]], figure: Figure) -> None:
    """The most memory that a downloading process had."""
    peak = max(cost.said[2] for cost in downloads["ours"])
    figure("download_peak_mib", peak, "MiB", goal="< 300")


def test_resume_refetched_fraction(bench: Bench, figure: Figure) -> None:
    """SIGKILL when 90 % are verified: everything that moves after it, what was missing included, over the whole."""
    fractions = []
    for _ in range(3):
        root = bench.target / "models"
        command = clients.ours(root, bench.manifest, bench.mirror.url)
        killed = subprocess.run([*command, "0.9"], check=False, cwd=clients.ROOT)
        assert killed.returncode == KILLED
        bench.mirror.moved()
        clients.measure(command)
        fractions.append(bench.mirror.moved() / bench.size)
        bench.check(store(root).folder(clients.load_model(bench.manifest).digest))
    figure("resume_refetched_fraction", statistics.median(fractions), "of all bytes", goal="< 0.12")


def test_shared_fraction_moved(bench: Bench, figure: Figure) -> None:
    """A second version of which 5 % are new, in one run and three small files: what is planned, and what really moves.

    What moves is whole pieces: a run of this length begins and ends in pieces of which the rest is not new.
    """
    root = bench.target / "models"
    clients.measure(clients.ours(root, bench.manifest, bench.mirror.url))
    changed = [name for name in bench.names if name != "model.gguf"][:3]
    kept = bench.folder / "kept.gguf"
    large = bench.mirror.files / "model.gguf"
    shutil.copyfile(large, kept)
    try:
        for name in changed:
            (bench.mirror.files / name).write_bytes(random.Random(name).randbytes(SMALL))
        with large.open("r+b") as stream:
            stream.seek(LARGE // 2 + PIECE_SIZE // 2)  # in the middle of a piece
            stream.write(random.Random(1).randbytes(round((1 - SHARED) * bench.size) - len(changed) * SMALL))
        second = describe_files(bench, version="v2")
        model = clients.load_model(second)
        missing = store(root).missing(model)
        bench.mirror.moved()
        clients.measure(clients.ours(root, second, bench.mirror.url))
        moved = bench.mirror.moved()
        assert moved == missing
        bench.check(store(root).folder(model.digest))
    finally:
        kept.replace(large)
        for name in changed:
            (bench.mirror.files / name).write_bytes(random.Random(int(name[5:7])).randbytes(SMALL))
    figure("shared_fraction_moved", moved / bench.size, "of all bytes", goal="< 0.06")


def describe_files(bench: Bench, *, version: str) -> Path:
    """The manifest of what is served now (the endpoint's own answers left out)."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        for path in (bench.mirror.files / file for file in bench.names):
            (Path(name) / path.name).hardlink_to(path)
        return describe(Path(name), bench.folder / f"{version}.json", version=version)


# --- verifying ------------------------------------------------------------------------------------------------------


def test_verify_vs_b3sum(bench: Bench, figure: Figure) -> None:
    """Hashing a stored model again, in a process that runs, beside a `b3sum` of the same files; all in memory."""
    program = find("b3sum")
    if program is None:
        pytest.skip("b3sum is not installed")
    root = bench.target / "models"
    clients.measure(clients.ours(root, bench.manifest, bench.mirror.url))
    folder = store(root).folder(clients.load_model(bench.manifest).digest)
    rounds = 11
    peer = [program, *(str(folder / name) for name in bench.names)]
    with subprocess.Popen(
        clients.verifying(root, bench.manifest), cwd=clients.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pairs = []
        for _ in range(rounds):
            process.stdin.write(b"again\n")
            process.stdin.flush()
            pairs.append((float(process.stdout.readline()), clients.measure(peer).seconds))
    ours, theirs = (statistics.median(pair[side] for pair in pairs[1:]) for side in (0, 1))
    size = bench.size / 1e9
    figure("verify_vs_b3sum", size / ours, "GB/s", goal="> 0.95 x", peer="b3sum, warm", peer_value=size / theirs)
