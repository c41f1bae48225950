"""Servers that mean harm, and addresses that do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.attacks import server
from tests.attacks.table import attack

if TYPE_CHECKING:
    from tests.attacks.scene import Scene


def _served(scene: Scene, mode: str, seconds: int = 60) -> None:
    """Let the repository's server be the hostile one, reached as ssh would reach it."""
    scene.config["repositories"] = [{"url": "ssh://git.example.org/network.git"}]
    scene.config["gitTimeout"] = f"{seconds}s"
    scene.environment["GIT_SSH_VARIANT"] = "simple"
    program = scene.folder / "ssh"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -I {Path(server.__file__)} {mode}\n", encoding="utf-8")
    program.chmod(0o755)
    scene.environment["GIT_SSH"] = str(program)


@attack("SourceUnreachable", holds="the git server", code=0)
def silence(scene: Scene) -> None:
    """A server that takes the question and never answers."""
    _served(scene, "silent", 1)


@attack("SourceUnreachable", holds="the git server", code=0)
def slow_drip(scene: Scene) -> None:
    """A server that answers a byte at a time, so that it is never quite dead."""
    _served(scene, "drip", 2)


@attack("LimitExceeded", holds="the git server")
def endless_refs(scene: Scene) -> None:
    """A server whose list of branches never ends."""
    _served(scene, "refs")


@attack("LimitExceeded", holds="the git server")
def endless_words(scene: Scene) -> None:
    """A server whose error message never ends."""
    _served(scene, "words")


@attack("SourceUnreachable", holds="the git server", code=0)
def garbage(scene: Scene) -> None:
    """A server that does not speak git at all."""
    _served(scene, "garbage")


@attack("SourceUnreachable", holds="the git server", code=0)
def option_for_a_branch(scene: Scene) -> None:
    """A server that offers one branch, whose name is an option of git."""
    _served(scene, "option")


@attack("LimitExceeded", holds="the git server")
def countless_pack(scene: Scene) -> None:
    """A pack that claims two thousand million objects."""
    _served(scene, "countless")


@attack("SourceUnreachable", holds="the git server", code=0)
def pack_bomb(scene: Scene) -> None:
    """Eight mebibytes that inflate to eight gibibytes: streamed, never held, and cut off when the time is up."""
    _served(scene, "inflating", 3)


@attack("LimitExceeded", holds="the git server")
def delta_bomb(scene: Scene) -> None:
    """A delta of fifty kilobytes that makes three gibibytes, which git would have to hold in memory."""
    _served(scene, "deltas")


@attack("ConfigError", holds="the owner's ear", code=1)
def address_that_runs_commands(scene: Scene) -> None:
    """A repository by `ext::`, whose address is a command."""
    scene.config["repositories"] = [{"url": f"ext::touch% {scene.trap}"}]


@attack("ConfigError", holds="the owner's ear", code=1)
def address_like_an_option(scene: Scene) -> None:
    """A repository whose address is an option of git."""
    scene.config["repositories"] = [{"url": f"--upload-pack=touch {scene.trap}"}]


@attack("ConfigError", holds="the owner's ear", code=1)
def host_like_an_option(scene: Scene) -> None:
    """A repository whose host is an option of ssh (CVE-2017-1000117)."""
    scene.config["repositories"] = [{"url": f"ssh://-oProxyCommand=touch${{IFS}}{scene.trap}/x"}]


@attack("ConfigError", holds="the owner's ear", code=1)
def branch_like_an_option(scene: Scene) -> None:
    """A branch whose name is an option of git."""
    scene.config["branch"] = f"--upload-pack=touch {scene.trap}"


@attack("SourceUnreachable", holds="the owner's ear", code=0)
def rewritten_address(scene: Scene) -> None:
    """A line in the account's git configuration that turns an honest address into `ext::`."""
    settings = scene.folder / "gitconfig"
    lines = f'[url "ext::touch {scene.trap} "]\n\tinsteadOf = https://example.org/\n[protocol]\n\tallow = always\n'
    settings.write_text(lines, encoding="utf-8")
    scene.environment["GIT_CONFIG_GLOBAL"] = str(settings)
    scene.config["repositories"] = [{"url": "https://example.org/network.git"}]
