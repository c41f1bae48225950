"""Images by file: out of a registry, into a bundle, into real engines, and found there by the signed reference."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.bundles.container import lay_out, opened
from reconciler.cli import wiring
from reconciler.identity import node_address
from reconciler.state_dir import StateDir
from runtime.backends.container_answers import LABEL
from runtime.backends.containers import ContainerEngine
from runtime.backends.loaded_images import LoadedImages
from runtime.host import host_ports
from runtime.interfaces import InstanceSpec, Launch
from runtime.oci import load_archive, resolve
from runtime.registry import Registry
from schemas.errors import ImageUnavailable
from schemas.observation import Absent, Present
from tests.support import builders
from tests.support.registries import Images, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.reconciler.bundles.conftest import Airgap

ENGINES = [
    pytest.param("docker", "docker_host", marks=pytest.mark.docker, id="docker"),
    pytest.param("podman", "podman_host", marks=pytest.mark.podman, id="podman"),
]


def unique() -> dict[str, bytes]:
    """Files that no other image has."""
    return {"marker": uuid.uuid4().hex.encode(), "noise": uuid.uuid4().bytes * 1000}


@pytest.fixture
def images() -> Iterator[tuple[Images, str]]:
    """A registry, and its address."""
    made = Images()
    with serving(made) as host:
        yield made, host


# --- out of a registry --------------------------------------------------------------------------------------------


def test_a_reference_leads_to_every_byte_of_its_image(images: tuple[Images, str]) -> None:
    """Through an index to the machine's manifest, configuration and layers, each by its digest."""
    registry, host = images
    mine, other = registry.add(unique(), unique()), registry.add(unique(), platform="arm64")
    ref = f"{host}/a/b@{registry.index({'arm64': other, 'amd64': mine})}"
    image = resolve(ref, "linux/amd64", Registry(ref).document)
    assert image.manifest == mine
    assert len(image.layers) == 2
    assert len(image.documents) == 2
    for part in image.parts:
        assert b"".join(Registry(ref).blob(part.digest, part.size)) == registry.blobs[part.digest]
    with pytest.raises(ImageUnavailable, match="linux/s390x"):
        resolve(ref, "linux/s390x", Registry(ref).document)


def test_a_registry_that_wants_a_token_is_given_one(images: tuple[Images, str]) -> None:
    """The token dance of the distribution specification, once for all requests."""
    registry, host = images
    registry.token = "secret"
    ref = f"{host}/a/b@{registry.add(unique())}"
    reader = Registry(ref)
    image = resolve(ref, "linux/amd64", reader.document)
    assert b"".join(reader.blob(image.config.digest, image.config.size))
    asked = [path for path in registry.requests if path.startswith("/token")]
    assert len(asked) == 1
    assert "scope=repository%3Aa%2Fb%3Apull" in asked[0]


def test_logins_of_docker_and_podman_are_found(tmp_path: Path) -> None:
    """Whoever can pull can export: the files that `docker login` and `podman login` write are read."""
    from runtime.registry import _login

    (tmp_path / "config.json").write_text(json.dumps({"auths": {"example.org": {"auth": "dTpw"}}}))
    assert _login("example.org", {"DOCKER_CONFIG": str(tmp_path)}) == "dTpw"
    assert _login("example.org", {"REGISTRY_AUTH_FILE": str(tmp_path / "config.json")}) == "dTpw"
    assert _login("elsewhere.org", {"DOCKER_CONFIG": str(tmp_path)}) == ""


def test_a_broken_transfer_goes_on_where_it_broke(images: tuple[Images, str]) -> None:
    """A layer whose connection breaks is asked for again from there."""
    registry, host = images
    ref = f"{host}/a/b@{registry.add(unique())}"
    image = resolve(ref, "linux/amd64", Registry(ref).document)
    registry.cut = 10
    layer = image.layers[0]
    assert b"".join(Registry(ref).blob(layer.digest, layer.size)) == registry.blobs[layer.digest]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace(b'"schemaVersion": 2', b'"schemaVersion": 1'),
        lambda text: text.replace(b'"layers"', b'"sreyal"'),
        lambda text: text.replace(b"sha256:", b"sha255:"),
        lambda text: text.replace(b'"size": ', b'"size": -'),
        lambda text: text.replace(b"image.manifest", b"artifact.manifest"),
        lambda text: b"[" * 100_000,
        lambda text: b"[]",
        lambda text: b"\xff",
    ],
)
def test_what_is_not_an_image_is_refused(images: tuple[Images, str], spoil: Any) -> None:
    """Manifests are read with bounds, and only by their digest."""
    from tests.support.registries import MANIFEST, sha256

    registry, host = images
    digest = registry.add(unique())
    content = spoil(registry.manifests[digest][1])
    registry.manifests[sha256(content)] = (MANIFEST, content)
    ref = f"{host}/a/b@{sha256(content)}"
    with pytest.raises(ImageUnavailable):
        resolve(ref, "linux/amd64", Registry(ref).document)
    registry.manifests[digest] = (MANIFEST, content)
    with pytest.raises(ImageUnavailable, match="are others"):
        resolve(f"{host}/a/b@{digest}", "linux/amd64", Registry(ref).document)


