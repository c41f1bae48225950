"""`reconcile model add https://...`: read once over the network, described like a file that is here, not kept."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pytest

from reconciler.cli.wiring import host
from runtime.models.remote_reading import RemoteFile, RemoteReading
from runtime.models.sources import open_source
from schemas.manifest import PIECE_SIZE
from schemas.node import SourcePolicy
from tests.support import hostile_http as http
from tests.support.models import gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.operators import Operator

DATA = gguf(PIECE_SIZE + 5000, seed=3)
ALLOWED = ("--allow-http", "--allow-private")


@pytest.fixture
def network(operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """A network with trust and an empty snapshot; temporary files have a folder of their own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    operator.trust()
    operator.run("snapshot", "new", "--mode", "native")
    return operator


def add(operator: Operator, path: str, *arguments: str, code: int = 0) -> str:
    """Approve a model `big:v1`; what was said of an error."""
    done = operator.run("model", "add", path, "--name", "big", "--version", "v1", *arguments, code=code)
    return done.stdout if code == 0 else done.stderr


def described(operator: Operator) -> tuple[bytes, bytes]:
    """The manifest and its pieces."""
    base = operator.root / "models" / "big"
    return (base / "v1.yaml").read_bytes(), (base / "v1.pieces").read_bytes()


@pytest.mark.parametrize("behave", [http.honest, http.without_ranges], ids=["ranges", "whole files"])
def test_a_url_is_described_like_the_file_itself(
    network: Operator, tmp_path: Path, behave: Callable[[http.Exchange], None]
) -> None:
    """The same manifest as of the downloaded file, its folder as the source, one read, nothing left on the disk."""
    with http.serving({"dir/big.gguf": DATA}, behave) as server:
        add(network, f"{server.url}/dir/big.gguf", *ALLOWED)
        assert server.sent < 2 * len(DATA)
        assert f"{server.url}/dir" in network.text
        assert "big.gguf" not in network.text
    remote = described(network)
    assert list((tmp_path / "tmp").iterdir()) == []
    (tmp_path / "big.gguf").write_bytes(DATA)
    add(network, str(tmp_path / "big.gguf"))
    assert described(network) == remote


def test_a_kept_file_is_the_whole_file(network: Operator, tmp_path: Path) -> None:
    """`--keep` leaves the bytes where the next step, recording a probe, needs them."""
    with http.serving({"big.gguf": DATA}) as server:
        add(network, f"{server.url}/big.gguf", "--keep", str(tmp_path / "kept"), *ALLOWED)
    assert (tmp_path / "kept" / "big.gguf").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["big.gguf"]


def test_a_broken_transfer_goes_on_where_it_broke(network: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that break every few MiB cost no byte twice."""
    monkeypatch.setattr("runtime.models.remote_reading._FIRST_PAUSE", 0.001)
    with http.serving({"big.gguf": DATA}, http.resetting(after=5 * 2**20)) as server:
        add(network, f"{server.url}/big.gguf", *ALLOWED)
    with http.serving({"big.gguf": DATA}) as server:
        whole = described(network)
        add(network, f"{server.url}/big.gguf", *ALLOWED)
    assert described(network) == whole


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        (http.not_found, "404"),
        (http.forbidden, "403"),
        (http.gzip_encoded, ""),
        (http.redirecting("file:///etc/passwd"), "redirects"),
        (http.redirecting("http://169.254.169.254/latest"), ""),
    ],
    ids=["absent", "forbidden", "encoded", "to a file", "to a cloud's metadata"],
)
def test_what_downloads_refuse_is_refused(
    network: Operator, behave: Callable[[http.Exchange], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules of downloads hold: nothing is written, and the reason is said."""
    monkeypatch.setattr("runtime.models.remote_reading._FIRST_PAUSE", 0.001)
    with http.serving({"big.gguf": DATA}, behave) as server:
        said = add(network, f"{server.url}/big.gguf", *ALLOWED, code=1)
    assert "DownloadFailed" in said
    assert says in said
    assert not (network.root / "models").exists()


def test_loopback_and_plain_http_must_be_allowed(network: Operator) -> None:
    """The defaults of a node are the defaults of this command."""
    with http.serving({"big.gguf": DATA}) as server:
        assert "--allow-http" in add(network, f"{server.url}/big.gguf", code=1)
        assert "allows no connection" in add(network, f"{server.url}/big.gguf", "--allow-http", code=1)
        assert server.sent == 0


def test_a_size_that_no_manifest_describes_is_refused_before_it_is_read(network: Operator) -> None:
    """What a server claims costs neither memory nor time: one request, for one byte."""

    def boasting(exchange: http.Exchange) -> None:
        exchange.answer("206 Partial Content", b"G", Content_Range=f"bytes 0-0/{10**18 - 1}")

    with http.serving({"big.gguf": DATA}, boasting) as server:
        assert "LimitExceeded" in add(network, f"{server.url}/big.gguf", *ALLOWED, code=3)
        assert len(server.seen) == 1
    assert not (network.root / "models").exists()


def test_an_interruption_does_not_wait_for_the_pieces_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever presses Ctrl-C has the terminal back, whatever a slow server would still have sent."""
    monkeypatch.setattr("runtime.models.remote_reading.PIECE_SIZE", 4096)

    def slow_at_the_end(exchange: http.Exchange) -> None:
        (http.honest if exchange.asked[0] < 8192 else http.drip)(exchange)

    def interrupt(_path: str, done: int, _total: int) -> None:
        if done == 8192:
            raise KeyboardInterrupt

    outside = host()
    policy = SourcePolicy(allow_http=True, allow_private=True)
    with http.serving({"big.gguf": DATA[:12288]}, slow_at_the_end) as server:
        source = open_source(server.url, policy, stall=30, clock=outside.clock)
        work = RemoteReading(source, connections=2, clock=outside.clock, stop=outside.stop, told=interrupt)
        with pytest.raises(KeyboardInterrupt):
            work.build([RemoteFile("big.gguf", 12288)], tmp_path)
        assert server.sent < 12288


def test_a_header_that_nodes_would_refuse_is_refused_here(network: Operator) -> None:
    """The file is looked into although it is not kept."""
    with http.serving({"big.gguf": b"GGUF" + bytes(5000)}) as server:
        assert "Incompatible" in add(network, f"{server.url}/big.gguf", *ALLOWED, code=1)
    with http.serving({"model.py": b"print()"}) as server:
        assert "Incompatible" in add(network, f"{server.url}/model.py", *ALLOWED, code=1)


def test_secrets_of_a_url_are_not_published(network: Operator) -> None:
    """A token in the query or a login is used for reading, and another address must be named for nodes."""
    with http.serving({"big.gguf": DATA}) as server:
        url = f"{server.url}/big.gguf?token=secret"
        assert "would be published" in add(network, url, *ALLOWED, code=64)
        add(network, url, "--source", "https://models.example.org/big", *ALLOWED)
    assert "secret" not in network.text
