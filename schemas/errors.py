"""The whole tree of errors. An error's class is its stable reason, its exit code and its retry policy.

    ReconcileError
    |- NotTrusted            exit 3   the desired state was refused (I1); waits for a new document
    |  |- InvalidSignature, ThresholdNotMet, UnknownSigner, WrongNetwork, Expired, NotYetValid, RollbackAttack,
    |  |  Equivocation, BrokenChain, SignaturesPending, StaleSource, FreezeSuspected, Withdrawn, AgentTooOld, MarkLost,
    |  |  TrustBroken
    |  `- DocumentError      names file, line and field
    |     `- MalformedDocument, LimitExceeded, MissingDocument, DigestMismatch
    |- Transient             exit 1   tried again with backoff
    |  `- SourceUnreachable, DownloadFailed, BackendUnavailable, EngineUnreachable
    |- Terminal              exit 1   the same attempt would fail again: its subject waits for a change or a `retry`
    |  `- ModelCorrupt, ImageUnavailable, StartFailed, NotReadyInTime, ValidationFailed, Incompatible,
    |     SignatureRefused, IsolationRefused
    `- Operational           exit 1   a person has to act
       `- ConfigError, StateLocked, NoSpace, StalePlan (exit 4), StateCorrupt, NotInitialised, KeyLocked,
          UsageError (exit 64)

The message is for people and may change; `reason` is for programs and does not.
"""

from __future__ import annotations

from typing import ClassVar, Literal

RetryPolicy = Literal["backoff", "on-change", "operator"]


class ReconcileError(Exception):
    """The root: one clear sentence, a stable `reason`, and what may be done about it.

    Attributes:
        reason: the stable CamelCase name, equal to the class name.
        exit_code: what the process exits with when this error is its outcome (CLI contract).
        retry: `backoff` (tried again by itself), `on-change` (waits until its subject changes) or `operator`.
        hint: what a person can do, or "".
    """

    exit_code: ClassVar[int] = 1
    retry: ClassVar[RetryPolicy] = "operator"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def reason(self) -> str:
        """The stable name of this failure."""
        return type(self).__name__

    @property
    def message(self) -> str:
        """The sentence for people, without the hint."""
        return str(self.args[0])


# --- the desired state was refused --------------------------------------------------------------------------------


class NotTrusted(ReconcileError):
    """Desired state that this node must not act upon (I1)."""

    exit_code = 3
    retry: ClassVar[RetryPolicy] = "on-change"


class InvalidSignature(NotTrusted):
    """A signature is malformed, malleable (high s), or not over these bytes."""


class ThresholdNotMet(NotTrusted):
    """Too few distinct current signers signed."""


class UnknownSigner(NotTrusted):
    """Signed only by addresses that hold no role."""


class WrongNetwork(NotTrusted):
    """The document belongs to another network."""


class Expired(NotTrusted):
    """`expiresAt` has passed."""


class NotYetValid(NotTrusted):
    """`issuedAt` lies in the future."""


class RollbackAttack(NotTrusted):
    """(epoch, sequence) is below the mark."""


class Equivocation(NotTrusted):
    """(epoch, sequence) equals the mark, with another digest."""


class BrokenChain(NotTrusted):
    """`previous` does not name the snapshot at the mark."""


class SignaturesPending(NotTrusted):
    """A newer snapshot is still collecting signatures: no alarm."""


class StaleSource(NotTrusted):
    """One repository lags behind another: a mirror that should be looked at."""


class FreezeSuspected(NotTrusted):
    """The source withholds newer documents."""


class Withdrawn(NotTrusted):
    """A digest on the signed `withdrawn` list."""


class AgentTooOld(NotTrusted):
    """The document asks for a newer agent."""


class MarkLost(NotTrusted):
    """Both copies of the high-water mark are gone: rollback protection has no memory."""


class TrustBroken(NotTrusted):
    """The chain of trust documents cannot be followed from the pinned one."""


class DocumentError(NotTrusted):
    """One document is not what it must be; the message begins with `file:line: field:` as far as known."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, field: str = "", hint: str = "") -> None:
        where = file + (f":{line}" if line else "")
        super().__init__(": ".join(part for part in (where, field, message) if part), hint=hint)
        self.file = file
        self.line = line
        self.field = field


class MalformedDocument(DocumentError):
    """Not UTF-8, not YAML 1.2 core, a duplicate key, an anchor, an unknown field, a wrong type."""


class LimitExceeded(DocumentError):
    """Larger, deeper or longer than its limit."""


class MissingDocument(DocumentError):
    """A file that the snapshot names is not in the repository, or is not a regular file."""


class DigestMismatch(DocumentError):
    """A file's bytes do not have the digest that the snapshot binds."""


# --- tried again by itself ----------------------------------------------------------------------------------------


class Transient(ReconcileError):
    """Fails now, may work later: tried again with backoff."""

    retry: ClassVar[RetryPolicy] = "backoff"


class SourceUnreachable(Transient):
    """No repository answered."""


class DownloadFailed(Transient):
    """Every source of a file failed; what arrived is kept for resuming."""


class BackendUnavailable(Transient):
    """The backend cannot be observed: unknown, never taken for absent (I3)."""


class EngineUnreachable(Transient):
    """The engine's socket does not answer, or answers beyond its limits."""


# --- the same attempt would fail again ----------------------------------------------------------------------------


class Terminal(ReconcileError):
    """The subject itself is bad: remembered, and not retried until it changes (I5)."""

    retry: ClassVar[RetryPolicy] = "on-change"


class ModelCorrupt(Terminal):
    """Model bytes do not have their manifest's digest (I2)."""

    retry: ClassVar[RetryPolicy] = "backoff"


class ImageUnavailable(Terminal):
    """The image cannot be pulled by its digest, or is not acceptable (an unbounded `VOLUME`)."""

    retry: ClassVar[RetryPolicy] = "backoff"


class StartFailed(Terminal):
    """The engine exited, or could not be started."""


class NotReadyInTime(Terminal):
    """The engine runs but did not become ready."""


class ValidationFailed(Terminal):
    """The running model did not answer as its probe expects."""


class Incompatible(Terminal):
    """The node cannot run what the snapshot asks for; nothing was tried."""


class SignatureRefused(Terminal):
    """A model does not carry the signature of its maker that its manifest asks for."""


class IsolationRefused(Terminal):
    """Full isolation cannot be given, and snapshot or node does not allow less (I10)."""


# --- a person has to act ------------------------------------------------------------------------------------------


class Operational(ReconcileError):
    """Waits for a person."""


class ConfigError(Operational):
    """The node's configuration is missing or wrong."""


class KeyLocked(Operational):
    """A key file needs a password that was not given, or another one."""


class NotInitialised(Operational):
    """No node lives here yet: `reconcile init` makes one."""


class StateLocked(Operational):
    """Another reconciler owns the state directory."""


class StateCorrupt(Operational):
    """The state directory holds something this agent did not write."""


class NoSpace(Operational):
    """The disk cannot hold what is planned."""

    retry: ClassVar[RetryPolicy] = "backoff"


class StalePlan(Operational):
    """A saved plan no longer equals what would be planned now."""

    exit_code = 4


class UsageError(Operational):
    """The command line asks for something that does not exist."""

    exit_code = 64
