"""A model in memory, nginx on loopback that serves it, and the clients that fetch it from there.

`python -m benchmarks.mirror acquire|raw ...` are two of these clients, as programs of their own: what a whole process
costs is compared, from its start to its end. Downloads go into memory as well, so that no disk is measured.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from runtime.interfaces import Model
    from runtime.models.store import DiskModelStore

ROOT: Final = Path(__file__).parents[1]
REPOSITORY: Final = "bench/model"
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"

NGINX: Final = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format moved '$body_bytes_sent';
  access_log {log};
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000;
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/www;
    # What a Hugging Face client asks for, of one repository with one commit.
    location /api/ {{ default_type application/json; }}
    location /{repository}/resolve/ {{
      rewrite ^/{repository}/resolve/[^/]+/(.*)$ /$1 break;
      add_header X-Repo-Commit {commit};
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process cost."""

    seconds: float
    """Wall clock, from its start to its end."""
    cpu: float
    """Processor seconds of it and its children."""
    said: tuple[float, ...]
    """Numbers on its standard output. Of our own clients: seconds and processor seconds of the work alone, without the
    start of an interpreter, and the most memory that it had, in MiB."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A running server."""

    url: str
    folder: Path
    log: Path

    @property
    def files(self) -> Path:
        """The folder that it serves."""
        return self.folder / "www"

    def moved(self) -> int:
        """Bytes of content that were sent since this was asked last."""
        time.sleep(0.1)  # a line is written when its answer has ended
        lines = self.log.read_text(encoding="ascii").split()
        os.truncate(self.log, 0)
        return sum(map(int, lines))


def serve_repository(folder: Path, names: Sequence[str]) -> None:
    """Lay the answers of a Hugging Face endpoint beside the files that lie in `folder` already."""
    sizes = {name: (folder / name).stat().st_size for name in names}
    info = {
        "_id": "1",
        "id": REPOSITORY,
        "modelId": REPOSITORY,
        "sha": COMMIT,
        "private": False,
        "tags": [],
        "siblings": [{"rfilename": name} for name in names],
    }
    tree = [{"type": "file", "oid": COMMIT, "size": size, "path": name} for name, size in sizes.items()]
    api = folder / "api" / "models" / REPOSITORY
    for revision in ("main", COMMIT):
        for kind, answer in (("revision", info), ("tree", tree)):
            (api / kind).mkdir(parents=True, exist_ok=True)
            (api / kind / revision).write_text(json.dumps(answer), encoding="utf-8")


@contextmanager
def serving(folder: Path) -> Iterator[Mirror]:
    """Serve `folder/www` for the length of the `with`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "access.log"
    configuration = folder / "nginx.conf"
    text = NGINX.format(folder=folder, port=port, repository=REPOSITORY, commit=COMMIT, log=f"{log} moved")
    configuration.write_text(text, encoding="utf-8")
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    with subprocess.Popen([binary, "-c", str(configuration), "-e", f"{folder}/error.log"]) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.05)
            yield Mirror(f"http://127.0.0.1:{port}", folder, log)
        finally:
            process.terminate()


def measure(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a program to its good end."""
    begun = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **(environment or {})}
    )
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = done.stdout.split() if "benchmarks.mirror" in command else []
    return Cost(seconds, cpu, tuple(map(float, said)))


# --- clients ----------------------------------------------------------------------------------------------------------


def ours(root: Path, manifest: Path, url: str) -> list[str]:
    """The model store: verified, durable, published."""
    return [sys.executable, "-m", "benchmarks.mirror", "acquire", str(root), str(manifest), url]


def verifying(root: Path, manifest: Path) -> list[str]:
    """Hashes a stored model once for every line that it reads; writes the seconds that it took."""
    return [sys.executable, "-m", "benchmarks.mirror", "verify", str(root), str(manifest)]


def raw(target: Path, names: Sequence[str], url: str) -> list[str]:
    """The best unverified ranged fetch that we could write."""
    return [sys.executable, "-m", "benchmarks.mirror", "raw", str(target), url, *names]


def aria2c(target: Path, names: Sequence[str], url: str) -> list[str]:
    """aria2c with eight connections a file, unverified. Its list of files is written beside the target."""
    listed = target.with_name("aria2c.txt")
    lines = [f"{url}/{name}\n  out={name}" for name in names]
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["aria2c", "-x8", "-s8", "--quiet=true", "--no-conf=true", f"--dir={target}", f"--input-file={listed}"]


