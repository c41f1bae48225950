"""From files to candidates and bound documents: nothing but what was signed for is ever taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from desired_state import document, layout
from desired_state.files import FolderFiles
from desired_state.load import (
    MAX_ROTATIONS,
    load_candidate,
    load_model,
    load_models,
    load_probes,
    load_trust,
    read_bound,
)
from schemas.base import FileRef
from schemas.digests import digest_bytes
from schemas.refusals import DigestMismatch, DocumentError, LimitExceeded, MalformedDocument, MissingDocument
from schemas.snapshot import ModelSpec, SnapshotDocument
from tests.desired_state.network import (
    NETWORK,
    PIECES,
    address,
    manifest_text,
    model_entry,
    probe_text,
    signature_file,
    snapshot_text,
    trust_text,
)

if TYPE_CHECKING:
    from tests.desired_state.network import Repository


def specs(*entries: dict[str, Any]) -> tuple[ModelSpec, ...]:
    """Model entries as a snapshot holds them."""
    content = snapshot_text(models=list(entries))
    return document.load(content, SnapshotDocument, file="s").spec.models


def files(repository: Repository) -> FolderFiles:
    """The repository's files as they are."""
    return FolderFiles(repository.folder)


# --- candidates ---------------------------------------------------------------------------------------------------


def test_a_candidate_is_all_that_is_needed(repository: Repository) -> None:
    """Snapshot, signatures, and the trust documents above the node's version, each with its signatures."""
    repository.put_trust(2, trust_text(2, previous=b"x"), (1, 2))
    repository.put_trust(10, trust_text(10, previous=b"x"), ())
    candidate = load_candidate(files(repository), NETWORK, trust_version=1)
    assert candidate.content == snapshot_text()
    assert sorted(candidate.signatures) == sorted(signature_file(snapshot_text(), number) for number in (11, 12))
    assert [(link.version, len(link.signatures)) for link in candidate.trust] == [(2, 2), (10, 0)]
    assert candidate.trust[0].content == trust_text(2, previous=b"x")
    everything = load_candidate(files(repository), NETWORK, trust_version=0)
    assert [link.version for link in everything.trust] == [1, 2, 10]


def test_without_a_snapshot_there_is_no_candidate(repository: Repository) -> None:
    """Another network's repository, or none at all: the file that is missing is named."""
    with pytest.raises(MissingDocument) as caught:
        load_candidate(files(repository), "othernet", trust_version=0)
    assert caught.value.file == "networks/othernet/snapshot.v1alpha1.yaml"
    assert "othernet" in caught.value.hint


def test_only_signature_files_are_signatures(repository: Repository) -> None:
    """Notes and leftovers in the folder are none."""
    folder = layout.snapshot_signatures(NETWORK)
    for name in ("README.md", "0x12.json", f"{address(13)}.json.orig", f"{address(13)}.yaml"):
        repository.write(f"{folder}/{name}", b"x")
    assert len(load_candidate(files(repository), NETWORK, trust_version=1).signatures) == 2


def test_an_unreadable_signature_hides_no_other(repository: Repository) -> None:
    """I1: an oversized file and a link count as malformed, and the others are read all the same."""
    folder = layout.snapshot_signatures(NETWORK)
    repository.write(f"{folder}/{address(13)}.json", b" " * 2**15)
    (repository.folder / folder / f"{address(99)}.json").symlink_to("/etc/passwd")
    found = load_candidate(files(repository), NETWORK, trust_version=1).signatures
    assert sorted(found) == sorted([b"", *(signature_file(snapshot_text(), number) for number in (11, 12))])


def test_trust_files_are_bounded_in_number(repository: Repository) -> None:
    """I11: a node looks at so many rotations at once, from its own version on, in the order of numbers."""
    for version in range(1, MAX_ROTATIONS + 20):
        repository.write(layout.trust_file(NETWORK, version), b"x")
    for name in ("0.yaml", "01.yaml", "-1.yaml", "2.yml", "x.yaml", "9999999999.yaml"):
        repository.write(f"{layout.trust_folder(NETWORK)}/{name}", b"x")
    versions = [link.version for link in load_trust(files(repository), NETWORK, above=9)]
    assert versions == list(range(10, 10 + MAX_ROTATIONS))


