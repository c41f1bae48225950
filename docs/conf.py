"""How Sphinx builds this project's site: `make docs`. The pages are Markdown, and read well without it."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "reconcile"
author = "the reconcile authors"
project_copyright = author
release = installed("inference-reconciler")
extensions = ["myst_parser", "sphinx_click"]
exclude_patterns = ["conf.py", "pages.py"]
html_theme = "furo"
html_title = f"reconcile {release}"
html_static_path: list[str] = []
html_copy_source = False
# Headings are addresses, as on a git host: the links between pages work in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nitpicky = True
# Transcripts are not any language's source.
highlight_language = "none"

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import pages  # noqa: E402 - beside this file

pages.write()


def _lead_to_the_repository(app: Sphinx, doctree: nodes.document) -> None:
    """A link to a file that is no page becomes its plain name: the site stands alone, the file lies in the repository.

    Raises:
        ValueError: there is no such file.
    """
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(doctree.findall(lambda node: node.get("reftype") == "myst" if hasattr(node, "get") else False)):
        target = re.sub(r"#.*", "", link.get("reftarget", ""))
        path = (folder / target).resolve()
        if not target or path.is_relative_to(ROOT / "docs"):
            continue
        # The parser takes the suffix from what looks like a page.
        path = next((one for one in (path, path.with_name(f"{path.name}.md")) if one.exists()), path)
        if not path.exists():
            # MyST takes `.md` off a link that it would make one to a page.
            path = path.with_name(f"{path.name}.md")
        if not path.exists():
            raise ValueError(f"{app.env.docname}: {target} is not there")
        link.replace_self(nodes.literal(text=str(path.relative_to(ROOT))))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _lead_to_the_repository)