def hf(program: str, target: Path) -> list[str]:
    """`hf download` of the whole repository; `HF_ENDPOINT` says from where."""
    return [program, "download", REPOSITORY, "--local-dir", str(target), "--quiet"]


def load_model(manifest: Path) -> Model:
    """A model from its manifest, with the pieces file beside it."""
    from runtime.interfaces import Model
    from schemas.digests import digest_text
    from schemas.manifest import ManifestDocument

    text = manifest.read_text(encoding="utf-8")
    document = ManifestDocument.model_validate_json(text)
    return Model(digest=digest_text(text), manifest=document, pieces=manifest.with_suffix(".pieces").read_bytes())


def _store(root: str) -> DiskModelStore:
    from runtime.host import host_ports
    from runtime.models.store import DiskModelStore
    from schemas.node import SourcePolicy

    return DiskModelStore(Path(root), ports=host_ports(), policy=SourcePolicy(allow_http=True, allow_private=True))


def _acquire(root: str, manifest: str, url: str, fatal: str = "2") -> None:
    """Install a model; with `fatal`, die by SIGKILL as soon as this fraction of it is verified."""
    from runtime.host import StopEvent

    model = load_model(Path(manifest))
    done: dict[str, int] = {}

    def told(subject: str, verified: int, _total: int) -> None:
        done[subject] = verified
        if sum(done.values()) >= float(fatal) * model.manifest.size:
            os.kill(os.getpid(), signal.SIGKILL)

    store = _store(root)
    import runtime.models.download
    import runtime.models.http_source  # noqa: F401 - a running agent has these already

    with _told():
        store.acquire(model, [url], progress=told, stop=StopEvent())


@contextmanager
def _told() -> Iterator[None]:
    """Print what the work within cost."""
    begun, before = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - begun, time.process_time() - before
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    print(seconds, cpu, peak / 1024)


def _verify(root: str, manifest: str) -> None:
    from runtime.host import StopEvent

    model, store = load_model(Path(manifest)), _store(root)
    for _ in sys.stdin:
        begun = time.perf_counter()
        store.verify(model, progress=lambda *_: None, stop=StopEvent())
        print(time.perf_counter() - begun, flush=True)


_RANGE: Final = 16 * 2**20
_BUFFER: Final = 2**20
_THREADS: Final = 4


def _raw(target: str, url: str, *names: str) -> None:
    """Threads that each ask for ranges of 16 MiB and move them through one small buffer into preallocated files."""
    with _told():
        _fetch_ranges(target, url, names)


def _fetch_ranges(target: str, url: str, names: Sequence[str]) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    work: list[tuple[str, int, int, int]] = []
    lock = threading.Lock()
    control = socket.create_connection((host, int(port)))
    for name in names:
        control.sendall(f"HEAD /{name} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = control.recv(65536).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        file = os.open(Path(target) / name, os.O_WRONLY | os.O_CREAT, 0o644)
        if size:
            os.posix_fallocate(file, 0, size)
        work += [(name, file, start, min(start + _RANGE, size)) for start in range(0, size, _RANGE)]
    work.reverse()

    def strip() -> None:
        connection = socket.create_connection((host, int(port)))
        view = memoryview(bytearray(_BUFFER))
        while True:
            with lock:
                if not work:
                    return
                name, file, start, end = work.pop()
            ask = f"GET /{name} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={start}-{end - 1}\r\n\r\n"
            connection.sendall(ask.encode())
            # The head alone: what follows is then written in whole pages of the file, which costs a fifth less than
            # writes that begin and end anywhere.
            seen = connection.recv(4096, socket.MSG_PEEK)
            while (end_of_head := seen.find(b"\r\n\r\n")) < 0:
                seen = connection.recv(4096, socket.MSG_PEEK)
            assert b" 206 " in connection.recv(end_of_head + 4)[:20]
            while start < end:
                got = connection.recv_into(view[: end - start], 0, socket.MSG_WAITALL)
                assert got
                start += os.pwrite(file, view[:got], start)

    with ThreadPoolExecutor(_THREADS) as pool:
        for task in [pool.submit(strip) for _ in range(_THREADS)]:
            task.result()
    assert not work


if __name__ == "__main__":
    {"acquire": _acquire, "verify": _verify, "raw": _raw}[sys.argv[1]](*sys.argv[2:])
