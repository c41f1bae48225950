"""Air-gap bundles: a signed snapshot, with what it needs, as one file."""
