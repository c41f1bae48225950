"""Git as the source, with real repositories: what is fetched, what is read, what is refused, and what never runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from desired_state import git_safety
from desired_state.files import MAX_ENTRIES, FolderFiles
from desired_state.git_mirror import MAX_PACKS
from schemas.errors import ConfigError, ReconcileError, SourceUnreachable
from schemas.refusals import LimitExceeded, MalformedDocument, MissingDocument
from tests.desired_state.conftest import git_source
from tests.desired_state.network import GIT_ENVIRONMENT, Repository, git

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from desired_state.files import DocumentFiles
    from desired_state.git_source import GitSource

    Reader = Callable[[GitSource, Repository, Path], DocumentFiles]


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and modification times of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- asking and fetching ------------------------------------------------------------------------------------------


def test_head_and_fetch_agree(source: GitSource, repository: Repository, mirror: Path) -> None:
    """A poll names the commit, a fetch brings it, and its files are read from objects."""
    commit = repository.commit()
    assert source.head(repository.url, "main") == commit
    assert not source.has(mirror, commit)
    assert source.fetch(repository.url, "main", mirror) == commit
    assert source.has(mirror, commit)
    files = source.files(mirror, commit)
    assert files.read("probes/m.yaml", 2**20) == (repository.folder / "probes/m.yaml").read_bytes()


@pytest.mark.parametrize("address", ["{folder}", "file://{folder}", "{folder}/.git"])
def test_local_addresses(source: GitSource, repository: Repository, mirror: Path, address: str) -> None:
    """A path and a file:// address are the same thing."""
    commit = repository.commit()
    url = address.format(folder=repository.folder)
    assert source.head(url, "main") == source.fetch(url, "main", mirror) == commit


def test_only_the_tip_is_fetched(source: GitSource, repository: Repository, mirror: Path) -> None:
    """Neither history nor tags nor other branches are of interest."""
    first = repository.commit()
    git(repository.folder, "tag", "v1")
    git(repository.folder, "branch", "other")
    repository.write("probes/m.yaml", b"changed")
    second = repository.commit()
    source.fetch(repository.url, "main", mirror)
    assert source.has(mirror, second)
    assert not source.has(mirror, first)
    assert "v1" not in git(mirror, "for-each-ref")


def test_a_rewritten_history_is_no_obstacle(source: GitSource, repository: Repository, mirror: Path) -> None:
    """A force-push is fine: what counts is whether the snapshot is valid."""
    repository.commit()
    source.fetch(repository.url, "main", mirror)
    git(repository.folder, "checkout", "--quiet", "--orphan", "anew")
    commit = repository.commit()
    git(repository.folder, "branch", "--force", "main", "anew")
    assert source.fetch(repository.url, "main", mirror) == commit


