"""Reaching sources: who this node is to whom, by which way, and how fast. No secret leaves for another host (I11)."""

from __future__ import annotations

import base64
import logging
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from runtime.host import SystemClock
from runtime.models.addresses import locate
from runtime.models.reach import Reach
from runtime.models.remote import open_remote, parse_hub
from runtime.models.sources import Refused
from runtime.models.throttle import Throttle
from runtime.secrets import Secrets
from schemas.access import SecretRef, SourceAccess
from schemas.base import WRITTEN
from schemas.errors import DownloadFailed
from schemas.node import SourcePolicy
from tests.runtime.models.test_addresses import certificate  # noqa: F401 - a fixture
from tests.support import hostile_http as hostile
from tests.support.hostile_http import serving
from tests.support.hub import serving_hub
from tests.support.models import OPEN_POLICY, content, gguf, make_model
from tests.support.proxy import proxying
from tests.support.servers import nginx, s3_server

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from tests.runtime.models.conftest import Shop
    from tests.support.servers import S3

TOKEN = "hf_VerySecretToken"
FILES = {"model.gguf": gguf(2_000_000), "config/a+b.json": b'{"a": 1}'}
MODEL = make_model(FILES)
CLOCK = SystemClock()


def reach(settings: dict[str, Any], environment: dict[str, str] | None = None, **secrets: str) -> Reach:
    """What a node's configuration makes of these settings."""
    names = {name.replace("_", "-"): value for name, value in secrets.items()}
    places = {name: SecretRef(environment=name.upper().replace("-", "_")) for name in names}
    values = {name.upper().replace("-", "_"): value for name, value in names.items()}
    access = SourceAccess.model_validate(settings, context=WRITTEN, strict=False)
    return Reach(settings=access, secrets=Secrets(places, values), environment=environment or {})


# --- hubs ---------------------------------------------------------------------------------------------------------


def test_a_model_comes_from_a_hub(shop: Shop, tmp_path: Path) -> None:
    """A repository at a commit, with a token: large files from nginx behind a redirect, small ones from the hub.

    The token goes to the hub, and to nobody whom it names.
    """
    with serving_hub(TOKEN) as hub:
        commit = hub.add("org/repo", FILES)
        apart = tmp_path / "large"
        apart.mkdir()
        (apart / hub.listing("org/repo")[0]["lfs"]["oid"]).write_bytes(FILES["model.gguf"])  # type: ignore[index]
        with nginx(apart, tmp_path / "nginx") as large:
            hub.large_at = large
            shop.options["reach"] = reach({"hub": {"endpoint": hub.url, "secret": "hub"}}, hub=TOKEN)
            shop.acquire(MODEL, [f"hf://org/repo@{commit}"])
        assert {authorization for _, _, authorization in hub.seen} == {f"Bearer {TOKEN}"}
        log = (tmp_path / "nginx" / "access.log").read_text()
        assert " 206 " in log
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_a_hubs_token_stays_with_the_hub(shop: Shop) -> None:
    """Where the hub redirects to another origin, the token is not shown there."""
    with serving({}) as other, serving_hub(TOKEN) as hub:
        hub.add("org/repo", FILES)
        oid = str(hub.listing("org/repo")[0]["lfs"]["oid"])  # type: ignore[index]
        other.files = {oid: FILES["model.gguf"]}
        hub.large_at = other.url
        shop.options["reach"] = reach({"hub": {"secret": "hub"}}, {"HF_ENDPOINT": hub.url}, hub=TOKEN)
        shop.acquire(MODEL, ["hf://org/repo"])
        assert other.seen
        assert all("authorization" not in seen.headers for seen in other.seen)


