"""The index of a bundle: one file that carries a signed snapshot, and what it needs, to a node without a network.

A bundle is a tar archive (POSIX.1-1988 headers) with exactly one form for given contents: its index first, then what
the index lists, in that order, at places that follow from the sizes. Nothing in it is believed for being in it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from schemas.base import Count, Digest, Frozen, Name, Positive, Sha256

INDEX_NAME: Final = "bundle.json"
BRANCH: Final = "main"
"""The one branch of the documents."""
MAX_ENTRIES: Final = 2**17
"""Entries of a bundle: ten models of as many files as a manifest may have, and images beside them."""

EntryKind = Literal["documents", "model", "layout", "image"]

_ORDER: Final[dict[EntryKind, int]] = {"documents": 0, "model": 1, "layout": 2, "image": 3}


class BundleEntry(Frozen):
    """One file of a bundle. Where it lies follows from what it is: an index has no paths that could lead elsewhere."""

    kind: EntryKind
    """`documents`: a git bundle. `model`: a file of a model. `image`, `layout`: parts of an OCI image layout."""
    digest: Digest | Sha256
    """Of its bytes: BLAKE3, in an image layout SHA-256."""
    size: Count
    """Bytes."""
    name: Literal["", "oci-layout", "index.json"] = ""
    """For `layout`: which of its two files."""

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> BundleEntry:
        wanted = "blake3" if self.kind in ("documents", "model") else "sha256"
        if not self.digest.startswith(f"{wanted}:"):
            raise ValueError(f"the digest of a {self.kind} is a {wanted} digest")
        if bool(self.name) != (self.kind == "layout"):
            raise ValueError("a name belongs to parts of a layout, and only to them")
        return self

    @property
    def path(self) -> str:
        """Its name in the archive. `images/` is an OCI image layout when it is unpacked."""
        hexadecimal = self.digest.partition(":")[2]
        match self.kind:
            case "documents":
                return "documents.bundle"
            case "model":
                return f"models/{hexadecimal}"
            case "layout":
                return f"images/{self.name}"
            case "image":
                return f"images/blobs/sha256/{hexadecimal}"


class BundledSnapshot(Frozen):
    """What the bundle says it carries, for people: the documents themselves decide."""

    digest: Digest
    """The snapshot."""
    epoch: Count
    """Its epoch."""
    sequence: Positive
    """Its sequence."""


class BundleIndex(Frozen):
    """What lies in a bundle."""

    format_version: Literal["1"] = "1"
    """Version of this form."""
    kind: Literal["SnapshotBundle"] = "SnapshotBundle"
    """`SnapshotBundle`."""
    network: Name
    """The network whose nodes it is for."""
    snapshot: BundledSnapshot
    """The snapshot that it carries."""
    entries: Annotated[tuple[BundleEntry, ...], Field(min_length=1, max_length=MAX_ENTRIES)]
    """Everything else in the archive, in its order."""

    @model_validator(mode="after")
    def _lists_each_once_in_order(self) -> BundleIndex:
        kinds = [entry.kind for entry in self.entries]
        if kinds.count("documents") != 1 or [_ORDER[kind] for kind in kinds] != sorted(_ORDER[kind] for kind in kinds):
            raise ValueError("a bundle has its documents, then models, then images")
        if len({entry.path for entry in self.entries}) != len(self.entries):
            raise ValueError("an entry is listed twice")
        return self