def test_no_hook_is_installed_or_run(source: GitSource, repository: Repository, mirror: Path, tmp_path: Path) -> None:
    """Nothing of the repository runs here, and nothing of the machine's templates gets into the mirror."""
    repository.write(".gitattributes", b"* filter=evil\n")
    repository.commit()
    trap = tmp_path / "ran"
    git(repository.folder, "config", "filter.evil.smudge", f"touch {trap}")
    mirror.mkdir(parents=True)
    git(mirror, "init", "--bare", "--quiet")
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        for hooks in (mirror / "hooks", repository.folder / ".git/hooks"):
            (hooks / name).write_text(f"#!/bin/sh\ntouch {trap}\n")
            (hooks / name).chmod(0o755)
    source.fetch(repository.url, "main", mirror)
    assert not trap.exists()
    fresh = mirror.with_name("fresh.git")
    source.fetch(repository.url, "main", fresh)
    assert not list(fresh.glob("hooks/*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_of_another_user_is_read(source: GitSource, repository: Repository, mirror: Path) -> None:
    """An operator's repository on the same machine: git's ownership check is for those who run what is in it."""
    commit = repository.commit()
    for path in (repository.folder, *repository.folder.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    with pytest.raises(subprocess.CalledProcessError, match="128"):
        git(repository.folder, "log")
    assert source.head(repository.url, "main") == commit
    assert source.fetch(repository.url, "main", mirror) == commit


# --- what cannot be reached ---------------------------------------------------------------------------------------


def test_absence_is_said_in_gits_words(source: GitSource, repository: Repository, mirror: Path, tmp_path: Path) -> None:
    """No repository, no branch: one clear error each, from both verbs."""
    repository.commit()
    missing = f"file://{tmp_path}/nowhere"
    for attempt in (source.head, lambda url, branch: source.fetch(url, branch, mirror)):
        with pytest.raises(SourceUnreachable, match="nowhere"):
            attempt(missing, "main")
        with pytest.raises(SourceUnreachable, match="other"):
            attempt(repository.url, "other")


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x",
        "ext::sh",
        "http://example.org/x",
        "git://example.org/x",
        "--upload-pack=touch",
        "-x",
        "host::path",
        "a@b::c",
        "ssh://-oProxyCommand=touch/x",
        "-oProxyCommand=x@host:path",
        "git@-oProxyCommand=x:path",
        "fd::17",
        "relative/path",
        "https://example.org/x\nhttps://example.org/y",
        "",
    ],
)
def test_transports_that_run_commands_are_refused(source: GitSource, mirror: Path, url: str) -> None:
    """Only file, https and ssh; nothing that git could take for an option or a helper's name."""
    for attempt in (source.head, lambda url, branch: source.fetch(url, branch, mirror)):
        with pytest.raises(ConfigError):
            attempt(url, "main")


def test_a_rewritten_address_runs_nothing(repository: Repository, mirror: Path, tmp_path: Path) -> None:
    """Even where the account's own settings turn an address into `ext::`, git refuses the transport."""
    repository.commit()
    trap = tmp_path / "ran"
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[url "ext::touch {trap} "]\n\tinsteadOf = https://example.org/\n[protocol]\n\tallow = always\n'
    )
    source = git_source(environment={**os.environ, "GIT_CONFIG_GLOBAL": str(settings)})
    for attempt in (source.head, lambda url, branch: source.fetch(url, branch, mirror)):
        with pytest.raises(SourceUnreachable, match="ext"):
            attempt("https://example.org/x", "main")
    assert not trap.exists()


@pytest.mark.parametrize("branch", ["-x", "a..b", "a//b", "a.lock", "a/", "", "a b", "a:b", "a@{1}", "a\n", "x/.y"])
def test_branches_are_names(source: GitSource, repository: Repository, branch: str) -> None:
    """Nothing but a branch gets into a refspec."""
    with pytest.raises(ConfigError):
        source.head(repository.url, branch)


def test_credentials_are_never_repeated(source: GitSource, mirror: Path) -> None:
    """An address may hold a password: errors are shown, published and kept."""
    url = "https://user:sec@ret@127.0.0.1:1/x"
    for attempt in (source.head, lambda url, branch: source.fetch(url, branch, mirror)):
        with pytest.raises(SourceUnreachable) as caught:
            attempt(url, "main")
        assert "sec" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)


def test_words_are_made_harmless() -> None:
    """What a server says ends on a terminal: no escapes, bounded, the errors before the chatter."""
    said = "remote: \x1b[2Jhello\u202e\nfatal: no \x07way\nhint: https://u:p@h/x\n"
    assert git_safety.scrub(said) == "fatal: no way"
    assert git_safety.scrub("see https://u:p@h/x") == "see https://h/x"
    assert len(git_safety.scrub("x" * 10_000)) == 400


