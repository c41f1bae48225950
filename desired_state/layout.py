"""Where a network's documents lie in its repository."""

from __future__ import annotations

import re
from typing import Final

_TRUST_FILE: Final = re.compile(r"([1-9][0-9]{0,8})\.yaml")
_SIGNATURE_FILE: Final = re.compile(r"0x[0-9a-fA-F]{40}\.json")


def network_folder(network: str) -> str:
    """The folder of a network."""
    return f"networks/{network}"


def snapshot_file(network: str) -> str:
    """The snapshot. The form is part of the name, so that two forms can lie side by side during a change."""
    return f"networks/{network}/snapshot.v1alpha1.yaml"


def snapshot_signatures(network: str) -> str:
    """The folder with one signature file per signer of the snapshot: no merge conflicts."""
    return f"networks/{network}/snapshot.sigs"


def timestamp_file(network: str) -> str:
    """The timestamp, of networks whose trust has that role."""
    return f"networks/{network}/timestamp.json"


def timestamp_signatures(network: str) -> str:
    """The folder with the signature files of the timestamp."""
    return f"networks/{network}/timestamp.sigs"


def trust_folder(network: str) -> str:
    """The folder of the trust documents."""
    return f"networks/{network}/trust"


def trust_file(network: str, version: int) -> str:
    """A trust document."""
    return f"networks/{network}/trust/{version}.yaml"


def trust_signatures(network: str, version: int) -> str:
    """The folder with the signature files of a trust document."""
    return f"networks/{network}/trust/{version}.sigs"


def signature_name(address: str) -> str:
    """The name of a signer's file in a folder of signatures."""
    return f"{address}.json"


def is_signature(name: str) -> bool:
    """Whether a file of a folder of signatures is one."""
    return _SIGNATURE_FILE.fullmatch(name) is not None


def trust_version(name: str) -> int:
    """The version that a file name of the trust folder promises; 0 for any other file."""
    match = _TRUST_FILE.fullmatch(name)
    return int(match.group(1)) if match is not None else 0
