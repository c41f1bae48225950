"""All rows, in the order of the table."""

from tests.attacks.rows import replaying, time, counting, rotating, documents, paths, objects, servers, node  # noqa: I001 - the table's order
from tests.attacks.table import ATTACKS

__all__ = ["ATTACKS", "counting", "documents", "node", "objects", "paths", "replaying", "rotating", "servers", "time"]
