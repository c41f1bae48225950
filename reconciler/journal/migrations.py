"""The journal's tables. A change appends a migration; nothing here is edited after a release.

A new journal is made in the first format and brought up to date, so that both come to the same.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 2

SCHEMA: Final = (
    """CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT""",
    """CREATE TABLE accepted (
        number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL, epoch INTEGER NOT NULL,
        sequence INTEGER NOT NULL, signers TEXT NOT NULL, trust_version INTEGER NOT NULL,
        issued_at TEXT NOT NULL, expires_at TEXT NOT NULL, accepted_at TEXT NOT NULL) STRICT""",
    """CREATE TABLE documents (
        digest TEXT PRIMARY KEY, kind TEXT NOT NULL, parent TEXT NOT NULL, content BLOB NOT NULL) STRICT""",
    """CREATE TABLE passes (
        number INTEGER PRIMARY KEY AUTOINCREMENT, started_at TEXT NOT NULL, finished_at TEXT,
        snapshot TEXT NOT NULL, sequence INTEGER NOT NULL, outcome TEXT NOT NULL, actions INTEGER NOT NULL,
        downtime_ms INTEGER NOT NULL DEFAULT 0, summary TEXT NOT NULL DEFAULT '', plan TEXT NOT NULL) STRICT""",
    """CREATE TABLE intents (
        id TEXT PRIMARY KEY, pass INTEGER NOT NULL, action TEXT NOT NULL, kind TEXT NOT NULL,
        spec_digest TEXT NOT NULL, outcome TEXT NOT NULL, error TEXT NOT NULL DEFAULT '',
        started_at TEXT NOT NULL, finished_at TEXT) STRICT""",
    """CREATE INDEX intents_by_kind ON intents (kind, started_at)""",
    """CREATE TABLE models (
        manifest TEXT PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, since TEXT NOT NULL, cause TEXT NOT NULL,
        failures INTEGER NOT NULL, not_before TEXT, unlisted_for REAL NOT NULL, size INTEGER NOT NULL) STRICT""",
    """CREATE TABLE receipts (
        number INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, manifest TEXT NOT NULL, intent TEXT NOT NULL,
        evidence TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL, issued_at TEXT NOT NULL,
        voided_at TEXT, void_cause TEXT NOT NULL DEFAULT '') STRICT""",
    """CREATE TABLE rejections (
        subject TEXT PRIMARY KEY, model TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
        since TEXT NOT NULL, snapshot TEXT NOT NULL) STRICT""",
    """CREATE TABLE holds (
        subject TEXT PRIMARY KEY, reason TEXT NOT NULL, message TEXT NOT NULL, failures INTEGER NOT NULL,
        until TEXT NOT NULL) STRICT""",
    """CREATE TABLE last_known_good (
        one INTEGER PRIMARY KEY CHECK (one = 1), target TEXT NOT NULL, snapshot TEXT NOT NULL,
        since TEXT NOT NULL) STRICT""",
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, type TEXT NOT NULL, reason TEXT NOT NULL,
        message TEXT NOT NULL, subject TEXT NOT NULL) STRICT""",
)

MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    # Receipts become documents, chained and signed; old ones stay as they are, links of the same chain.
    2: (
        "ALTER TABLE receipts ADD COLUMN outcome TEXT NOT NULL DEFAULT 'pass'",
        "ALTER TABLE receipts ADD COLUMN strength TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE receipts ADD COLUMN content TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE receipts ADD COLUMN signature TEXT NOT NULL DEFAULT ''",
        """CREATE INDEX receipts_standing ON receipts (subject, intent, number, manifest)
            WHERE voided_at IS NULL AND outcome = 'pass'""",
        "CREATE INDEX receipts_unsigned ON receipts (number) WHERE signature = '' AND content <> ''",
        # Until now the state said it: what was started before a model failed or was fetched again is not trusted.
        "ALTER TABLE models ADD COLUMN doubted_at TEXT",
        "UPDATE models SET doubted_at = since WHERE state IN ('Failed', 'Pending')",
        # What served before the last known good: where to go when that one fails its retest.
        """CREATE TABLE earlier_good (
            one INTEGER PRIMARY KEY CHECK (one = 1), target TEXT NOT NULL, snapshot TEXT NOT NULL,
            since TEXT NOT NULL) STRICT""",
    ),
}
"""By the format that they lead to: what is done to a journal of the format before."""
