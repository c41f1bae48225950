"""`reconcile model add hf://...`: a repository of a hub, approved by what its bytes are and not by what it says."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from desired_state.files import FolderFiles
from desired_state.load import load_models
from reconciler.cli.operators import read_snapshot
from runtime.host import StopEvent, host_ports
from runtime.models.reach import Reach
from runtime.models.store import DiskModelStore
from schemas.access import HubAccess, SourceAccess
from schemas.manifest import PIECE_SIZE
from tests.support.hub import serving_hub
from tests.support.models import OPEN_POLICY, content, gguf, hashes_of, noise, safetensors, silent
from tests.support.servers import nginx

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.interfaces import Model
    from tests.support.hub import Hub
    from tests.support.operators import Operator

WEIGHTS = safetensors(2 * PIECE_SIZE + 4321, seed=8)
KEPT = {"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}', "sub/vocab.txt": noise(20_000), "empty.txt": b""}
REPOSITORY = {**KEPT, ".gitattributes": b"x", "pytorch_model.bin": noise(11_000), "modeling.py": b"import os"}
TOKEN = "hf_VerySecretToken"


@pytest.fixture
def network(operator: Operator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Operator:
    """A network with trust and an empty snapshot; an operator who is logged in nowhere."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    operator.trust()
    operator.run("snapshot", "new", "--mode", "native")
    return operator


def add(network: Operator, hub: Hub, address: str, *arguments: str, code: int = 0, **env: str) -> str:
    """Approve a repository as `big:v1`."""
    given = ["model", "add", address, "--name", "big", "--version", "v1", *arguments]
    result = network.run(*given, code=code, env={"HF_ENDPOINT": hub.url, **env})
    assert TOKEN not in result.output
    return result.stdout if code == 0 else result.stderr


def approved(network: Operator) -> tuple[Model, tuple[str, ...]]:
    """The model as the snapshot binds it, and its sources."""
    network.run("model", "set-probe", "big:v1", str(network.probe("big", "v1")))
    document = read_snapshot(network.snapshot.read_bytes(), "x")
    (model,) = load_models(FolderFiles(network.root), document.spec.models).values()
    return model, document.spec.models[0].sources


def test_a_repository_is_approved_and_fetched(network: Operator, tmp_path: Path) -> None:
    """One read makes the manifest of what nodes can serve, pins the commit, and a node gets exactly that from there.

    Large files come from nginx behind a redirect, as they do from the real hub.
    """
    large = tmp_path / "large"
    large.mkdir()
    for data in REPOSITORY.values():
        (large / hashlib.sha256(data).hexdigest()).write_bytes(data)
    with nginx(large, tmp_path / "nginx") as url, serving_hub(TOKEN, large_at=url) as hub:
        commit = hub.add("org/repo", REPOSITORY)
        mirror = "https://mirror.example.org/big"
        shown = add(network, hub, "hf://org/repo@main", "--source", mirror, HF_TOKEN=TOKEN)
        assert "modeling.py, pytorch_model.bin" in shown
        log = (tmp_path / "nginx" / "access.log").read_text()
        sent = sum(int(line.split()[9]) for line in log.splitlines() if "GET" in line)
        assert sent == len(WEIGHTS) + 20_000, "read once"
        model, sources = approved(network)
        assert sources == (f"hf://org/repo@{commit}", mirror)
        assert [file.path for file in model.manifest.spec.files] == sorted(KEPT)
        assert model.pieces == b"".join(hashes_of(data) for _, data in sorted(KEPT.items()))
        (found,) = [file for file in model.manifest.spec.files if file.path == "model.safetensors"]
        assert found.sha256 == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
        hub.token = ""
        reach = Reach(settings=SourceAccess(hub=HubAccess(endpoint=hub.url)))
        store = DiskModelStore(tmp_path / "m", ports=host_ports(), policy=OPEN_POLICY, reserve=0, reach=reach)
        store.acquire(model, sources[:1], progress=silent, stop=StopEvent())
        assert content(store.folder(model.digest)) == KEPT


