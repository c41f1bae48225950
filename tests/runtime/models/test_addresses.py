"""From where bytes may come: every address that is connected to is one that the node's policy allows."""

from __future__ import annotations

import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.host import SystemClock
from runtime.models import addresses
from runtime.models.addresses import locate, permitted, redirected, resolve
from runtime.models.sources import Refused, open_source, shown
from schemas.errors import DownloadFailed
from schemas.node import SourcePolicy
from tests.support import hostile_http as hostile
from tests.support.hostile_http import serving
from tests.support.models import OPEN_POLICY, content, gguf, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.models.conftest import Shop

CLOSED = SourcePolicy()
PRIVATE = SourcePolicy(allow_private=True)
FILES = {"model.gguf": gguf(50_000)}
MODEL = make_model(FILES)

PUBLIC = ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
INNER = ["127.0.0.1", "127.8.9.10", "10.0.0.1", "192.168.1.1", "172.16.0.1", "::1", "fd00::1", "::ffff:127.0.0.1"]
INNER += ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "100.64.0.1", "fc00::1%eth0"]
NEVER = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "255.255.255.255"]
NEVER += ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "240.0.0.1"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    """Whatever the policy."""
    assert permitted(address, CLOSED)
    assert permitted(address, PRIVATE)


@pytest.mark.parametrize("address", INNER)
def test_private_addresses_are_permitted_where_the_policy_says_so(address: str) -> None:
    """Loopback and private ones, in every disguise."""
    assert not permitted(address, CLOSED)
    assert permitted(address, PRIVATE)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_permitted(address: str) -> None:
    """Link-local (a cloud's metadata service), multicast, unspecified and reserved ones, whatever the policy."""
    assert not permitted(address, CLOSED)
    assert not permitted(address, PRIVATE)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
)
def test_every_spelling_of_loopback_is_found_out(host: str) -> None:
    """What counts is the address that the resolver makes of it, not how it is written."""
    with pytest.raises(Refused, match="allows no connection"):
        resolve(locate(f"https://{host}/", CLOSED), CLOSED)


UNUSABLE = ["ftp://example.org/", "//example.org/", "https:///path", "https://example.org:99999/", "javascript:1"]
UNUSABLE += ["https://exa mple.org/", "https://example.org/\r\nHost: other", "https://[::1/"]
UNUSABLE += ["https://ex\u00e9.org/", "https://example.org/" + "a" * 9000]


@pytest.mark.parametrize("address", UNUSABLE)
def test_addresses_that_cannot_be_used_are_refused(address: str) -> None:
    """Other schemes, no host, impossible ports, control characters, far too long: one clear refusal each."""
    with pytest.raises(Refused):
        locate(address, OPEN_POLICY)


def test_plain_http_needs_the_policy() -> None:
    """At the start, and after a redirect."""
    with pytest.raises(Refused, match="allowHttp"):
        locate("http://example.org/", CLOSED)
    start = locate("https://example.org/a", CLOSED)
    with pytest.raises(Refused, match="allowHttp"):
        redirected(start, "http://example.org/a", CLOSED)


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("/other", True),
        ("other?x=1", True),
        ("https://mirror.example.org:8443/other", True),
        ("https://evil.example.org/", False),
        ("https://mirror.example.org/", False),
        ("//evil.example.org:8443/", False),
        ("http://mirror.example.org:8443/", False),
        ("https://other:secret@evil.example.org/", False),
    ],
)
def test_credentials_stay_with_their_origin(target: str, *, kept: bool) -> None:
    """Scheme, host and port must all be the same; what a redirect brings along as credentials is dropped."""
    start = locate("https://user:secret@mirror.example.org:8443/a/b", OPEN_POLICY)
    assert start.authorization
    landed = redirected(start, target, OPEN_POLICY)
    assert landed.authorization == (start.authorization if kept else "")


def test_secrets_are_not_shown() -> None:
    """Neither user and password nor the query appear where an address is printed."""
    address = "https://user:secret@example.org/a/b?token=secret#secret"
    location = locate(address, CLOSED)
    for text in (shown(address), location.shown, repr(location), str(location)):
        assert "secret" not in text
        assert "example.org/a/b" in text
    assert location.child("c.gguf").target == "/a/b/c.gguf?token=secret"


def test_a_file_source_needs_the_policy() -> None:
    """`file://` only where the node's owner allows it, and only in its plain form."""
    with pytest.raises(Refused, match="allowFile"):
        open_source("file:///models", CLOSED, stall=1, clock=SystemClock())
    with pytest.raises(Refused, match="file:///folder"):
        open_source("file://host/models", OPEN_POLICY, stall=1, clock=SystemClock())


