"""The house itself: what is shipped, which way imports run, and that what is generated is fresh."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from schemas.publish import DOCUMENTS, FOLDER, file_name, published

ROOT = Path(__file__).parents[1]
PACKAGES = ("desired_state", "reconciler", "runtime", "schemas")

SDKS = {
    "blake3": "schemas/digests.py",
    "backports": "runtime/models/zstd.py",
    "botocore": "runtime/models/object_store.py",
    "docker": "runtime/backends/docker_api.py",
    "git": "desired_state/git_mirror.py",
    "httptools": "runtime/front/reading.py",
    "huggingface_hub": "runtime/models/hub.py",
    "model_signing": "runtime/models/openssf.py",
    "pynvml": "runtime/nvml.py",
    "ruamel": None,
    "sqlite3": "reconciler/journal/database.py",
    "watchfiles": "reconciler/triggers.py",
    "yaml": None,
}
"""Each SDK is imported in one file; None where the file's name is its room's own business."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in the built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return archive.namelist()


def test_only_our_packages_are_shipped(wheel: list[str]) -> None:
    """Tests, benchmarks and examples stay at home."""
    tops = {name.partition("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == set(PACKAGES)


def test_what_programs_need_at_run_time_is_shipped(wheel: list[str]) -> None:
    """Schemas, type markers, and the programs that are started by path."""
    wanted = {f"schemas/published/{file_name(kind)}" for kind in DOCUMENTS}
    wanted |= {f"{package}/py.typed" for package in PACKAGES}
    wanted |= {"runtime/engines/llamacpp_server.py", "runtime/backends/native_shim.py", "desired_state/git_mirror.py"}
    wanted |= {"runtime/front/program.py"}
    assert wanted <= set(wheel)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_imported_packages_are_ours(package: str) -> None:
    """Names as common as `runtime` could be somebody else's: they are not."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).resolve().is_relative_to(ROOT)


def test_imports_run_one_way() -> None:
    """The contracts of import-linter hold (see pyproject.toml)."""
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_published_schemas_are_fresh(kind: str) -> None:
    """What editors check against is what the node checks against; `make docs` renews it."""
    assert (FOLDER / file_name(kind)).read_text(encoding="utf-8") == published(kind)


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("sdk", sorted(SDKS))
def test_each_sdk_is_imported_in_one_file(sdk: str) -> None:
    """An SDK that is imported twice is known twice."""
    users = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if sdk in _imports(path)
    ]
    assert len(users) == 1, users
    assert SDKS[sdk] in (None, users[0])


def test_vllm_is_never_imported() -> None:
    """The production engine is started, not imported."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert "vllm" not in _imports(path), path


def locked(lock: Path) -> dict[str, str]:
    """Versions that a lock pins, by project."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    pins = (line.split(" ")[0].partition("==") for line in lines if "==" in line and line[0].isalnum())
    return {name: version for name, _, version in pins}


def test_the_agents_image_has_the_versions_that_are_tested() -> None:
    """`make lock` resolves both: what both pin is the same, and nothing of development is in the image."""
    ours = locked(ROOT / "requirements.lock")
    image = locked(ROOT / "runtime" / "images" / "agent" / "requirements.lock")
    assert len(image) > 40
    assert {name: version for name, version in image.items() if ours.get(name, version) != version} == {}
    assert not image.keys() - ours.keys()
    assert not image.keys() & {"pytest", "mypy", "ruff", "sphinx", "hypothesis", "moto", "xllamacpp"}
