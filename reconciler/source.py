"""Asks the repositories, decides what may be believed, and puts it in force. The shell around `desired_state`.

`inquire` is shared with the dry run: it reads and verifies, and puts nothing in force. Only `RepositorySource.refresh`
writes:
the journal in one transaction, then the second copy of the mark.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from desired_state.choice import RepositoryResult, choose
from desired_state.git_source import GitSettings, GitSource
from desired_state.load import load_candidate, load_models, load_probes
from desired_state.trust import accept_snapshot, recall, verify_first, walk
from desired_state.watermark import Mark, MarkFile, reconcile_marks
from reconciler.journal import Accepted, StoredDocument
from reconciler.memory import Note
from reconciler.published import read_status
from reconciler.status import SourceReport
from schemas.digests import digest_bytes, short
from schemas.errors import (
    Equivocation,
    MarkLost,
    NotTrusted,
    ReconcileError,
    SignaturesPending,
    SourceUnreachable,
    TrustBroken,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from desired_state.files import DocumentFiles
    from desired_state.load import Candidate
    from desired_state.snapshot import Snapshot
    from desired_state.trust import TrustLink, TrustState
    from reconciler.journal import Journal
    from reconciler.loop import Node
    from reconciler.state_dir import StateDir
    from schemas.node import NodeConfig
    from schemas.ports import Ports
    from schemas.snapshot import SnapshotDocument

LOST: Final = "mark.lost"
"""Fact: both copies of the mark were found missing. Stays until a person gives the mark up: the next status no longer
names a snapshot, and would hide the loss."""
HEADS: Final = "source.heads"
"""Fact: the commit that each repository showed when it was last examined, with what that came to."""
TRUST: Final = "trust.digest"
"""Fact: digest of the trust document that counts now; the pinned one's until the chain is walked."""


# --- what is in force ---------------------------------------------------------------------------------------------


def current_trust(config: NodeConfig, journal: Journal) -> TrustState | None:
    """The trust that this node verified last; None before the pinned document was seen."""
    digest = journal.fact(TRUST)
    if not digest:
        return None
    return recall(journal.document(digest), digest, config.network)


def current_mark(state: StateDir, journal: Journal, ports: Ports) -> Mark | None:
    """The high-water mark, from both of its copies.

    Raises:
        MarkLost: both are gone on a node that had them.
        StateCorrupt: they contradict each other.
    """
    accepted = journal.accepted()
    in_journal = Mark(epoch=accepted.epoch, sequence=accepted.sequence, digest=accepted.digest) if accepted else None
    in_file = MarkFile(state.mark, ports.files).read()
    lost = in_file is None and in_journal is None and _accepted_before(state, journal)
    return reconcile_marks(in_file, in_journal, accepted_before=lost)


def _accepted_before(state: StateDir, journal: Journal) -> bool:
    """Whether a snapshot was ever accepted here: the published status names one, even if the journal is new."""
    if journal.fact(LOST):
        return True
    status = read_status(state)
    return status is not None and status.snapshot is not None and not journal.fact("mark.forgotten")


def forget_mark(state: StateDir, journal: Journal, ports: Ports) -> None:
    """Give up the high-water mark, so that the next valid snapshot is accepted whatever its sequence.

    For a person who has compared the network's newest snapshot with another node: rollback protection begins anew.
    """
    journal.forget_accepted(
        Note("Warning", "MarkForgotten", "the high-water mark was given up by hand"), ports.clock.now()
    )
    journal.set_fact(HEADS, "")
    journal.set_fact(LOST, "")
    ports.files.remove(state.mark)