def test_a_gated_repository_says_so_and_no_secret(
    shop: Shop, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong token is one clear error; neither it, its traceback, the logs nor the output hold the token."""
    caplog.set_level(logging.DEBUG)
    with serving_hub("another") as hub:
        hub.add("org/repo", FILES)
        shop.options["reach"] = reach({"hub": {"endpoint": hub.url, "secret": "hub"}}, hub=TOKEN)
        with pytest.raises(DownloadFailed, match=r"hf://org/repo@main: answered 401 .*GatedRepo") as caught:
            shop.acquire(MODEL, ["hf://org/repo@main"])
    _assert_silent(caught.value, TOKEN, caplog.text, *capfd.readouterr())


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://org/repo@0123abc", ("org/repo", "0123abc", "")),
        ("hf://org/repo", ("org/repo", "main", "")),
        ("hf://org/repo/sub/folder", ("org/repo", "main", "sub/folder")),
        ("hf://gpt2@main", ("gpt2", "main", "")),
        ("hf://org/repo@refs/pr/7/sub", ("org/repo", "refs/pr/7", "sub")),
        ("hf://org/repo@feature%2Fone", ("org/repo", "feature/one", "")),
        ("hf://", None),
        ("hf://org", None),
        ("hf://org/repo@", None),
        ("hf://org/repo@a/../b", None),
        ("hf://org/repo@..", None),
        ("hf://org/repo@%2e%2e%2fx", None),
        ("hf://org/repo@main?x=1", None),
        ("hf://org/../repo@main", None),
        ("hf://user:secret@org/repo", None),
    ],
)
def test_addresses_of_hubs(address: str, parts: tuple[str, str, str] | None) -> None:
    """As the hub's own client writes them; nothing that would lead elsewhere."""
    if parts is None:
        with pytest.raises(Refused):
            parse_hub(address)
    else:
        assert parse_hub(address) == parts


# --- object stores ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Any:
    """An S3 server that checks signatures, with the model below two prefixes."""
    objects = {f"{prefix}/{path}": data for prefix in ("tiny/v1", "odd name+x") for path, data in FILES.items()}
    with s3_server("models", objects) as server:
        yield server


@pytest.mark.parametrize("prefix", ["tiny/v1", "tiny/v1/", "odd%20name+x", "odd%20name%2Bx"])
def test_a_model_comes_from_an_object_store(shop: Shop, s3: S3, prefix: str) -> None:
    """Signed ranged requests that a server accepts which checks each signature; names with odd characters, too."""
    store = {"bucket": "models", "endpoint": s3.url, "accessKey": s3.key, "secret": "s3"}
    shop.options["reach"] = reach({"stores": [store]}, s3=s3.secret)
    shop.acquire(MODEL, [f"s3://models/{prefix}"])
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_a_wrong_key_is_one_clear_error(shop: Shop, s3: S3, capfd: pytest.CaptureFixture[str]) -> None:
    """The store's own word for it, and no secret."""
    store = {"endpoint": s3.url, "accessKey": s3.key, "secret": "s3"}
    shop.options["reach"] = reach({"stores": [store]}, s3="WrongSecretKey")
    with pytest.raises(DownloadFailed, match=r"s3://models/tiny/v1: answered 403 .*SignatureDoesNotMatch") as caught:
        shop.acquire(MODEL, ["s3://models/tiny/v1"])
    _assert_silent(caught.value, "WrongSecretKey", *capfd.readouterr())


def test_credentials_of_the_machine_only_where_allowed(shop: Shop, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the agent's environment are used where `chain` says so, and otherwise left alone."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    shop.options["reach"] = reach({"stores": [{"endpoint": s3.url}]})
    with pytest.raises(DownloadFailed, match="403"):
        shop.acquire(MODEL, ["s3://models/tiny/v1"])
    shop.options["reach"] = reach({"stores": [{"endpoint": s3.url, "chain": True}]})
    shop.acquire(MODEL, ["s3://models/tiny/v1"])
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_signatures_do_not_follow_redirects(shop: Shop) -> None:
    """A store that sends its reader elsewhere does not get it to sign, or to show a signature, there."""
    settings = {"accessKey": "AKIA", "secret": "s3"}
    with serving({f"tiny/{path}": data for path, data in FILES.items()}) as other:
        rest = hostile.redirecting(other.url + "{path}")
        with serving(FILES, lambda exchange: _strip_bucket(exchange, rest)) as store:
            shop.options["reach"] = reach({"stores": [{"endpoint": store.url, **settings}]}, s3="VerySecretKey")
            shop.acquire(MODEL, ["s3://models/tiny"])
        assert all(seen.headers["authorization"].startswith("AWS4-HMAC-SHA256 ") for seen in store.seen)
        for seen in other.seen:
            assert not {"authorization", "x-amz-date", "x-amz-content-sha256"} & set(seen.headers)


def _strip_bucket(exchange: hostile.Exchange, rest: Any) -> None:
    exchange.seen = replace(exchange.seen, path=exchange.seen.path.removeprefix("/models"))
    rest(exchange)


@pytest.mark.parametrize(
    ("settings", "address", "expected"),
    [
        ([], "s3://models/a/b", "https://models.s3.us-east-1.amazonaws.com/a/b"),
        ([{"region": "eu-west-1"}], "s3://my.models/a", "https://s3.eu-west-1.amazonaws.com/my.models/a"),
        ([{"endpoint": "https://minio.example.org:9000/"}], "s3://models", "https://minio.example.org:9000/models"),
        (
            [{"endpoint": "https://a.example.org"}, {"bucket": "m-2", "endpoint": "https://b.example.org"}],
            "s3://m-2/x",
            "https://b.example.org/m-2/x",
        ),
    ],
)
def test_where_buckets_lie(settings: list[dict[str, Any]], address: str, expected: str) -> None:
    """Amazon's own names, a compatible service, an entry of a bucket's own before one for all."""
    source = open_remote(address, OPEN_POLICY, stall=1, clock=CLOCK, reach=reach({"stores": settings}))
    assert source.place("")[0].shown == expected
    assert source.shown == address


@pytest.mark.parametrize(
    "address", ["s3://", "s3://x", "s3://models/../x", "s3://models/a//x", "s3://user:pw@models/x"]
)
def test_addresses_of_stores_that_are_none(address: str) -> None:
    """No bucket, a path that leads out, credentials where none belong."""
    with pytest.raises(Refused, match=r"s3://|segment"):
        open_remote(address, OPEN_POLICY, stall=1, clock=CLOCK)


# --- hosts --------------------------------------------------------------------------------------------------------


def test_a_host_is_shown_what_is_meant_for_it(shop: Shop) -> None:
    """A bearer token to one host, nothing to the other, although both are asked for the same model."""
    with serving({**FILES}) as own, serving({**FILES}) as other:
        host = own.url.removeprefix("http://")
        shop.options["reach"] = reach({"credentials": [{"host": host, "secret": "mirror"}]}, mirror=TOKEN)
        shop.acquire(MODEL, [own.url, other.url])
        assert {seen.headers.get("authorization") for seen in own.seen} == {f"Bearer {TOKEN}"}
        assert all("authorization" not in seen.headers for seen in other.seen)


def test_a_user_and_a_password(shop: Shop) -> None:
    """Basic authentication, where a user is named."""
    with serving(FILES) as own:
        entry = {"host": own.url.removeprefix("http://"), "user": "node", "secret": "mirror"}
        shop.options["reach"] = reach({"credentials": [entry]}, mirror="pass word")
        shop.acquire(MODEL, [own.url])
        expected = "Basic " + base64.b64encode(b"node:pass word").decode()
        assert {seen.headers.get("authorization") for seen in own.seen} == {expected}


def test_a_secret_that_cannot_be_read_stops_its_source_alone(shop: Shop) -> None:
    """The other mirror serves; alone, the error names the secret and its place."""
    with serving(FILES) as own, serving(FILES) as other:
        settings = {"credentials": [{"host": own.url.removeprefix("http://"), "secret": "unset"}]}
        shop.options["reach"] = reach(settings, unset="")
        with pytest.raises(DownloadFailed, match="secret 'unset'"):
            shop.acquire(MODEL, [own.url])
        shop.acquire(MODEL, [own.url, other.url])
        assert not own.seen


# --- proxies ------------------------------------------------------------------------------------------------------


def test_https_goes_through_the_proxy_as_it_is(
    shop: Shop,
    certificate: tuple[Path, ssl.SSLContext],  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tunnel: the name is the proxy's to resolve, the certificate is checked here, the proxy's password stays there.

    No address is allowed to this node but public ones, and the proxy is reached all the same: its owner named it.
    """
    trusted, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    expected = "Basic " + base64.b64encode(b"node:proxy-password").decode()
    shop.options["policy"] = SourcePolicy(allow_private=True)
    with serving(FILES, tls=context) as server, proxying(server.port, expected) as proxy:
        settings = {"proxy": {"url": proxy.url, "user": "node", "secret": "proxy"}}
        shop.options["reach"] = reach(settings, proxy="proxy-password")
        shop.acquire(MODEL, [f"https://localhost:{server.port}"])
        assert {first for first, _ in proxy.seen} == {f"CONNECT localhost:{server.port} HTTP/1.1"}
        assert all("proxy-authorization" not in seen.headers for seen in server.seen)
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_http_goes_through_the_proxy_of_the_environment(shop: Shop) -> None:
    """`http_proxy` with a user of its own; the whole address is asked for, by a name that only the proxy knows."""
    expected = "Basic " + base64.b64encode(b"me:pw").decode()
    shop.options["policy"] = SourcePolicy(allow_http=True)
    with serving(FILES) as server, proxying(server.port, expected) as proxy:
        variables = {"HTTP_PROXY": "http://unused.invalid:1", "http_proxy": proxy.url.replace("://", "://me:pw@")}
        shop.options["reach"] = reach({}, variables)
        shop.acquire(MODEL, ["http://models.invalid"])
        # Files are fetched side by side: whichever came first.
        assert "GET http://models.invalid/config/a%2Bb.json HTTP/1.1" in [seen[0] for seen in proxy.seen]
        assert all("proxy-authorization" not in seen.headers for seen in server.seen)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "localhost", "10.0.0.1"]
)
def test_a_proxy_is_no_way_around_the_policy(shop: Shop, host: str) -> None:
    """Addresses written as numbers, and the machine's own name, are judged before the proxy is asked."""
    shop.options["policy"] = SourcePolicy(allow_http=True)
    with serving(FILES) as server, proxying(server.port) as proxy:
        shop.options["reach"] = reach({"proxy": {"url": proxy.url}})
        with pytest.raises(DownloadFailed, match="allows no connection"):
            shop.acquire(MODEL, [f"http://{host}/"])
        assert not proxy.seen


def test_a_proxy_that_refuses_is_named(shop: Shop) -> None:
    """407 for a tunnel: an error that says so, without the password."""
    with serving(FILES) as server, proxying(server.port, "Basic other") as proxy:
        settings = {"proxy": {"url": proxy.url, "user": "node", "secret": "proxy"}}
        shop.options["reach"] = reach(settings, proxy="proxy-password")
        with pytest.raises(DownloadFailed, match="the proxy answered 407") as caught:
            shop.acquire(MODEL, ["https://models.invalid"])
    _assert_silent(caught.value, "proxy-password")


def test_exceptions_are_reached_directly(shop: Shop) -> None:
    """`except` of the configuration and NO_PROXY of the environment."""
    dead = "http://127.0.0.1:1"
    with serving(FILES) as server:
        for settings, variables in (
            ({"proxy": {"url": dead, "except": ["127.0.0.1"]}}, {}),
            ({}, {"HTTP_PROXY": dead, "NO_PROXY": "example.org,127.0.0.1"}),
        ):
            shop.options["reach"] = reach(settings, variables)
            shop.acquire(MODEL, [server.url])
            shop.store.remove(MODEL.digest)


def test_which_proxy_is_taken() -> None:
    """By scheme, then for all; the configuration before the environment; none is none."""
    https, http = locate("https://example.org/", OPEN_POLICY), locate("http://example.org/", OPEN_POLICY)
    assert reach({}).proxy(https) is None
    found = reach({}, {"HTTPS_PROXY": "http://p:3128", "ALL_PROXY": "q:81"})
    assert (found.proxy(https).host, found.proxy(https).port) == ("p", 3128)  # type: ignore[union-attr]
    assert (found.proxy(http).host, found.proxy(http).port) == ("q", 81)  # type: ignore[union-attr]
    own = reach({"proxy": {"url": "http://own:8080"}}, {"HTTPS_PROXY": "http://p:3128"}).proxy(https)
    assert own is not None
    assert own.host == "own"
    # What a web server sets from a request's header is nobody's proxy (httpoxy).
    assert reach({}, {"HTTP_PROXY": "http://evil:1", "REQUEST_METHOD": "GET"}).proxy(http) is None


# --- bandwidth ----------------------------------------------------------------------------------------------------


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        """A moment."""
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds


def test_a_limit_is_kept_whatever_is_asked() -> None:
    """However many readers ask for however much, no more is granted than the rate and a quarter second ahead."""
    clock = Hands()
    throttle = Throttle(lambda _now: 1_000_000, clock)
    throttle._waiting.wait = lambda timeout=None: False  # type: ignore[method-assign]
    granted = 0
    for _ in range(1000):
        granted += throttle.grant(2**22)
        clock.seconds += 0.01
    assert 9_900_000 <= granted <= 10_250_000


def test_what_is_not_used_is_not_lost() -> None:
    """A grant that is given back may be taken again."""
    clock = Hands()
    throttle = Throttle(lambda _now: 1_000_000, clock)
    first = throttle.grant(2**22)
    throttle.give_back(first)
    assert throttle.grant(2**22) == first


def test_windows_decide_about_the_rate(shop: Shop) -> None:
    """No limit, a limit, none at all: the rate of the moment counts, looked up once a second."""
    clock = Hands()
    rates: dict[float, int | None] = {0: None, 10: 0, 20: 500_000}
    throttle = Throttle(lambda now: rates[now.timestamp() // 10 * 10], clock)
    assert throttle.grant(2**22) == 2**22
    clock.seconds = 11
    assert throttle.paused()
    assert throttle.grant(1000) == 0
    clock.seconds = 22
    assert not throttle.paused()
    assert throttle.grant(2**22) == 125_000


def test_a_download_under_a_limit_is_whole(shop: Shop) -> None:
    """A limit slows a download down and changes nothing else of it."""
    shop.options["reach"] = Reach(throttle=Throttle(lambda _now: 4_000_000, CLOCK))
    with serving(FILES) as server:
        shop.acquire(MODEL, [server.url])
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_no_download_begins_in_a_pause(shop: Shop) -> None:
    """`limit: 0B`: an error that says what is waited for, tried again later like any other, and nobody is asked."""
    shop.options["reach"] = Reach(throttle=Throttle(lambda _now: 0, CLOCK))
    with serving(FILES) as server:
        with pytest.raises(DownloadFailed, match=r"sources\.bandwidth"):
            shop.acquire(MODEL, [server.url])
        assert not server.seen


def test_a_pause_ends_a_running_download_and_keeps_what_is_verified(shop: Shop) -> None:
    """When the window closes in the middle, transfers end; the next attempt goes on from there."""
    open_now = [True]
    shop.options["reach"] = Reach(throttle=Throttle(lambda _now: None if open_now[0] else 0, CLOCK))
    shop.options["stall"] = 3600

    def closes(exchange: hostile.Exchange) -> None:
        if exchange.seen.path == "/model.gguf":
            open_now[0] = False
            hostile.silent(exchange)
        hostile.honest(exchange)

    shop.options["connections"] = 1
    with serving(FILES, closes) as server, pytest.raises(DownloadFailed, match=r"paused by sources\.bandwidth"):
        shop.acquire(MODEL, [server.url])
    del shop.options["reach"]
    with serving(FILES) as server:
        shop.acquire(MODEL, [server.url])
        assert server.sent == len(FILES["model.gguf"])


# --- nginx --------------------------------------------------------------------------------------------------------


def test_a_model_comes_from_nginx(shop: Shop, tmp_path: Path) -> None:
    """A real server's ranges, keep-alive and 404s."""
    for path, data in FILES.items():
        (tmp_path / "www" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "www" / path).write_bytes(data)
    with nginx(tmp_path / "www", tmp_path / "nginx") as url:
        shop.acquire(MODEL, [url])
        shop.store.remove(MODEL.digest)
        with pytest.raises(DownloadFailed, match="404"):
            shop.acquire(MODEL, [f"{url}/elsewhere"])
    assert (tmp_path / "nginx" / "access.log").read_text().count(" 206 ") >= len(FILES)


def _assert_silent(error: BaseException, secret: str, *texts: str) -> None:
    """A secret stands neither in an error, nor in what led to it, nor in any text; not even encoded."""
    told = ["".join(traceback.format_exception(error)), repr(error), *texts]
    for form in (secret, base64.b64encode(secret.encode()).decode(), secret.encode().hex()):
        assert all(form not in text for text in told)
