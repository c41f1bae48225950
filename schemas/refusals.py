"""Why desired state was refused: errors of the branch `NotTrusted` of the tree that is drawn in `schemas.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from schemas.errors import ReconcileError, RetryPolicy

if TYPE_CHECKING:
    from datetime import datetime


class NotTrusted(ReconcileError):
    """Desired state that this node must not act upon (I1)."""

    exit_code = 3
    retry: ClassVar[RetryPolicy] = "on-change"


class InvalidSignature(NotTrusted):
    """A signature is malformed, malleable (high s), or not over these bytes.

    Do: the signer named in the message signs again (`reconcile snapshot sign`, `reconcile trust sign`). A file that
    nobody made is removed from the repository; who put it there is worth knowing.
    """


class ThresholdNotMet(NotTrusted):
    """Too few distinct current signers signed.

    Do: `reconcile snapshot show` lists who can still sign. On a node: wait for the signers, or tell them.
    """


class UnknownSigner(NotTrusted):
    """Signed only by addresses that hold no role.

    Do: compare the address with `reconcile trust show`. A revoked or mistyped key signs with another one; a new
    signer is added by a rotation (`reconcile trust add`). Nobody you know: somebody else can push to the
    repository.
    """


class WrongNetwork(NotTrusted):
    """The document belongs to another network.

    Do: check `network` and `repositories` in node.yaml; an operator checks `metadata.network` of the document.
    """


class Expired(NotTrusted):
    """`expiresAt` has passed.

    Do: its signers renew it: `reconcile snapshot bump`, or `reconcile trust rotate` for trust, then sign and push.
    What serves goes on. If the time shown lies in the future, this machine's clock is wrong.
    """


class NotYetValid(NotTrusted):
    """`issuedAt` lies in the future.

    Do: nothing: it is looked at again when it begins. If the time shown is past, this machine's clock is wrong.
    """

    def __init__(self, message: str, *, begins: datetime | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.begins = begins
        """When it is worth another look; None where that is not known."""


class RollbackAttack(NotTrusted):
    """(epoch, sequence) is below the mark.

    Do: nobody reverts commits of a network's documents: `reconcile snapshot revert` makes an older content a new
    snapshot. If nobody did, somebody shows old state on purpose: compare with another node and another mirror.
    """


class Equivocation(NotTrusted):
    """(epoch, sequence) equals the mark, with another digest.

    Do: compare both digests with the network's signers: either a signed snapshot was changed without `reconcile
    snapshot bump`, or signers say different things to different nodes.
    """


class BrokenChain(NotTrusted):
    """`previous` does not name the snapshot at the mark.

    Do: its author makes it again on top of what was published (`reconcile snapshot bump`) and it is signed again.
    """


class SignaturesPending(NotTrusted):
    """A newer snapshot is still collecting signatures: no alarm.

    Do: nothing: it is accepted as soon as the others have signed. `reconcile snapshot show` lists them.
    """


class StaleSource(NotTrusted):
    """One repository lags behind another: a mirror that should be looked at.

    Do: whoever runs that mirror updates it. Nothing is held up: another repository is up to date.
    """


class FreezeSuspected(NotTrusted):
    """The source withholds newer documents.

    Do: look at the repository by another way, or on another node. It shows something newer there: this node's way
    to it is being tampered with. It does not: the holders of the role `timestamp` run `reconcile snapshot
    timestamp`, or the signers renew the snapshot. What is in force stays in force.
    """


class Withdrawn(NotTrusted):
    """A digest on the signed `withdrawn` list.

    Do: nothing on the node: its network stopped it. `reconcile why` shows the reason that the signers gave; they
    serve something else (`reconcile snapshot serve`).
    """


class AgentTooOld(NotTrusted):
    """The document asks for a newer agent.

    Do: update the agent.
    """


class MarkLost(NotTrusted):
    """Both copies of the high-water mark are gone: rollback protection has no memory.

    Do: compare the newest snapshot with another node, then run `reconcile init --accept-current`.
    """


class TrustBroken(NotTrusted):
    """The chain of trust documents cannot be followed from the pinned one.

    Do: compare `trust.digest` in node.yaml with the digest that the network publishes, and the repository's
    networks/NAME/trust/ with another mirror: a version may be missing, exchanged, or signed by one side only.
    """


class DocumentError(NotTrusted):
    """One document is not what it must be; the message begins with `file:line: field:` as far as known."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, field: str = "", hint: str = "") -> None:
        where = file + (f":{line}" if line else "")
        super().__init__(": ".join(part for part in (where, field, message) if part), hint=hint)
        self.file = file
        self.line = line
        self.field = field


class MalformedDocument(DocumentError):
    """Not UTF-8, not YAML 1.2 core, a duplicate key, an anchor, an unknown field, a wrong type.

    Do: its author corrects the file and line in the message (`reconcile snapshot validate` finds the same) and
    signs again.
    """


class LimitExceeded(DocumentError):
    """Larger, deeper or longer than its limit.

    Do: make the document smaller; for a repository as a whole, `maxRepository` in node.yaml is the node's bound. A
    file that no person wrote is somebody's attempt to exhaust this machine.
    """


class MissingDocument(DocumentError):
    """A file that the snapshot names is not in the repository, or is not a regular file.

    Do: its author commits the file that the message names; `reconcile snapshot validate` finds it before the
    commit.
    """


class DigestMismatch(DocumentError):
    """A file's bytes do not have the digest that the snapshot binds.

    Do: if the file was changed on purpose, `reconcile snapshot pin` binds what it is now and the snapshot is signed
    again; otherwise put back the bytes that were signed for.
    """