# --- asking, without writing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """What the repositories are asked for, and what this node knows already."""

    config: NodeConfig
    git: GitSource
    into: Path
    """Where fetched objects go: the mirror, or a scratch repository."""
    borrow: Path | None
    """A mirror whose objects need not be fetched again."""
    seen: Mapping[str, str]
    """By repository: the commit at which it was last found to hold what is in force."""
    trust: TrustState | None
    """The trust that counts now, None before the first."""
    mark: Mark | None
    floor: datetime | None
    """`issuedAt` of the newest accepted snapshot."""
    agent: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What asking came to. Nothing of it is in force yet."""

    snapshot: Snapshot | None = None
    """The highest valid snapshot among the repositories that moved; None when none of them has one."""
    commit: str = ""
    documents: Mapping[str, StoredDocument] = field(default_factory=dict)
    """By digest: the snapshot, its manifests, pieces and probes."""
    trust: TrustState | None = None
    """The furthest trust that any repository's chain leads to."""
    trust_documents: Mapping[str, StoredDocument] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    """By repository: commits that hold that very snapshot."""
    complaints: tuple[ReconcileError, ...] = ()
    """What is wrong with repositories that do not count."""
    refusal: ReconcileError | None = None
    """Why nothing can be believed; None when something can, or when nothing moved."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """One repository's state, before anything is believed."""

    url: str
    commit: str
    files: DocumentFiles
    candidate: Candidate


def inquire(question: Question) -> Answer:
    """Ask every repository, follow every chain of trust, and choose the highest valid snapshot (I1).

    Trust is settled first, over all repositories: one that withholds a rotation must not make the signers count whom
    that rotation revoked.
    """
    offers: list[_Offer] = []
    results: list[RepositoryResult] = []
    unmoved = 0
    for repository in question.config.repositories:
        try:
            offer = _ask(question, repository.url)
        except ReconcileError as error:
            results.append(RepositoryResult(repository.url, error=error))
            continue
        if offer is None:
            unmoved += 1
        else:
            offers.append(offer)
    trust, trust_documents, broken = _settle_trust(question, offers)
    results += [_judge(question, offer, trust, broken) for offer in offers]
    if not results:
        return Answer(trust=trust)
    try:
        choice = choose(results)
        offer = next(offer for offer in offers if offer.url == choice.url)
        documents = {choice.snapshot.digest: StoredDocument("snapshot", choice.snapshot.content)}
        documents |= bound_documents(offer.files, choice.snapshot.document)
    except ReconcileError as error:
        # A repository that has not moved still stands behind what is in force.
        stands = unmoved > 0 and not isinstance(error, Equivocation)
        return Answer(trust=trust, complaints=(error,) if stands else (), refusal=None if stands else error)
    same = {
        item.url: item.commit for item in results if item.snapshot and item.snapshot.digest == choice.snapshot.digest
    }
    complaints = tuple(error for _, error in choice.others)
    return Answer(choice.snapshot, choice.commit, documents, trust, trust_documents, same, complaints)


def _ask(question: Question, url: str) -> _Offer | None:
    """What a repository shows; None when it has not moved."""
    config = question.config
    if question.git.head(url, config.branch) == question.seen.get(url):
        return None
    commit = question.git.fetch(url, config.branch, question.into, borrow=question.borrow)
    files = question.git.files(question.into, commit)
    version = question.trust.version if question.trust else 0
    return _Offer(url, commit, files, load_candidate(files, config.network, trust_version=version))


def _settle_trust(
    question: Question, offers: Sequence[_Offer]
) -> tuple[TrustState | None, dict[str, StoredDocument], dict[str, ReconcileError]]:
    """The furthest trust, the documents that led there, and by repository why its chain cannot be followed."""
    trust, network = question.trust, question.config.network
    documents: dict[str, StoredDocument] = {}
    broken: dict[str, ReconcileError] = {}
    for offer in offers:
        links = offer.candidate.trust
        try:
            if trust is None:
                first = _first(links)
                trust = verify_first(first.content, question.config.trust.digest, network, file=first.file)
                documents[trust.digest] = StoredDocument("trust", first.content)
            before, trust = trust.version, walk(trust, links, network=network, now=question.now).trust
        except ReconcileError as error:
            broken[offer.url] = error
            continue
        for link in links:
            if before < link.version <= trust.version:
                documents[digest_bytes(link.content)] = StoredDocument("trust", link.content)
    return trust, documents, broken


