"""Imports while a daemon runs: it owns the state directory, so it is asked, by a file, and answers by one.

The request outlives whoever wrote it and whoever reads it: a daemon that was killed halfway goes on when it is back,
and without a daemon the next import does what was asked for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import StringConstraints

from reconciler.bundles.importing import Imported
from schemas.base import Frozen
from schemas.errors import ReconcileError
from schemas.failure import Failure, error_of, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reconciler.state_dir import StateDir
    from schemas.ports import Files

LOG = logging.getLogger("reconcile")

_LIMIT: Final = 2**20
Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class Request(Frozen):
    """A bundle that is to be imported."""

    format_version: Literal["1"] = "1"
    token: Token
    """Names this request, so that its answer is known."""
    path: Annotated[str, StringConstraints(pattern=r"^/[^\x00]{1,4094}$")]
    """The bundle."""


class Answer(Frozen):
    """What became of a request."""

    format_version: Literal["1"] = "1"
    token: Token
    failure: Failure | None = None
    imported: Imported | None = None


@dataclass(frozen=True, slots=True)
class Desk:
    """Where requests and answers lie."""

    state: StateDir
    files: Files

    @property
    def _request(self) -> Path:
        return self.state.imports / "request.json"

    @property
    def _answer(self) -> Path:
        return self.state.imports / "answer.json"

    # --- who asks -------------------------------------------------------------------------------------------------

    def ask(self, path: Path, token: str) -> None:
        """Ask for an import; a request that nobody has taken yet gives way."""
        self.files.make_folder(self.state.imports, mode=0o700)
        self.files.write(self._request, Request(token=token, path=str(path)).to_json().encode(), mode=0o644)

    def withdraw(self, token: str) -> None:
        """Take a request back that was not answered."""
        if (request := self.pending()) is not None and request.token == token:
            self.files.remove(self._request)

    def answer(self, token: str) -> Imported | None:
        """What became of a request, None while nothing has.

        Raises:
            ReconcileError: the import failed, with the reason that it failed with.
        """
        try:
            answer = Answer.model_validate_json(self._answer.read_bytes())
        except (OSError, ValueError):
            return None
        if answer.token != token:
            return None
        if answer.failure is not None:
            raise error_of(answer.failure)
        return answer.imported

    # --- who is asked ---------------------------------------------------------------------------------------------

    def pending(self) -> Request | None:
        """The request that waits; one that cannot be read is as good as none."""
        try:
            with self._request.open("rb") as file:
                return Request.model_validate_json(file.read(_LIMIT))
        except (OSError, ValueError):
            return None

    def serve(self, run: Callable[[str], Imported]) -> None:
        """Do what is asked for, if anything is. What fails is answered, and does not end whoever serves.

        Args:
            run: imports the bundle at a path.
        """
        request = self.pending()
        if request is None:
            return
        LOG.info("importing %s", request.path)
        try:
            answer = Answer(token=request.token, imported=run(request.path))
        except (ReconcileError, OSError) as error:
            answer = Answer(token=request.token, failure=failure_of(error))
            LOG.error("%s was not imported: %s", request.path, error)  # noqa: TRY400 - a refusal is an answer
        # First the answer, then the request: a crash between the two imports once more, which changes nothing.
        self.files.write(self._answer, answer.to_json().encode(), mode=0o644)
        self.withdraw(request.token)