# --- bound documents ----------------------------------------------------------------------------------------------


def test_models_and_probes_are_loaded(repository: Repository) -> None:
    """Every byte that the snapshot binds; what was parsed before is not parsed again."""
    (spec,) = specs(model_entry())
    model = load_model(files(repository), spec)
    assert (model.digest, model.content, model.pieces) == (spec.manifest.digest, manifest_text(), PIECES)
    assert model.manifest.metadata.name == "m"
    (probe,) = load_probes(files(repository), [spec]).values()
    assert (probe.content, probe.probe.metadata.name) == (probe_text(), "m")
    (again,) = load_models(files(repository), [spec], kept={model.digest: model.manifest}.get).values()
    assert (again.manifest is model.manifest, again.content, again.pieces) == (True, model.content, model.pieces)


def test_other_bytes_are_not_what_was_signed_for(repository: Repository) -> None:
    """I1: mix-and-match of documents: a valid manifest, pieces file or probe in another one's place."""
    (spec,) = specs(model_entry())
    for path in ("models/m/v1.yaml", "models/m/v1.pieces", "probes/m.yaml"):
        original = (repository.folder / path).read_bytes()
        repository.write(path, original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(DigestMismatch) as caught:
            (load_probes if path.startswith("probes") else load_models)(files(repository), [spec])
        assert caught.value.file == path
        repository.write(path, original)


def test_references_to_one_file_are_checked_one_by_one(repository: Repository) -> None:
    """Two references that disagree about a file cannot both be right, in whatever order they come."""
    other = {**model_entry(manifest=b"another"), "name": "n"}
    for entries in ((model_entry(), other), (other, model_entry())):
        with pytest.raises(DigestMismatch):
            load_models(files(repository), specs(*entries))


def test_a_manifest_belongs_to_its_model(repository: Repository) -> None:
    """A manifest of another model does not become this one's by being named for it."""
    (spec,) = specs(model_entry())
    known = load_model(files(repository), spec)
    for kept in ({}, {known.digest: known.manifest}):
        with pytest.raises(MalformedDocument, match="is the manifest of m:v1, and the snapshot names it for n:v1"):
            load_models(files(repository), specs(model_entry(), {**model_entry(), "name": "n"}), kept=kept.get)


@pytest.mark.parametrize("pieces", [b"", PIECES + PIECES, PIECES[:-1]])
def test_pieces_fit_their_manifest(repository: Repository, pieces: bytes) -> None:
    """I2: 32 bytes for each piece, no more and no less, even if exactly that file was signed for."""
    manifest = manifest_text(pieces=pieces)
    repository.write("models/m/v1.yaml", manifest)
    repository.write("models/m/v1.pieces", pieces)
    with pytest.raises(DocumentError) as caught:
        load_models(files(repository), specs(model_entry(manifest=manifest)))
    assert caught.value.reason == ("LimitExceeded" if len(pieces) > len(PIECES) else "MalformedDocument")
    assert caught.value.file == "models/m/v1.pieces"


def test_an_absurd_model_is_refused_before_its_pieces_are_read(repository: Repository) -> None:
    """I11: what a manifest claims about sizes does not make the node read gigabytes of hashes."""
    manifest = manifest_text().replace(b'"size": 20', b'"size": 9007199254740991')
    repository.write("models/m/v1.yaml", manifest)
    with pytest.raises(LimitExceeded, match="pieces"):
        load_models(files(repository), specs(model_entry(manifest=manifest)))


def test_a_missing_file_is_named(repository: Repository) -> None:
    """The path of what is not there."""
    ref = FileRef(path="models/nowhere.yaml", digest=digest_bytes(b""))
    with pytest.raises(MissingDocument) as caught:
        read_bound(files(repository), ref, 10)
    assert caught.value.file == "models/nowhere.yaml"
