"""Models that lie elsewhere: read once over the network, to be approved."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from reconciler.cli.operators import ports
from reconciler.cli.progress import reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.models.manifest_builder import BuiltManifest

_ALLOW: Final = "--allow-http and --allow-private allow what is refused by default"
_CONNECTIONS: Final = 4
_STALL: Final = 30.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that was read where it lies."""

    built: BuiltManifest
    address: str
    """Where nodes find exactly what was read; empty where that is not for everybody to know."""
    heads: Path
    """File or folder, sparse, with the heads of the weights at least."""


@contextmanager
def read_url(url: str, *, allow_http: bool, allow_private: bool, keep: Path | None) -> Iterator[RemoteModel]:
    """Read a model of one file from a web address.

    Args:
        url: `https://...`; a login or a query is used and not published: `RemoteModel.address` is empty then.
        allow_http: whether it may be plain http.
        allow_private: whether its address may be private or loopback.
        keep: a folder that gets the file; only its head is kept, for a while, otherwise.

    Raises:
        UsageError: it names no file.
        Incompatible, DownloadFailed: see `RemoteReading.build`.
    """
    from runtime.models.manifest_builder import check_name
    from runtime.models.remote_reading import RemoteFile, RemoteReading
    from runtime.models.sources import Refused, open_source
    from schemas.errors import DownloadFailed, UsageError
    from schemas.node import SourcePolicy

    parts = urlsplit(url)
    above, _, last = parts.path.rpartition("/")
    if not parts.netloc or not last:
        raise UsageError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} does not name a file")
    name = check_name(unquote(last))
    base = f"{parts.scheme}://{parts.netloc}{above}" + (f"?{parts.query}" if parts.query else "")
    outside = ports()
    policy = SourcePolicy(allow_http=allow_http, allow_private=allow_private)
    with tempfile.TemporaryDirectory(prefix="reconcile-", dir=keep) as scratch, reading() as told:
        folder = Path(scratch)
        try:
            source = open_source(base, policy, stall=_STALL, clock=outside.clock)
            work = RemoteReading(source, connections=_CONNECTIONS, clock=outside.clock, stop=outside.stop, told=told)
            built = work.build([RemoteFile(name, work.measure(name))], folder, whole=keep is not None)
        except Refused as error:
            raise DownloadFailed(f"{parts.netloc.rpartition('@')[2]}: {error}", hint=_ALLOW) from error
        except DownloadFailed as error:
            error.hint = error.hint or (_ALLOW if isinstance(error.__cause__, Refused) else "")
            raise
        if keep is not None:
            (folder / name).rename(keep / name)
        yield RemoteModel(built, "" if parts.query or "@" in parts.netloc else base, (keep or folder) / name)


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
