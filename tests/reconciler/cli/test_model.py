"""`reconcile model` and `reconcile runtime`: what is approved, and how it is served."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING

import pytest

from desired_state.files import FolderFiles
from desired_state.load import load_models
from reconciler.cli.operators import read_snapshot
from schemas.digests import digest_bytes
from schemas.manifest import PIECE_SIZE
from tests.support.models import gguf, hashes_of, noise, safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operators import Operator


@pytest.fixture
def network(operator: Operator) -> Operator:
    """A network with trust and an empty snapshot."""
    operator.trust()
    operator.run("snapshot", "new", "--mode", "native")
    return operator


def add(operator: Operator, path: Path, *arguments: str, code: int = 0) -> str:
    """Approve a model `big:v1`."""
    result = operator.run("model", "add", str(path), "--name", "big", "--version", "v1", *arguments, code=code)
    return result.stdout if code == 0 else result.stderr


# --- model add ----------------------------------------------------------------------------------------------------


def test_a_manifest_describes_every_byte(network: Operator, tmp_path: Path) -> None:
    """Sizes, BLAKE3 of files and pieces, SHA-256: what the commands of other projects print for the same files."""
    import hashlib

    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    data = gguf(PIECE_SIZE + 5, seed=3)
    (folder / "big.gguf").write_bytes(data)
    (folder / "sub" / "config.json").write_text("{}")
    (folder / "empty.txt").write_text("")
    add(network, folder, "--source", "https://models.example.org/big/")
    probe = network.probe("big", "v1")
    network.run("model", "set-probe", "big:v1", str(probe))
    document = read_snapshot(network.snapshot.read_bytes(), "x")
    (model,) = load_models(FolderFiles(network.root), document.spec.models).values()
    assert [file.path for file in model.manifest.spec.files] == ["big.gguf", "empty.txt", "sub/config.json"]
    found = model.manifest.spec.files[0]
    assert (found.size, found.blake3) == (len(data), digest_bytes(data))
    assert found.sha256 == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert model.pieces == hashes_of(data) + hashes_of(b"{}")
    assert model.digest == document.spec.models[0].manifest.digest


def test_the_same_bytes_give_the_same_model(network: Operator, tmp_path: Path) -> None:
    """A manifest depends on names and bytes alone: whoever adds the model gets the same digest."""
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf())
    add(network, path)
    first = (network.root / "models/big/v1.yaml").read_bytes()
    os.utime(path, (1, 1))
    add(network, path)
    assert (network.root / "models/big/v1.yaml").read_bytes() == first
    assert first.startswith(b"# yaml-language-server: $schema=../../.schemas/manifest.v1alpha1.json\n")


def test_what_is_next_is_said(network: Operator, tmp_path: Path) -> None:
    """Without a probe the snapshot is not complete; the way to one is told."""
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf())
    found = network.run("model", "add", str(path), "--name", "big", "--version", "v1")
    assert "validation: is missing" in found.stderr
    assert f"reconcile probe record --model big:v1 --model-path {path}" in found.stdout


def test_options_become_fields(network: Operator, tmp_path: Path) -> None:
    """What was asked for stands in the entry, and a second time only what is given changes."""
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf())
    options = ["--source", "https://a.example/", "--gpu-memory", "16GiB", "--task", "chat", "--state", "inactive"]
    add(network, path, *options)
    probe = network.probe("big", "v1")
    add(network, path, "--probe", str(probe), "--every", "12h")
    (model,) = network.json("snapshot", "show")["snapshot"]["spec"]["models"]
    assert model["requires"]["gpuMemory"] == "16GiB"
    assert (model["requires"]["tasks"], model["state"]) == (["chat"], "inactive")
    assert model["validation"]["every"] == "12h"
    assert network.json("model", "list")["models"][0]["sources"] == ["https://a.example/"]
    assert "big:v1  inactive  4 KiB  1 source" in network.run("model", "list").stdout


def test_safetensors_and_hidden_files(network: Operator, tmp_path: Path) -> None:
    """Hidden files are left out and said; links inside the folder are followed."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / ".gitattributes").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "config.json").write_text("x")
    (folder / "copy.json").symlink_to("config.json")
    (folder / "config.json").write_text("{}")
    shown = add(network, folder)
    assert "Left out, because hidden: .cache/, .gitattributes" in shown
    assert "3 files" in shown
    assert "safetensors" in shown


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "x.pkl", "x.ckpt", "modeling.py", "a b.txt", "ü.txt"]
)
def test_what_runs_code_or_cannot_travel_is_refused(network: Operator, tmp_path: Path, name: str) -> None:
    """Pickles, program code and names that not every file system holds are refused by name, before anything is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(gguf())
    (folder / name).write_bytes(b"x")
    before = network.text
    assert "Incompatible" in add(network, folder, code=1)
    assert network.text == before
    assert not (network.root / "models").exists()


def test_disguises_are_refused(network: Operator, tmp_path: Path) -> None:
    """A pickle under another name, and weights with a broken header, are refused here as nodes would refuse them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(gguf())
    (folder / "vocab.txt").write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in add(network, folder, code=1)
    (folder / "vocab.txt").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + noise(100))
    assert "Incompatible" in add(network, folder, code=1)
    assert not (network.root / "models").exists()