# --- over real sockets ----------------------------------------------------------------------------------------------


def test_credentials_never_cross_hosts(shop: Shop) -> None:
    """Sent to the source's own origin, and not to where it redirects."""
    with serving(FILES) as other, serving(FILES, hostile.redirecting(other.url + "{path}")) as own:
        shop.acquire(MODEL, [own.url.replace("http://", "http://user:secret@")])
    assert [seen.headers.get("authorization") for seen in own.seen] == ["Basic dXNlcjpzZWNyZXQ="] * len(own.seen)
    assert other.seen
    assert all("authorization" not in seen.headers for seen in other.seen)


def test_secrets_do_not_appear_in_errors(shop: Shop) -> None:
    """A failed download names its source without its credentials."""
    with serving(FILES, hostile.forbidden) as server, pytest.raises(DownloadFailed) as caught:
        shop.acquire(MODEL, [server.url.replace("http://", "http://user:secret@") + "/?token=secret"])
    assert "secret" not in str(caught.value)
    assert "403" in str(caught.value)


def test_a_redirect_to_a_private_address_is_not_followed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public host that redirects into the node's own network is refused before anything is connected to."""
    shop.options["policy"] = SourcePolicy(allow_http=True)
    with serving(FILES) as inner, serving(FILES, hostile.redirecting(inner.url + "{path}")) as outer:
        _pretend_public(monkeypatch, outer.port)
        with pytest.raises(DownloadFailed, match="allows no connection"):
            shop.acquire(MODEL, [f"http://models.example.org:{outer.port}/"])
        assert outer.seen
        assert not inner.seen


def _pretend_public(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Take loopback for public on one port: the only way to reach a "public" server in a test."""
    real = addresses.resolve

    def fake(location: addresses.Location, policy: SourcePolicy) -> list[tuple[socket.AddressFamily, str]]:
        if location.port == port:
            return [(socket.AF_INET, "127.0.0.1")]
        return real(location, policy)

    monkeypatch.setattr("runtime.models.dialing.resolve", fake)


def test_a_name_is_resolved_once_and_the_checked_address_is_used(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that would answer differently the second time is not asked a second time for one connection."""
    asked: list[str] = []

    def fake(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    shop.options["connections"] = 1
    with serving(FILES) as server:
        monkeypatch.setattr(socket, "getaddrinfo", fake)
        shop.acquire(MODEL, [f"http://models.example.org:{server.port}/"])
        assert server.seen[0].headers["host"] == f"models.example.org:{server.port}"
    assert asked == ["models.example.org"]


def test_a_forbidden_address_among_good_ones_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a public and a private address: only the public one is used."""

    def fake(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("10.0.0.1", "1.1.1.1")]

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    assert resolve(locate("https://example.org/", CLOSED), CLOSED) == [(socket.AF_INET, "1.1.1.1")]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost, and a server's context with it."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


def test_https_checks_certificate_and_name(
    shop: Shop, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real TLS: served under its name by a trusted certificate; refused under another name, or untrusted."""
    trusted, context = certificate
    with serving(FILES, tls=context) as server:
        named = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(DownloadFailed, match="certificate"):
            shop.acquire(MODEL, [named])
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with pytest.raises(DownloadFailed, match="certificate"):
            shop.acquire(MODEL, [server.url])
        assert not server.seen
        shop.acquire(MODEL, [named])
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_a_redirect_from_https_to_http_is_refused(
    shop: Shop, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where plain http is not allowed, no redirect leads to it."""
    trusted, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    shop.options["policy"] = SourcePolicy(allow_private=True)
    with serving(FILES) as plain, serving(FILES, hostile.redirecting(plain.url + "{path}"), tls=context) as server:
        with pytest.raises(DownloadFailed, match="allowHttp"):
            shop.acquire(MODEL, [server.url.replace("127.0.0.1", "localhost")])
        assert server.seen
        assert not plain.seen


def test_a_tls_server_that_never_finishes_its_handshake_is_given_up(shop: Shop) -> None:
    """A listener that accepts and says nothing: a clear error within the stall timeout, twice tried."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(DownloadFailed, match=r"no answer|timed out|sent 0 bytes|cannot connect"):
            shop.acquire(MODEL, [f"https://127.0.0.1:{listener.getsockname()[1]}"])


def test_requests_ask_for_exactly_what_is_needed(shop: Shop) -> None:
    """A range, no encoding, no cookie, no more headers than a server needs."""
    with serving(FILES) as server:
        shop.acquire(MODEL, [server.url + "/"])
    (seen,) = server.seen
    assert seen.path == "/model.gguf"
    assert dict(seen.headers) == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "inference-reconciler",
        "range": "bytes=0-49999",
    }
