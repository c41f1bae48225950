"""A snapshot's documents as a git bundle: one file that git reads like any other repository.

The commit in it is made here and has no history: it holds what one network's nodes read, and nothing else. Equal
documents make an equal commit, so that carrying the same snapshot twice changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from desired_state import document as reader
from desired_state import layout
from desired_state.files import check_path
from desired_state.git_safety import check_branch
from desired_state.load import load_locks, load_models, load_probes
from schemas.refusals import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from desired_state.files import DocumentFiles
    from desired_state.git_calls import GitCalls
    from schemas.snapshot import SnapshotDocument

_FILE_LIMIT: Final = reader.SNAPSHOT_LIMIT
"""Bytes of a file of a network's folder: the snapshot is the largest of them."""
_OUTPUT: Final = 2**16


def collect(files: DocumentFiles, network: str, document: SnapshotDocument, *, limit: int) -> dict[str, bytes]:
    """Everything that a node of a network reads, for one snapshot, each bound file checked against its digest.

    Args:
        files: the state of the repository that holds the snapshot.
        network: the network.
        document: the snapshot, read.
        limit: bytes of everything together: what a node's `maxRepository` lets in.

    Returns:
        Contents by path, sorted.

    Raises:
        MissingDocument, LimitExceeded, DigestMismatch, MalformedDocument: as the readers of each.
    """
    folders = [
        layout.network_folder(network),
        layout.snapshot_signatures(network),
        layout.timestamp_signatures(network),
        layout.trust_folder(network),
    ]
    versions = filter(None, (layout.trust_version(name) for name in files.list(layout.trust_folder(network))))
    folders += [layout.trust_signatures(network, version) for version in sorted(versions)]
    found = files.read_many({f"{folder}/{name}": _FILE_LIMIT for folder in folders for name in files.list(folder)})
    specs = document.spec.models
    probes = load_probes(files, specs)
    models = load_models(files, specs)
    for spec in specs:
        model = models[spec.manifest.digest]
        found[spec.manifest.path] = model.content
        found[model.manifest.spec.pieces.path] = model.pieces
        found[spec.validation.probe.path] = probes[spec.validation.probe.digest].content
    locks = load_locks(files, document)
    natives = [runtime.native for runtime in document.spec.runtimes if runtime.native is not None]
    found.update({native.lock.path: locks[native.lock.digest] for native in natives if native.lock is not None})
    size = sum(len(content) for content in found.values())
    if size > limit:
        raise LimitExceeded(f"the documents of {network} have {size} bytes together, and at most {limit} are carried")
    return dict(sorted(found.items()))


def write_bundle(
    calls: GitCalls, contents: Mapping[str, bytes], target: Path, *, branch: str, message: str, now: datetime
) -> str:
    """Write documents as a git bundle of one commit.

    Args:
        calls: the way to git.
        contents: by path.
        target: the file; a repository is made, and left, beside it.
        branch: the branch that the bundle has.
        message: of the commit.
        now: of the commit. A time that follows from the contents keeps equal bundles equal.

    Returns:
        The commit.

    Raises:
        SourceUnreachable: git failed.
    """
    repository = target.with_name(f"{target.name}.git")
    ref = f"refs/heads/{check_branch(branch)}"
    calls.objects(repository, ("init", "--quiet", "--bare", "--template="))
    calls.objects(repository, ("fast-import", "--quiet", "--done"), stdin=_stream(contents, ref, message, now))
    calls.objects(repository, ("bundle", "create", "--quiet", "--version=2", str(target), ref))
    return calls.objects(repository, ("rev-parse", "--verify", ref), max_output=_OUTPUT).decode().strip()


def _stream(contents: Mapping[str, bytes], ref: str, message: str, now: datetime) -> bytes:
    """What `git fast-import` makes one commit of (git-fast-import(1))."""
    words = message.encode()
    parts = [
        f"commit {ref}\ncommitter reconcile <reconcile@localhost> {int(now.timestamp())} +0000\n".encode(),
        b"data %d\n%b\n" % (len(words), words),
    ]
    for path, content in contents.items():
        # Document paths have no character that fast-import would want quoted.
        parts += [f"M 100644 inline {check_path(path)}\ndata {len(content)}\n".encode(), content, b"\n"]
    return b"".join([*parts, b"done\n"])
