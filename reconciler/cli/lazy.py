"""Commands that are imported when they are called: `reconcile --help` costs what click costs, and no more."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is defined, and what the overview says of it without importing it."""

    target: str
    """`module:attribute`."""
    help: str
    """One line, imperative."""


class OrderedGroup(click.Group):
    """A group that lists its commands in the order in which a person needs them, not alphabetically."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of definition."""
        return list(self.commands)


class LazyGroup(click.Group):
    """A group whose commands stand in a static table, in sections.

    Args:
        sections: by heading, commands by name, in the order of the overview.
        arguments: everything else that `click.Group` takes.
    """

    def __init__(self, *arguments: Any, sections: Mapping[str, Mapping[str, Lazy]], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of the overview."""
        return [name for section in self._sections.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one command."""
        found = next((section[cmd_name] for section in self._sections.values() if cmd_name in section), None)
        if found is None:
            return None
        module, _, attribute = found.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{found.target} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """The overview, from the table alone."""
        width = max(len(name) for section in self._sections.values() for name in section)
        for title, section in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), lazy.help) for name, lazy in section.items()])
