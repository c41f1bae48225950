"""The journal's tables. A change appends a migration; nothing here is edited after a release."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1

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