def test_links_do_not_lead_out(network: Operator, tmp_path: Path) -> None:
    """A link to a file elsewhere would publish what nobody meant to publish."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(gguf())
    (folder / "secret.txt").symlink_to("/etc/hostname")
    assert "leads out of the folder" in add(network, folder, code=1)


def test_special_files_and_dangling_links_are_refused(network: Operator, tmp_path: Path) -> None:
    """A FIFO does not hang the command, and a link to nothing is one clear error."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(gguf())
    os.mkfifo(folder / "pipe")
    assert "not a regular file" in add(network, folder, code=1)
    (folder / "pipe").unlink()
    (folder / "gone.txt").symlink_to("nowhere")
    assert "gone.txt is a link to nothing" in add(network, folder, code=1)
    (folder / "gone.txt").unlink()
    (folder / "sub").symlink_to(folder)
    assert "sub is a link to a folder" in add(network, folder, code=1)


def test_bad_arguments(network: Operator, tmp_path: Path) -> None:
    """Remote addresses, missing paths and impossible names are refused, and say what to do."""
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf())
    for arguments in (
        ["s3://bucket/repo", "--name", "a", "--version", "v1"],
        [str(tmp_path / "nothing"), "--name", "a", "--version", "v1"],
        [str(path), "--name", "A", "--version", "v1"],
        [str(path), "--name", "a", "--version", "../v1"],
    ):
        assert "error: UsageError" in network.run("model", "add", *arguments, code=64).stderr
    assert not (network.root / "models").exists()
    (tmp_path / "only.txt").write_text("x")
    network.run("model", "add", str(tmp_path / "only.txt"), "--name", "a", "--version", "v1", code=1)


# --- probes, states, removal --------------------------------------------------------------------------------------


def test_a_probe_must_be_the_models_own(network: Operator) -> None:
    """A probe of another model, of other bytes, or outside the repository is refused."""
    network.model("tiny")
    network.model("other", seed=5)
    assert "is the probe of" in network.run("model", "set-probe", "tiny:v1", "probes/other-v1.yaml", code=64).stderr
    path = network.root / "probes/tiny-v1.yaml"
    elsewhere = network.keys / "probe.yaml"
    elsewhere.write_bytes(path.read_bytes())
    assert "lies outside" in network.run("model", "set-probe", "tiny:v1", str(elsewhere), code=64).stderr
    text = path.read_text()
    digest = text[text.index("blake3:") :][:71]
    path.write_text(text.replace(digest, "blake3:" + "0" * 64))
    assert "other bytes" in network.run("model", "set-probe", "tiny:v1", str(path), code=64).stderr
    network.run("model", "set-probe", "tiny:v9", str(path), code=64)


