"""Serve a GGUF model with Ollama on a unix socket: what the native backend starts and what the image runs.

Ollama listens on TCP only (ollama#739). It is started on the loopback of its own network namespace, where nobody else
is, given the model by its API, and made to load it; then what comes in at the socket goes to it byte by byte.
Standalone on purpose: standard library only, so that the same file works in an image.

Life: the socket appears when the model is loaded. SIGTERM and SIGINT end Ollama and this process with code 0, cutting
requests in flight. When Ollama ends by itself this process ends with its code, and with 1 when it cannot be started or
refuses the model, after one line on stderr that begins with `ollama_server:`.

The model is not copied if that can be helped: it is linked to where Ollama keeps its blobs, and only if Ollama does not
see it there is it handed over by `POST /api/blobs/DIGEST`, which takes as much room below TMPDIR as it has bytes.

Source: Ollama's documentation, "API" (blobs, create, load a model) and "FAQ" (OLLAMA_HOST, OLLAMA_MODELS and the other
variables). It was tried against a program that implements that, never against Ollama itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOOPBACK = "127.0.0.1"
_START_SECONDS = 60.0
_LOAD_SECONDS = 3600.0
"""The agent has a bound of its own, and ends this process."""
_CHUNK = 2**16
_SOCKET_PATH_BYTES = 107
_BACKLOG = 128


class LoadError(Exception):
    """The server cannot be started as asked; the message is one line for people."""


class Ollama:
    """Ollama's API on loopback."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, method: str, path: str, body: Any = None, *, seconds: float = _START_SECONDS) -> tuple[int, Any]:
        """Status and JSON of an answer, None for one without; a body that is no file goes out as JSON.

        Raises:
            LoadError: no answer.
        """
        connection = http.client.HTTPConnection(_LOOPBACK, self._port, timeout=seconds)
        try:
            head = {"Content-Type": "application/json"}
            if hasattr(body, "fileno"):
                head = {"Content-Length": str(os.fstat(body.fileno()).st_size)}
            elif body is not None:
                body = json.dumps(body)
            connection.request(method, path, body, head)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise LoadError(f"{method} {path}: {error}") from error
        finally:
            connection.close()
        try:
            return answer.status, json.loads(said) if said else None
        except ValueError:
            return answer.status, None

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until it answers.

        Raises:
            LoadError: it ended, or does not.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(LoadError):
                if self.ask("GET", "/api/version", seconds=1)[0] == http.client.OK:
                    return
            if process.poll() is not None:
                raise LoadError(f"ollama ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise LoadError(f"ollama does not answer on port {self._port}")
            time.sleep(0.02)

    def load(self, name: str, file: Path, digest: str, blobs: Path) -> None:
        """Make a model of a file, and have it loaded for good.

        Raises:
            LoadError: it refuses one of the steps.
        """
        blobs.mkdir(parents=True, exist_ok=True)
        (blobs / digest.replace(":", "-")).symlink_to(file)
        if self.ask("HEAD", f"/api/blobs/{digest}")[0] != http.client.OK:
            (blobs / digest.replace(":", "-")).unlink(missing_ok=True)
            with file.open("rb") as content:
                self._expect(self.ask("POST", f"/api/blobs/{digest}", content, seconds=_LOAD_SECONDS), "blob")
        made = {"model": name, "files": {file.name: digest}, "stream": False}
        self._expect(self.ask("POST", "/api/create", made, seconds=_LOAD_SECONDS), "create")
        loaded = {"model": name, "keep_alive": -1, "stream": False}
        self._expect(self.ask("POST", "/api/generate", loaded, seconds=_LOAD_SECONDS), "load")

    def _expect(self, answer: tuple[int, Any], what: str) -> None:
        status, said = answer
        if status not in (http.client.OK, http.client.CREATED):
            reason = said.get("error", "") if isinstance(said, dict) else ""
            raise LoadError(f"{what}: status {status} {reason}".rstrip())


# --- the proxy ----------------------------------------------------------------------------------------------------


def relay(client: socket.socket, port: int) -> None:
    """Hand one connection's bytes on in both directions, until both sides have ended."""
    with client:
        try:
            server = socket.create_connection((_LOOPBACK, port))
        except OSError:
            return
        with server, suppress(OSError):
            other = {client: server, server: client}
            open_sides = [client, server]
            while open_sides:
                for side in select.select(open_sides, [], [])[0]:
                    data = side.recv(_CHUNK)
                    if data:
                        other[side].sendall(data)
                    else:
                        open_sides.remove(side)
                        other[side].shutdown(socket.SHUT_WR)


def accept(listener: socket.socket, port: int) -> None:
    """Take connections for ever, each in a thread of its own."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=relay, args=(client, port), daemon=True).start()


def listen(path: Path, mode: int) -> socket.socket:
    """A listening unix socket.

    Raises:
        LoadError: it cannot be bound.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise LoadError(f"socket path '{path}' is longer than {_SOCKET_PATH_BYTES} bytes")
    listener = socket.socket(socket.AF_UNIX)
    # It never exists with wider permissions.
    os.umask(0o777 & ~mode)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
    except OSError as error:
        raise LoadError(f"cannot bind '{path}': {error.strerror}") from error
    listener.listen(_BACKLOG)
    return listener


# --- the program --------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port of loopback at which nobody listens: where there is no network of its own, another Ollama might."""
    with socket.socket() as asked:
        asked.bind((_LOOPBACK, 0))
        return int(asked.getsockname()[1])


def environment(options: argparse.Namespace, port: int, folder: str) -> dict[str, str]:
    """What Ollama is started with: nothing is looked for elsewhere, nothing is unloaded."""
    return {
        **os.environ,
        "HOME": folder,
        "OLLAMA_HOST": f"{_LOOPBACK}:{port}",
        "OLLAMA_MODELS": f"{folder}/models",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_CONTEXT_LENGTH": str(options.ctx_size),
        "OLLAMA_NUM_PARALLEL": str(options.parallel),
        "OLLAMA_FLASH_ATTENTION": "1" if options.flash_attention else "0",
    }


def serve(options: argparse.Namespace, folder: str) -> int:
    """Start Ollama, have it load the model, and pass on what comes in until it ends; the exit code.

    Raises:
        LoadError: the model cannot be served.
    """
    port = free_port()
    try:
        process = subprocess.Popen(
            [options.program, "serve"], env=environment(options, port, folder), stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise LoadError(f"cannot start '{options.program}': {error.strerror}") from error

    told = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        told.set()
        # Whatever waits for it, here or in a request, sees its end.
        process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        ollama = Ollama(port)
        ollama.wait(process)
        ollama.load(options.name, options.model / options.file, options.digest, Path(folder, "models", "blobs"))
        listener = listen(options.socket, 0o660)
    except (LoadError, OSError):
        process.kill()
        process.wait()
        if told.is_set():
            return 0
        raise
    print(f"ollama_server: serving '{options.name}'", file=sys.stderr, flush=True)
    threading.Thread(target=accept, args=(listener, port), daemon=True).start()
    code = process.wait()
    options.socket.unlink(missing_ok=True)
    if told.is_set():
        return 0
    print(f"ollama_server: ollama ended with code {code}", file=sys.stderr, flush=True)
    return code if code > 0 else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; unknown and abbreviated flags are refused with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="ollama_server", description="Serve a GGUF model with Ollama on a unix socket.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--program", default="/usr/bin/ollama", metavar="PATH", help="Ollama (default: %(default)s)")
    add("--model", type=Path, required=True, metavar="FOLDER", help="folder with the file")
    add("--file", required=True, metavar="NAME", help="the GGUF file in it")
    add("--digest", required=True, metavar="sha256:HEX", help="of the file")
    add("--name", required=True, metavar="NAME:TAG", help="what clients call the model")
    add("--socket", type=Path, required=True, metavar="PATH", help="unix socket to create")
    add("--ctx-size", type=int, default=2048, metavar="N", help="tokens of context per request (default: 2048)")
    add("--parallel", type=int, default=1, metavar="N", help="requests served at once (default: 1)")
    add("--flash-attention", action="store_true", help="use flash attention")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; see the module's docstring for its exit codes."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="ollama-", ignore_cleanup_errors=True) as folder:
        try:
            return serve(options, folder)
        except (LoadError, OSError) as error:
            print(f"ollama_server: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
