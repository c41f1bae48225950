"""Runs git, and the child that makes mirrors: bounded in time, in words, and in what settings they see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from desired_state.git_safety import environment, scrub
from schemas.errors import SourceUnreachable
from schemas.refusals import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from schemas.ports import Completed, Ports

_ROOT: Final = Path("/")
"""Where git runs: in no repository, so that no repository's configuration applies."""
_LOCAL_TIMEOUT: Final = 30.0
"""Seconds for reading objects of the mirror: a thousand times what it takes."""
_WORDS_LIMIT: Final = 2**16
"""Bytes that are read of what git prints about a server: a commit, or why there is none."""


class GitCalls:
    """The way to git.

    Args:
        ports: the outside.
        timeout: seconds of one operation with somebody else's server.
        settings: the agent's own environment; see `desired_state.git_safety.environment`.
    """

    def __init__(self, ports: Ports, *, timeout: float, settings: Mapping[str, str]) -> None:
        self._ports = ports
        self._timeout = timeout
        self._environment = environment(settings)

    def objects(
        self, repository: Path, arguments: Sequence[str], *, stdin: bytes = b"", max_output: int = 2**20
    ) -> bytes:
        """What a git command prints about objects or refs of a local repository.

        Raises:
            SourceUnreachable: the repository is damaged.
        """
        done = self.local(repository, arguments, stdin=stdin, max_output=max_output)
        if done.returncode != 0:
            raise SourceUnreachable(
                f"{repository}: {words(done)}", hint="the mirror can be removed; it is fetched again"
            )
        return done.stdout

    def local(
        self, repository: Path, arguments: Sequence[str], *, stdin: bytes = b"", max_output: int = 2**20
    ) -> Completed:
        """Run git on a local repository, however it ends.

        Raises:
            SourceUnreachable: git does not end, says too much, or is not here.
        """
        command = ("git", f"--git-dir={repository}", *arguments)
        return self._run(command, str(repository), stdin=stdin, timeout=_LOCAL_TIMEOUT, max_output=max_output)

    def remote(
        self,
        command: Sequence[str],
        url: str,
        *,
        extra: Mapping[str, str] | None = None,
        memory: int | None = None,
        file_size: int | None = None,
        max_output: int = _WORDS_LIMIT,
    ) -> Completed:
        """Run what talks to somebody else's server, whose lists and words need not end.

        Raises:
            SourceUnreachable: it does not end in time.
            LimitExceeded: it says more than anybody wants to know.
        """
        try:
            return self._run(
                command,
                url,
                timeout=self._timeout,
                max_output=max_output,
                extra=extra,
                memory=memory,
                file_size=file_size,
            )
        except SourceUnreachable as error:
            if isinstance(error.__cause__, OverflowError):
                raise LimitExceeded(f"says more than {max_output} bytes", file=scrub(url)) from error
            raise

    def _run(
        self,
        command: Sequence[str],
        subject: str,
        *,
        stdin: bytes = b"",
        timeout: float,
        max_output: int,
        extra: Mapping[str, str] | None = None,
        memory: int | None = None,
        file_size: int | None = None,
    ) -> Completed:
        try:
            return self._ports.processes.run(
                command,
                timeout=timeout,
                max_output=max_output,
                env={**self._environment, **(extra or {})},
                cwd=_ROOT,
                stdin=stdin,
                memory=memory,
                file_size=file_size,
            )
        except TimeoutError as error:
            raise SourceUnreachable(f"{scrub(subject)}: no answer within {timeout:g} seconds") from error
        except OverflowError as error:
            raise SourceUnreachable(f"{scrub(subject)}: git printed more than {max_output} bytes") from error
        except OSError as error:
            raise SourceUnreachable(f"git cannot be started: {error.strerror}", hint="install git") from error


def words(done: Completed) -> str:
    """What git says went wrong, without secrets."""
    return scrub(done.stderr.decode(errors="replace")) or f"git ended with status {done.returncode}"
