"""Fixtures that every test may ask for."""

from tests.support.containers import docker_host, podman_host, registry, test_images
from tests.support.engines import tiny_model

__all__ = ["docker_host", "podman_host", "registry", "test_images", "tiny_model"]
