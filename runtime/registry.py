"""Image registries, read-only: manifests and blobs by digest (OCI distribution specification 1.1).

For whoever packs images into a file. A registry is not trusted: whoever reads checks every byte against its digest.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import requests
from pydantic_core import from_json

from runtime.oci import INDEXES, MANIFEST_LIMIT, MANIFESTS
from schemas.errors import ImageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TIMEOUT: Final = (10, 60)
"""Seconds until a registry accepts a connection, and between two bytes of its answer."""
WINDOW: Final = 2**20
ATTEMPTS: Final = 3
"""Times that a blob is asked for: a long transfer may break, and goes on where it broke."""

_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_TOKEN_LIMIT: Final = 2**16
_DOCKER_HUB: Final = "docker.io"
_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
_DOCKER_HUB_LOGIN: Final = "https://index.docker.io/v1/"


class Registry:
    """The registry of one image reference. Keeps its connection and its token."""

    def __init__(self, ref: str, environment: Mapping[str, str] = os.environ) -> None:
        """Describe the registry; nothing is asked yet.

        Args:
            ref: `host[:port]/name@sha256:...`.
            environment: says where Docker's and Podman's own files with logins are.
        """
        place = ref.partition("@")[0]
        self._host, _, self._name = place.partition("/")
        address = _DOCKER_HUB_HOST if self._host == _DOCKER_HUB else self._host
        self._base = f"{'http' if _is_loopback(address) else 'https'}://{address}/v2/{self._name}"
        self._login = _login(self._host, environment)
        self._session = requests.Session()
        # A login in a netrc file is none for a registry.
        self._session.trust_env = False
        self._session.proxies = {} if _is_loopback(address) else urllib.request.getproxies()
        self._authorization = ""

    def document(self, digest: str) -> bytes:
        """A manifest or an index. Whether the bytes have the digest is for the caller to check.

        Raises:
            ImageUnavailable: the registry does not have it, or does not answer.
        """
        answer = self._get(f"{self._base}/manifests/{digest}", {"Accept": ", ".join((*MANIFESTS, *INDEXES))})
        try:
            with answer:
                content: bytes = answer.raw.read(MANIFEST_LIMIT + 1, decode_content=True)
        except (requests.RequestException, OSError, _transport_error()) as error:
            raise self._failed(error) from error
        if len(content) > MANIFEST_LIMIT:
            raise ImageUnavailable(f"{self._host} sends a manifest of more than {MANIFEST_LIMIT} bytes")
        return content

    def blob(self, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a blob, exactly `size` of them, unchecked. A transfer that breaks goes on where it broke.

        Raises:
            ImageUnavailable: the registry does not have it, sends another number of bytes, or does not answer.
        """
        done = 0
        for attempt in range(ATTEMPTS):
            try:
                for window in self._some(digest, done):
                    done += len(window)
                    if done > size:
                        raise ImageUnavailable(f"{self._host} sends more than the {size} bytes of {digest}")
                    yield window
            except (requests.RequestException, OSError, _transport_error()) as error:
                if attempt == ATTEMPTS - 1:
                    raise self._failed(error) from error
            if done == size:
                return
        raise ImageUnavailable(f"{self._host} sends {done} of the {size} bytes of {digest}")

    def _some(self, digest: str, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._get(f"{self._base}/blobs/{digest}", {"Accept-Encoding": "identity", **headers}) as answer:
            skip = start if answer.status_code == requests.codes.ok else 0
            while window := answer.raw.read(WINDOW, decode_content=False):
                yield window[skip:] if skip < len(window) else b""
                skip = max(0, skip - len(window))

    # --- asking ---------------------------------------------------------------------------------------------------

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        answer = self._ask(url, headers)
        if answer.status_code == requests.codes.unauthorized:
            challenge = answer.headers.get("WWW-Authenticate", "")
            answer.close()
            self._authorization = self._authorize(challenge)
            answer = self._ask(url, headers)
        if answer.status_code not in (requests.codes.ok, requests.codes.partial_content):
            answer.close()
            hint = "log in with `docker login` or `podman login`" if answer.status_code in (401, 403) else ""
            what = f"{self._host} answers {answer.status_code} for {self._name} {url.rpartition('/')[2]}"
            raise ImageUnavailable(what, hint=hint)
        return answer

    def _ask(self, url: str, headers: dict[str, str]) -> requests.Response:
        # Dropped by `requests` where a redirect leads to another host, as it must be.
        login = {"Authorization": self._authorization} if self._authorization else {}
        try:
            return self._session.get(url, headers={**headers, **login}, stream=True, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise self._failed(error) from error

    def _authorize(self, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        fields = dict(_CHALLENGE.findall(rest))
        if scheme.lower() == "basic" and self._login:
            return f"Basic {self._login}"
        realm = fields.get("realm", "")
        if scheme.lower() != "bearer" or not realm.startswith("https://" if self._base.startswith("https") else "http"):
            raise ImageUnavailable(f"{self._host} asks for a login", hint="`docker login` or `podman login` makes one")
        wanted = {"scope": f"repository:{self._name}:pull"}
        if "service" in fields:
            wanted["service"] = fields["service"]
        login = {"Authorization": f"Basic {self._login}"} if self._login else {}
        try:
            with self._session.get(realm, params=wanted, headers=login, stream=True, timeout=TIMEOUT) as answer:
                content = answer.raw.read(_TOKEN_LIMIT, decode_content=True)
            found = from_json(content)
        except (requests.RequestException, OSError, ValueError, _transport_error()) as error:
            raise self._failed(error) from error
        token = found.get("token") or found.get("access_token") if isinstance(found, dict) else None
        if not isinstance(token, str):
            raise ImageUnavailable(f"{self._host} gives no token for {self._name}")
        return f"Bearer {token}"

    def _failed(self, error: Exception) -> ImageUnavailable:
        return ImageUnavailable(f"{self._host} does not answer: {' '.join(str(error).split())[:200]}")


def _transport_error() -> type[Exception]:
    """What `requests` lets through where the body is read from its raw stream."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - loaded by `requests` already

    return HTTPError


def _is_loopback(host: str) -> bool:
    """Registries on this machine speak plain http, as Docker has it."""
    name = host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _login(host: str, environment: Mapping[str, str]) -> str:
    """The login that `docker login` or `podman login` keeps for a registry, as base64; empty for none."""
    home = Path(environment.get("HOME") or "/")
    places = [
        Path(environment.get("REGISTRY_AUTH_FILE") or "/dev/null"),
        Path(environment.get("XDG_RUNTIME_DIR") or "/dev/null") / "containers" / "auth.json",
        Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json",
    ]
    for path in places:
        try:
            kept: Any = json.loads(path.read_bytes())
            for key in (host, f"https://{host}", _DOCKER_HUB_LOGIN if host == _DOCKER_HUB else host):
                found = kept["auths"][key]["auth"] if key in kept["auths"] else ""
                if found and base64.b64decode(found, validate=True):
                    return str(found)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""
