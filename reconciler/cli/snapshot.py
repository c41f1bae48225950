"""`reconcile snapshot`: the table of its commands; the files that it names define them."""

from __future__ import annotations

import click

from reconciler.cli.lazy import Lazy, LazyGroup

_WRITE = "reconciler.cli.drafts"
_NEXT = "reconciler.cli.succession"
_JUDGE = "reconciler.cli.judging"
_VERIFY = "reconciler.cli.verifying:verify"
_BUNDLE = "reconciler.cli.bundles"

SECTIONS = {
    "Write": {
        "new": Lazy(f"{_WRITE}:new", "Write the first snapshot of a network."),
        "set": Lazy(f"{_WRITE}:set_", "Change one field: a one-line difference."),
        "unset": Lazy(f"{_WRITE}:unset", "Remove a field or an item."),
        "serve": Lazy(f"{_WRITE}:serve", "Say which nodes serve a model."),
        "withdraw": Lazy(f"{_WRITE}:withdraw", "Stop a model or an image everywhere, at once."),
        "pin": Lazy(f"{_WRITE}:pin", "Bind files that were changed by hand to their new digests."),
        "bump": Lazy(f"{_NEXT}:bump", "Make it the successor of what was published."),
        "revert": Lazy(f"{_NEXT}:revert", "Go back to an older content, as a new snapshot."),
    },
    "Look at, sign and check": {
        "show": Lazy(f"{_JUDGE}:show", "Show what it says, and who signed it."),
        "diff": Lazy(f"{_JUDGE}:diff", "Show what a change means."),
        "validate": Lazy(f"{_JUDGE}:validate", "Check it and every file it names; signatures are left out."),
        "lint": Lazy(f"{_JUDGE}:lint", "Find traps: what is well-formed and still not meant."),
        "sign": Lazy("reconciler.cli.signing:sign", "Sign it, after showing what changes."),
        "timestamp": Lazy("reconciler.cli.timestamp:timestamp", "Say with an online key that it is the newest."),
        "verify": Lazy(_VERIFY, "Decide as a node would: trust, signatures, validity, files."),
    },
    "Carry by hand": {
        "export": Lazy(f"{_BUNDLE}:export", "Write the published snapshot, with what it needs, to one file."),
        "import": Lazy(f"{_BUNDLE}:import_", "Take such a file in, on a node without a network."),
    },
}


@click.group(cls=LazyGroup, sections=SECTIONS)
def snapshot() -> None:
    """Write, sign and check the desired state of a network.

    A change is made with the commands below or by hand, becomes the next snapshot with `bump`, is signed by enough of
    the network's signers with `sign`, and reaches the nodes with the commit.
    """
