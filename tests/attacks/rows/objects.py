"""What git itself could be made to do."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

from desired_state import layout
from tests.attacks.table import attack
from tests.desired_state.network import NETWORK, git

if TYPE_CHECKING:
    from tests.attacks.scene import Scene


def _object(scene: Scene, kind: str, content: bytes) -> str:
    """Write an object as it is, whatever git thinks of it; its id."""
    whole = f"{kind} {len(content)}\0".encode() + content
    digest = hashlib.sha1(whole).hexdigest()
    path = scene.repository.folder / ".git/objects" / digest[:2] / digest[2:]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(whole, 1))
    return digest


def _tree(scene: Scene, entries: bytes) -> str:
    return _object(scene, "tree", entries)


def _entry(mode: str, name: bytes, digest: str) -> bytes:
    return mode.encode() + b" " + name + b"\0" + bytes.fromhex(digest)


def _listed(scene: Scene, path: str) -> str:
    """The id of what lies at a path of the branch."""
    return git(scene.repository.folder, "rev-parse", f"HEAD:{path}")


@attack("MalformedDocument")
def dot_git_in_a_tree(scene: Scene) -> None:
    """A tree with a `.git` folder, through which a checkout would be given hooks."""
    hooks = _tree(scene, _entry("40000", b"hooks", _listed(scene, "networks")))
    scene.plant(
        _tree(scene, _entry("40000", b".git", hooks) + _entry("40000", b"networks", _listed(scene, "networks")))
    )


@attack("MalformedDocument")
def dots_in_a_tree(scene: Scene) -> None:
    """A tree with an entry `..`, through which a checkout would leave its folder."""
    scene.plant(_tree(scene, _entry("40000", b"..", _listed(scene, "networks"))))


@attack("MalformedDocument")
def doubled_entry(scene: Scene) -> None:
    """A tree that names one folder twice: which one is read would be the reader's choice."""
    entry = _entry("40000", b"networks", _listed(scene, "networks"))
    other = _entry("40000", b"networks", _listed(scene, "models"))
    scene.plant(_tree(scene, entry + other))


@attack("LimitExceeded")
def huge_tree(scene: Scene) -> None:
    """A hundred thousand trust documents, all of them one empty file."""
    empty = _object(scene, "blob", b"")
    names = sorted(f"{number}.yaml".encode() for number in range(1, 100_000))
    folder = _tree(scene, b"".join(_entry("100644", name, empty) for name in names))
    kept = (layout.snapshot_file(NETWORK), layout.snapshot_signatures(NETWORK))
    entries = {path.rpartition("/")[2].encode(): _listed(scene, path) for path in kept}
    modes = {name: "100644" if name.endswith(b".yaml") else "40000" for name in entries}
    network = b"".join(
        _entry(modes[name], name, entries[name]) for name in (b"snapshot.sigs", b"snapshot.v1alpha1.yaml")
    )
    network = _tree(scene, network + _entry("40000", b"trust", folder))
    networks = _tree(scene, _entry("40000", NETWORK.encode(), network))
    scene.plant(_tree(scene, _entry("40000", b"networks", networks)))


@attack("LimitExceeded")
def deep_tree(scene: Scene) -> None:
    """Five thousand folders, one in the other, of each of which git warns with its whole path."""
    inner = _listed(scene, "networks")
    for _ in range(5000):
        inner = _tree(scene, _entry("40000", b"networks", inner))
    scene.plant(inner)


@attack("LimitExceeded")
def large_repository(scene: Scene) -> None:
    """More bytes than the owner lets a repository have."""
    scene.config["maxRepository"] = "4MiB"
    noise = b"".join(number.to_bytes(8, "big") for number in range(2**20))
    scene.repository.write("ballast", hashlib.shake_256(noise).digest(5 * 2**20))


@attack("MalformedDocument")
def submodule_command(scene: Scene) -> None:
    """A submodule that is updated by a command (CVE-2019-19604)."""
    modules = f'[submodule "x"]\n\tpath = x\n\turl = https://example.org/\n\tupdate = !touch {scene.trap}\n'
    scene.repository.write(".gitmodules", modules.encode())


@attack("Verified", code=0)
def traps_in_the_tree(scene: Scene) -> None:
    """Filters, LFS, submodules and hooks in the tree, each of which would run a command: nothing is checked out."""
    command = f"touch {scene.trap}"
    scene.repository.write(".lfsconfig", f"[lfs]\n\turl = ext::{command}\n".encode())
    scene.repository.write(".gitconfig", f'[filter "evil"]\n\tsmudge = {command}\n'.encode())
    scene.repository.write(".gitmodules", f'[submodule "x"]\n\tpath = x\n\turl = ext::{command}\n'.encode())
    scene.repository.write("hooks/post-checkout", f"#!/bin/sh\n{command}\n".encode())
    scene.path("hooks/post-checkout").chmod(0o755)
    git(scene.repository.folder, "add", "--all", "--force")
    # Not through the index's own filters, which git would refuse here.
    rules = b"* filter=evil diff=evil merge=evil text eol=crlf working-tree-encoding=UTF-16\n"
    rules_id = _object(scene, "blob", rules)
    git(scene.repository.folder, "update-index", "--add", "--cacheinfo", f"100644,{rules_id},.gitattributes")
    scene.plant(git(scene.repository.folder, "write-tree"))


@attack("Verified", code=0, holds="the git server")
def traps_in_the_repository(scene: Scene) -> None:
    """Configuration and hooks of a repository on a shared disk, each of which would run a command for its reader."""
    command = f"touch {scene.trap}"
    scene.repository.write("note", b"something moved\n")
    scene.repository.commit()
    folder = scene.repository.folder / ".git"
    for name in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc", "fsmonitor-watchman"):
        (folder / "hooks" / name).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        (folder / "hooks" / name).chmod(0o755)
    settings = {
        "core.fsmonitor": command,
        "core.sshCommand": command,
        "core.alternateRefsCommand": command,
        "core.pager": command,
        "core.askPass": command,
        "uploadpack.packObjectsHook": command,
        "credential.helper": f"!{command}",
        "gpg.program": command,
        "diff.external": command,
        "protocol.ext.allow": "always",
        "remote.origin.uploadpack": command,
    }
    for key, value in settings.items():
        git(scene.repository.folder, "config", key, value)
    scene.planted = True


@attack("Verified", code=0)
def replaced_objects(scene: Scene) -> None:
    """A replacement ref that shows other bytes under the signed snapshot's id to whoever honours such refs."""
    ours = _listed(scene, layout.snapshot_file(NETWORK))
    scene.path("other").write_bytes(scene.snapshot(5, note="replaced"))
    other = git(scene.repository.folder, "hash-object", "-w", "other")
    git(scene.repository.folder, "replace", ours, other)
    scene.repository.write("note", b"something moved\n")


@attack("Verified", code=0)
def refs_like_options(scene: Scene) -> None:
    """Branches and tags that look like options and commands, the branch's own name among the tags."""
    head = git(scene.repository.folder, "rev-parse", "HEAD")
    names = (
        "refs/heads/--upload-pack=x",
        "refs/heads/-u",
        "refs/tags/main",
        "refs/tags/$(touch${IFS}x)",
        "refs/heads/heads/main",
    )
    for name in names:
        git(scene.repository.folder, "update-ref", name, f"{head}~0")
    git(scene.repository.folder, "symbolic-ref", "refs/heads/other", "refs/heads/main")
    scene.repository.write("note", b"something moved\n")