def test_surroundings_do_not_lead_git_astray(repository: Repository, mirror: Path, tmp_path: Path) -> None:
    """Variables that would make git read or write elsewhere are dropped; the owner's way to servers is kept."""
    commit = repository.commit()
    hostile = {
        "GIT_DIR": str(tmp_path / "elsewhere"),
        "GIT_OBJECT_DIRECTORY": str(tmp_path / "objects"),
        "GIT_TRACE": str(tmp_path / "trace"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.hooksPath",
        "GIT_CONFIG_VALUE_0": str(tmp_path),
    }
    source = git_source(environment={**os.environ, **hostile})
    assert source.head(repository.url, "main") == source.fetch(repository.url, "main", mirror) == commit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network", "state"]
    kept = git_safety.environment({"GIT_SSH_COMMAND": "ssh -i k", "HOME": "/h", "GIT_ASKPASS": "/a"})
    assert (kept["GIT_SSH_COMMAND"], kept["HOME"], kept["GIT_ASKPASS"]) == ("ssh -i k", "/h", "/a")


def test_time_is_bounded(repository: Repository, mirror: Path, tmp_path: Path) -> None:
    """I11: a server that says nothing ends in an error, not in a hang."""
    repository.commit()
    silent = tmp_path / "ssh"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    source = git_source(timeout=0.5, environment={**os.environ, "GIT_SSH": str(silent), "GIT_SSH_VARIANT": "simple"})
    for attempt in (source.head, lambda url, branch: source.fetch(url, branch, mirror)):
        with pytest.raises(SourceUnreachable, match="no answer within"):
            attempt("ssh://git@example.org/x", "main")


def test_git_must_be_there(repository: Repository) -> None:
    """A machine without git says so."""
    with pytest.raises(SourceUnreachable, match="git"):
        git_source(environment={"PATH": "/nowhere"}).head(repository.url, "main")


# --- bounds of a fetch --------------------------------------------------------------------------------------------


def test_a_fetch_is_bounded_in_bytes(repository: Repository, mirror: Path) -> None:
    """I11: a repository beyond its bound is refused, leaves nothing behind, and the next fetch works."""
    repository.commit()
    source = git_source(max_bytes=2**20)
    source.fetch(repository.url, "main", mirror)
    before = everything(mirror)
    repository.write("large", os.urandom(2**21))
    repository.commit()
    with pytest.raises(LimitExceeded, match="1048576 bytes"):
        source.fetch(repository.url, "main", mirror)
    assert everything(mirror).keys() == before.keys()
    (repository.folder / "large").unlink()
    smaller = repository.commit_amended()
    assert source.fetch(repository.url, "main", mirror) == smaller


def test_a_bomb_is_only_as_large_as_it_is_packed(source: GitSource, repository: Repository, mirror: Path) -> None:
    """I11: a gigabyte of zeros comes as a megabyte, is never held in memory, and is refused when it is read."""
    with (repository.folder / "bomb").open("wb") as file:
        file.truncate(2**30)
    commit = repository.commit()
    assert source.fetch(repository.url, "main", mirror) == commit
    with pytest.raises(LimitExceeded, match="1073741824 bytes"):
        source.files(mirror, commit).read("bomb", 2**20)


def stored(repository: Repository, kind: str, content: bytes) -> str:
    """Put any object into a repository, as git itself would refuse to; its id."""
    command = ["git", "hash-object", "-w", "-t", kind, "--literally", "--stdin"]
    done = subprocess.run(
        command, cwd=repository.folder, env=GIT_ENVIRONMENT, input=content, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def test_objects_that_git_refuses_are_refused(source: GitSource, repository: Repository, mirror: Path) -> None:
    """A tree that holds `.git` would be a trap for whoever checks it out: it does not get in."""
    blob = stored(repository, "blob", b"x")
    tree = stored(repository, "tree", b"100644 .git\0" + bytes.fromhex(blob))
    commit = git(repository.folder, "commit-tree", "-m", "evil", tree)
    git(repository.folder, "update-ref", "refs/heads/main", commit)
    with pytest.raises(MalformedDocument, match="fsck"):
        source.fetch(repository.url, "main", mirror)
    assert not source.has(mirror, commit)


def test_the_mirror_does_not_grow_for_ever(repository: Repository, mirror: Path) -> None:
    """What is no longer needed is cleaned up; commits of accepted snapshots are kept."""
    source = git_source()
    repository.write("noise", os.urandom(1000))
    accepted = repository.commit()
    source.fetch(repository.url, "main", mirror)
    source.keep(mirror, [accepted])
    seen = []
    for _ in range(2):
        repository.write("noise", os.urandom(1000))
        repository.commit()
        seen.append(source.fetch(repository.url, "main", mirror))
    dropped, latest = seen
    pack = next(mirror.glob("objects/pack/*.pack"))
    for number in range(MAX_PACKS):  # as many fetches would leave
        for suffix in (".pack", ".idx"):
            shutil.copyfile(pack.with_suffix(suffix), pack.with_name(f"pack-{number:040d}{suffix}"))
    repository.write("noise", os.urandom(1000))
    final = repository.commit()
    source.fetch(repository.url, "main", mirror)
    assert len(list(mirror.glob("objects/pack/*.pack"))) <= 3
    assert [source.has(mirror, commit) for commit in (accepted, dropped, latest, final)] == [True, False, True, True]
    assert source.files(mirror, accepted).read("noise", 1000)
    assert dropped not in (mirror / "shallow").read_text()
    git(mirror, "fsck", "--strict")


def test_leftovers_of_a_killed_fetch_do_not_matter(source: GitSource, repository: Repository, mirror: Path) -> None:
    """I7: locks and half packs of a process that was killed are removed by the next one."""
    repository.commit()
    source.fetch(repository.url, "main", mirror)
    ref = next(path for path in mirror.glob("refs/reconcile/fetched/*"))
    leftovers = [mirror / "shallow.lock", ref.with_name(ref.name + ".lock"), mirror / "objects/pack/tmp_pack_x"]
    for path in leftovers:
        path.write_bytes(b"half")
    repository.write("probes/m.yaml", b"changed")
    commit = repository.commit()
    assert source.fetch(repository.url, "main", mirror) == commit
    assert not any(path.exists() for path in leftovers)


def test_kept_commits_are_exactly_those_named(source: GitSource, repository: Repository, mirror: Path) -> None:
    """The mirror remembers what it was told to, and no more."""
    first = repository.commit()
    source.fetch(repository.url, "main", mirror)
    source.keep(mirror, [first])
    second = repository.commit()
    source.fetch(repository.url, "main", mirror)
    source.keep(mirror, [second])
    source.keep(mirror, [second])
    assert git(mirror, "for-each-ref", "--format=%(refname)", "refs/reconcile/accepted").split() == [
        f"refs/reconcile/accepted/{second}"
    ]


def test_a_dry_run_borrows_and_writes_nothing(
    source: GitSource, repository: Repository, mirror: Path, tmp_path: Path
) -> None:
    """I9: a fetch into scratch takes what the mirror has from it, and changes not one byte of it."""
    repository.commit()
    repository.write("ballast", os.urandom(2**20))
    repository.commit()  # the mirror ends here: it does not have this commit's parent
    source.fetch(repository.url, "main", mirror)
    repository.write("probes/m.yaml", b"changed")
    commit = repository.commit()
    before = everything(mirror)
    scratch = tmp_path / "scratch"
    assert source.fetch(repository.url, "main", scratch, borrow=mirror) == commit
    assert source.files(scratch, commit).read("probes/m.yaml", 100) == b"changed"
    assert len(source.files(scratch, commit).read("ballast", 2**20)) == 2**20
    assert sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) < 2**19
    assert everything(mirror) == before


def test_a_dry_run_without_a_mirror_fetches_all(
    source: GitSource, repository: Repository, mirror: Path, tmp_path: Path
) -> None:
    """I9: a node that never fetched can plan as well, and has no mirror afterwards."""
    commit = repository.commit()
    assert source.fetch(repository.url, "main", tmp_path / "scratch", borrow=mirror) == commit
    assert not mirror.exists()


@pytest.mark.parametrize("arguments", [[], ["make"], ["remove", "."], ["repack", "nowhere"]])
def test_the_child_that_tidies_is_a_program(tmp_path: Path, arguments: list[str]) -> None:
    """What it cannot do ends it with words and a status, and leaves nothing."""
    command = [sys.executable, "-m", "desired_state.git_mirror", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode in (1, 64)
    assert done.stderr
    assert not list(tmp_path.iterdir())


def test_a_mirror_that_cannot_be_made_is_no_broken_repository(repository: Repository, tmp_path: Path) -> None:
    """Where there is no folder to fetch into, the reason says so, and the repository is asked again later."""
    repository.commit()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceUnreachable, match="no mirror could be made"):
        git_source().fetch(repository.url, "main", tmp_path / "file" / "mirror")


# --- reading files ------------------------------------------------------------------------------------------------


def commit_files(source: GitSource, repository: Repository, mirror: Path) -> DocumentFiles:
    """The files of a commit."""
    return source.files(mirror, source.fetch(repository.url, "main", mirror))


def folder_files(_: GitSource, repository: Repository, __: Path) -> DocumentFiles:
    """The same files in a folder."""
    return FolderFiles(repository.folder)


READERS = pytest.mark.parametrize("reader", [commit_files, folder_files])


@READERS
def test_files_are_read_exactly(source: GitSource, repository: Repository, mirror: Path, reader: Reader) -> None:
    """Bytes, in the order asked for, over more files than fit one call; empty ones and binary ones too."""
    contents = {f"many/{number}.bin": os.urandom(number % 7) + b"\n\0" * (number % 3) for number in range(600)}
    for path, content in contents.items():
        repository.write(path, content)
    repository.commit()
    files = reader(source, repository, mirror)
    wanted = dict.fromkeys(reversed(contents), 100)
    assert list(files.read_many(wanted).items()) == [(path, contents[path]) for path in wanted]
    assert files.read_many({}) == {}


@READERS
def test_folders_are_listed(source: GitSource, repository: Repository, mirror: Path, reader: Reader) -> None:
    """Names of regular files, sorted; what is no folder has none."""
    repository.write("d/b", b"")
    repository.write("d/a", b"")
    repository.write("d/sub/c", b"")
    (repository.folder / "d/link").symlink_to("a")
    (repository.folder / "linked").symlink_to("d")
    repository.commit()
    files = reader(source, repository, mirror)
    assert files.list("d") == ("a", "b")
    assert files.list("nowhere") == files.list("d/a") == files.list("linked") == ()


@READERS
def test_long_folders_are_refused(source: GitSource, repository: Repository, mirror: Path, reader: Reader) -> None:
    """I11: a folder without end is not listed."""
    for number in range(MAX_ENTRIES):
        repository.write(f"d/{number}", b"")
    repository.commit()
    assert len(reader(source, repository, mirror).list("d")) == MAX_ENTRIES
    repository.write("d/x", b"")
    repository.commit()
    with pytest.raises(LimitExceeded, match="entries"):
        reader(source, repository, mirror).list("d")


def hostile_tree(repository: Repository) -> None:
    """Everything that may stand where a file should be."""
    folder = repository.folder
    repository.write("d/file", b"12345")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "inner").symlink_to("d/file")
    (folder / "through").symlink_to("d")
    submodule = Repository(folder / "submodule")
    submodule.commit()
    repository.commit()


