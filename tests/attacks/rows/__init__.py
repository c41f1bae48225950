"""All rows, in the order of the table."""

from importlib import import_module

from tests.attacks.table import ATTACKS

for _group in ("replaying", "timing", "counting", "rotating", "documents", "paths", "objects", "servers", "node"):
    import_module(f"{__name__}.{_group}")

__all__ = ["ATTACKS"]