def test_a_served_model_is_not_removed(network: Operator) -> None:
    """A model is taken off the list once nothing serves it; its neighbours stay as they are."""
    network.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1", "--mode", "native")
    network.model("tiny")
    network.model("other", seed=5)
    network.run("snapshot", "serve", "tiny:v1", "--runtime", "main")
    assert "serves tiny:v1" in network.run("model", "remove", "tiny", code=64).stderr
    network.run("snapshot", "serve", "other:v1", "--runtime", "main")
    network.run("model", "remove", "tiny")
    assert [one["model"] for one in network.json("model", "list")["models"]] == ["other:v1"]
    network.run("model", "remove", "tiny", code=64)
    network.run("snapshot", "validate")


def test_states(network: Operator) -> None:
    """A state is one word in one line."""
    network.model("tiny")
    found = network.run("model", "set-state", "tiny:v1", "archived").stdout
    assert [line for line in found.splitlines() if line.startswith(("+ ", "- "))] == [
        "-      state: active",
        "+      state: archived",
    ]
    network.run("model", "set-state", "tiny:v1", "sleeping", code=64)


def test_no_models(network: Operator) -> None:
    """An empty list says how to begin."""
    assert "reconcile model add" in network.run("model", "list").stdout


# --- runtime ------------------------------------------------------------------------------------------------------

IMAGE = "example.org/engine@sha256:" + "1" * 64


def runtimes(operator: Operator) -> list[dict[str, object]]:
    """The runtimes as the document has them."""
    found: list[dict[str, object]] = operator.json("snapshot", "show")["snapshot"]["spec"]["runtimes"]
    return found


def test_a_runtime_in_containers(network: Operator) -> None:
    """Image, accelerator, arguments and limits become fields."""
    network.run(
        "runtime", "set", "gpu", "--engine", "vllm", "--version", "0.32.0", "--image", f"{IMAGE},cuda", "--arg",
        "maxModelLen=8192", "--arg", "gpuMemoryUtilization=0.9", "--gpus", "1", "--memory", "32GiB",
        "--start-timeout", "20m", "--overlap",
    )  # fmt: skip
    (found,) = runtimes(network)
    assert found["images"] == [{"platform": "linux/amd64", "accelerator": "cuda", "ref": IMAGE}]
    assert found["modes"] == ["container"]
    assert found["engineArgs"] | {"maxModelLen": 8192, "gpuMemoryUtilization": 0.9} == found["engineArgs"]  # type: ignore[operator]
    assert found["resources"]["memory"] == "32GiB"  # type: ignore[index]
    assert found["timeouts"]["start"] == "20m"  # type: ignore[index]
    assert found["isolation"]["overlap"] is True  # type: ignore[index]
    assert "gpu      vllm 0.32.0  container" in network.run("runtime", "list").stdout


def test_a_runtime_of_any_openai_compatible_image(network: Operator) -> None:
    """Its command is declared, word by word; it stays when something else is changed."""
    command = '["/bin/serve", "--model={model}", "--uds", "{socket}"]'
    network.run(
        "runtime", "set", "any", "--engine", "openai", "--version", "1", "--image", IMAGE, "--mode", "container",
        "--arg", f"command={command}", "--arg", "formats=[gguf]",
    )  # fmt: skip
    network.run("runtime", "set", "any", "--memory", "8GiB")
    (found,) = runtimes(network)
    assert found["engineArgs"]["command"] == json.loads(command)  # type: ignore[index]
    assert found["engineArgs"]["health"] == "/health"  # type: ignore[index]
    assert found["resources"]["memory"] == "8GiB"  # type: ignore[index]