def _first(links: Sequence[TrustLink]) -> TrustLink:
    if not links or links[0].version != 1:
        raise TrustBroken("the repository does not have trust version 1, which this node has pinned")
    return links[0]


def _judge(
    question: Question, offer: _Offer, trust: TrustState | None, broken: Mapping[str, ReconcileError]
) -> RepositoryResult:
    error = broken.get(offer.url)
    if error is not None or trust is None:
        return RepositoryResult(offer.url, offer.commit, error=error)
    try:
        snapshot = accept_snapshot(
            content=offer.candidate.content,
            signatures=offer.candidate.signatures,
            trust=trust,
            mark=question.mark,
            network=question.config.network,
            now=question.now,
            agent_version=question.agent,
            floor=question.floor,
            file=offer.candidate.file,
        )
    except ReconcileError as refusal:
        return RepositoryResult(offer.url, offer.commit, error=refusal)
    return RepositoryResult(offer.url, offer.commit, snapshot)


def bound_documents(files: DocumentFiles, document: SnapshotDocument) -> dict[str, StoredDocument]:
    """Every manifest, pieces file and probe that a snapshot names, read, checked against its digest, and well-formed.

    Raises:
        MissingDocument, DigestMismatch, MalformedDocument, LimitExceeded: one of them is not what it must be.
    """
    found: dict[str, StoredDocument] = {}
    for model in load_models(files, document.spec.models).values():
        found[model.digest] = StoredDocument("manifest", model.content)
        found[model.manifest.spec.pieces.digest] = StoredDocument("pieces", model.pieces, parent=model.digest)
    for probe in load_probes(files, document.spec.models).values():
        found[probe.digest] = StoredDocument("probe", probe.content)
    return found


def git_source(config: NodeConfig, ports: Ports) -> GitSource:
    """The node's way to git."""
    settings = GitSettings(
        timeout=float(config.git_timeout), max_bytes=config.max_repository, environment=dict(os.environ)
    )
    return GitSource(ports, settings)


def known_heads(journal: Journal) -> dict[str, str]:
    """By repository: the commit at which it was last found to hold what is in force."""
    heads: dict[str, str] = json.loads(journal.fact(HEADS) or "{}")
    return heads


# --- putting in force ---------------------------------------------------------------------------------------------


