"""What the reasons of conditions and of held changes mean that are no errors: `reconcile why REASON` prints them.

Beside these, every reason (`schemas.reasons`) occurs in both places. The reference page is made of these tables.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HELD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "OutsideWindow": "The change is due and waits for a maintenance window of the snapshot, which `until` names. "
        "`reconcile --ignore-window` does not wait, once; only the network's signers change windows.",
        "Suspended": "Somebody at the node holds changes, for the reason in `reconcile status`; `reconcile resume` "
        "lets them be applied.",
        "NoAssignment": "No assignment of the snapshot matches this node's labels and facts, so nobody said what it "
        "should serve. Compare its labels in node.yaml with the snapshot's selectors (`reconcile why`).",
        "NoMode": "The network's policy, the runtime and this node's backends have no way to run engines in common. "
        "Configure a backend that the snapshot allows; the message says what each of them wants.",
        "ForeignInstance": "Something runs with this node's marks that its journal does not know, and is left alone: "
        "only what this node created is ever removed. Stop and remove it by hand once you know what it is.",
        "StoreUnavailable": "The model store cannot be looked at, so nothing is fetched into it or removed from it. "
        "The message says what the system said; look at the disk of the state directory.",
        "Restarting": "What serves ended by itself, and is started again at the time shown. Nothing is to be done; "
        "`reconcile logs` shows what it printed before.",
        "CrashLooping": "What serves ended by itself too often. What served before comes back, where there is "
        "something; otherwise it is tried again at long intervals. Read `reconcile logs`, correct the runtime in a new "
        "snapshot, or clear the memory of it with `reconcile retry`.",
        "HealBudgetSpent": "The same thing was changed from outside and given back too often (`policy.heal` in "
        "node.yaml): it is left as it is. Find out who changes it, then `reconcile retry`.",
        "RolledBackByHand": "Somebody went back with `reconcile rollback`, and what was left is held against: until it "
        "changes, a signed `retry` names it, or `reconcile retry`.",
    }
)
"""Why a change that is due is not made now."""

CONDITIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Serving": "`Ready`: what the snapshot wants serves, with a receipt, and nothing else is due.",
        "NoSnapshot": "Not `Ready`: no snapshot was accepted yet. `SourceVerified` says why.",
        "NotServing": "Not `Ready`: nothing serves, and nothing is held back: the next pass says more.",
        "NotValidated": "Not `Ready`: an instance runs, and has not passed its probe yet.",
        "RolledBack": "What served before serves instead of what the snapshot wants; `reconcile why` shows the reason.",
        "ChangesPending": "`Reconciling`, and not `Ready`: changes are due, and the next round or pass makes them.",
        "Waiting": "`Reconciling`: what is due waits for a time, which `held` names.",
        "Converged": "Not `Reconciling`: nothing is due.",
        "Progressing": "`Reconciling`, and perhaps not `Ready` yet: changes are made right now, which `plan` lists. "
        "Not `Stalled`: nothing needs a person.",
        "Swapping": "Not `Ready`: what served is stopped, and its replacement does not serve yet.",
        "Verified": "`SourceVerified`: the newest snapshot that the repositories have is in force.",
        "NotRepaired": "`Drifted`: something was changed from outside, and is still so.",
        "Repaired": "Not `Drifted`: something had been changed from outside, and was given back in this pass.",
        "AsApplied": "Not `Drifted`: nothing was changed from outside.",
        "AsWanted": "Not `RolledBack`: nothing serves in place of what is wanted.",
        "ByOperator": "`Suspended`, in the words that somebody gave to `reconcile suspend`.",
        "Active": "Not `Suspended`.",
    }
)
"""What the reason of a condition says, with the conditions that have it."""
