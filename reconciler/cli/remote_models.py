"""Models that lie elsewhere: read once over the network, to be approved."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from reconciler.cli.operators import ports
from reconciler.cli.progress import reading
from schemas.errors import DownloadFailed, UsageError
from schemas.manifest import HASH_SIZE, PIECE_SIZE
from schemas.node import SourcePolicy
from schemas.refusals import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from runtime.models.manifest_builder import BuiltManifest
    from runtime.models.remote_reading import RemoteFile

_ALLOW: Final = "--allow-http and --allow-private allow what is refused by default"
_CONNECTIONS: Final = 4
_STALL: Final = 30.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that was read where it lies."""

    built: BuiltManifest
    sources: Sequence[str]
    """Where nodes find it."""
    heads: Path
    """File or folder, sparse, with the heads of the weights at least."""


def read(address: str, given: Mapping[str, Any]) -> AbstractContextManager[RemoteModel]:
    """Read a model where it lies.

    Args:
        address: a web address of one file, or an `hf://` one of a repository.
        given: the options of `reconcile model add`.

    Raises:
        UsageError: an option does not go with the address; see `read_url` and `read_hub` for the rest.
    """
    if address.startswith("hf://"):
        if given["keep"] is not None:
            raise UsageError("--keep keeps a file that is read from a URL", hint="`hf download` keeps a repository")
        return read_hub(address, given["include"], given["exclude"], sources=given["sources"])
    if given["include"] or given["exclude"]:
        raise UsageError("--include and --exclude choose among the files of an hf:// repository")
    policy = SourcePolicy(allow_http=given["allow_http"], allow_private=given["allow_private"])
    return read_url(address, policy, keep=given["keep"], sources=given["sources"])


@contextmanager
def read_url(url: str, policy: SourcePolicy, *, keep: Path | None, sources: Sequence[str]) -> Iterator[RemoteModel]:
    """Read a model of one file from a web address.

    Args:
        url: `https://...`; its folder is the source where no other is named.
        policy: what may be asked.
        keep: a folder that gets the file; only its head is kept, for a while, otherwise.
        sources: where nodes find it; required if the address has a login or a query, which would be published.

    Raises:
        UsageError: it names no file, or is not for everybody to know.
        LimitExceeded: larger than any manifest describes.
        Incompatible, DownloadFailed: see `RemoteReading.build`.
    """
    from runtime.models.manifest_builder import check_name
    from runtime.models.remote_reading import RemoteFile, RemoteReading
    from runtime.models.sources import Refused, open_source

    parts = urlsplit(url)
    above, _, last = parts.path.rpartition("/")
    if not parts.netloc or not last:
        raise UsageError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} does not name a file")
    if not sources and (parts.query or "@" in parts.netloc):
        raise UsageError(
            "the URL has a login or a query, which would be published",
            hint="name the address for nodes with --source",
        )
    name = check_name(unquote(last))
    base = f"{parts.scheme}://{parts.netloc}{above}" + (f"?{parts.query}" if parts.query else "")
    outside = ports()
    if keep is not None:
        outside.files.make_folder(keep)
    with tempfile.TemporaryDirectory(prefix="reconcile-", dir=keep) as scratch, reading() as told:
        folder = Path(scratch)
        try:
            source = open_source(base, policy, stall=_STALL, clock=outside.clock)
            work = RemoteReading(source, connections=_CONNECTIONS, clock=outside.clock, stop=outside.stop, told=told)
            files = [RemoteFile(name, work.measure(name))]
            _check_size(source.shown, files)
            built = work.build(files, folder, whole=keep is not None)
        except Refused as error:
            raise DownloadFailed(f"{parts.netloc.rpartition('@')[2]}: {error}", hint=_ALLOW) from error
        except DownloadFailed as error:
            error.hint = error.hint or (_ALLOW if isinstance(error.__cause__, Refused) else "")
            raise
        if keep is not None:
            outside.files.sync_file(folder / name)
            outside.files.rename(folder / name, keep / name)
        yield RemoteModel(built, tuple(sources) or (base,), (keep or folder) / name)


@contextmanager
def read_hub(
    address: str, include: Sequence[str], exclude: Sequence[str], *, sources: Sequence[str]
) -> Iterator[RemoteModel]:
    """Read a repository of a hub, and check it against the digests that the hub publishes.

    Args:
        address: `hf://org/repo@revision`.
        include: patterns of files that are wanted; all if none is given.
        exclude: patterns of files that are not.
        sources: where nodes find it, too; the commit behind the revision comes first.

    Raises:
        LimitExceeded: larger than any manifest describes.
        UsageError, SourceUnreachable, Incompatible, ModelCorrupt, DownloadFailed: see `RemoteReading.build`.
    """
    from runtime.models.hub import list_repository
    from runtime.models.reach import HUB, Reach
    from runtime.models.remote import open_remote
    from runtime.models.remote_reading import RemoteReading
    from runtime.secrets import Secrets
    from schemas.access import HubAccess, SecretRef, SourceAccess

    reach = Reach(environment=os.environ)
    found = list_repository(address, endpoint=reach.hub, include=include, exclude=exclude)
    _check_size(found.address, found.files)
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
        built = work.build(found.files, heads, skipped=found.skipped)
        yield RemoteModel(built, tuple(dict.fromkeys((found.address, *sources))), heads)


def _check_size(where: str, files: Sequence[RemoteFile]) -> None:
    """Refuse what no manifest describes before it is read: a size is only what somebody says.

    Raises:
        LimitExceeded: its pieces file would be larger than nodes read.
    """
    from desired_state.load import PIECES_LIMIT

    limit = PIECES_LIMIT // HASH_SIZE
    if sum(-(-file.size // PIECE_SIZE) for file in files) > limit:
        total = sum(file.size for file in files)
        raise LimitExceeded(f"{where} claims {total} bytes, and a model has {limit * PIECE_SIZE} at most")