def test_a_runtime_keeps_what_is_not_given(network: Operator) -> None:
    """Changing one thing changes one line."""
    network.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1", "--arg", "contextSize=512")
    before = network.text
    network.run("runtime", "set", "main", "--arg", "contextSize=1024")
    assert [line for line in network.text.splitlines() if line not in before.splitlines()] == [
        "      engineArgs: {contextSize: 1024}"
    ]
    network.run("runtime", "set", "main", "--memory", "1GiB", "--allow-unenforced", "network")
    (found,) = runtimes(network)
    assert found["engineArgs"]["contextSize"] == 1024  # type: ignore[index]
    assert found["isolation"]["allowUnenforced"] == ["network"]  # type: ignore[index]


def test_a_lock_is_checked_and_bound_by_its_digest(network: Operator, tmp_path: Path) -> None:
    """It goes where nodes find it; what is not locked throughout is refused; a new one takes the old one's place."""
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"vllm==0.32.0 --hash=sha256:{'1' * 64}\n")
    network.run("runtime", "set", "main", "--engine", "vllm", "--version", "0.32.0", "--lock", str(lock))
    placed = network.root / "runtimes" / "main.lock"
    (found,) = runtimes(network)
    assert found["modes"] == ["native"]
    assert found["native"] == {"lock": {"path": "runtimes/main.lock", "digest": digest_bytes(lock.read_bytes())}}
    assert placed.read_bytes() == lock.read_bytes()
    kept = placed.read_bytes()
    lock.write_text("vllm>=0.32.0\n")
    assert "line 1" in network.run("runtime", "set", "main", "--lock", str(lock), code=3).stderr
    assert placed.read_bytes() == kept
    lock.write_text(f"vllm==0.33.0 --hash=sha256:{'2' * 64}\n")
    network.run("runtime", "set", "main", "--version", "0.33.0", "--lock", str(lock))
    (found,) = runtimes(network)
    assert found["version"] == "0.33.0"
    assert found["native"] == {"lock": {"path": "runtimes/main.lock", "digest": digest_bytes(lock.read_bytes())}}


def test_another_engine_drops_the_old_ones_arguments(network: Operator) -> None:
    """Arguments are typed per engine, so they do not outlive it."""
    network.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1", "--arg", "contextSize=512")
    network.run("runtime", "set", "main", "--engine", "vllm", "--version", "0.32.0")
    (found,) = runtimes(network)
    assert found["engine"] == "vllm"
    assert "contextSize" not in found["engineArgs"]  # type: ignore[operator]


def test_the_installed_version_is_the_default(network: Operator) -> None:
    """Without --version a new runtime gets the version of the engine beside the command."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    from importlib.metadata import version

    network.run("runtime", "set", "main", "--engine", "llamacpp")
    assert runtimes(network)[0]["version"] == version("xllamacpp")


@pytest.mark.parametrize(
    "arguments",
    [
        ["main"],
        ["main", "--engine", "llamacpp", "--version", "1", "--mode", "container"],
        ["main", "--engine", "vllm"],
        ["main", "--engine", "openai", "--version", "1", "--image", IMAGE, "--arg", "command=[/bin/sh, -c, x]"],
        ["main", "--engine", "llamacpp", "--version", "1", "--arg", "trustRemoteCode=true"],
        ["main", "--engine", "llamacpp", "--version", "1", "--arg", "contextSize"],
        ["main", "--engine", "llamacpp", "--version", "1", "--arg", "contextSize=many"],
    ],
)
def test_runtimes_that_cannot_be(network: Operator, arguments: list[str]) -> None:
    """A new runtime needs an engine, its version and its image; arguments are those of the allow-list (I10)."""
    before = network.text
    network.run("runtime", "set", *arguments, code=64)
    assert network.text == before


def test_a_used_runtime_is_not_removed(network: Operator) -> None:
    """A runtime is taken off the list once no assignment uses it."""
    network.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1")
    network.run("runtime", "set", "spare", "--engine", "llamacpp", "--version", "1")
    network.model("tiny")
    network.run("snapshot", "serve", "tiny:v1", "--runtime", "main")
    network.run("runtime", "remove", "main", code=64)
    network.run("runtime", "remove", "spare")
    network.run("runtime", "remove", "spare", code=64)
    assert [one["name"] for one in runtimes(network)] == ["main"]
