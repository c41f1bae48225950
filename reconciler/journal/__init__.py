"""The durable record: what was accepted, intended, done and learned. SQLite in WAL mode.

The journal explains the past and is never read as the present: what is there is observed. One transaction records an
outcome together with everything that is remembered of it, so a crash leaves both or neither (I7).

`database` opens it, writes whole transactions and reads small facts; `recollection` writes and reads what is remembered
of models, failures and receipts; `book` is the whole: documents, passes, intents, events.
"""

from __future__ import annotations

from reconciler.journal.book import KEPT_EVENTS, KEPT_PASSES, Journal
from reconciler.journal.records import Accepted, Event, PassRecord, StoredDocument

__all__ = ["KEPT_EVENTS", "KEPT_PASSES", "Accepted", "Event", "Journal", "PassRecord", "StoredDocument"]
