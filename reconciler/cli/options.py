"""Types and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from schemas.base import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable


def seconds(text: str) -> int:
    """A duration of the documents' grammar, in seconds.

    Raises:
        click.BadParameter: not one.
    """
    return _parsed(parse_duration, text)


def _parsed(parse: Callable[[Any], Any], text: str) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from error


class DurationType(click.ParamType[int]):
    """`30s`, `10m`, `6h`, `7d`, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        """Parse; an int passes."""
        return _parsed(parse_duration, value)


class SizeType(click.ParamType[int]):
    """`512MiB`, `32GiB`, as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        """Parse; an int passes."""
        return _parsed(parse_size, value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