@READERS
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", MissingDocument),
        ("d/nowhere", MissingDocument),
        ("d/file/x", MissingDocument),
        ("d", MissingDocument),
        ("link", MissingDocument),
        ("inner", MissingDocument),
        ("through/file", MissingDocument),
        ("submodule", MissingDocument),
        ("../network/d/file", MalformedDocument),
        ("/etc/passwd", MalformedDocument),
        ("d/../d/file", MalformedDocument),
        ("d//file", MalformedDocument),
        (".git/config", MalformedDocument),
        ("d/*", MalformedDocument),
        (":(glob)d/*", MalformedDocument),
        ("d/file\n", MalformedDocument),
        ("", MalformedDocument),
        ("d/fil\u0435", MalformedDocument),
        ("d/file\0", MalformedDocument),
    ],
)
def test_what_is_no_file_is_refused(
    source: GitSource,
    repository: Repository,
    mirror: Path,
    reader: Reader,
    path: str,
    reason: type[ReconcileError],
) -> None:
    """Links, folders, submodules, escapes and look-alikes: a typed error each, from a commit and from a folder."""
    hostile_tree(repository)
    files = reader(source, repository, mirror)
    with pytest.raises(reason) as caught:
        files.read(path, 100)
    assert caught.value.reason == reason.__name__


