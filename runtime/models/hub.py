"""What a Hugging Face hub has, as its own client reads it: for operators who approve models. Nodes do not need it.

The only importer of huggingface_hub, of which the listing alone is used: revisions resolved to commits, files with the
digests that the hub publishes, the token that the operator is logged in with. Files are then read by this project's
own requests (docs/adr/0010-model-sources.md).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.models.remote import parse_hub
from runtime.models.remote_reading import RemoteFile, left_out
from runtime.models.sources import Refused
from schemas.errors import Incompatible, SourceUnreachable, UsageError
from schemas.manifest import MAX_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from huggingface_hub import RepoFile


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit."""

    address: str
    """`hf://org/repo@commit`: what a snapshot should name."""
    files: tuple[RemoteFile, ...]
    skipped: tuple[str, ...]
    """Left out: hidden, refused by nodes, or not asked for."""
    token: str
    """What the operator is logged in with; "" if not. Never printed."""

    def __repr__(self) -> str:
        """Without the token."""
        return f"HubRepository({self.address})"


def list_repository(
    address: str, *, endpoint: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> HubRepository:
    """Look a repository up.

    Args:
        address: `hf://org/repo@revision`; without a revision, its main branch.
        endpoint: the hub.
        include: patterns of files that are wanted, as in `hf download`; all if none is given.
        exclude: patterns of files that are not.

    Raises:
        UsageError: the address is none, nothing is there under it, or the client is not installed.
        Incompatible: it has more files than a manifest may have.
        SourceUnreachable: the hub does not answer, or not as a hub.
    """
    try:
        from huggingface_hub import HfApi, RepoFile, get_token  # noqa: PLC0415 - 220 ms and 24 MiB
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "reading hf:// needs the hub's client", hint="pip install 'inference-reconciler[hf]'"
        ) from error
    try:
        repository, revision, folder = parse_hub(address)
    except Refused as error:
        raise UsageError(str(error)) from error
    if folder:
        raise UsageError("a repository is added as a whole", hint=f"choose files with --include '{folder}/*'")
    token = get_token() or ""
    api = HfApi(endpoint=endpoint, token=token or False, library_name="inference-reconciler")
    with _errors(endpoint, repository, revision):
        commit = api.model_info(repository, revision=revision).sha or ""
        tree = api.list_repo_tree(repository, recursive=True, revision=commit)
        found = [_remote(entry) for entry in tree if isinstance(entry, RepoFile)]
    if not commit:
        raise SourceUnreachable(f"{endpoint} does not say which commit {revision} of {repository} is")
    asked = set(
        filter_repo_objects(
            [file.path for file in found], allow_patterns=list(include) or None, ignore_patterns=list(exclude) or None
        )
    )
    files = tuple(file for file in found if file.path in asked and not left_out(file.path))
    if len(files) > MAX_FILES:
        raise Incompatible(f"{repository} has {len(files)} files; a model has {MAX_FILES} at most")
    return HubRepository(
        address=f"hf://{repository}@{commit}",
        files=files,
        skipped=tuple(sorted({file.path for file in found} - {file.path for file in files})),
        token=token,
    )


def _remote(entry: RepoFile) -> RemoteFile:
    """A file as the hub lists it: large ones by SHA-256 (git LFS), the others by their git object id."""
    lfs = entry.lfs
    return RemoteFile(
        path=entry.path,
        size=entry.size,
        sha256=lfs.sha256 if lfs is not None else "",
        git_blob=entry.blob_id if lfs is None else "",
    )


@contextmanager
def _errors(endpoint: str, repository: str, revision: str) -> Iterator[None]:
    """The client's errors, as ours."""
    from huggingface_hub import errors  # noqa: PLC0415 - as above

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(f"{repository} is gated", hint=f"ask for access on its page, then {login}") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{repository} has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        message = f"{endpoint} has no model repository {repository}, or shows it to others only"
        raise UsageError(message, hint=f"if it is private: {login}") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repository} is not the name of a repository") from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", "no status")
        raise SourceUnreachable(f"{endpoint} answered {status} when asked for {repository}") from error
    except Exception as error:
        # The client's own http library shows through, and its errors are of no common kind.
        raise SourceUnreachable(f"{endpoint} does not answer as a hub: {type(error).__name__}") from error
