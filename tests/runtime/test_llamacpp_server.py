"""The llama.cpp server program: what it accepts, what it refuses, how it lives and ends. Run as backends run it."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.tiny_model import write_tiny_model
from runtime.engines import llamacpp_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("xllamacpp", reason="xllamacpp not present")

PROGRAM = [sys.executable, "-P", llamacpp_server.__file__]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with one model."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder / "tiny.gguf", seed=1)
    return folder


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A server that has announced itself, and its socket."""
    path = tmp_path / "x.sock"
    command = [*PROGRAM, "--model", str(model), "--socket", str(path), "--parallel", "2", "--ctx-size", "512"]
    process = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        # llama.cpp's own thread logs to the same pipe: our line may follow an unfinished one of its.
        if "llamacpp_server: serving" in line:
            break
    # llama.cpp logs each request: nobody reading would stop it once the pipe is full.
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield process, path
    process.kill()
    process.wait()


def ask(path: Path, target: str, body: dict[str, Any] | None = None) -> Any:
    """Send one request over the socket and return the decoded answer."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("POST" if body else "GET", target, json.dumps(body) if body else None)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def refused(*arguments: str) -> tuple[int, str]:
    """Exit code and the program's own line of a start that must fail."""
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)
    (line,) = (line for line in done.stderr.splitlines() if "llamacpp_server:" in line)
    return done.returncode, line[line.index("llamacpp_server:") :]


def test_serves_on_a_socket_for_its_group_only(server: tuple[subprocess.Popen[str], Path]) -> None:
    """Completions and counters come over the socket, whose mode is 0660 from its first instant."""
    _, path = server
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert ask(path, "/health") == {"status": "ok"}
    assert [slot["n_ctx"] for slot in ask(path, "/slots")] == [512, 512]
    request = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
    answer = ask(path, "/v1/chat/completions", request)
    assert answer["model"] == "tiny"
    assert answer["usage"]["completion_tokens"] == 8


LOADS_FOR_EVER = """
import ctypes

class CommonParams:
    def __getattr__(self, name):
        self.__dict__[name] = CommonParams()
        return self.__dict__[name]

class Server:
    def __init__(self, params):
        print("loading", flush=True)
        # PyDLL keeps the interpreter, as the real one does while it loads.
        ctypes.PyDLL(None).sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [False, True], ids=["any process", "first of its pid namespace"])
def test_a_signal_ends_a_load_at_once(model: Path, tmp_path: Path, number: signal.Signals, *, first: bool) -> None:
    """A stop does not wait for a model that takes minutes to load, nor for whoever would have to kill it."""
    prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if first else []
    if first and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a pid namespace cannot be made here")
    (tmp_path / "xllamacpp.py").write_text(LOADS_FOR_EVER)
    command = [*prefix, *PROGRAM, "--model", str(model), "--socket", str(tmp_path / "x.sock")]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
            os.kill(int(children) if first else process.pid, number)
            # Far less than the load takes, far more than a busy machine needs.
            assert process.wait(60) == number
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(server: tuple[subprocess.Popen[str], Path], number: signal.Signals) -> None:
    """With a request in flight the process ends cleanly and takes its socket along; it does not wait for the request.

    llama.cpp's own way down waits 30 s for requests in flight: a bound of ten tells the two apart on any machine.
    """
    process, path = server
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(str(path))
    body = json.dumps({"prompt": "a", "n_predict": -1, "ignore_eos": True, "stream": True}).encode()
    stream.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert stream.recv(1)
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - started < 10
    assert not path.exists()
    stream.close()


def test_a_signal_that_another_thread_gets_ends_it_too(server: tuple[subprocess.Popen[str], Path]) -> None:
    """Of a process that was stopped and goes on, any thread may get it: so does systemd end a machine."""
    process, path = server
    assert ask(path, "/health") == {"status": "ok"}
    others = {int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()} - {process.pid}
    assert others, "it has threads of its own"
    library = ctypes.CDLL(None, use_errno=True)
    assert library.tgkill(process.pid, min(others), int(signal.SIGTERM)) == 0
    assert process.wait(timeout=60) == 0
    assert not path.exists()


def test_takes_over_the_socket_of_a_dead_predecessor(model: Path, tmp_path: Path) -> None:
    """A socket left by SIGKILL is replaced: a restart needs nobody to clean up."""
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    llamacpp_server.clear_socket(path)
    assert not path.exists()
    assert llamacpp_server.find_model(model) == model / "tiny.gguf"


def test_refusals_are_one_clear_line(model: Path, tmp_path: Path) -> None:
    """What cannot be loaded or bound ends with exit code 1, and one line says what and why."""
    socket_path = str(tmp_path / "x.sock")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((model / "tiny.gguf").read_bytes()[:1_000_000])
    code, line = refused("--model", str(broken), "--socket", socket_path)
    assert (code, line.split(" or ")[0]) == (1, f"llamacpp_server: cannot load model '{broken}'")
    plain = tmp_path / "plain"
    plain.touch()
    expected = f"llamacpp_server: '{plain}' exists and is not a socket"
    assert refused("--model", str(model), "--socket", str(plain)) == (1, expected)
    assert plain.exists()


@pytest.mark.parametrize("flag", ["--unknown", "--ctx", "--hf-repo"])
def test_unknown_and_abbreviated_flags_are_refused(flag: str) -> None:
    """A flag that is not known is an error, never ignored and never guessed: exit code 2."""
    with pytest.raises(SystemExit) as refusal:
        llamacpp_server.parse(["--model", "m", "--socket", "s", flag, "1"])
    assert refusal.value.code == 2


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_sizes_must_be_positive(value: str) -> None:
    """A context of nothing is refused at the command line."""
    with pytest.raises(SystemExit):
        llamacpp_server.parse(["--model", "m", "--socket", "s", f"--ctx-size={value}"])


def test_a_model_folder_must_be_unambiguous(tmp_path: Path) -> None:
    """No model, two models, or a file that is no GGUF: refused by name; the first shard stands for a split model."""
    with pytest.raises(llamacpp_server.LoadError, match="found: none"):
        llamacpp_server.find_model(tmp_path)
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    assert llamacpp_server.find_model(tmp_path).name == "m-00001-of-00002.gguf"
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(llamacpp_server.LoadError, match=r"other\.gguf"):
        llamacpp_server.find_model(tmp_path)
    (tmp_path / "text.txt").write_text("no model")
    with pytest.raises(llamacpp_server.LoadError, match="not a GGUF"):
        llamacpp_server.find_model(tmp_path / "text.txt")
    with pytest.raises(llamacpp_server.LoadError, match="No such file"):
        llamacpp_server.find_model(tmp_path / "absent.gguf")


def test_a_socket_path_is_checked_before_loading(tmp_path: Path) -> None:
    """A path too long for a unix socket, or in no folder, is refused before gigabytes are read."""
    with pytest.raises(llamacpp_server.LoadError, match="longer than 107 bytes"):
        llamacpp_server.clear_socket(tmp_path / ("x" * 108))
    with pytest.raises(llamacpp_server.LoadError, match="does not exist"):
        llamacpp_server.clear_socket(Path("/nonexistent/x.sock"))
