"""`reconcile schema`: the JSON Schemas of every document, for editors and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

import schemas

KINDS: Final = tuple(
    sorted(path.name.partition(".")[0] for path in Path(schemas.__file__).with_name("published").glob("*.json"))
)
"""Every document with a published schema.

Looked up beside the package: the publisher itself would import every document.
"""


@click.group()
def schema() -> None:
    """Print the JSON Schemas of all documents.

    An editor with a YAML language server uses one through a first line like
    `# yaml-language-server: $schema=snapshot.v1alpha1.json`.
    """


@schema.command("list")
def list_() -> None:
    """List the documents that have a schema."""
    for kind in KINDS:
        click.echo(kind)


@schema.command("print")
@click.argument("kind", type=click.Choice(KINDS))
def print_(kind: str) -> None:
    """Print the schema of one document."""
    from importlib.resources import files

    click.echo(files("schemas").joinpath("published", f"{kind}.v1alpha1.json").read_text(encoding="utf-8"), nl=False)
