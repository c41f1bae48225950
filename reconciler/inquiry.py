"""Asks the repositories and decides what may be believed: what a pass and a dry run have in common.

Nothing is put in force here, and nothing is written but what is fetched.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from desired_state.acceptance import accept_snapshot
from desired_state.choice import RepositoryResult, beside, choose, lagging
from desired_state.freshness import accept_timestamp, clock_behind, counted, doubt, newest
from desired_state.git_source import GitSettings, GitSource
from desired_state.load import load_candidate
from desired_state.trust import verify_first, walk
from desired_state.watermark import Mark
from reconciler.documents import bound_documents
from reconciler.journal import Accepted, StoredDocument
from reconciler.verdicts import Refusal, Verdict, basis, begins
from schemas.digests import digest_bytes
from schemas.errors import ReconcileError
from schemas.refusals import Equivocation, NotTrusted, SignaturesPending, TrustBroken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from desired_state.choice import Choice
    from desired_state.files import DocumentFiles
    from desired_state.freshness import Doubt, TimestampMark
    from desired_state.load import Candidate
    from desired_state.snapshot import Snapshot
    from desired_state.trust import TrustLink, TrustState
    from reconciler.documents import JournalDocuments
    from schemas.node import NodeConfig
    from schemas.ports import Ports


@dataclass(frozen=True, slots=True)
class Question:
    """What the repositories are asked for, and what this node knows already."""

    config: NodeConfig
    git: GitSource
    into: Path
    """Where fetched objects go: the mirror, or a scratch repository."""
    borrow: Path | None
    """A mirror whose objects need not be fetched again."""
    seen: Mapping[str, Verdict]
    """By repository: what it came to when it was last examined."""
    trust: TrustState | None
    """The trust that counts now, None before the first."""
    mark: Mark | None
    timestamp: TimestampMark | None
    """The newest accepted timestamp, None before the first."""
    accepted: Accepted | None
    """What is in force."""
    kept: JournalDocuments
    """What it binds, and others that this node keeps."""
    agent: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What asking came to. Nothing of it is in force yet."""

    snapshot: Snapshot | None = None
    """The highest valid snapshot among the repositories that moved; None when none of them has one."""
    commit: str = ""
    documents: Mapping[str, StoredDocument] = field(default_factory=dict)
    """By digest: the snapshot, its manifests, pieces and probes; none of the snapshot that is in force already."""
    trust: TrustState | None = None
    """The furthest trust that any repository's chain leads to."""
    trust_documents: Mapping[str, StoredDocument] = field(default_factory=dict)
    timestamp: TimestampMark | None = None
    """The newest timestamp that counts."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By repository: what is worth remembering of those that were examined."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """By repository: the commit that it shows now, of those that showed another one before."""
    remarks: tuple[ReconcileError, ...] = ()
    """What is worth knowing and stops nothing: a doubt, a wrong clock, repositories that do not count."""
    doubt: Doubt | None = None
    """Why what is in force may not be the newest."""
    refusal: ReconcileError | None = None
    """Why nothing can be believed; None when something can, or when nothing moved."""


def git_settings(config: NodeConfig | None) -> GitSettings:
    """The bounds that a node's configuration sets; without a node, the ones that a new node gets."""
    timeout, limit = (config.git_timeout, config.max_repository) if config is not None else (120, 2**28)
    return GitSettings(timeout=float(timeout), max_bytes=limit, environment=dict(os.environ))


def git_source(config: NodeConfig, ports: Ports) -> GitSource:
    """The node's way to git."""
    return GitSource(ports, git_settings(config))


