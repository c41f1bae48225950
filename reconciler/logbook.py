"""What the daemon writes to its log: a line for people, or one JSON object a line for programs; secrets in neither.

Nothing that is logged is made from a secret (`runtime.secrets` hands one to whoever needs it, and to nobody else). What
stands here is the second line: what looks like one is taken out of every line, whoever wrote it, libraries included.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from typing import TextIO

Form = Literal["human", "json"]

HIDDEN: Final = "[hidden]"

_SECRETS: Final = (
    # Users and passwords in addresses (RFC 3986, 3.2.1).
    (re.compile(r"(?<=://)[^/\s@\"']+(?=@)"), HIDDEN),
    # What requests carry: RFC 7235, 6750 and their likes, up to the end of the line or of the quotation.
    (re.compile(r"(?i)((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)[^'\"\r\n]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    # Words that are followed by a secret, in queries, headers and settings; signed addresses of object stores.
    (
        re.compile(
            r"(?i)\b([a-z0-9_-]*(?:passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key|signature|credential)"
            r"(?:_id)?['\"]?\s*[=:]\s*['\"]?)(?!blake3:)[^\s&'\",;]{4,}"
        ),
        rf"\1{HIDDEN}",
    ),
    # Tokens that say what they are: hubs', git hosts', object stores'.
    (re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|AKIA|ASIA)[A-Za-z0-9_-]{8,}"), HIDDEN),
)

_NAMES: Final = re.compile(r"(?i)passw(or)?d|secret|api[_-]?key|access[_-]?key|authorization|(^|[_-])token$")
"""What a field is called whose value is one."""

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def clean(text: str) -> str:
    """A text without what looks like a secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _cleaned(name: str, value: object) -> Any:
    """A field as it may be written, however deep: what is called a secret is none of a reader's business."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _cleaned(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(name, item) for item in value]
    return HIDDEN if _NAMES.search(name) else clean(str(value))


class Lines(logging.Formatter):
    """For people: when, how grave, and what."""

    def __init__(self) -> None:
        """As journals and terminals show it."""
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        return clean(super().format(record))


class Objects(logging.Formatter):
    """For programs: one JSON object a line. Fields that a line was written with (`extra`) are fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": clean(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _OWN:
                document[name] = _cleaned(name, value)
        if record.exc_info:
            document["traceback"] = clean(self.formatException(record.exc_info))
        return json.dumps(document, ensure_ascii=False)


def set_up(form: Form, level: str = "info", stream: TextIO | None = None) -> None:
    """Send everything that is logged to one place, in one form; again, when the configuration changes.

    Args:
        form: for people or for programs.
        level: of the least grave line that is written: `debug`, `info`, `warning` or `error`.
        stream: standard error if not given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Objects() if form == "json" else Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It reports every file that changes; what comes of that is in our own lines.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    # It writes the path of each request when it may, and the path of a webhook is often all that keeps others out.
    logging.getLogger("urllib3").setLevel(logging.INFO)
