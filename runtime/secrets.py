"""Secrets of the node, read at the moment of use: so a rotated one counts at once, and none stays in memory.

A secret is never part of an error, a log line or a representation. What reads one hands it to the one thing that needs
it, and keeps no other copy.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.access import SecretRef

_LIMIT: Final = 2**14
"""Bytes of a secret: the longest tokens in use have about four thousand."""

_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
"""What may stand in the head of a request: a line break in a token would be a second header."""


class Secrets:
    """The secrets that the node's configuration names."""

    def __init__(
        self, places: Mapping[str, SecretRef] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Know where they are; nothing is read yet.

        Args:
            places: by name.
            environment: variables; the process's own if not given.
        """
        self._places = dict(places or {})
        self._environment = os.environ if environment is None else environment

    def read(self, name: str) -> str:
        """A secret, without the line break that editors put at its end.

        Raises:
            ConfigError: it is not there, others may read it, or it is no printable text. The message names the
                secret and its place.
        """
        place = self._places.get(name)
        if place is None:
            raise ConfigError(f"there is no secret {name!r} in the node's configuration")
        if place.environment is not None:
            value = self._environment.get(place.environment, "")
            where = f"the variable {place.environment}"
        elif place.credential is not None:
            folder = self._environment.get("CREDENTIALS_DIRECTORY")
            if not folder:
                raise ConfigError(f"the secret {name!r} is a systemd credential, and the agent was given none")
            where = f"the credential {place.credential}"
            # systemd keeps these from others itself, by an access list that looks like a group permission.
            value = _content(Path(folder) / place.credential, name, private=False)
        else:
            where = str(place.file)
            value = _content(Path(where), name, private=True)
        value = value.rstrip("\r\n")
        if not _PRINTABLE.fullmatch(value):
            raise ConfigError(f"the secret {name!r} ({where}) is empty, or not one line of printable ASCII")
        return value


def _content(path: Path, name: str, *, private: bool) -> str:
    """A file's text; refused where others may read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            seen = os.fstat(descriptor)
            _check(seen, path, name, private=private)
            content = os.read(descriptor, _LIMIT + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"the secret {name!r} cannot be read: {path}: {error.strerror or error}") from error
    if len(content) > _LIMIT:
        raise ConfigError(f"the secret {name!r} ({path}) is longer than {_LIMIT} bytes")
    # Not the codec's error: it would carry the bytes.
    return content.decode("latin-1")


def _check(seen: os.stat_result, path: Path, name: str, *, private: bool) -> None:
    if not stat.S_ISREG(seen.st_mode):
        raise ConfigError(f"the secret {name!r} ({path}) is not a regular file")
    if private and seen.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"the secret {name!r} ({path}) belongs to another user", hint="its owner must be the agent's user, or root"
        )
    if private and seen.st_mode & 0o077:
        raise ConfigError(
            f"the secret {name!r} ({path}) can be read by others: its mode must be 0600", hint=f"chmod 600 {path}"
        )
