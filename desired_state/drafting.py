"""New documents, and new versions of old ones, as text with comments. Pure: times and digests are given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from desired_state.authoring import Document
from schemas.base import API_VERSION, format_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

SCHEMA_FOLDER: Final = ".schemas"
"""Where a network's repository keeps the JSON Schemas that its editors use."""

_MODELINE: Final = "# yaml-language-server: $schema={up}/" + SCHEMA_FOLDER + "/{kind}.v1alpha1.json"


# --- trust --------------------------------------------------------------------------------------------------------

_TRUST: Final = """\
{modeline}
# Who may sign for the network "{network}".
# Nodes pin version 1 of this document by its digest. Every later version is signed by enough root signers of the
# version before it, and by enough of its own. Change it with `reconcile trust ...`, sign with `reconcile trust sign`.
apiVersion: {api}
kind: Trust
metadata:
  network: {network}
  version: 1
  epoch: 1 # raised by root only, to undo a snapshot with a sequence that nobody can surpass
  issuedAt: "{issued}"
  expiresAt: "{expires}"
spec:
  roles:
    # May change this document.
    root:
      threshold: {root_threshold}
      signers:
{root_signers}
    # May sign snapshots.
    snapshot:
      threshold: {snapshot_threshold}
      signers:
{snapshot_signers}
"""


def new_trust(
    network: str, roles: Mapping[str, tuple[int, Sequence[str]]], *, issued: datetime, valid: timedelta
) -> str:
    """Version 1 of a network's trust.

    Args:
        network: the network.
        roles: `root` and `snapshot`, and `timestamp` if there is one: threshold and checksummed addresses.
        issued: beginning of its validity.
        valid: length of its validity.
    """
    text = _TRUST.format(
        modeline=_MODELINE.format(up="../../..", kind="trust"),
        api=API_VERSION,
        network=network,
        issued=format_time(issued),
        expires=format_time(issued + valid),
        root_threshold=roles["root"][0],
        root_signers=_signers(roles["root"][1]),
        snapshot_threshold=roles["snapshot"][0],
        snapshot_signers=_signers(roles["snapshot"][1]),
    )
    if "timestamp" in roles:
        threshold, signers = roles["timestamp"]
        text += "    # Says daily which snapshot is the newest: an online key.\n"
        text += f"    timestamp:\n      threshold: {threshold}\n      signers:\n{_signers(signers)}\n"
    return text


def _signers(addresses: Sequence[str]) -> str:
    return "\n".join(f'        - "{address}"' for address in addresses)


def next_trust(text: str, *, version: int, previous: str | None, issued: datetime, valid: timedelta) -> Document:
    """A further version of a trust document, for whatever changes it is made for.

    Args:
        text: the current version's text.
        version: the new version.
        previous: digest of the current version; None while version 1 is still being written.
        issued: beginning of its validity.
        valid: length of its validity.
    """
    document = Document(text, file=f"trust/{version}.yaml")
    changes: dict[tuple[str | int, ...], Any] = {
        ("metadata", "version"): version,
        ("metadata", "issuedAt"): format_time(issued),
        ("metadata", "expiresAt"): format_time(issued + valid),
    }
    if previous is not None:
        changes["metadata", "previous"] = previous
    document.set_all(changes)
    return document


# --- snapshots ----------------------------------------------------------------------------------------------------

_SNAPSHOT: Final = """\
{modeline}
# What every node of the network "{network}" must be. Change it with `reconcile snapshot|model|runtime ...` or by hand,
# then `reconcile snapshot bump`, `reconcile snapshot sign`, and commit.
apiVersion: {api}
kind: Snapshot
metadata:
  network: {network}
  epoch: {epoch}
  sequence: 1 # raised by `reconcile snapshot bump`: nodes accept nothing that is not above what they have
  trustVersion: {trust_version}
  issuedAt: "{issued}"
  expiresAt: "{expires}" # nothing is accepted after; what serves goes on serving
requires:
  agent: ">=0.1"
spec:
  # How models are served: engine, version, image or environment, limits. `reconcile runtime set`
  runtimes: []

  # Approved models, each bound by the digest of its manifest. What is not listed is removed. `reconcile model add`
  models: []

  # Which nodes run what; the first that matches a node wins. `reconcile snapshot serve`
  assignments: []

  # Digests that must stop at once, over every other rule. `reconcile snapshot withdraw`
  withdrawn: []

  # Subjects whose remembered failure is forgiven.
  retry: []

  policy:
    modes: [{modes}] # how engines may be run
"""


def new_snapshot(
    network: str, *, epoch: int, trust_version: int, modes: Sequence[str], issued: datetime, valid: timedelta
) -> str:
    """The first snapshot of a network: nothing in it, and a comment on everything.

    Args:
        network: the network.
        epoch: the epoch that root declared.
        trust_version: version of the trust that is in force.
        modes: how engines may be run.
        issued: beginning of its validity.
        valid: length of its validity.
    """
    return _SNAPSHOT.format(
        modeline=_MODELINE.format(up="../..", kind="snapshot"),
        api=API_VERSION,
        network=network,
        epoch=epoch,
        trust_version=trust_version,
        modes=", ".join(modes),
        issued=format_time(issued),
        expires=format_time(issued + valid),
    )


@dataclass(frozen=True, slots=True)
class Base:
    """A snapshot by its position: the one that was published before, or the newest."""

    digest: str
    epoch: int
    sequence: int


def bump(
    document: Document, base: Base | None, *, epoch: int, trust_version: int, issued: datetime, valid: timedelta
) -> None:
    """Make a snapshot the successor of what was published.

    Args:
        document: the snapshot, changed in place.
        base: what was published; None before the first time: then the sequence stays.
        epoch: the epoch that root declared. A new one begins with sequence 1.
        trust_version: version of the trust that is in force.
        issued: beginning of its validity.
        valid: length of its validity.
    """
    changes: dict[tuple[str | int, ...], Any] = {
        ("metadata", "epoch"): epoch,
        ("metadata", "trustVersion"): trust_version,
        ("metadata", "issuedAt"): format_time(issued),
        ("metadata", "expiresAt"): format_time(issued + valid),
    }
    if base is not None:
        follows = base.epoch == epoch
        changes["metadata", "sequence"] = base.sequence + 1 if follows else 1
        if follows:
            changes["metadata", "previous"] = base.digest
    document.set_all(changes)
    if ("metadata", "previous") not in changes and base is not None and document.get(("metadata", "previous")):
        document.remove(("metadata", "previous"))


def timestamp(network: str, newest: Base, *, issued: datetime, valid: timedelta) -> bytes:
    """An online key's word that a snapshot is the newest.

    Args:
        network: the network.
        newest: the snapshot.
        issued: now.
        valid: for how long this may be believed.
    """
    document = {
        "apiVersion": API_VERSION,
        "kind": "Timestamp",
        "metadata": {
            "network": network,
            "issuedAt": format_time(issued),
            "expiresAt": format_time(issued + valid),
        },
        "snapshot": {"epoch": newest.epoch, "sequence": newest.sequence, "digest": newest.digest},
    }
    return json.dumps(document, indent=2).encode() + b"\n"


MANIFEST_HEAD: Final = (
    _MODELINE.format(up="../..", kind="manifest")
    + """
# The files of one model version, written by `reconcile model add`. The digest of this file is the model's identity.
"""
)


def manifest(name: str, version: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest document.

    Args:
        name: the model's name.
        version: its version.
        spec: format, files and pieces, in wire form.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelManifest",
        "metadata": {"name": name, "version": version},
        "spec": dict(spec),
    }
