"""Every reason by its name; publishes what each means and what to do about it: `python -m schemas.reasons`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas import errors, refusals
from schemas.errors import Operational, ReconcileError, Terminal, Transient
from schemas.refusals import NotTrusted

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parent.parent / "docs" / "reference" / "reasons.md"
"""Where the page lies in the project's repository; it is not part of the distribution."""

_DO: Final = "Do:"
_ROOMS: Final = (errors.__name__, refusals.__name__)
_GROUPS: Final[tuple[tuple[type[ReconcileError], str], ...]] = (
    (NotTrusted, "Desired state that is not trusted"),
    (Transient, "What passes by itself"),
    (Terminal, "What fails again until something changes"),
    (Operational, "What waits for a person"),
)
RETRY: Final = {
    "backoff": "tried again by itself, at growing intervals",
    "on-change": "looked at again when its subject changes",
    "operator": "waits for a person",
}
"""What a node does by itself after a failure, by the error's retry policy."""
_INTRODUCTION: Final = """\
# Reasons

Every refusal and failure carries one of these names: on the command line (`error: NAME: ...`), in the conditions of
`reconcile status`, in `reconcile events`, and as `reason` in every JSON document. Names are stable; the sentences after
them are not. This page is made from [`schemas/errors.py`](../../schemas/errors.py) and
[`schemas/refusals.py`](../../schemas/refusals.py) by `make docs`.

The exit code is that of a command whose outcome is this reason. As a remark beside something that is well (a lagging
mirror beside a good one, a snapshot that nears its end) a reason changes no exit code, and what serves goes on
whichever of them it is: only `Withdrawn` stops anything.
"""


def reasons() -> dict[str, type[ReconcileError]]:
    """Every reason that can be given, by name, in the order of the page. Groups such as `NotTrusted` are none."""
    found: dict[str, type[ReconcileError]] = {}

    def collect(cls: type[ReconcileError]) -> None:
        # Whoever derives errors of their own elsewhere adds no reason.
        below = [item for item in cls.__subclasses__() if item.__module__ in _ROOMS]
        if not below:
            found[cls.__name__] = cls
        for item in below:
            collect(item)

    for group, _ in _GROUPS:
        collect(group)
    return found


def meaning(cls: type[ReconcileError]) -> tuple[str, str]:
    """What a reason means, and what to do about it.

    Raises:
        ValueError: its docstring does not say both.
    """
    text = " ".join((inspect.getdoc(cls) or "").split())
    what, found, do = text.partition(f" {_DO} ")
    if not (found and what and do):
        raise ValueError(f'{cls.__name__}: the docstring must say what it means, and after "{_DO}" what to do')
    return what, do[0].upper() + do[1:]


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_INTRODUCTION, *_index(), *(line for cls, title in _GROUPS for line in _group(cls, title))])


def _index() -> Iterator[str]:
    yield "| Reason | Exit code | |"
    yield "|---|---|---|"
    for name, cls in reasons().items():
        yield f"| [`{name}`](#{name.lower()}) | {cls.exit_code} | {RETRY[cls.retry]} |"
    yield ""


def _group(group: type[ReconcileError], title: str) -> Iterator[str]:
    yield f"## {title}\n"
    for name, cls in reasons().items():
        if issubclass(cls, group):
            what, do = meaning(cls)
            yield f"### {name}\n\n{what}\n\nExit code {cls.exit_code}; {RETRY[cls.retry]}.\n\n**What to do.** {do}\n"


def main() -> int:
    """Write the page; with `--check`, only say whether it is fresh (exit code 1 if not)."""
    fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
    if not fresh and "--check" not in sys.argv:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    print("the reasons are fresh" if fresh else PAGE.name)  # noqa: T201 - a chore that reports
    return 1 if not fresh and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
