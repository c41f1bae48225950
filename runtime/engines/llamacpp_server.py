"""Serve a GGUF model with llama.cpp on a unix socket: what the native backend starts and what the image runs.

Standalone on purpose: it imports the standard library and `xllamacpp`, nothing of this project, so that the same file
works in an environment of its own and in an image. Start it with `python -P` (or `PYTHONSAFEPATH=1`), so that its
neighbours in this folder cannot shadow a module of the same name.

The server speaks llama.cpp's HTTP API on the socket: `/health`, `/metrics`, `/slots`, `/tokenize`, `/completion`,
`/apply-template` and OpenAI's `/v1/...`. There is no TCP listener, no web UI and no download.

Life: the socket appears when the model is loaded. SIGTERM and SIGINT end the process at once, also while it loads and
also as the first process of its pid namespace: with exit code 0 once it serves, cutting requests in flight, and before
that with the signal's number. Draining is the business of whoever sends the signal (`/metrics` has
`llamacpp:requests_processing`). A load that fails ends with exit code 1 and one line on stderr that begins with
`llamacpp_server:`, to be looked for among llama.cpp's own, which a thread of its own writes; a wrong flag ends with
exit code 2.

Source for the fields of `CommonParams`: llama.cpp, `common/common.h`, as bound by `xllamacpp`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xllamacpp import CommonParams

_GGUF_MAGIC = b"GGUF"
_SHARD = re.compile(r"-(?P<part>\d{5})-of-\d{5}\.gguf$")

# Linux limits a unix socket's path to 108 bytes including the final zero (unix(7)); a longer one fails in the server
# with a message that does not say so.
_SOCKET_PATH_BYTES = 107


class LoadError(Exception):
    """The server cannot be started as asked; the message is one line for people."""


def find_model(path: Path) -> Path:
    """Return the file to load: `path` itself, or the one GGUF (or first shard of the one split GGUF) in the folder.

    Raises:
        LoadError: there is none, there are several, or the file does not begin as a GGUF does.

    """
    if path.is_dir():
        shards = {file: _SHARD.search(file.name) for file in sorted(path.rglob("*.gguf"))}
        heads = [file for file, shard in shards.items() if shard is None or int(shard["part"]) == 1]
        if len(heads) != 1:
            found = ", ".join(str(file.relative_to(path)) for file in heads) or "none"
            raise LoadError(f"expected exactly one GGUF model in '{path}', found: {found}")
        path = heads[0]
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise LoadError(f"cannot read model '{path}': {error.strerror}") from error
    if magic != _GGUF_MAGIC:
        raise LoadError(f"cannot load model '{path}': not a GGUF file")
    return path


def clear_socket(path: Path) -> None:
    """Remove the socket that an earlier process left at `path`, so that it can be bound again.

    Raises:
        LoadError: the path is too long for a socket, its folder is missing, or something else is there.

    """
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise LoadError(f"socket path '{path}' is longer than {_SOCKET_PATH_BYTES} bytes")
    if not path.parent.is_dir():
        raise LoadError(f"socket folder '{path.parent}' does not exist")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LoadError(f"'{path}' exists and is not a socket")
    path.unlink()


def parameters(options: argparse.Namespace, model: Path) -> CommonParams:
    """Translate the command line into llama.cpp's parameters."""
    from xllamacpp import CommonParams  # noqa: PLC0415 - 34 MB of native code: `--help` and a bad path need none

    params = CommonParams()
    params.model.path = str(model)
    params.model_alias = {options.alias or model.stem}
    params.hostnames = [str(options.socket)]
    # llama.cpp divides its context among the slots; ours is promised to each request.
    params.n_ctx = options.ctx_size * options.parallel
    params.n_parallel = options.parallel
    params.n_batch = options.batch_size
    params.n_gpu_layers = options.gpu_layers
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    # The default prompt cache may grow to 8 GiB, which a memory limit would answer with the OOM killer.
    params.cache_ram_mib = options.cache_ram_mib
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.offline = True
    # Sizes come from the signed desired state: they are obeyed or refused, never fitted silently to what is free.
    params.fit_params = False
    params.check_tensors = options.check_tensors
    return params


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _octal(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:  # noqa: PLR2004 - the nine permission bits
        raise argparse.ArgumentTypeError("must be between 000 and 777")
    return value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; unknown and abbreviated flags are refused with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="llamacpp_server", description="Serve a GGUF model with llama.cpp on a unix socket.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR_OR_FILE", help="a GGUF file, or a folder with exactly one")
    add("--socket", type=Path, required=True, metavar="PATH", help="unix socket to create")
    add("--socket-mode", type=_octal, default=0o660, metavar="OCTAL", help="its permissions (default: 660)")
    add("--alias", metavar="NAME", help="model name in answers (default: the file's name without its suffix)")
    add("--ctx-size", type=_positive, default=2048, metavar="N", help="tokens of context per request (default: 2048)")
    add("--parallel", type=_positive, default=1, metavar="N", help="requests served at once (default: 1)")
    add("--batch-size", type=_positive, default=2048, metavar="N", help="tokens per batch of a prompt (default: 2048)")
    add("--threads", type=_positive, default=-1, metavar="N", help="CPU threads (default: llama.cpp chooses)")
    add("--gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1: llama.cpp chooses (default)")
    add("--cache-ram-mib", type=int, default=0, metavar="N", help="memory for cached prompts, MiB (default: 0, none)")
    add("--check-tensors", action="store_true", help="look for invalid numbers while loading (slower)")
    return parser.parse_args(arguments)


def serve(options: argparse.Namespace) -> NoReturn:
    """Load the model and serve until a signal ends the process.

    Raises:
        LoadError: the model cannot be loaded or the socket cannot be bound.

    """
    model = find_model(options.model)
    clear_socket(options.socket)
    params = parameters(options, model)
    from xllamacpp import Server  # noqa: PLC0415 - see `parameters`

    # The server binds with the umask's permissions, so the socket never exists with wider ones.
    os.umask(0o777 & ~options.socket_mode)

    def stop(_number: int, _frame: object) -> NoReturn:
        options.socket.unlink(missing_ok=True)
        # Not `sys.exit`: the server's destructor waits up to 30 s for requests in flight.
        os._exit(0)

    try:
        server = Server(params)
    except RuntimeError as error:
        raise LoadError(f"cannot load model '{model}' or bind '{options.socket}': see llama.cpp's log") from error
    # The kernel may give a signal to any of the server's threads, as it does when systemd ends a machine: it stops all
    # processes, signals them, and lets them go on. Python's handlers run in this thread only, which would sleep on.
    woken, written = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"llamacpp_server: serving '{model}' on {server.listening_address}", file=sys.stderr, flush=True)
    while True:
        os.read(woken, 1)


def end_at_once() -> None:
    """Let SIGTERM and SIGINT end the process without the interpreter, which is held for as long as a model loads.

    A handler of Python's would wait for the load to end, which takes minutes, and the first process of a pid namespace
    has no default action. `_exit` of the C library takes an exit code where a handler is given the signal's number.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal.restype = ctypes.c_void_p
    for number in (signal.SIGTERM, signal.SIGINT):
        library.signal(number, ctypes.cast(library._exit, ctypes.c_void_p))  # noqa: SLF001 - POSIX calls it so


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; see the module's docstring for its exit codes."""
    options = parse(arguments)
    end_at_once()
    try:
        serve(options)
    except LoadError as error:
        print(f"llamacpp_server: {error}", file=sys.stderr, flush=True)
    except ImportError as error:
        print(f"llamacpp_server: xllamacpp is not installed here: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
