"""What a dry run plans for, found out without writing anything but below a scratch folder (I9)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from desired_state.document import SNAPSHOT_LIMIT, load
from desired_state.layout import snapshot_file
from reconciler.documents import JournalDocuments, bound_documents
from reconciler.inquiry import Question, git_source, inquire
from reconciler.journal import StoredDocument
from reconciler.source import current_mark, current_timestamp, current_trust, known_verdicts, with_imported
from reconciler.state_dir import StateDir
from schemas.digests import digest_bytes
from schemas.plan import Explanation, Notice
from schemas.refusals import NotTrusted, SignaturesPending, WrongNetwork
from schemas.snapshot import SnapshotDocument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from desired_state.files import DocumentFiles
    from reconciler.journal import Journal
    from schemas.errors import ReconcileError
    from schemas.node import NodeConfig
    from schemas.plan import Plan
    from schemas.ports import Ports


@dataclass(frozen=True, slots=True)
class Preview:
    """A snapshot to plan for."""

    digest: str
    """Its digest; empty for none."""
    verified: bool
    """False for a folder that nobody signed for."""
    documents: Mapping[str, StoredDocument]
    """What it would bring, by digest."""
    cleared: tuple[str, ...] = ()
    """Subjects whose remembered failure it would clear."""
    refusal: ReconcileError | None = None
    """Why what the repositories show cannot be believed, or could not be seen, or may not be the newest."""
    remarks: tuple[ReconcileError, ...] = ()
    """What else is worth knowing about where it comes from, and stops nothing."""


def told(plan: Plan, seen: Preview) -> Plan:
    """A plan that also says what is known of its source. Its identity stays the same."""
    reasons = [*([seen.refusal] if seen.refusal is not None else ()), *seen.remarks]
    distinct = list({(one.reason, one.message): one for one in reasons}.values())
    steps = [Explanation(subject="source", decision=f"{one.reason}: {one.message}"[:4096]) for one in distinct]
    if seen.verified and not steps:
        text = f"sequence {plan.sequence} is the newest valid snapshot that any repository shows"
        steps = [Explanation(subject="source", decision=text)]
    notices = tuple(
        Notice(reason=one.reason, message=one.message[:4096]) for one in distinct if one is not seen.refusal
    )
    return plan.model_copy(update={"trace": (*steps, *plan.trace), "notices": notices})


def preview_files(config: NodeConfig, files: DocumentFiles) -> Preview:
    """A working copy or a commit of one: read and checked like any other, but its signatures are not asked for.

    Raises:
        DocumentError: a document is not what it must be.
        WrongNetwork: it is another network's.
    """
    path = snapshot_file(config.network)
    content = files.read(path, SNAPSHOT_LIMIT)
    document = load(content, SnapshotDocument, file=path, limit=SNAPSHOT_LIMIT)
    if document.metadata.network != config.network:
        raise WrongNetwork(f"{path} is of the network {document.metadata.network!r}")
    digest = digest_bytes(content)
    documents = {digest: StoredDocument("snapshot", content), **bound_documents(files, document)}
    return Preview(digest, verified=False, documents=documents, cleared=document.spec.retry)


def preview(config: NodeConfig, journal: Journal, *, ports: Ports, scratch: Path, agent: str, now: datetime) -> Preview:
    """What the next pass would act upon.

    Args:
        config: the node's configuration.
        journal: open for reading.
        ports: the outside.
        scratch: a folder that may be written to, and that the caller removes.
        agent: version of this agent.
        now: read once by the caller.
    """
    state, accepted = StateDir(Path(config.state_dir)), journal.accepted()
    in_force = Preview(accepted.digest if accepted else "", verified=accepted is not None, documents={})
    try:
        mark, trust = current_mark(state, journal, ports), current_trust(config, journal)
    except NotTrusted as error:
        return replace(in_force, refusal=error)
    question = Question(
        config=with_imported(config, state),
        git=git_source(config, ports),
        into=scratch,
        borrow=state.mirror if state.mirror.is_dir() else None,
        seen=known_verdicts(journal),
        trust=trust,
        mark=mark,
        timestamp=current_timestamp(state, journal, ports),
        accepted=accepted,
        kept=JournalDocuments(journal),
        agent=agent,
        now=now,
    )
    answer = inquire(question)
    doubt = answer.doubt.error if answer.doubt is not None and answer.doubt.promised else None
    alarm = isinstance(answer.refusal, NotTrusted) and not isinstance(answer.refusal, SignaturesPending)
    refusal = answer.refusal if alarm or doubt is None else doubt
    found = replace(in_force, refusal=refusal, remarks=answer.remarks)
    if answer.snapshot is None or answer.snapshot.digest == in_force.digest:
        return found
    return replace(
        found,
        digest=answer.snapshot.digest,
        verified=True,
        documents=answer.documents,
        cleared=answer.snapshot.document.spec.retry,
    )
