"""Images that a registry refuses, and images whose bytes are wrong there: what serves goes on until they are right."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.faulting import events, running, serves_alone
from tests.support.registries import Images, forget, push

if TYPE_CHECKING:
    from tests.support.container_swapping import ContainerSwappingNode

SETTINGS = Path("/run/reconcile-test/registry.yml")
"""How `.ci/provision` has started the registry."""


@pytest.fixture
def blobs() -> Path:
    """Where the registry keeps its bytes."""
    found = re.search(r"rootdirectory: ([^}\s]+)", SETTINGS.read_text()) if SETTINGS.exists() else None
    if found is None:
        pytest.skip(f"the registry is not the one that .ci/provision starts ({SETTINGS})")
    return Path(found[1], "docker/registry/v2/blobs")


def test_an_image_that_is_refused_and_one_that_is_corrupt(
    swapping: ContainerSwappingNode, registry: str, blobs: Path
) -> None:
    """Neither costs what serves a request (I4); with the right bytes the swap is made, and nobody has to ask for it."""
    serving_image = swapping.image
    assert swapping.run(swapping.wish("a:v1")).exit_code == 0
    (before,) = running(swapping)
    images = Images()
    # Of its own kind in this world: no engine has its last layer already.
    digest = images.add({"unique": uuid.uuid4().bytes * 4096}, base=serving_image)
    name = serving_image.partition("@")[0].partition("/")[2]
    swapping.image = f"{registry}/{name}@{digest}"
    layer = json.loads(images.manifests[digest][1])["layers"][-1]["digest"]
    content, data = images.blobs[layer], blobs / "sha256" / layer[7:9] / layer[7:] / "data"
    wish = swapping.wish("b:v1")
    try:
        # The registry does not know it yet.
        result = swapping.run(wish)
        assert [item.reason for item in result.status.held] == ["ImageUnavailable"]
        serves_alone(swapping, "a:v1")
        assert push(images, digest, registry, name) == swapping.image
        assert data.read_bytes() == content
        data.write_bytes(content[:-100] + bytes(100))
        swapping.real_clock.ahead += timedelta(hours=1)
        result = swapping.run()
        assert [item.reason for item in result.status.held] == ["ImageUnavailable"]
        serves_alone(swapping, "a:v1")
        assert running(swapping) == [before]
        data.write_bytes(content)
        swapping.real_clock.ahead += timedelta(hours=1)
        assert swapping.run().exit_code == 0
        serves_alone(swapping, "b:v1")
    finally:
        forget(swapping.image)
        shutil.rmtree(data.parent, ignore_errors=True)
        swapping.forget_image()
    assert events(swapping).count("ImageUnavailable") >= 2