class RepositorySource:
    """Asks every repository of a node, and puts the highest valid snapshot in force."""

    def __init__(self, node: Node) -> None:
        self._config = node.config
        self._journal = node.journal
        self._state = node.state
        self._agent = node.agent
        self._ports = node.adapters.ports
        self._git = git_source(node.config, node.adapters.ports)

    def refresh(self, now: datetime) -> SourceReport:
        """Look for a newer snapshot, verify it, and put it in force. Never raises for what a repository did."""
        try:
            mark = current_mark(self._state, self._journal, self._ports)
            trust = current_trust(self._config, self._journal)
        except NotTrusted as error:
            if isinstance(error, MarkLost):
                self._journal.set_fact(LOST, "yes")
            self._note_refusal(error, now)
            return _refused(error)
        if mark is not None:
            # A copy that was lost, or fell behind in a crash, is written again before anything else is believed.
            self._repair_mark(mark)
        accepted = self._journal.accepted()
        question = Question(
            config=self._config,
            git=self._git,
            into=self._state.mirror,
            borrow=None,
            # Without a journal there is nothing in force that a repository could stand behind.
            seen=known_heads(self._journal) if accepted else {},
            trust=trust,
            mark=mark,
            floor=accepted.issued_at if accepted else None,
            agent=self._agent,
            now=now,
        )
        answer = inquire(question)
        if answer.snapshot is not None:
            self._accept(answer, answer.snapshot, now)
        return self._conclude(answer, now)

    def _repair_mark(self, mark: Mark) -> None:
        copy = MarkFile(self._state.mark, self._ports.files)
        if copy.read() != mark:
            copy.write(mark)

    def _accept(self, answer: Answer, snapshot: Snapshot, now: datetime) -> None:
        """Put a snapshot in force: documents and journal first, then the second copy of the mark."""
        metadata = snapshot.document.metadata
        if answer.trust_documents:
            self._journal.put_documents(answer.trust_documents)
        if answer.trust is not None:
            self._journal.set_fact(TRUST, answer.trust.digest)
        accepted = self._journal.accepted()
        if accepted is None or snapshot.digest != accepted.digest:
            self._put_in_force(answer, snapshot, now)
            MarkFile(self._state.mark, self._ports.files).write(
                Mark(epoch=metadata.epoch, sequence=metadata.sequence, digest=snapshot.digest)
            )
        known = {repository.url for repository in self._config.repositories}
        heads = {url: commit for url, commit in known_heads(self._journal).items() if url in known}
        self._journal.set_fact(HEADS, json.dumps(dict(sorted({**heads, **answer.heads}.items()))))
        self._git.keep(self._state.mirror, [answer.commit])

    def _put_in_force(self, answer: Answer, snapshot: Snapshot, now: datetime) -> None:
        metadata = snapshot.document.metadata
        message = f"sequence {metadata.sequence} ({short(snapshot.digest)}), signed by {len(snapshot.signers)}"
        if snapshot.gap:
            message += "; snapshots before it were not seen"
        # What other repositories stood behind is no longer in force: they are asked again.
        self._journal.set_fact(HEADS, "")
        self._journal.accept(
            Accepted(
                digest=snapshot.digest,
                epoch=metadata.epoch,
                sequence=metadata.sequence,
                signers=snapshot.signers,
                trust_version=snapshot.trust_version,
                issued_at=metadata.issued_at,
                expires_at=metadata.expires_at,
                accepted_at=now,
            ),
            answer.documents,
            Note("Normal", "SnapshotAccepted", message, subject=snapshot.digest),
        )
        if snapshot.document.spec.retry:
            note = Note("Normal", "RetrySigned", f"the snapshot clears {len(snapshot.document.spec.retry)} subjects")
            self._journal.forget_rejections(list(snapshot.document.spec.retry), note, now)

    # --- what it came to ------------------------------------------------------------------------------------------

    def _conclude(self, answer: Answer, now: datetime) -> SourceReport:
        refusal = answer.refusal
        if isinstance(refusal, SignaturesPending) and self._journal.accepted() is not None:
            # Part of normal work: the next snapshot is being signed.
            return SourceReport(verified=True, reason=refusal.reason, message=refusal.message)
        if refusal is not None:
            if isinstance(refusal, NotTrusted):
                self._note_refusal(refusal, now)
            return _refused(refusal)
        accepted = self._journal.accepted()
        if accepted is None:
            return _refused(SourceUnreachable("no repository has a snapshot"))
        self._journal.set_fact("source.refused", "")
        return _verified(accepted, answer.complaints, now)

    def _note_refusal(self, error: NotTrusted, now: datetime) -> None:
        """One event per refusal, not one per poll."""
        text = f"{error.reason}: {error.message}"
        if self._journal.fact("source.refused") != text:
            self._journal.set_fact("source.refused", text)
            self._journal.apply((Note("Warning", error.reason, error.message),), now)


def _refused(error: ReconcileError) -> SourceReport:
    hint = f" ({error.hint})" if error.hint else ""
    return SourceReport(verified=False, reason=error.reason, message=error.message + hint, error=error)


def _verified(accepted: Accepted, complaints: Sequence[ReconcileError], now: datetime) -> SourceReport:
    message = f"sequence {accepted.sequence} is the newest valid snapshot"
    if complaints:
        message += f"; {len(complaints)} repositories do not count: {complaints[0].reason}: {complaints[0].message}"
    if accepted.expires_at <= now:
        return SourceReport(
            verified=True, reason="Expired", message=f"{message}; it has expired, and goes on until a newer one comes"
        )
    reason = complaints[0].reason if complaints else "Verified"
    return SourceReport(verified=True, reason=reason, message=message)