# --- kept manifests -----------------------------------------------------------------------------------------------


def test_a_manifest_that_was_tampered_with_leads_nowhere(images: tuple[Images, str], tmp_path: Path) -> None:
    """What is kept of a loaded image is believed by its digest each time, not for being there (I2)."""
    registry, host = images
    ref = f"{host}/a/b@{registry.add(unique())}"
    loaded = LoadedImages(tmp_path / "images", "linux/amd64", host_ports().files)
    assert loaded.ids(ref) == ()
    image = resolve(ref, "linux/amd64", Registry(ref).document)
    loaded.keep(image)
    assert loaded.ids(ref)[0] == image.config.digest
    [kept] = (tmp_path / "images").iterdir()
    kept.write_bytes(kept.read_bytes().replace(image.config.digest.encode(), image.layers[0].digest.encode()))
    assert loaded.ids(ref) == ()


# --- into real engines --------------------------------------------------------------------------------------------


class Side:
    """The node's side: an engine, and a network whose runtime is an image that only the bundle has."""

    def __init__(self, airgap: Airgap, name: str, host: str) -> None:
        self.airgap, self.name, self.host = airgap, name, host
        airgap.operator.run("snapshot", "set", "spec.policy.modes", '["container", "native"]')

    def publish(self, *refs: str) -> None:
        """A snapshot whose runtimes are these images."""
        run = self.airgap.operator.run
        runtime = ("--engine", "llamacpp", "--version", "1.0", "--mode", "container", "--memory", "64MiB")
        for number, ref in enumerate(refs):
            run("runtime", "set", f"r{number}", *runtime, "--image", ref)
        self.airgap.publish()

    def join(self, bundle: Path) -> None:
        """A node with this engine."""
        socket = self.host.removeprefix("unix://")
        airgap = self.airgap
        airgap.node(
            *("init", "--network", "testnet", "--bundle", str(bundle), "--yes", "--backend", self.name),
            *(f"--{self.name}-socket", socket, "--state-dir", str(airgap.state), "--config", str(airgap.config)),
        )

    def backend(self) -> ContainerEngine:
        """The node's backend, wired anew."""
        config = wiring.load_config(self.airgap.config)
        state = StateDir(self.airgap.state)
        backend = wiring.build_backends(config, state, node_address(state), host_ports())[self.name]
        assert isinstance(backend, ContainerEngine)
        return backend


@pytest.fixture
def side(airgap: Airgap, request: pytest.FixtureRequest) -> Iterator[Side]:
    """A node's side; what was loaded into the engine is removed again."""
    name, fixture = request.param
    made = Side(airgap, name, request.getfixturevalue(fixture))
    yield made
    backend = ContainerEngine(
        name, socket=made.host.removeprefix("unix://"), network="t", node_id="t", ports=host_ports()
    )
    for item in backend._api.client.images():
        for tag in item.get("RepoTags") or ():
            if f"/{airgap.folder.name.replace('_', '-')}:" in tag.lower().replace("_", "-"):
                backend._api.client.remove_image(tag, force=True)


def repository(airgap: Airgap) -> str:
    """A name of images that no other test has."""
    return airgap.folder.name.replace("_", "-").lower()


def in_both(function: Any) -> Any:
    """Run a test with each engine."""
    params = [pytest.param(tuple(param.values), marks=param.marks, id=param.id) for param in ENGINES]
    return pytest.mark.parametrize("side", params, indirect=True)(function)


@in_both
def test_images_are_found_by_their_references_without_a_registry(side: Side) -> None:
    """Loaded once, with their shared layers; a container is made of exactly the signed image (I1, I2)."""
    airgap, shared, registry = side.airgap, unique(), Images()
    with serving(registry) as host:
        first, second = registry.add(shared, unique()), registry.index({"amd64": registry.add(shared, unique())})
        refs = [f"{host}/test/{repository(airgap)}@{digest}" for digest in (first, second)]
        side.publish(*refs)
        bundle = airgap.export("net.tar", "--images", "--platform", "linux/amd64")
    side.join(bundle)
    assert [side.backend().image(ref) for ref in refs] == [Absent(), Absent()]
    assert airgap.take(bundle)["images"] == refs
    for ref in refs:
        image = resolve(ref, "linux/amd64", lambda digest: registry.manifests[digest][1])
        assert side.backend().image(ref) == Present(image.config.digest)
    assert airgap.take(bundle)["images"] == refs
    assert create(side, refs[1]) == image.config.digest