def inquire(question: Question) -> Answer:
    """Ask every repository, follow every chain of trust, and choose the highest valid snapshot (I1).

    Trust is settled first, over all repositories: one that withholds a rotation must not make the signers count whom
    that rotation revoked. Timestamps come next: they decide nothing, and are heard even where the snapshot is refused.
    """
    round_ = _Round.of(question)
    choice, documents, error, results = _choose(round_.results(), round_.offers, question)
    # One that has not moved stands behind what is in force; not so against two that contradict each other.
    contradicted = isinstance(error, Equivocation) and any(result.snapshot for result in results)
    standing = round_.stands and not contradicted
    refusal = None if standing else error
    complaints = tuple(beside(results)) if error is not None and standing else ()
    if choice is not None:
        complaints = tuple(complaint for _, complaint in choice.others)
    snapshot = choice.snapshot if choice is not None else None
    found = round_.doubt(snapshot)
    clock = clock_behind(question.now, round_.latest(snapshot))
    # A broken promise says by itself what is wrong with the timestamps.
    more = () if found is not None and found.promised else round_.timestamp_remarks(results)
    remarks = (*([found.error] if found else ()), *complaints, *more, *([clock] if clock else ()))
    return Answer(
        snapshot=snapshot,
        commit=choice.commit if choice is not None else "",
        documents=documents,
        trust=round_.trust,
        trust_documents=round_.trust_documents,
        timestamp=round_.timestamp,
        verdicts=round_.verdicts(results, snapshot),
        moved={offer.url: offer.commit for offer in round_.offers},
        remarks=tuple({(one.reason, one.message): one for one in remarks}.values()),
        doubt=found,
        refusal=refusal,
    )


def _choose(
    results: Sequence[RepositoryResult], offers: Sequence[_Offer], question: Question
) -> tuple[Choice | None, dict[str, StoredDocument], ReconcileError | None, tuple[RepositoryResult, ...]]:
    """The highest valid snapshot whose documents are all there.

    A repository that lacks one of them, or has other bytes, does not count, and the next best is asked: a broken mirror
    that happens to be named first must not keep a whole one from being followed. What the snapshot in force binds was
    checked when it was accepted, and is not read again.
    """
    accepted, left = question.accepted, tuple(results)
    while left:
        try:
            choice = choose(left)
        except ReconcileError as error:
            return None, {}, error, left
        if accepted is not None and choice.snapshot.digest == accepted.digest:
            return choice, {}, None, left
        files = next(offer.files for offer in offers if offer.url == choice.url)
        try:
            documents = {choice.snapshot.digest: StoredDocument("snapshot", choice.snapshot.content)}
            return choice, documents | bound_documents(files, choice.snapshot.document, question.kept), None, left
        except ReconcileError as error:
            left = tuple(
                replace(result, snapshot=None, error=error) if result.url == choice.url else result for result in left
            )
    return None, {}, None, left


# --- asking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Offer:
    """One repository's state, before anything is believed."""

    url: str
    commit: str
    files: DocumentFiles
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class _Unmoved:
    """A repository of which everything is known already."""

    url: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _Failed:
    """A repository of which no offer could be made."""

    url: str
    commit: str
    error: ReconcileError


def _ask(question: Question, url: str, judged_by: str) -> _Offer | _Unmoved | _Failed:
    """What a repository shows."""
    config, commit = question.config, ""
    try:
        commit = question.git.head(url, config.branch)
        verdict = question.seen.get(url)
        if verdict is not None and verdict.holds(commit, judged_by, question.now):
            return _Unmoved(url, verdict)
        commit = question.git.fetch(url, config.branch, question.into, borrow=question.borrow)
        files = question.git.files(question.into, commit)
        version = question.trust.version if question.trust else 0
        return _Offer(url, commit, files, load_candidate(files, config.network, trust_version=version))
    except ReconcileError as error:
        return _Failed(url, commit, error)


def _first(links: Sequence[TrustLink]) -> TrustLink:
    if not links or links[0].version != 1:
        raise TrustBroken("the repository does not have trust version 1, which this node has pinned")
    return links[0]


# --- judging ------------------------------------------------------------------------------------------------------


