"""An operator's working copy of a network's repository: what is being written, and what was committed before it.

Reading goes through the same reader as everywhere (no links, no escapes); git is asked for committed bytes as objects,
so that no filter has a say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from desired_state import layout
from desired_state.document import SIGNATURE_LIMIT, SNAPSHOT_LIMIT, load_json
from desired_state.files import FolderFiles, check_path
from desired_state.git_calls import GitCalls
from desired_state.git_files import CommitFiles
from desired_state.git_safety import environment
from schemas.digests import digest_bytes
from schemas.errors import ConfigError, UsageError
from schemas.refusals import DocumentError, MissingDocument
from schemas.trust import SignatureFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.ports import Ports

_GIT_TIMEOUT: Final = 30.0
"""Seconds for one object of a local repository: a thousand times what it takes."""
_NO_REPOSITORY: Final = b"not a git repository"


class Workspace:
    """A folder that holds a network's documents, inside a git work tree or not.

    Args:
        root: the folder, where `networks/` lies.
        network: the network that is worked on.
        ports: processes and durable writes.
        env: environment of git.
    """

    def __init__(self, root: Path, network: str, *, ports: Ports, env: Mapping[str, str]) -> None:
        self.root = root
        self.network = network
        self.files = FolderFiles(root)
        self._ports = ports
        self._env = environment(env)
        self._git: bool | None = None

    # --- files

    @property
    def snapshot_file(self) -> str:
        """Path of the snapshot."""
        return layout.snapshot_file(self.network)

    @property
    def snapshot_signatures(self) -> str:
        """Folder of the snapshot's signatures."""
        return layout.snapshot_signatures(self.network)

    @property
    def timestamp_file(self) -> str:
        """Path of the timestamp."""
        return layout.timestamp_file(self.network)

    @property
    def timestamp_signatures(self) -> str:
        """Folder of the timestamp's signatures."""
        return layout.timestamp_signatures(self.network)

    def snapshot(self) -> bytes:
        """The snapshot's bytes.

        Raises:
            MissingDocument: there is none yet.
            LimitExceeded: larger than a snapshot may be.
        """
        try:
            return self.files.read(self.snapshot_file, SNAPSHOT_LIMIT)
        except MissingDocument as error:
            error.hint = f"`reconcile snapshot new --network {self.network}` writes one"
            raise

    def read(self, path: str, limit: int) -> bytes | None:
        """A file's bytes; None when it is not there.

        Raises:
            LimitExceeded: larger than `limit` bytes.
            MalformedDocument: not a path inside the repository.
        """
        try:
            return self.files.read(path, limit)
        except MissingDocument:
            return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file, durably.

        Raises:
            MalformedDocument: not a path inside the repository.
            ConfigError: it cannot be written.
        """
        target = self.root / check_path(path)
        try:
            self._ports.files.make_folder(target.parent)
            self._ports.files.write(target, content)
        except OSError as error:
            raise ConfigError(f"{target}: {error.strerror}") from error

    def remove(self, path: str) -> None:
        """Remove a file; fine if it is gone."""
        self._ports.files.remove(self.root / check_path(path))

    def write_new(self, path: str, content: bytes) -> None:
        """Write a file that must not exist yet.

        Raises:
            UsageError: it exists.
        """
        if (self.root / check_path(path)).exists():
            raise UsageError(f"{path} exists already")
        self.write(path, content)

    # --- trust and signatures

    def trust_versions(self) -> tuple[int, ...]:
        """Versions of the trust documents that are there, ascending."""
        names = self.files.list(layout.trust_folder(self.network))
        return tuple(sorted(version for version in map(layout.trust_version, names) if version))

    def signatures(self, folder: str) -> dict[str, SignatureFile]:
        """Readable signature files of a folder, by path."""
        found = {}
        for name in self.files.list(folder):
            path = f"{folder}/{name}"
            content = self.read(path, SIGNATURE_LIMIT) if layout.is_signature(name) else None
            try:
                if content is not None:
                    found[path] = load_json(content, SignatureFile, file=path)
            except DocumentError:
                continue  # whoever counts signatures will say so
        return found

    def drop_signatures(self, folder: str, keep: str = "") -> tuple[str, ...]:
        """Remove signatures over other bytes than those with the digest `keep`; returns whose they were."""
        outdated = {path: file for path, file in self.signatures(folder).items() if file.content != keep}
        for path in outdated:
            self.remove(path)
        return tuple(file.signer for file in outdated.values())

    # --- git

    @property
    def in_git(self) -> bool:
        """Whether the folder lies in a git work tree.

        Raises:
            ConfigError: git refuses to look at it.
        """
        if self._git is None:
            code, _, words = self._ask("rev-parse", "--is-inside-work-tree")
            if code != 0 and _NO_REPOSITORY not in words:
                raise ConfigError(f"git: {words.decode(errors='replace').strip()}")
            self._git = code == 0
        return self._git

    def at(self, revision: str, path: str, *, limit: int) -> bytes | None:
        """A file's bytes as of a revision; None when it was not there, or the revision does not exist.

        Args:
            revision: anything that git resolves: `HEAD`, a branch, a commit.
            path: relative to this folder.
            limit: bytes.

        Raises:
            ConfigError: not in git, or larger than `limit`.
            UsageError: not a revision.
        """
        if not self.in_git:
            raise ConfigError(f"{self.root} is not in a git work tree")
        if revision.startswith("-") or ":" in revision:
            raise UsageError(f"{revision!r} is not a revision")
        code, content, _ = self._ask("cat-file", "blob", f"{revision}:./{check_path(path)}", limit=limit)
        return content if code == 0 else None

    def revision(self, revision: str) -> CommitFiles:
        """The files of a revision, read as a node would read them: from git's objects.

        Raises:
            UsageError: git does not know it.
        """
        if not self.has_revision(revision):
            raise UsageError(f"{revision!r} is not a revision of {self.root}")
        tree = self._ask("rev-parse", "--verify", f"{revision}:./")[1].decode().strip()
        folder = self._ask("rev-parse", "--absolute-git-dir")[1].decode().strip()
        return CommitFiles(GitCalls(self._ports, timeout=_GIT_TIMEOUT, settings=self._env), Path(folder), tree)

    def committed(self, path: str, *, limit: int = SNAPSHOT_LIMIT) -> bytes | None:
        """A file's bytes in the last commit; None outside git, before the first commit, or where it was not there."""
        return self.at("HEAD", path, limit=limit) if self.in_git else None

    def has_revision(self, revision: str) -> bool:
        """Whether git knows a revision."""
        if not self.in_git or revision.startswith("-"):
            return False
        return self._ask("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")[0] == 0

    def was_committed_with_signatures(self, content: bytes) -> bool:
        """Whether the last commit holds signatures over these bytes of the snapshot."""
        if not self.in_git:
            return False
        folder = self.snapshot_signatures
        code, names, _ = self._ask("ls-tree", "--name-only", "HEAD", f"./{folder}/")
        if code != 0:
            return False
        digest = digest_bytes(content)
        for name in names.decode(errors="replace").split():
            raw = self.at("HEAD", f"{folder}/{name.rpartition('/')[2]}", limit=SIGNATURE_LIMIT)
            try:
                if raw is not None and load_json(raw, SignatureFile, file=name).content == digest:
                    return True
            except DocumentError:
                continue
        return False

    def _ask(self, *arguments: str, limit: int = 2**20) -> tuple[int, bytes, bytes]:
        try:
            done = self._ports.processes.run(
                ["git", *arguments], timeout=_GIT_TIMEOUT, max_output=limit, env=self._env, cwd=self.root
            )
        except FileNotFoundError:
            return 128, b"", _NO_REPOSITORY  # a machine without git has no repositories either
        except (TimeoutError, OverflowError, OSError) as error:
            raise ConfigError(f"git: {error}") from error
        return done.returncode, done.stdout, done.stderr


def networks(root: Path) -> tuple[str, ...]:
    """Names of the networks whose documents lie in a folder."""
    folder = root / "networks"
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