@pytest.mark.parametrize("path", ["nowhere", "d", "link", "inner", "through/file", "submodule"])
def test_what_is_no_file_is_refused_among_many(source: GitSource, repository: Repository, path: str) -> None:
    """The listing of whole folders, by which many files are found, follows no link either."""
    contents = many_files(repository)
    hostile_tree(repository)
    files = source.files(repository.folder / ".git", git(repository.folder, "rev-parse", "HEAD"))
    with pytest.raises(MissingDocument):
        files.read_many(dict.fromkeys([*contents, path], 100))


def test_a_listing_that_is_too_long_is_no_obstacle(
    source: GitSource, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files beside those that are asked for, however many, stand in nobody's way (I11)."""
    contents = many_files(repository)
    repository.commit()
    monkeypatch.setattr("desired_state.git_files._LISTING", 1000)
    files = source.files(repository.folder / ".git", git(repository.folder, "rev-parse", "HEAD"))
    assert files.read_many(dict.fromkeys(contents, 100)) == contents


def many_files(repository: Repository) -> dict[str, bytes]:
    """More files than are asked for by name in one call."""
    contents = {f"many/{number}/file": str(number).encode() for number in range(300)}
    for path, content in contents.items():
        repository.write(path, content)
    return contents


@READERS
def test_files_are_bounded(source: GitSource, repository: Repository, mirror: Path, reader: Reader) -> None:
    """I11: exactly the limit is read, one byte more is not."""
    repository.write("d/file", b"12345")
    repository.commit()
    files = reader(source, repository, mirror)
    assert files.read("d/file", 5) == b"12345"
    with pytest.raises(LimitExceeded) as caught:
        files.read("d/file", 4)
    assert caught.value.file == "d/file"


def test_a_pipe_does_not_block(repository: Repository) -> None:
    """Opening a FIFO waits for a writer; a reader of documents does not."""
    os.mkfifo(repository.folder / "pipe")
    with pytest.raises(MissingDocument, match="not a regular file"):
        FolderFiles(repository.folder).read("pipe", 10)


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    """`plan --snapshot DIR` with a wrong folder."""
    with pytest.raises(MissingDocument):
        FolderFiles(tmp_path / "nowhere").read("x", 10)


def test_a_damaged_mirror_is_noticed(source: GitSource, repository: Repository, mirror: Path) -> None:
    """Objects that are gone or changed are an error that says what to do, and never content."""
    commit = repository.commit()
    source.fetch(repository.url, "main", mirror)
    for path in mirror.glob("objects/pack/*.pack"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:12].ljust(path.stat().st_size, b"\0"))
    paths = ("probes/m.yaml", "models/m/v1.yaml", "models/m/v1.pieces", "networks/testnet/trust/1.yaml")
    with pytest.raises(SourceUnreachable) as caught:
        source.files(mirror, commit).read_many(dict.fromkeys(paths, 2**20))
    assert "mirror" in caught.value.hint


def test_a_lost_object_is_noticed(source: GitSource, repository: Repository) -> None:
    """A tree that names an object which is gone: an error, and no other object's bytes instead."""
    commit = repository.commit()
    lost = git(repository.folder, "rev-parse", "HEAD:probes/m.yaml")
    (repository.folder / ".git/objects" / lost[:2] / lost[2:]).unlink()
    files = source.files(repository.folder / ".git", commit)
    with pytest.raises(SourceUnreachable, match=r"probes/m.yaml is damaged"):
        files.read_many({"probes/m.yaml": 2**20, "models/m/v1.yaml": 2**20})
    assert files.read("models/m/v1.yaml", 2**20)
