"""Hands an event to whoever should hear of it: a program's standard input, or a webhook.

What is posted is signed by HMAC-SHA256 over its exact bytes, in the form that GitHub made customary
(`sha256=<hex>`): the body carries an id and a time, so that a receiver can tell a repetition from news.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from schemas.errors import NotDelivered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schemas.ports import Processes

PROGRAM_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
SIGNATURE: Final = "X-Reconcile-Signature"
EVENT: Final = "X-Reconcile-Event"

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "TZ")
"""Variables that a program gets: none that could hold a secret of the agent's."""
_SHOWN: Final = 200


class Deliver(Protocol):
    """One way to tell somebody."""

    def __call__(self, event: str, body: bytes) -> None:
        """Hand over an event.

        Args:
            event: its name.
            body: the event, as JSON.

        Raises:
            NotDelivered: it was not taken.
            ConfigError: the secret cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """Runs a program for each event."""

    argv: Sequence[str]
    processes: Processes

    def __call__(self, event: str, body: bytes) -> None:
        """See `Deliver`."""
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            done = self.processes.run(
                self.argv, timeout=PROGRAM_SECONDS, env={**environment, "RECONCILE_EVENT": event}, stdin=body
            )
        except (OSError, TimeoutError, OverflowError) as error:
            raise NotDelivered(f"{self.argv[0]}: {error}") from error
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-_SHOWN:]
            raise NotDelivered(f"{self.argv[0]} ended with {done.returncode}{': ' + words if words else ''}")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Posts each event. Redirects are not followed: a signature is for one address."""

    url: str
    secret: Callable[[], str] | None
    """Reads what signs; None signs nothing."""

    def __call__(self, event: str, body: bytes) -> None:
        """See `Deliver`."""
        import requests  # noqa: PLC0415 - 60 ms, for nodes with webhooks only

        headers = {"Content-Type": "application/json", "User-Agent": "inference-reconciler", EVENT: event}
        if self.secret is not None:
            headers[SIGNATURE] = f"sha256={hmac.new(self.secret().encode(), body, hashlib.sha256).hexdigest()}"
        host = self.url.split("/")[2].rpartition("@")[2]
        try:
            with requests.post(
                self.url,
                data=body,
                headers=headers,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=False,
                stream=True,  # what it answers beyond its status is not read
            ) as answer:
                status = answer.status_code
        except requests.RequestException as error:
            # Not the library's words: they quote the address, which may carry a token.
            raise NotDelivered(f"the webhook at {host} did not answer ({type(error).__name__})") from None
        if not 200 <= status < 300:  # noqa: PLR2004 - the class of success
            raise NotDelivered(f"the webhook at {host} answered {status}")
