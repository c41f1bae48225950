"""From an address in a snapshot to a source that is asked over http: `https://`, `hf://`, `s3://`.

All of them end in the same ranged requests, so that what is verified, limited and re-checked is so for all alike. What
differs is where the files lie, and how the other side is told who asks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from runtime.models.addresses import locate
from runtime.models.http_source import HttpSource
from runtime.models.reach import Reach
from runtime.models.sources import Refused, shown
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from runtime.models.addresses import Location
    from schemas.node import SourcePolicy
    from schemas.ports import Clock

_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_HUB: Final = re.compile(
    rf"hf://(?P<repo>{_PART}/{_PART}|{_PART}(?=@))(@(?P<revision>refs/(pr|convert)/{_PART}|[^/@?#]{{1,255}}))?"
    r"(/(?P<folder>[^?#]*))?"
)
"""`hf://org/repo@revision/folder`, as `huggingface_hub` has it; slashes of a revision are encoded, but in `refs/`."""

_STORE: Final = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,62})(/(?P<prefix>[^?#]*))?")


def open_remote(
    address: str, policy: SourcePolicy, *, stall: float, clock: Clock, reach: Reach | None = None
) -> HttpSource:
    """The adapter for an address that is reached over the network; see `open_source`.

    Raises:
        Refused: it is not such an address, or is not allowed, or its secret cannot be read.
    """
    reach = reach if reach is not None else Reach()
    scheme = address.partition("://")[0].lower()
    try:
        if scheme == "hf":
            base = hub_location(address, policy, reach)
            return HttpSource(base, policy, stall=stall, clock=clock, reach=reach, shown=shown(address))
        if scheme == "s3":
            return _store_source(address, policy, stall=stall, clock=clock, reach=reach)
        base = locate(address, policy)
        if not base.authorization:
            base = replace(base, authorization=reach.authorization(base))
    except ConfigError as error:
        raise Refused(error.message) from error
    return HttpSource(base, policy, stall=stall, clock=clock, reach=reach)


def parse_hub(address: str) -> tuple[str, str, str]:
    """Repository, revision and folder of an `hf://` address.

    Raises:
        Refused: it is not one.
    """
    match = _HUB.fullmatch(address)
    if match is None:
        raise Refused("an hf:// address has the form hf://org/repo@revision")
    revision = unquote(match["revision"] or "main")
    if not re.fullmatch(r"[!-~]{1,255}", revision) or ".." in revision:
        raise Refused("an hf:// address has the form hf://org/repo@revision, with a commit, tag or branch")
    return match["repo"], revision, _clean(match["folder"] or "")


def hub_location(address: str, policy: SourcePolicy, reach: Reach) -> Location:
    """Where the files of a repository lie, and the token for them.

    Raises:
        Refused: the address cannot be used.
        ConfigError: the token cannot be read.
    """
    repository, revision, folder = parse_hub(address)
    base = locate(f"{reach.hub}/{repository}/resolve/{quote(revision, safe='')}", policy)
    return replace(base.child(folder) if folder else base, authorization=reach.hub_authorization())


def _store_source(address: str, policy: SourcePolicy, *, stall: float, clock: Clock, reach: Reach) -> HttpSource:
    match = _STORE.fullmatch(address)
    if match is None:
        raise Refused("an s3:// address has the form s3://bucket/prefix")
    bucket, prefix = match["bucket"], _clean(match["prefix"] or "")
    store = reach.store(bucket)
    if store.endpoint is not None:
        base = locate(store.endpoint, policy).child(bucket)
    elif "." in bucket:  # its name cannot stand in a certificate's
        base = locate(f"https://s3.{store.region}.amazonaws.com/{bucket}", policy)
    else:
        base = locate(f"https://{bucket}.s3.{store.region}.amazonaws.com", policy)
    base = base.child(prefix) if prefix else base
    sign = None
    if store.chain or store.access_key is not None:
        from runtime.models.object_store import signer  # noqa: PLC0415 - the SDK costs 110 ms and 20 MiB

        sign = signer(store, reach.secrets)
    return HttpSource(base, policy, stall=stall, clock=clock, reach=reach, shown=shown(address), sign=sign)


def _clean(path: str) -> str:
    """A path, encoded in the one way that signatures are made over.

    Raises:
        Refused: a segment would leave the folder.
    """
    plain = unquote(path).strip("/")
    if any(part in ("", ".", "..") for part in plain.split("/")) and plain:
        raise Refused("its path has an empty, . or .. segment")
    return quote(plain, safe="/-._~")
