"""Puts in force what the repositories show and may be believed: the one writer of what was accepted.

`reconciler.inquiry` asks and decides, for a pass as for a dry run. Here the journal is written, in one transaction,
then the second copies of the marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from desired_state.freshness import TimestampMark, newest
from desired_state.git_safety import scrub
from desired_state.trust import recall
from desired_state.watermark import CopyFile, Mark, MarkFile, reconcile_marks
from reconciler import verdicts
from reconciler.inquiry import Question, accepted_from, git_source, inquire
from reconciler.memory import Note
from reconciler.published import read_status
from reconciler.status import SourceReport
from schemas.digests import short
from schemas.errors import ClockBehind, ReconcileError, SourceUnreachable
from schemas.node import Repository
from schemas.refusals import FreezeSuspected, MarkLost, NotTrusted, SignaturesPending, StaleSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from desired_state.snapshot import Snapshot
    from desired_state.trust import TrustState
    from reconciler.inquiry import Answer
    from reconciler.journal import Accepted, Journal
    from reconciler.node import Node
    from reconciler.state_dir import StateDir
    from reconciler.verdicts import Verdict
    from schemas.node import NodeConfig
    from schemas.ports import Ports

LOST: Final = "mark.lost"
"""Fact: both copies of the mark were found missing. Stays until a person gives the mark up: the next status no longer
names a snapshot, and would hide the loss."""
VERDICTS: Final = "source.verdicts"
"""Fact: what each repository came to when it was last examined."""
REMARKS: Final = "source.remarks"
"""Fact: the remarks of the last look, a line each: only new ones become events."""
TIMESTAMP: Final = "timestamp"
"""Fact: the newest accepted timestamp."""
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
    journal.set_fact(VERDICTS, "")
    journal.set_fact(LOST, "")
    ports.files.remove(state.mark)


def current_timestamp(state: StateDir, journal: Journal, ports: Ports) -> TimestampMark | None:
    """The newest accepted timestamp, from both of its copies; None before the first.

    The loss of both is not said: an older timestamp could then count again, but not for longer than it is valid, which
    is hours.

    Raises:
        StateCorrupt: its file is there and cannot be read.
    """
    text = journal.fact(TIMESTAMP)
    in_journal = TimestampMark.model_validate_json(text) if text else None
    return newest((in_journal, CopyFile(state.timestamp, ports.files, TimestampMark).read()))


def known_verdicts(journal: Journal) -> dict[str, Verdict]:
    """By repository: what it came to when it was last examined."""
    return verdicts.read(journal.fact(VERDICTS))


def imported_repository(config: NodeConfig, state: StateDir) -> tuple[Repository, ...]:
    """The repository that bundles were imported into, on the node's own disk; none if there is none.

    It is asked like the configured ones, so that what came by hand is judged and put in force like what came by git.
    """
    present = (state.imported / "refs" / "heads" / config.branch).exists() or (state.imported / "packed-refs").exists()
    return (Repository(url=str(state.imported)),) if present else ()


def with_imported(config: NodeConfig, state: StateDir) -> NodeConfig:
    """The configuration with the imported repository beside the others."""
    known = imported_repository(config, state)
    return config.model_copy(update={"repositories": (*config.repositories, *known)}) if known else config


# --- putting in force ---------------------------------------------------------------------------------------------


class RepositorySource:
    """Asks every repository of a node, and puts the highest valid snapshot in force."""

    def __init__(self, node: Node) -> None:
        self._config = node.config
        self._journal = node.journal
        self._documents = node.documents
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
            MarkFile(self._state.mark, self._ports.files).keep(mark)
        question = Question(
            config=with_imported(self._config, self._state),
            git=self._git,
            into=self._state.mirror,
            borrow=None,
            seen=known_verdicts(self._journal),
            trust=trust,
            mark=mark,
            timestamp=current_timestamp(self._state, self._journal, self._ports),
            accepted=self._journal.accepted(),
            kept=self._documents,
            agent=self._agent,
            now=now,
        )
        answer = inquire(question)
        self._keep_trust(answer)
        if answer.snapshot is not None:
            self._accept(answer, answer.snapshot, now)
        self._keep_timestamp(answer)
        self._tell_rewritten(question, answer)
        self._remember(question, answer)
        return self._conclude(answer, now)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _keep_trust(self, answer: Answer) -> None:
        """Trust counts as soon as it was verified, whatever becomes of the snapshot beside it.

        Who was revoked stays revoked when this repository is silent at the next look.
        """
        if answer.trust_documents:
            self._journal.put_documents(answer.trust_documents)
        if answer.trust is not None:
            self._journal.set_fact(TRUST, answer.trust.digest)

    def _accept(self, answer: Answer, snapshot: Snapshot, now: datetime) -> None:
        """Put a snapshot in force: documents and journal first, then the second copy of the mark."""
        metadata = snapshot.document.metadata
        accepted = self._journal.accepted()
        if accepted is None or snapshot.digest != accepted.digest:
            self._put_in_force(answer, snapshot, now)
            MarkFile(self._state.mark, self._ports.files).write(
                Mark(epoch=metadata.epoch, sequence=metadata.sequence, digest=snapshot.digest)
            )
            held = answer.verdicts.get(str(self._state.imported))
            if str(self._state.imported) not in answer.moved or held is None or held.refusal is not None:
                # Another repository is ahead of what came by hand, which would lag behind from now on.
                self._ports.files.remove(self._state.imported)
        try:
            self._git.keep(self._state.mirror, [answer.commit])
        except SourceUnreachable as error:
            # Housekeeping: what is in force lies in the journal. A damaged mirror must not keep a node from healing.
            self._journal.apply((Note("Warning", "MirrorDamaged", error.message),), now)

    def _put_in_force(self, answer: Answer, snapshot: Snapshot, now: datetime) -> None:
        metadata = snapshot.document.metadata
        message = f"sequence {metadata.sequence} ({short(snapshot.digest)}), signed by {len(snapshot.signers)}"
        if snapshot.gap:
            message += "; snapshots before it were not seen"
        self._journal.accept(
            accepted_from(snapshot, now),
            answer.documents,
            Note("Normal", "SnapshotAccepted", message, subject=snapshot.digest),
        )
        if snapshot.document.spec.retry:
            note = Note("Normal", "RetrySigned", f"the snapshot clears {len(snapshot.document.spec.retry)} subjects")
            self._journal.forget_rejections(list(snapshot.document.spec.retry), note, now)

    def _keep_timestamp(self, answer: Answer) -> None:
        mark = answer.timestamp
        if mark is not None:
            self._journal.set_fact(TIMESTAMP, mark.to_json())
            CopyFile(self._state.timestamp, self._ports.files, TimestampMark).keep(mark)

    def _remember(self, question: Question, answer: Answer) -> None:
        """What was found, of the repositories that are configured: the others may come back as anything."""
        known = [repository.url for repository in with_imported(self._config, self._state).repositories]
        found = {**question.seen, **answer.verdicts}
        self._journal.set_fact(VERDICTS, verdicts.write({url: found[url] for url in known if url in found}))

    def _tell_rewritten(self, question: Question, answer: Answer) -> None:
        """A force-pushed history changes nothing about what is valid; people who look after it hear of it."""
        for url, commit in answer.moved.items():
            before = question.seen.get(url)
            if before is None or before.commit == commit:
                continue
            if self._git.follows(url, self._config.branch, self._state.mirror, old=before.commit, new=commit) is False:
                new, old = commit[:12], before.commit[:12]
                text = f"{scrub(url)} shows {new}, whose history does not contain {old}, which it showed before"
                self._journal.apply((Note("Normal", "HistoryRewritten", text),), question.now)

    # --- what it came to ------------------------------------------------------------------------------------------

    def _conclude(self, answer: Answer, now: datetime) -> SourceReport:
        self._note_remarks(answer.remarks, now)
        refusal, accepted, doubt = answer.refusal, self._journal.accepted(), answer.doubt
        waiting = isinstance(refusal, SignaturesPending) and accepted is not None
        if isinstance(refusal, NotTrusted) and not waiting:
            self._note_refusal(refusal, now)
            return _refused(refusal, answer.remarks)
        if doubt is not None and doubt.promised:
            # Also where nobody answers: silence for longer than a timestamp lives is how a freeze looks.
            return _refused(doubt.error, (*([refusal] if refusal else ()), *answer.remarks))
        if refusal is not None and not waiting:
            return _refused(refusal, answer.remarks)
        if accepted is None:
            return _refused(SourceUnreachable("no repository has a snapshot"), answer.remarks)
        self._journal.set_fact("source.refused", "")
        if refusal is not None:
            # Part of normal work: the next snapshot is being signed.
            return SourceReport(verified=True, reason=refusal.reason, message=_also(refusal.message, answer.remarks))
        return _verified(accepted, answer.remarks, now)

    def _note_refusal(self, error: NotTrusted, now: datetime) -> None:
        """One event per refusal, not one per poll."""
        text = f"{error.reason}: {error.message}"
        if self._journal.fact("source.refused") != text:
            self._journal.set_fact("source.refused", text)
            self._journal.apply((Note("Warning", error.reason, error.message),), now)

    def _note_remarks(self, remarks: Sequence[ReconcileError], now: datetime) -> None:
        """One event when something becomes worth a remark, and one when a doubt or a wrong clock is over."""
        before = self._journal.fact(REMARKS).splitlines()
        found = {_key(error): error for error in remarks if error.retry != "backoff"}
        new = [Note("Warning", error.reason, error.message) for key, error in found.items() if key not in before]
        over = [
            Note("Normal", f"{name}Over", text) for name, text in _OVER.items() if name in before and name not in found
        ]
        if new or over:
            self._journal.apply((*new, *over), now)
        self._journal.set_fact(REMARKS, "\n".join(found))


_OVER: Final = {
    "FreezeSuspected": "news are as fresh as they should be",
    "ClockBehind": "the clock is no longer behind what was accepted",
}


def _key(error: ReconcileError) -> str:
    """What tells a remark from the one before. Times in the text of a lasting one do not make it another."""
    if isinstance(error, FreezeSuspected | ClockBehind):
        return error.reason
    if isinstance(error, StaleSource):
        return f"{error.reason}: {error.message.partition(' ')[0]}"  # it begins with the repository
    return " ".join(f"{error.reason}: {error.message}".split())


def _also(message: str, remarks: Sequence[ReconcileError]) -> str:
    """A message with what else is worth knowing."""
    return "; ".join((message, *(f"{one.reason}: {one.message}" for one in remarks if one.message not in message)))


def _refused(error: ReconcileError, remarks: Sequence[ReconcileError] = ()) -> SourceReport:
    hint = f" ({error.hint})" if error.hint else ""
    others = [one for one in remarks if one is not error]
    return SourceReport(verified=False, reason=error.reason, message=_also(error.message + hint, others), error=error)


def _verified(accepted: Accepted, remarks: Sequence[ReconcileError], now: datetime) -> SourceReport:
    message = f"sequence {accepted.sequence} is the newest valid snapshot"
    reason = remarks[0].reason if remarks else "Verified"
    if accepted.expires_at <= now:
        message, reason = f"{message}; it has expired, and goes on until a newer one comes", "Expired"
    return SourceReport(verified=True, reason=reason, message=_also(message, remarks))
