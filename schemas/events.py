"""What a node's events mean: `reconcile events` prints them, and the reference page is made of this table.

Beside these, every reason (`schemas.reasons`) occurs as a warning.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

EVENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SnapshotAccepted": "A newer snapshot was verified, and is in force from now on.",
        "HistoryRewritten": "A repository's branch was moved to a commit that does not continue the one before.",
        "MirrorDamaged": "The node's own mirror of a repository was damaged, and is fetched anew.",
        "MarkForgotten": "The high-water mark was given up by hand.",
        "RetrySigned": "The snapshot clears remembered failures.",
        "RetryAsked": "Remembered failures were cleared by hand.",
        "RollbackAsked": "What was good before is wanted back by hand; what is left is held against until a retry.",
        "Suspended": "Changes were suspended by hand.",
        "Resumed": "Changes are applied again.",
        "WindowIgnored": "Changes were made outside their maintenance window, by hand.",
        "NotConverging": "A pass ended with changes still due after its last round.",
        "BundleImported": "A bundle was taken in.",
        "ModelInstalled": "A model was fetched, verified and published in the store.",
        "ModelVerified": "A stored model was hashed again, and is intact.",
        "ModelScrubbed": "The scrub looked through a model, and found nothing.",
        "BitRotFound": "The scrub found bytes of a stored model that are not its manifest's.",
        "ModelRestored": "A model came back from cold storage, and was verified.",
        "SourceBlamed": "A source sent wrong bytes, or failed, although others made up for it.",
        "ModelPending": "A model is stored, and nothing proves it yet.",
        "ModelActive": "A model holds a receipt for the runtime that serves it or would.",
        "ModelInactive": "A model is kept in the store, and not served.",
        "ModelFailed": "A model was found corrupt, or did not pass its probe.",
        "ModelArchived": "A model lies in cold storage.",
        "ModelRemoved": "A model that is no longer listed was removed after its grace.",
        "LeftoverRemoved": "Something in the store that no record knows was removed after its grace.",
        "StoreSwept": "What a crash left lying about in the store was removed.",
        "ReceiptVoided": "A receipt counts no longer: what it was about has changed.",
        "ReceiptsSigned": "Receipts that had been waiting for the node's key were signed.",
        "ReceiptsUnsigned": "Receipts wait for the node's key, which is locked; serving goes on.",
        "Superseded": "What was under way was given up, because a newer snapshot wants something else.",
        "DriftFound": "Something was changed from outside since it was applied: which field, as it was, and as it is.",
        "InstanceMended": "A running instance was given back the limits that it was created with.",
        "Interrupted": "What was under way was given up, because a person at the node wants something else.",
        "ModelValidated": "The serving model answered as its probe expects.",
        "ImagePulled": "An image was pulled by digest.",
        "EnvironmentInstalled": "A native environment was installed from its lock.",
        "EnvironmentRemoved": "A native environment that nothing needs was removed.",
        "InstanceCreated": "An instance was made ready to start, while what serves goes on.",
        "InstanceStarted": "An engine was started, and is ready.",
        "InstanceFailed": "An engine ended, or went bad, by itself; with its exit code, signal or what is wrong.",
        "CrashLooping": "An engine ended by itself too often in a row: given up for what served before, or tried on.",
        "InstanceStopped": "An engine was stopped, and removed.",
        "GpuRecovered": "A GPU that had failed computes again.",
        "GpuDriverChanged": "GPUs have another driver; what was proven under the one before is tested again.",
        "FrontStarted": "The front takes clients.",
        "FrontRouted": "The front leads requests to an instance that has been validated.",
        "FrontClosed": "The front refuses requests: nothing serves.",
    }
)
"""By the event's name."""