class _Round:
    """One look at every repository: what each shows, the trust that follows from all, and what that makes of it."""

    def __init__(self, question: Question, looks: Sequence[_Offer | _Unmoved | _Failed]) -> None:
        self._question = question
        self.offers = [look for look in looks if isinstance(look, _Offer)]
        self._unmoved = [look for look in looks if isinstance(look, _Unmoved)]
        self._failed = [look for look in looks if isinstance(look, _Failed)]
        self.trust = question.trust
        self.trust_documents: dict[str, StoredDocument] = {}
        self._broken: dict[str, ReconcileError] = {}
        self._broken_by: dict[str, TrustState | None] = {}
        """The trust that a broken chain was held against: a later one, of another repository, may mend it."""
        self._pending: dict[str, ReconcileError | None] = {}
        self._settle_trust()
        self._timestamp_errors: dict[str, ReconcileError] = {}
        self.timestamp = self._settle_timestamp()

    @classmethod
    def of(cls, question: Question) -> _Round:
        """Ask them all."""
        # Without a journal there is nothing in force that a repository could stand behind.
        timestamp = counted(question.timestamp, question.trust) if question.trust else None
        judged_by = basis(
            question.config, agent=question.agent, trust=question.trust, mark=question.mark, timestamp=timestamp
        )
        return cls(question, [_ask(question, item.url, judged_by) for item in question.config.repositories])

    @property
    def stands(self) -> bool:
        """Whether a repository that has not moved stands behind what is in force."""
        return self._question.accepted is not None and any(look.verdict.refusal is None for look in self._unmoved)

    @property
    def _floor(self) -> datetime | None:
        """`issuedAt` of what is in force."""
        accepted = self._question.accepted
        return accepted.issued_at if accepted is not None else None

    def _settle_trust(self) -> None:
        """The furthest trust, the documents that led there, and by repository why its chain cannot be followed."""
        question, network = self._question, self._question.config.network
        for offer in self.offers:
            links, trust = offer.candidate.trust, self.trust
            try:
                if trust is None:
                    first = _first(links)
                    trust = verify_first(first.content, question.config.trust.digest, network, file=first.file)
                    self.trust_documents[trust.digest] = StoredDocument("trust", first.content)
                walked = walk(trust, links, network=network, now=question.now)
            except ReconcileError as error:
                self.trust = trust
                self._broken[offer.url], self._broken_by[offer.url] = error, trust
                continue
            self.trust, self._pending[offer.url] = walked.trust, walked.pending
            for link in links:
                if trust.version < link.version <= walked.trust.version:
                    self.trust_documents[digest_bytes(link.content)] = StoredDocument("trust", link.content)

    def _settle_timestamp(self) -> TimestampMark | None:
        """The newest timestamp that counts, over all repositories."""
        question, trust = self._question, self.trust
        if trust is None or trust.roles.timestamp is None:
            return None
        mark = counted(question.timestamp, trust)
        found = [mark]
        for offer in self.offers:
            shown = offer.candidate.timestamp
            try:
                if shown.error is not None:
                    raise shown.error
                found.append(
                    accept_timestamp(
                        content=shown.content,
                        signatures=shown.signatures,
                        trust=trust,
                        mark=mark,
                        network=question.config.network,
                        now=question.now,
                        floor=self._floor,
                        file=shown.file,
                    )
                )
            except ReconcileError as error:
                self._timestamp_errors[offer.url] = error
        return newest(found)

    def _timestamp_problems(self) -> dict[str, ReconcileError]:
        """By repository: what is wrong with its timestamp, as far as anybody should hear of it."""
        remembered = {look.url: look.verdict.timestamp for look in self._unmoved if look.verdict.timestamp is not None}
        errors = {**self._timestamp_errors, **{url: refusal.error() for url, refusal in remembered.items()}}
        return {url: error for url, error in errors.items() if not isinstance(error, SignaturesPending)}

    def timestamp_remarks(self, results: Sequence[RepositoryResult]) -> tuple[ReconcileError, ...]:
        """The same, beside a timestamp that counts, of repositories of which nothing worse is said."""
        said = {result.url for result in results if result.error is not None}
        problems = self._timestamp_problems()
        others = len(problems) < len(self.offers) + len(self._unmoved)
        return tuple(lagging(url, error) if others else error for url, error in problems.items() if url not in said)

    def results(self) -> list[RepositoryResult]:
        """What came of each repository, but for those that show what is in force and have not moved."""
        by_url = {look.url: RepositoryResult(look.url, look.commit, error=look.error) for look in self._failed}
        for look in self._unmoved:
            if look.verdict.refusal is not None:
                by_url[look.url] = RepositoryResult(look.url, look.verdict.commit, error=look.verdict.refusal.error())
        by_url.update((offer.url, self._judge(offer)) for offer in self.offers)
        return [by_url[item.url] for item in self._question.config.repositories if item.url in by_url]

    def _judge(self, offer: _Offer) -> RepositoryResult:
        question, error = self._question, self._broken.get(offer.url)
        if error is not None or self.trust is None:
            return RepositoryResult(offer.url, offer.commit, error=error)
        try:
            snapshot = accept_snapshot(
                content=offer.candidate.content,
                signatures=offer.candidate.signatures,
                trust=self.trust,
                mark=question.mark,
                network=question.config.network,
                now=question.now,
                agent_version=question.agent,
                floor=self._floor,
                file=offer.candidate.file,
            )
        except ReconcileError as refusal:
            return RepositoryResult(offer.url, offer.commit, error=refusal)
        return RepositoryResult(offer.url, offer.commit, snapshot)

    def doubt(self, snapshot: Snapshot | None) -> Doubt | None:
        """Whether what will be in force may not be the newest."""
        in_force = in_force_after(snapshot, self._question)
        if in_force is None or self.trust is None:
            return None
        problem = next(iter(self._timestamp_problems().values()), None)
        return doubt(in_force, trust=self.trust, mark=self.timestamp, problem=problem, now=self._question.now)

    def latest(self, snapshot: Snapshot | None) -> datetime | None:
        """The latest `issuedAt` of anything that was accepted: it cannot be earlier than that."""
        in_force = in_force_after(snapshot, self._question)
        times = [item.issued_at for item in (in_force, self.timestamp) if item is not None]
        return max(times, default=None)

    def verdicts(self, results: Sequence[RepositoryResult], snapshot: Snapshot | None) -> dict[str, Verdict]:
        """What is worth remembering: what holds as long as neither the commit nor what it was judged by changes."""
        question = self._question
        position = snapshot.position if snapshot is not None else None
        after = Mark(epoch=position[0], sequence=position[1], digest=snapshot.digest) if snapshot and position else None
        found: dict[str, Verdict] = {}
        for result in results:
            agrees = snapshot is not None and result.snapshot is not None and result.snapshot.digest == snapshot.digest
            if not result.commit or not (agrees or isinstance(result.error, NotTrusted)):
                continue  # silence, or a snapshot that another repository has surpassed: asked again
            timestamp_error = self._timestamp_errors.get(result.url)
            found[result.url] = Verdict(
                commit=result.commit,
                basis=basis(
                    question.config,
                    agent=question.agent,
                    trust=self._broken_by.get(result.url, self.trust),
                    mark=after if agrees else question.mark,
                    timestamp=self.timestamp,
                ),
                at=question.now.replace(microsecond=0),
                until=begins(result.error, timestamp_error, self._pending.get(result.url)),
                refusal=Refusal.of(result.error) if result.error is not None else None,
                timestamp=Refusal.of(timestamp_error) if timestamp_error is not None else None,
            )
        kept = {look.url: look.verdict for look in self._unmoved}
        return {**kept, **{url: verdict for url, verdict in found.items() if url not in kept}}


def in_force_after(snapshot: Snapshot | None, question: Question) -> Accepted | None:
    """What will be in force once a snapshot is."""
    if snapshot is None or (question.accepted is not None and question.accepted.digest == snapshot.digest):
        return question.accepted
    return accepted_from(snapshot, question.now)


def accepted_from(snapshot: Snapshot, now: datetime) -> Accepted:
    """What is remembered of a snapshot that is put in force."""
    metadata = snapshot.document.metadata
    return Accepted(
        digest=snapshot.digest,
        epoch=metadata.epoch,
        sequence=metadata.sequence,
        signers=snapshot.signers,
        trust_version=snapshot.trust_version,
        issued_at=metadata.issued_at,
        expires_at=metadata.expires_at,
        accepted_at=now,
    )
