"""One file per resource kind: how it is observed, compared and acted upon."""