def create(side: Side, ref: str) -> str:
    """Create an instance of an image; the image of the container."""
    backend, folder = side.backend(), side.airgap.folder / "instance"
    name = f"reconcile-testnet-{uuid.uuid4().hex[:12]}"
    for part in ("model", "run", "logs"):
        (folder / part).mkdir(parents=True)
    spec = InstanceSpec(
        name=name,
        intent="a1",
        network="testnet",
        node_id=node_address(StateDir(side.airgap.state)),
        target=builders.target(mode="container", backend=side.name, image=ref, environment=None),
        launch=Launch(("/marker",), {}),
        model_folder=folder / "model",
        socket_folder=folder / "run",
        log_folder=folder / "logs",
        log_limit=2**20,
    )
    backend.create(spec)
    try:
        detail = backend._api.client.inspect_container(name)
        assert detail["Config"]["Labels"][f"{LABEL}name"] == name
        return str(detail["Image"]) if ":" in detail["Image"] else f"sha256:{detail['Image']}"
    finally:
        backend.remove(name)


@in_both
def test_a_layer_that_was_changed_loads_nothing(side: Side) -> None:
    """The archive ends before the list of images is sent, and the engine keeps nothing of it (I2)."""
    airgap, registry = side.airgap, Images()
    with serving(registry) as host:
        ref = f"{host}/test/{repository(airgap)}@{registry.add(unique())}"
        side.publish(ref)
        bundle = airgap.export("net.tar", "--images")
    side.join(bundle)
    with opened(bundle) as seen:
        image = resolve(ref, "linux/amd64", lambda digest: registry.manifests[digest][1])
        at = lay_out(seen.index).spans[f"images/blobs/{image.layers[0].digest.replace(':', '/')}"].offset
    spoilt = bytearray(bundle.read_bytes())
    spoilt[at + 5] ^= 1
    bundle.write_bytes(spoilt)
    assert airgap.take(bundle, code=3)["error"]["reason"] == "DigestMismatch"
    assert side.backend().image(ref) == Absent()
    assert not (airgap.state / "imported.git").exists()


@in_both
def test_an_engine_refuses_layers_that_the_configuration_does_not_name(side: Side) -> None:
    """Even an archive that we let through is checked by the engine: its id stands for its layers (I2)."""
    airgap, registry = side.airgap, Images()
    with serving(registry) as host:
        ref = f"{host}/test/{repository(airgap)}@{registry.add(unique())}"
        side.publish(ref)
        bundle = airgap.export("net.tar")
    side.join(bundle)
    image = resolve(ref, "linux/amd64", lambda digest: registry.manifests[digest][1])
    other = Images()
    other.add(unique())
    changed = next(content for content in other.blobs.values() if content.startswith(b"\x1f\x8b"))
    blobs = [(image.config, iter([registry.blobs[image.config.digest]]))]
    layer = type(image.layers[0])(image.layers[0].digest, len(changed))
    with pytest.raises(ImageUnavailable):
        side.backend().load(load_archive([image], [*blobs, (layer, iter([changed]))]))
    assert side.backend().image(ref) == Absent()


def test_the_images_of_a_bundle_are_an_image_layout(airgap: Airgap, images: tuple[Images, str]) -> None:
    """Unpacked with tar, `images/` is what the OCI image specification describes: other tools read it."""
    registry, host = images
    digest = registry.add(unique())
    ref = f"{host}/test/layout@{digest}"
    airgap.operator.run("snapshot", "set", "spec.policy.modes", '["container", "native"]')
    runtime = ("--engine", "llamacpp", "--version", "1.0", "--mode", "container", "--image", ref)
    airgap.operator.run("runtime", "set", "other", *runtime)
    airgap.publish()
    bundle = airgap.export("net.tar", "--images")
    subprocess.run(["tar", "xf", str(bundle), "-C", str(airgap.folder), "images"], check=True)
    layout = airgap.folder / "images"
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    [entry] = json.loads((layout / "index.json").read_text())["manifests"]
    assert entry["digest"] == digest
    manifest = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    for part in (manifest["config"], *manifest["layers"]):
        assert (layout / "blobs" / part["digest"].replace(":", "/")).stat().st_size == part["size"]
