"""The whole tree of errors. An error's class is its stable reason, its exit code and its retry policy.

    ReconcileError
    |- NotTrusted            exit 3   the desired state was refused (I1); waits for a new document
    |  |- InvalidSignature, ThresholdNotMet, UnknownSigner, WrongNetwork, Expired, NotYetValid, RollbackAttack,
    |  |  Equivocation, BrokenChain, SignaturesPending, StaleSource, FreezeSuspected, Withdrawn, AgentTooOld, MarkLost,
    |  |  TrustBroken
    |  `- DocumentError      names file, line and field
    |     `- MalformedDocument, LimitExceeded, MissingDocument, DigestMismatch
    |- Transient             exit 1   tried again with backoff
    |  `- SourceUnreachable, DownloadFailed, BackendUnavailable, EngineUnreachable, DaemonUnreachable, NotDelivered,
    |     GpuInUse, GpuNotFree, GpuFault, ValidationInconclusive
    |- Terminal              exit 1   the same attempt would fail again: its subject waits for a change or a `retry`
    |  `- ModelCorrupt, ImageUnavailable, EnvironmentUnavailable, EnvironmentChanged, StartFailed, NotReadyInTime,
    |     ValidationFailed, Incompatible, SignatureRefused, IsolationRefused
    `- Operational           exit 1   a person has to act
       `- ConfigError, StateLocked, NoSpace, DiskFailed, StalePlan (exit 4), StateCorrupt, NotInitialised, KeyLocked,
          GpuNotLockable, ClockBehind, PeerRefused, NothingToGoBackTo, UsageError (exit 64)

The message is for people and may change; `reason` is for programs and does not. Each class says what it means, and
after "Do:" what a person does about it: docs/reference/reasons.md is made of these (`make docs`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime

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


# --- tried again by itself ----------------------------------------------------------------------------------------


class Transient(ReconcileError):
    """Fails now, may work later: tried again with backoff."""

    retry: ClassVar[RetryPolicy] = "backoff"


class SourceUnreachable(Transient):
    """No repository answered.

    Do: nothing, if it passes: what is in force goes on. Otherwise look at the network, the address and git's
    credentials (`git ls-remote URL` as the agent's user).
    """


class NotDelivered(Transient):
    """A notification could not be handed over: its program failed, or its webhook did not take it.

    Do: nothing, if it passes: it is tried again, and nothing else waits for it. Otherwise look at `notifications` in
    node.yaml, and at the program or server that should take them.
    """


class DownloadFailed(Transient):
    """Every source of a file failed; what arrived is kept for resuming.

    Do: nothing, if it passes: it is tried again and resumed. Otherwise look at the model's sources in the snapshot
    and at `policy.sources` in node.yaml.
    """


class BackendUnavailable(Transient):
    """The backend cannot be observed: unknown, never taken for absent (I3).

    Do: start the container engine, or correct its socket in node.yaml. Nothing is started or removed until it
    answers.
    """


class GpuInUse(Transient):
    """Another node of this machine has a GPU that the runtime needs: nodes may share a machine, not a GPU (I3).

    Do: nothing, if it passes. Otherwise stop the node that the message names, or give the machine a GPU for each.
    """


class GpuNotFree(Transient):
    """A GPU's memory is still taken, by a process that should be gone or by a stranger's.

    Do: nothing, if it passes: it is tried again. Otherwise end the process that the message names; where the kernel
    itself does not let go of it, reset the GPU (`nvidia-smi --gpu-reset`) or restart the machine.
    """


class GpuFault(Transient):
    """A GPU that the runtime needs computes nothing any more: it has fallen off the bus, or needs a reset.

    Do: `nvidia-smi` and the kernel's log (`dmesg`, "NVRM: Xid") say more. Reset the GPU, or restart the machine; if it
    comes back, the card, its power or its slot is bad. The node notices a GPU that is there again by itself.
    """


class ValidationInconclusive(Transient):
    """The running model's answers neither pass its probe nor fail it, up to the last look.

    Do: nothing, if it passes: what served before goes on, and it is tried again. Where it stays, the probe was not
    calibrated for this node's processor or GPU: `reconcile probe record --onto` adds that.
    """


class EngineUnreachable(Transient):
    """The engine's socket does not answer, or answers beyond its limits.

    Do: nothing, if it passes. Otherwise read the instance's log below `logs/` in the state directory.
    """


class DaemonUnreachable(Transient):
    """No daemon listens on this node's control socket, or it ended before it answered.

    Do: start it (`reconcile --watch`, or its systemd unit) if there should be one; `reconcile` makes a pass without it.
    """


# --- the same attempt would fail again ----------------------------------------------------------------------------


class Terminal(ReconcileError):
    """The subject itself is bad: remembered, and not retried until it changes (I5)."""

    retry: ClassVar[RetryPolicy] = "on-change"


class ModelCorrupt(Terminal):
    """Model bytes do not have their manifest's digest (I2).

    Do: nothing: it is downloaded again, from another source if there is one. If it goes on, the disk or every
    source is bad.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class ImageUnavailable(Terminal):
    """The image cannot be pulled by its digest, or is not acceptable (an unbounded `VOLUME`).

    Do: check that the image can be pulled by this digest from this machine, and that it declares no volumes.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class EnvironmentUnavailable(Terminal):
    """A native environment cannot be installed from its lock: a wheel is not to be had, or is not the one locked.

    Do: read the message, which ends with the installer's own words; pip's configuration on this machine says where
    wheels come from, and `reconcile runtime set --lock` binds another lock.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class EnvironmentChanged(Terminal):
    """Files of an installed native environment are not the ones that were installed. It is installed again.

    Do: nothing, once; if it happens again, find out who writes below `runtimes/` in the state directory.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class StartFailed(Terminal):
    """The engine exited, or could not be started.

    Do: read the instance's log below `logs/` in the state directory; correct the runtime in a new snapshot, or
    clear the memory of it with `reconcile retry`.
    """


class NotReadyInTime(Terminal):
    """The engine runs but did not become ready.

    Do: read the instance's log; give it more time (`timeouts.start`) or less to load.
    """


class ValidationFailed(Terminal):
    """The running model did not answer as its probe expects.

    Do: the model, its tokenizer or its engine is not what was approved, or the probe was recorded with another:
    `reconcile probe record` again with the approved ones, or withdraw the model.
    """

    def __init__(self, message: str, *, hint: str = "", evidence: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.evidence = evidence
        """Digest of what it answered; None where it answered nothing."""


class Incompatible(Terminal):
    """The node cannot run what the snapshot asks for; nothing was tried.

    Do: serve something that this machine can run, or give it what the message names.
    """


class SignatureRefused(Terminal):
    """A model does not carry the signature of its maker that its manifest asks for.

    Do: ask the maker for the signed files, or approve the model anew (`reconcile model add --signed-by`) with the key
    that it is signed with.
    """


class IsolationRefused(Terminal):
    """Full isolation cannot be given, and snapshot or node does not allow less (I10).

    Do: use a backend that enforces what the message names, or allow less in both the snapshot
    (`isolation.allowUnenforced`) and node.yaml (`allowUnenforced`).
    """


# --- a person has to act ------------------------------------------------------------------------------------------


class Operational(ReconcileError):
    """Waits for a person."""


class ConfigError(Operational):
    """The node's configuration is missing or wrong.

    Do: correct the file and field that the message names; `reconcile schema print node` describes node.yaml.
    """


class GpuNotLockable(Operational):
    """The machine-wide lock of a GPU cannot be taken, although nobody holds it: nothing is started on it (I3).

    Do: the message names the file. Have root make the folder for everybody: `install -d -m 1777 /run/lock/reconcile`;
    in an agent's container, map the host's.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class KeyLocked(Operational):
    """A key file needs a password that was not given, or another one.

    Do: give the password by --password-file, RECONCILE_KEY_PASSWORD or `identity.passwordFile`.
    """


class NotInitialised(Operational):
    """No node lives here yet: `reconcile init` makes one.

    Do: run `reconcile init`, or name the configuration with --config.
    """


class StateLocked(Operational):
    """Another reconciler owns the state directory.

    Do: wait until it is done, or stop it first. A daemon is asked by itself wherever it can be.
    """


class PeerRefused(Operational):
    """A user who is neither root nor the daemon's own asked the daemon to change its node.

    Do: run the command as the daemon's user, or as root.
    """


class StateCorrupt(Operational):
    """The state directory holds something this agent did not write.

    Do: the message names the file. Keep a copy; then use the agent that wrote it, or restore the file from a
    backup.
    """


class ClockBehind(Operational):
    """This machine's clock is behind what was accepted already: reported, and never a reason to check less.

    Do: set the clock, and keep it by NTP. Until then snapshots may be refused as `NotYetValid`.
    """


class NoSpace(Operational):
    """The disk cannot hold what is planned.

    Do: free some disk, or lower `keepFree` and `policy.reserve` in node.yaml.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class DiskFailed(Operational):
    """A file of the state directory could not be read or written.

    Do: the message names the file and what the system said. What serves goes on; it is tried again by itself.
    """

    retry: ClassVar[RetryPolicy] = "backoff"


class StalePlan(Operational):
    """A saved plan no longer equals what would be planned now.

    Do: run `reconcile plan --out FILE` again, and read it again.
    """

    exit_code = 4


class NothingToGoBackTo(Operational):
    """There is nothing that served here before, or it may not run now: withdrawn, refused, or no longer stored.

    Do: `reconcile why runtime` says what is wanted. Commit and sign a snapshot that wants something else.
    """


class UsageError(Operational):
    """The command line asks for something that does not exist.

    Do: `reconcile COMMAND --help` shows what exists.
    """

    exit_code = 64


# --- from the system ----------------------------------------------------------------------------------------------

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def of_disk(error: OSError) -> ReconcileError:
    """What the system said of a file, as an error of ours: a full disk is no defect, and ends no daemon (I6, I11)."""
    said = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if error.errno in _FULL:
        return NoSpace(said, hint="free some space on the disk of the state directory")
    return DiskFailed(said)


# --- by name ------------------------------------------------------------------------------------------------------


def reasons() -> dict[str, type[ReconcileError]]:
    """Every reason that can be given, by name, in the order of this file. Groups such as `NotTrusted` are none."""
    found: dict[str, type[ReconcileError]] = {}

    def collect(cls: type[ReconcileError]) -> None:
        below = [item for item in cls.__subclasses__() if item.__module__ == __name__]
        if not below:
            found[cls.__name__] = cls
        for item in below:
            collect(item)

    collect(ReconcileError)
    return found
