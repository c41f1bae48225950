"""Models that lie elsewhere: read once over the network, to be approved."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.cli.operators import ports
from reconciler.cli.progress import reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.models.manifest_builder import BuiltManifest

_CONNECTIONS: Final = 4
_STALL: Final = 30.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that was read where it lies."""

    built: BuiltManifest
    address: str
    """Where nodes find exactly what was read."""
    heads: Path
    """Folder of sparse files with the heads of the weights."""


@contextmanager
def read_hub(address: str, include: Sequence[str], exclude: Sequence[str]) -> Iterator[RemoteModel]:
    """Read a repository of a hub, and check it against the digests that the hub publishes.

    Args:
        address: `hf://org/repo@revision`.
        include: patterns of files that are wanted; all if none is given.
        exclude: patterns of files that are not.

    Raises:
        UsageError, SourceUnreachable, Incompatible, ModelCorrupt, DownloadFailed: see `RemoteReading.build`.
    """
    from runtime.models.hub import list_repository
    from runtime.models.reach import HUB, Reach
    from runtime.models.remote import open_remote
    from runtime.models.remote_reading import RemoteReading
    from runtime.secrets import Secrets
    from schemas.access import HubAccess, SecretRef, SourceAccess
    from schemas.node import SourcePolicy

    reach = Reach(environment=os.environ)
    found = list_repository(address, endpoint=reach.hub, include=include, exclude=exclude)
    if found.token:
        reach = Reach(
            settings=SourceAccess(hub=HubAccess(secret="hub")),  # noqa: S106 - a name
            secrets=Secrets({"hub": SecretRef(environment="HF_TOKEN")}, {"HF_TOKEN": found.token}),
            environment=os.environ,
        )
    # A hub that the operator named may be plain and private; the public one has no business in private networks.
    policy = SourcePolicy(allow_http=reach.hub.startswith("http://"), allow_private=reach.hub != HUB)
    outside = ports()
    source = open_remote(found.address, policy, stall=_STALL, clock=outside.clock, reach=reach)
    with (
        tempfile.TemporaryDirectory(prefix="reconcile-") as folder,
        reading({file.path: file.size for file in found.files}) as told,
    ):
        heads = Path(folder)
        work = RemoteReading(source, connections=_CONNECTIONS, clock=outside.clock, stop=outside.stop, told=told)
        yield RemoteModel(work.build(found.files, heads, skipped=found.skipped), found.address, heads)
