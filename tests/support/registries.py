"""An image registry in this process, on loopback: small images made by hand, and faults to come."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


def sha256(content: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Images:
    """Blobs and manifests by digest."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    token: str = ""
    """A bearer token without which nothing is given; empty for a registry that is open."""
    cut: int = 0
    """Bytes after which the next answer with a blob breaks off; 0 for none."""

    def add(self, *layers: Mapping[str, bytes], base: str = "", platform: str = "amd64") -> str:
        """Make an image; returns the digest of its manifest.

        Args:
            layers: files of each layer.
            base: `host/name@digest` of an image in another registry, below them.
            platform: its architecture.
        """
        config, listed = self._copy(base) if base else ({"rootfs": {"type": "layers", "diff_ids": []}}, [])
        config |= {"architecture": platform, "os": "linux"}
        for files in layers:
            content = layer(files)
            packed = gzip.compress(content, mtime=0)
            self.blobs[sha256(packed)] = packed
            listed.append({"mediaType": LAYER, "digest": sha256(packed), "size": len(packed)})
            config["rootfs"]["diff_ids"].append(sha256(content))
            if "history" in config:
                config["history"].append({"created_by": "a test"})
        written = json.dumps(config).encode()
        self.blobs[sha256(written)] = written
        described = {"mediaType": CONFIG, "digest": sha256(written), "size": len(written)}
        return self._put(MANIFEST, {"config": described, "layers": listed})

    def index(self, images: Mapping[str, str]) -> str:
        """Make an index of images by architecture; returns its digest."""
        entries = [
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": len(self.manifests[digest][1]),
                "platform": {"os": "linux", "architecture": architecture},
            }
            for architecture, digest in images.items()
        ]
        return self._put(INDEX, {"manifests": entries})

    def _put(self, media_type: str, fields: dict[str, Any]) -> str:
        content = json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()
        self.manifests[sha256(content)] = (media_type, content)
        return sha256(content)

    def _copy(self, base: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        place, _, digest = base.partition("@")
        host, _, name = place.partition("/")
        manifest = json.load(urlopen(f"http://{host}/v2/{name}/manifests/{digest}", timeout=60))
        for part in (manifest["config"], *manifest["layers"]):
            url = f"http://{host}/v2/{name}/blobs/{part['digest']}"
            self.blobs[part["digest"]] = urlopen(url, timeout=60).read()
        return json.loads(self.blobs[manifest["config"]["digest"]]), list(manifest["layers"])


def push(images: Images, digest: str, registry: str, repository: str) -> str:
    """Put an image into a registry that keeps images; what that has already is not sent again.

    Args:
        images: where it was made.
        digest: of its manifest.
        registry: `host:port`, without a password.
        repository: its name there.

    Returns:
        The image's reference.
    """
    place = f"/v2/{repository}"
    media_type, manifest = images.manifests[digest]
    described = json.loads(manifest)
    connection = http.client.HTTPConnection(registry, timeout=60)
    for part in (described["config"], *described["layers"]):
        if _ask(connection, "HEAD", f"{place}/blobs/{part['digest']}").status == 200:
            continue
        answer = _ask(connection, "POST", f"{place}/blobs/uploads/")
        where = urlsplit(answer.headers["Location"])
        address = f"{where.path}?{where.query}&digest={part['digest']}"
        assert _ask(connection, "PUT", address, images.blobs[part["digest"]]).status == 201
    answer = _ask(connection, "PUT", f"{place}/manifests/{digest}", manifest, {"Content-Type": media_type})
    assert answer.status == 201
    connection.close()
    return f"{registry}/{repository}@{digest}"


def forget(reference: str) -> None:
    """Take an image out of a registry."""
    place, _, digest = reference.partition("@")
    registry, _, repository = place.partition("/")
    connection = http.client.HTTPConnection(registry, timeout=60)
    _ask(connection, "DELETE", f"/v2/{repository}/manifests/{digest}")
    connection.close()


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> http.client.HTTPResponse:
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    answer.read()
    return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    images: Images

    def do_GET(self) -> None:
        """Answer as the distribution specification has it."""
        images, path = self.images, self.path.partition("?")[0]
        images.requests.append(self.path)
        if path == "/token":
            self._send(200, json.dumps({"token": images.token}).encode())
            return
        if images.token and self.headers.get("Authorization") != f"Bearer {images.token}":
            realm = f"http://{self.headers['Host']}/token"
            self._send(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}",service="test"'})
            return
        kind, digest = path.split("/")[-2:]
        if kind == "manifests" and digest in images.manifests:
            media_type, content = images.manifests[digest]
            self._send(200, content, {"Content-Type": media_type})
        elif kind == "blobs" and digest in images.blobs:
            self._send_blob(images.blobs[digest])
        else:
            self._send(404, b"")

    def _send_blob(self, content: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        cut, self.images.cut = self.images.cut, 0
        self._send(206 if start else 200, content[start:], cut=cut)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None, cut: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut] if cut else content)
        self.close_connection = self.close_connection or bool(cut)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@contextmanager
def serving(images: Images) -> Iterator[str]:
    """Serve while the context lasts; gives `host:port`."""
    handler = type("Handler", (_Handler,), {"images": images})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