def test_the_real_client_reads_the_same_repository(tmp_path: Path) -> None:
    """The hub of these tests is one to `huggingface_hub` itself: what is shown against it is shown against the real."""
    from huggingface_hub import HfApi

    with serving_hub(TOKEN) as hub:
        hub.add("org/repo", KEPT)
        api = HfApi(endpoint=hub.url, token=TOKEN)
        folder = api.snapshot_download("org/repo", local_dir=tmp_path / "copy", cache_dir=tmp_path / "cache")
        assert {path: data for path, data in content(tmp_path / "copy").items() if ".cache" not in path} == KEPT
        assert folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_are_not_the_published_ones_are_refused(
    network: Operator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A hub, or a cache before it, that serves other bytes than it lists: by SHA-256 or by git's object id."""
    from tests.support.hub import Hub

    real = Hub.file
    with serving_hub() as hub:
        hub.add("org/repo", KEPT)

        def other(self: Hub, repository: str, path: str) -> bytes | None:
            data = real(self, repository, path)
            return data if path != name or data is None else data[:-1] + bytes([data[-1] ^ 1])

        monkeypatch.setattr(Hub, "file", other)
        before = network.text
        assert f"{name} are not those whose digest the hub publishes" in add(network, hub, "hf://org/repo", code=1)
    assert network.text == before
    assert not (network.root / "models").exists()


def test_only_heads_are_kept_of_what_is_read(tmp_path: Path) -> None:
    """A repository of hundreds of gigabytes passes through a machine with little space: its headers stay, no more."""
    from runtime.models.remote_reading import RemoteFile, RemoteReading
    from runtime.models.sources import FolderSource

    files = {"a.safetensors": WEIGHTS, "b.gguf": gguf(PIECE_SIZE + 99, seed=5), "c.txt": noise(2 * PIECE_SIZE)}
    (tmp_path / "from").mkdir()
    (tmp_path / "heads").mkdir()
    for path, data in files.items():
        (tmp_path / "from" / path).write_bytes(data)
    source, outside = FolderSource(tmp_path / "from"), host_ports()
    work = RemoteReading(source, connections=2, clock=outside.clock, stop=StopEvent())
    listed = [RemoteFile(path, len(data)) for path, data in files.items()]
    built = work.build(listed, tmp_path / "heads")
    assert built.size == sum(len(data) for data in files.values())
    for path, data in files.items():
        head = tmp_path / "heads" / path
        assert head.stat().st_size == len(data)
        assert head.stat().st_blocks * 512 <= 2**16
        assert head.read_bytes()[:100].rstrip(b"\0") == data[:100].rstrip(b"\0") or path == "c.txt"


def test_files_are_chosen_by_pattern(network: Operator) -> None:
    """One quantisation out of many, as in `hf download`; a link to another file is not followed, there is none."""
    files = {f"big-{kind}.gguf": gguf(20_000, seed) for seed, kind in enumerate(["Q4_K_M", "Q8_0", "F16"])}
    with serving_hub() as hub:
        hub.add("org/repo", {**files, "README.md": b"hello"})
        shown = add(network, hub, "hf://org/repo", "--include", "*.gguf", "--exclude", "*F16*", "--exclude", "*Q8*")
        assert "Left out, because hidden, refused by nodes or not asked for: README.md, big-F16.gguf" in shown
        model, _ = approved(network)
    assert [file.path for file in model.manifest.spec.files] == ["big-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("address", "arguments", "said", "code"),
    [
        ("hf://org/none", [], "no model repository org/none", 64),
        ("hf://org/repo@v9", [], "no revision v9", 64),
        ("hf://org", [], "hf://org/repo@revision", 64),
        ("hf://org/repo/sub", [], "--include 'sub/*'", 64),
        ("hf://org/repo", ["--include", "*.none"], "neither a .gguf nor a .safetensors", 1),
        ("https://example.org/", [], "does not name a file", 64),
        (".", ["--include", "*"], "hf:// repository", 64),
        ("https://example.org/a.gguf", ["--include", "*"], "hf:// repository", 64),
        ("hf://org/repo", ["--keep", "kept"], "read from a URL", 64),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    network: Operator, address: str, arguments: list[str], said: str, code: int
) -> None:
    """Unknown repositories and revisions, addresses that are none, nothing to serve."""
    with serving_hub() as hub:
        hub.add("org/repo", KEPT)
        assert said in add(network, hub, address, *arguments, code=code)


def test_a_gated_repository_asks_to_log_in(network: Operator) -> None:
    """Without a token, or with a wrong one, which is not shown."""
    with serving_hub("another") as hub:
        hub.add("org/repo", KEPT)
        for token in ("", TOKEN):
            assert "hf auth login" in add(network, hub, "hf://org/repo", code=64, HF_TOKEN=token)


def test_a_hub_that_does_not_answer(network: Operator) -> None:
    """Nobody there: an error that names the hub."""
    with serving_hub() as hub:
        hub.add("org/repo", KEPT)
    assert f"{hub.url} does not answer as a hub" in add(network, hub, "hf://org/repo", code=1)
