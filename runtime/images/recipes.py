"""The images of this folder: what each stands on and is made of, and the key that speaks for all of it."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.images.staging import (
    ENGINES,
    HERE,
    PROJECT,
    VLLM_LOCK,
    BuildError,
    busybox,
    stage_agent,
    stage_agent_root,
    stage_busybox,
    stage_llamacpp,
    stage_nothing,
    stage_ollama,
    stage_root,
    stage_root_with_users,
    stage_vllm,
    suite,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PACKAGES = ("desired_state", "reconciler", "runtime", "schemas")


@dataclass(frozen=True)
class Recipe:
    """One image: the folder of its name, what it stands on, what is staged into its build context."""

    name: str
    stage: Callable[[Path, str], None]
    """Called with the context folder and the parent's reference (empty where there is none)."""
    parent: str = ""
    inputs: tuple[Path, ...] = ()
    """Files outside the recipe's folder that go into the image, and folders that go into it whole."""
    large: bool = False
    """Whether it is gigabytes: built only when it is named, kept where it was built."""
    asked: bool = False
    """Whether it is built only when it is named: the agent's is another after every change of the code."""
    streamed: bool = False
    """Whether what is installed already goes to the engine from where it is: gigabytes of packages."""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("base", stage_root),
        Recipe("llamacpp", stage_llamacpp, parent="base", inputs=(ENGINES / "llamacpp_server.py",)),
        Recipe(
            "base-shell", stage_root_with_users, inputs=(HERE / "base" / "passwd", HERE / "base" / "group"), large=True
        ),
        Recipe("vllm", stage_vllm, parent="base-shell", inputs=(VLLM_LOCK,), large=True, streamed=True),
        Recipe("ollama", stage_ollama, parent="base", inputs=(ENGINES / "ollama_server.py",), asked=True),
        Recipe("busybox", stage_busybox, inputs=(busybox(),)),
        Recipe("busybox-volume", stage_nothing, parent="busybox"),
        Recipe("agent-base", stage_agent_root, inputs=(HERE / "base" / "passwd", HERE / "base" / "group"), asked=True),
        Recipe(
            "agent",
            stage_agent,
            parent="agent-base",
            inputs=(PROJECT / "pyproject.toml", *(PROJECT / name for name in PACKAGES)),
            asked=True,
        ),
    )
}


def key(recipe: Recipe) -> str:
    """Return the content key of an image, which is its tag: 32 hexadecimal digits.

    Raises:
        BuildError: one of its inputs is missing.

    """
    digest = hashlib.sha256()
    folder = HERE / recipe.name
    # What builds is part of what is built.
    files = [*sorted(HERE.glob("*.py")), *sorted(path for path in folder.rglob("*") if path.is_file())]
    for given in recipe.inputs:
        inside = (path for path in given.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files += sorted(inside) if given.is_dir() else [given]
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BuildError(f"{recipe.name}: cannot read '{file}': {error.strerror}") from error
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    facts = (platform.machine(), suite(), key(RECIPES[recipe.parent]) if recipe.parent else "")
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:32]


def with_given(name: str, installed: Mapping[str, Path]) -> Recipe:
    """Return a recipe whose key speaks for what it is given; a lock already does for packages."""
    recipe = RECIPES[name]
    if name not in installed or recipe.streamed:
        return recipe
    return replace(recipe, inputs=(*recipe.inputs, installed[name]))
