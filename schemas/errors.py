"""The tree of errors. An error's class is its stable reason, its exit code and its retry policy.

    ReconcileError
    |- NotTrusted            exit 3   the desired state was refused (I1); waits for a new document (`schemas.refusals`)
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
from typing import ClassVar, Final, Literal

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
