"""An operator's working copy: files inside it, and what git has committed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from desired_state.workspace import Workspace, networks
from runtime.host import host_ports
from schemas.errors import ConfigError, UsageError
from schemas.refusals import MalformedDocument
from tests.desired_state.network import Repository, git, signature_file, snapshot_text

if TYPE_CHECKING:
    from pathlib import Path


def workspace(root: Path) -> Workspace:
    """A working copy on the real machine."""
    return Workspace(root, "testnet", ports=host_ports(), env=os.environ)


def test_committed_bytes_are_exact(repository: Repository) -> None:
    """What was committed is read as an object: no filter, attribute or line-end setting changes it."""
    copy = workspace(repository.folder)
    assert copy.committed(copy.snapshot_file) is None
    repository.write(".gitattributes", b"* text eol=crlf diff=evil\n")
    git(repository.folder, "config", "diff.evil.textconv", "false")
    repository.commit()
    first = copy.snapshot()
    repository.write(copy.snapshot_file, first + b"# more\n")
    assert copy.committed(copy.snapshot_file) == first
    assert copy.at("HEAD", "nothing.yaml", limit=100) is None
    assert copy.at("nonsense", copy.snapshot_file, limit=100) is None


def test_a_folder_of_a_repository_is_a_working_copy_too(tmp_path: Path) -> None:
    """The network may lie in a folder of a larger repository."""
    outer = Repository(tmp_path)
    outer.write("inner/networks/testnet/snapshot.v1alpha1.yaml", b"a: 1\n")
    outer.commit()
    copy = workspace(tmp_path / "inner")
    assert copy.committed(copy.snapshot_file) == b"a: 1\n"


def test_outside_git_nothing_was_committed(tmp_path: Path) -> None:
    """A plain folder has no history, and asking for one is an error."""
    copy = workspace(tmp_path)
    assert not copy.in_git
    assert copy.committed(copy.snapshot_file) is None
    assert not copy.has_revision("HEAD")
    with pytest.raises(ConfigError):
        copy.at("HEAD", copy.snapshot_file, limit=100)


def test_what_git_refuses_is_an_error(repository: Repository) -> None:
    """A repository that git will not look at is not taken for a folder without history."""
    (repository.folder / ".git" / "config").write_text("[core\n")
    with pytest.raises(ConfigError, match="git:"):
        _ = workspace(repository.folder).in_git


def test_revisions_cannot_be_options(repository: Repository) -> None:
    """What looks like an option, or like a path, is no revision."""
    repository.commit()
    copy = workspace(repository.folder)
    for revision in ("--all", "HEAD:x", "-n"):
        assert not copy.has_revision(revision)
        with pytest.raises(UsageError):
            copy.at(revision, copy.snapshot_file, limit=100)


def test_large_objects_are_not_read(repository: Repository) -> None:
    """A committed file beyond its limit is an error, not memory (I11)."""
    repository.write("big.bin", b"x" * 10_000)
    repository.commit()
    with pytest.raises(ConfigError):
        workspace(repository.folder).at("HEAD", "big.bin", limit=1000)


def test_signatures_are_dropped_by_what_they_are_about(repository: Repository) -> None:
    """Files over other bytes go, those over these bytes stay, and what is no signature is left alone."""
    copy = workspace(repository.folder)
    folder = copy.snapshot_signatures
    repository.write(f"{folder}/notes.txt", b"hands off")
    repository.write(f"{folder}/0x{'1' * 40}.json", signature_file(snapshot_text(7), 13))
    repository.write(f"{folder}/0x{'2' * 40}.json", b"{}")
    from schemas.digests import digest_bytes

    dropped = copy.drop_signatures(folder, digest_bytes(copy.snapshot()))
    assert len(dropped) == 1
    assert len(copy.signatures(folder)) == 2
    assert (repository.folder / folder / "notes.txt").exists()


def test_committed_signatures(repository: Repository) -> None:
    """Whether the last commit vouches for some bytes is read off its own signature files."""
    copy = workspace(repository.folder)
    content = copy.snapshot()
    assert not copy.was_committed_with_signatures(content)
    repository.commit()
    assert copy.was_committed_with_signatures(content)
    assert not copy.was_committed_with_signatures(content + b"#")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../b", ".hidden", "a//b"])
def test_nothing_is_written_outside(tmp_path: Path, path: str) -> None:
    """Paths that leave the folder, or hide in it, are refused."""
    copy = workspace(tmp_path / "root")
    for act in (lambda: copy.write(path, b""), lambda: copy.remove(path), lambda: copy.read(path, 10)):
        with pytest.raises(MalformedDocument):
            act()
    assert list(tmp_path.iterdir()) == []


def test_new_files_replace_nothing(tmp_path: Path) -> None:
    """What must be new is not written over something."""
    copy = workspace(tmp_path)
    copy.write_new("a/b.yaml", b"1")
    with pytest.raises(UsageError):
        copy.write_new("a/b.yaml", b"2")
    assert copy.read("a/b.yaml", 10) == b"1"
    assert copy.read("a/c.yaml", 10) is None
    with pytest.raises(ConfigError):
        copy.write("a/b.yaml/c", b"3")


def test_networks_are_folders(tmp_path: Path) -> None:
    """Networks are the folders below networks/, sorted; files and hidden ones do not count."""
    assert networks(tmp_path) == ()
    for name in ("b", "a", ".git"):
        (tmp_path / "networks" / name).mkdir(parents=True)
    (tmp_path / "networks" / "README").write_text("")
    assert networks(tmp_path) == ("a", "b")
