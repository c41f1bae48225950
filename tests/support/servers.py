"""Real servers on loopback: nginx for files, moto's S3 with its signature check on.

Where nginx is missing the tests that ask for it are skipped by name; under `REQUIRE_NGINX=1`, as in CI, they fail.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_START_SECONDS = 60

_RUNNING = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")

_NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    tcp_nopush on;
    server {{
        listen 127.0.0.1:{port};
        root {files};
    }}
}}
"""


@contextmanager
def nginx(files: Path, folder: Path) -> Iterator[str]:
    """Nginx over a folder, for the length of a `with`; its base address.

    Args:
        files: what it serves.
        folder: an empty one for itself.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if program is None:
        if os.environ.get("REQUIRE_NGINX") == "1":
            pytest.fail("nginx is not installed (.ci/provision does it)")
        pytest.skip("nginx is not installed")
    folder.mkdir(parents=True)
    user = "user root;" if os.geteuid() == 0 else ""  # pytest's folders are for their owner alone
    for _ in range(5):
        port = _free_port()
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, files=files, user=user))
        command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if _accepts(port, process):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            process.wait(timeout=_START_SECONDS)
    pytest.fail(f"nginx does not start: {(folder / 'error.log').read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server is there; False if it ended (another process took its port)."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process.poll() is None
        time.sleep(0.02)
    return False


@dataclass(frozen=True, slots=True)
class S3:
    """An S3 server that checks signatures."""

    url: str
    key: str
    secret: str


@contextmanager
def s3_server(bucket: str, objects: Mapping[str, bytes]) -> Iterator[S3]:
    """Moto's server with one bucket, whose user may read it with a signature and nobody else may."""
    program = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(4 + len(objects)), "PYTHONUNBUFFERED": "1"}
    # What `_filled` does is let through; from then on it is checked who signed a request, and whether the signature is
    # over this very request.
    process = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)
    try:
        assert process.stderr is not None
        found = next(
            (m for line in process.stderr if (m := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line))), None
        )
        assert found is not None, "moto does not start"
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        yield _filled(found[1], bucket, objects)
    finally:
        process.kill()
        process.wait(timeout=_START_SECONDS)


_POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def _filled(url: str, bucket: str, objects: Mapping[str, bytes]) -> S3:
    from botocore.session import Session

    session = Session()
    session.set_credentials("setup", "setup")

    def client(service: str) -> object:
        return session.create_client(service, region_name="us-east-1", endpoint_url=url)

    iam, store = client("iam"), client("s3")
    iam.create_user(UserName="node")  # type: ignore[attr-defined]
    iam.put_user_policy(UserName="node", PolicyName="all", PolicyDocument=json.dumps(_POLICY))  # type: ignore[attr-defined]
    key = iam.create_access_key(UserName="node")["AccessKey"]  # type: ignore[attr-defined]
    store.create_bucket(Bucket=bucket)  # type: ignore[attr-defined]
    for name, data in objects.items():
        store.put_object(Bucket=bucket, Key=name, Body=data)  # type: ignore[attr-defined]
    return S3(url, key["AccessKeyId"], key["SecretAccessKey"])
