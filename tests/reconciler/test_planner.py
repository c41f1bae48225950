"""The planner: literal situations in, whole plans as text out. No mock, no I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from reconciler.planner import plan
from schemas.digests import digest_text
from schemas.memory import Hold, Rejection
from schemas.observation import Absent, ArchivedModel, PartialModel, Present, StoredModel, Unknown
from schemas.plan import Plan
from tests.support.builders import (
    IMAGE,
    NOW,
    assignment,
    container_runtime,
    converged,
    desired,
    good,
    gpu,
    hardware,
    instance,
    manifest_digest,
    model,
    node,
    observed,
    receipt,
    record,
    runtime,
    snapshot,
    stored,
    target,
)

V2 = snapshot(models=(model(), model(version="v2")), assignments=(assignment("m:v2"),), sequence=2)
DOCKER = node(backends={"docker": {"socket": "/run/docker.sock"}})


def text(made: Plan) -> str:
    """A plan as the tests read it: one line per action with its needs, then what is held."""
    lines = [f"{action.id}{' <- ' + ' '.join(action.needs) if action.needs else ''}" for action in made.actions]
    return "\n".join([*lines, *(f"held {held.subject} {held.reason}" for held in made.held)])


def rejected(of: Any) -> dict[str, Rejection]:
    """The memory of a failed target."""
    subject = of.subject(hardware().accelerator)
    return {subject: Rejection(subject, of.model, "ValidationFailed", "wrong token", NOW, digest_text("snapshot 2"))}


def test_empty_node_is_installed_started_and_validated_in_that_order() -> None:
    """A first plan stages before it starts, and validates before it is done (I2, I4)."""
    made = plan(desired(), observed(), node(), NOW)
    assert text(made) == "\n".join(
        [
            "download/m:v1",
            "start/m:v1 <- download/m:v1",
            "validate/m:v1 <- start/m:v1",
        ]
    )
    assert made.cost.downtime == "start"


def test_converged_node_has_no_changes() -> None:
    """Nothing is due on a node that is what the snapshot says."""
    made = plan(desired(), converged(), node(), NOW)
    assert text(made) == ""


def test_swap_stops_the_serving_instance_only_after_staging() -> None:
    """The old instance is stopped only when the new model is here (I4)."""
    made = plan(desired(V2), converged(), node(), NOW)
    assert text(made) == "\n".join(
        [
            "download/m:v2",
            "create/m:v2 <- download/m:v2",
            "stop/reconcile-testnet-a1 <- download/m:v2 create/m:v2",
            "start/m:v2 <- download/m:v2 create/m:v2 stop/reconcile-testnet-a1",
            "validate/m:v2 <- start/m:v2",
        ]
    )
    assert made.cost.downtime == "swap"


def test_container_mode_pulls_the_image_before_the_stop() -> None:
    """An image is staged like a model (I4)."""
    of = target(mode="container", backend="docker", image=IMAGE, environment=None)
    there = converged(target())
    seen = replace(
        there, state=replace(there.state, backends={"docker": Present(()), **there.state.backends}, images={})
    )
    both = node(backends={"docker": {"socket": "/run/docker.sock"}, "native": {}})
    made = plan(desired(snapshot(runtimes=(container_runtime(),))), seen, both, NOW)
    assert text(made) == "\n".join(
        [
            "pull/docker",
            f"create/{of.model} <- pull/docker",
            f"stop/reconcile-testnet-a1 <- pull/docker create/{of.model}",
            f"start/{of.model} <- pull/docker create/{of.model} stop/reconcile-testnet-a1",
            f"validate/{of.model} <- start/{of.model}",
        ]
    )


def test_rejected_subject_leads_back_to_the_last_known_good() -> None:
    """After a failed validation the next plan is the way back, and says why (I5)."""
    bad = target("m:v2")
    seen = observed(
        instances=(instance(bad, "b2"),),
        models=(stored(), stored("m:v2")),
        rejections=rejected(bad),
        last_known_good=good(),
        receipts=(receipt(),),
        records=(record(), record("m:v2", "Failed")),
    )
    made = plan(desired(V2), seen, node(), NOW)
    assert text(made) == "\n".join(
        [
            "create/m:v1",
            "stop/reconcile-testnet-b2 <- create/m:v1",
            "start/m:v1 <- create/m:v1 stop/reconcile-testnet-b2",
            "validate/m:v1 <- start/m:v1",
            "held m:v2 ValidationFailed",
        ]
    )


def test_rejected_subject_is_not_tried_again() -> None:
    """A remembered failure holds the change back, and what serves goes on (I5)."""
    made = plan(desired(V2), converged(rejections=rejected(target("m:v2"))), node(), NOW)
    assert text(made) == "download/m:v2\nheld m:v2 ValidationFailed"


def test_rejection_is_of_the_subject_not_of_the_model() -> None:
    """A changed engine argument is another subject, and is tried."""
    changed = snapshot(
        models=(model(), model(version="v2")),
        runtimes=(runtime(engineArgs={"contextSize": 512}),),
        assignments=(assignment("m:v2"),),
    )
    made = plan(desired(changed), converged(rejections=rejected(target("m:v2"))), node(), NOW)
    assert "start/m:v2" in text(made)


def test_no_way_back_stops_what_is_not_approved() -> None:
    """Without a last known good, a failed subject does not go on serving (I2)."""
    bad = target()
    seen = observed(instances=(instance(bad),), models=(stored(),), rejections=rejected(bad))
    made = plan(desired(), seen, node(), NOW)
    assert text(made) == "stop/reconcile-testnet-a1\nheld m:v1 ValidationFailed"


def test_unknown_backend_blocks_starting_and_stopping_anywhere() -> None:
    """A backend that may hold an instance and cannot be seen blocks every change of the runtime (I3)."""
    seen = observed(models=(stored(),), backends={"native": Present(()), "docker": Unknown("connection refused")})
    made = plan(desired(), seen, node(backends={"docker": {"socket": "/run/d.sock"}, "native": {}}), NOW)
    assert text(made) == "held runtime BackendUnavailable"


def test_container_mode_does_not_downgrade_when_docker_is_down() -> None:
    """A stopped container engine never turns an isolated runtime into a native one (I3)."""
    both = snapshot(runtimes=(runtime(modes=("container", "native"), images=({"ref": IMAGE},)),))
    seen = observed(models=(stored(),), backends={"native": Present(()), "docker": Unknown("down")})
    made = plan(desired(both), seen, node(backends={"docker": {"socket": "/run/d.sock"}, "native": {}}), NOW)
    assert "start" not in text(made)


def test_dead_instance_is_cleaned_up_and_replaced() -> None:
    """A killed engine is replaced, and the new one is validated before it counts."""
    dead = instance(status="exited", exit_code=137, detail="signal 9")
    seen = replace(converged(), state=replace(converged().state, backends={"native": Present((dead,))}))
    made = plan(desired(), seen, node(), NOW)
    assert text(made) == "\n".join(
        [
            "stop/reconcile-testnet-a1",
            "start/m:v1 <- stop/reconcile-testnet-a1",
            "validate/m:v1 <- start/m:v1",
        ]
    )
    assert "signal 9" in made.actions[0].cause


def test_second_instance_is_stopped_and_the_proven_one_stays() -> None:
    """One runtime: of two that fit, the one with the receipt stays (I3)."""
    seen = converged()
    two = (instance(intent="0first"), instance())
    seen = replace(
        seen,
        state=replace(seen.state, backends={"native": Present(two)}),
        memory=replace(seen.memory, intents=frozenset({"0first", "a1"})),
    )
    assert text(plan(desired(), seen, node(), NOW)) == "stop/reconcile-testnet-0first"


def test_foreign_instance_is_never_removed() -> None:
    """An instance with our marks that the journal does not know blocks, and is left alone (I8)."""
    seen = observed(instances=(instance(target("m:v9"), "zz"),), models=(stored(),), intents=frozenset())
    assert text(plan(desired(), seen, node(), NOW)) == "held runtime ForeignInstance"


def test_changed_files_are_hashed_before_the_start() -> None:
    """A model whose files changed is verified again before it is used (I2)."""
    seen = observed(models=(stored(intact=False),), records=(record(state="Pending"),))
    assert text(plan(desired(), seen, node(), NOW)).startswith("verify/m:v1\nstart/m:v1 <- verify/m:v1")


def test_backoff_holds_the_download_and_what_serves_goes_on() -> None:
    """A failed download waits for its time; nothing is stopped meanwhile (I4, I6)."""
    digest = manifest_digest("m:v2")
    hold = Hold(digest, "ModelCorrupt", "wrong bytes", 2, NOW + timedelta(minutes=1))
    made = plan(desired(V2), converged(holds={digest: hold}), node(), NOW)
    assert text(made) == "held m:v2 ModelCorrupt"
    later = plan(desired(V2), converged(holds={digest: hold}), node(), NOW + timedelta(minutes=2))
    assert "download/m:v2" in text(later)


def test_download_that_does_not_fit_is_refused_with_the_numbers() -> None:
    """A full disk is a matter of the plan, not of a failed download (I6)."""
    seen = converged()
    seen = replace(
        seen,
        state=replace(
            seen.state,
            hardware=hardware(disk_free=101 * 2**30),
            missing={manifest_digest("m:v2"): 5 * 2**30},
        ),
    )
    made = plan(desired(V2), seen, node(), NOW)
    assert text(made) == "held m:v2 NoSpace"
    assert str(5 * 2**30) in made.held[0].message


def test_no_assignment_keeps_what_serves() -> None:
    """A node that nothing is assigned to keeps what it has, and says so."""
    elsewhere = snapshot(assignments=(assignment(selector={"matchLabels": {"gpu": "h100"}}),))
    assert text(plan(desired(elsewhere), converged(), node(), NOW)) == "held runtime NoAssignment"


@pytest.mark.parametrize("suspended", [True, False])
def test_withdrawn_model_stops_at_once_even_while_suspended(suspended: bool) -> None:
    """A withdrawn digest is stopped over every other rule, even if nothing serves then (I6)."""
    withdrawn = snapshot(withdrawn=({"digest": manifest_digest("m:v1"), "reason": "poisoned"},))
    made = plan(desired(withdrawn), converged(suspended="maintenance" if suspended else ""), node(), NOW)
    assert [action.kind for action in made.actions] == ["stop-instance"]
    assert "poisoned" in made.actions[0].cause


def test_nothing_starts_while_what_was_withdrawn_runs() -> None:
    """Its stop may fail: then there would be two (I3)."""
    withdrawn = snapshot(
        models=(model(), model(version="v2")),
        assignments=(assignment("m:v2"),),
        withdrawn=({"digest": manifest_digest("m:v1"), "reason": "poisoned"},),
    )
    seen = converged()
    seen = replace(seen, state=replace(seen.state, models=dict((stored("m:v1"), stored("m:v2")))))
    made = plan(desired(withdrawn), seen, node(), NOW)
    ends = [action.id for action in made.actions if action.kind == "stop-instance"]
    start = next(action for action in made.actions if action.kind == "start-instance")
    assert len(ends) == 1
    assert set(ends) <= set(start.needs)


def test_suspension_holds_changes() -> None:
    """A suspended node changes nothing and says how much waits."""
    made = plan(desired(V2), converged(suspended="maintenance"), node(), NOW)
    assert text(made) == "held node Suspended"


def test_swap_waits_for_its_window_and_staging_does_not() -> None:
    """Staging and swapping have windows of their own."""
    window = {"days": ("tue",), "from": "02:00", "to": "05:00"}
    closed = snapshot(
        models=(model(), model(version="v2")),
        assignments=(assignment("m:v2"),),
        policy={"windows": {"swap": (window,)}},
    )
    made = plan(desired(closed), converged(), node(), NOW)
    assert text(made) == "download/m:v2\nheld runtime OutsideWindow"
    assert made.held[0].until == NOW.replace(day=3, hour=2)


def test_an_image_waits_for_the_staging_window() -> None:
    """A pull is staging: outside its window it waits, and what serves is not stopped for it (I4)."""
    window = {"days": ("tue",), "from": "02:00", "to": "05:00"}
    closed = snapshot(runtimes=(container_runtime(),), policy={"windows": {"stage": (window,)}})
    seen = observed(models=(stored(),), backends={"docker": Present(())})
    config = node(backends={"docker": {"socket": "/run/docker.sock"}})
    made = plan(desired(closed), seen, config, NOW)
    assert text(made) == "held image OutsideWindow"
    allowed = plan(desired(closed), seen, config, NOW, ignore_windows=True)
    assert allowed.actions[0].kind == "pull-image"
    assert (made.outside_window, allowed.outside_window) == (False, True)


def test_crash_loop_ends_in_a_hold() -> None:
    """Five starts in ten minutes are enough."""
    of = target()
    starts = tuple(NOW - timedelta(minutes=minute) for minute in range(1, 6))
    seen = observed(models=(stored(),), recent_starts={of.spec_digest: starts})
    assert text(plan(desired(), seen, node(), NOW)) == "held runtime CrashLooping"


def test_unproven_instance_is_stopped_even_if_nothing_can_take_its_place() -> None:
    """A subject that failed does not go on running because its way back is held up; a proven one does (I2, I6)."""
    bad, back = target("m:v2"), target()
    starts = tuple(NOW - timedelta(minutes=minute) for minute in range(1, 6))
    memory: dict[str, Any] = {
        "rejections": rejected(bad),
        "last_known_good": good(),
        "recent_starts": {back.spec_digest: starts},
    }
    models = (stored(), stored("m:v2"))
    seen = observed(instances=(instance(bad, "b2"),), models=models, **memory)
    assert text(plan(desired(V2), seen, node(), NOW)).startswith(
        "stop/reconcile-testnet-b2\nheld m:v2 ValidationFailed"
    )
    proven = observed(instances=(instance(bad, "b2"),), models=models, receipts=(receipt(bad, "b2"),), **memory)
    assert "stop/" not in text(plan(desired(V2), proven, node(), NOW))


def test_retest_is_planned_when_due() -> None:
    """The periodic retest runs against the serving instance, without a restart."""
    old = receipt(issued_at=NOW - timedelta(hours=7))
    made = plan(desired(), converged(receipts=(old,)), node(), NOW)
    assert text(made) == "validate/m:v1"


def test_receipt_of_another_instance_does_not_count() -> None:
    """A receipt speaks for the instance that answered, not for its successor (I2)."""
    made = plan(desired(), converged(receipts=(receipt(intent="other"),)), node(), NOW)
    assert text(made) == "validate/m:v1"


def test_unlisted_model_is_removed_after_its_grace_only() -> None:
    """Removal waits for the grace, counted in running time (I8)."""
    for spent, expected in ((10.0, ""), (90000.0, "remove/old:v1")):
        seen = converged()
        records = {**seen.memory.models, manifest_digest("old:v1"): record("old:v1", unlisted_for=spent)}
        seen = replace(seen, memory=replace(seen.memory, models=records))
        assert text(plan(desired(), seen, node(), NOW)) == expected


@pytest.mark.parametrize("case", ["unverified", "empty", "last known good"])
def test_nothing_is_removed_on_a_weak_ground(case: str) -> None:
    """No removal from a draft, on an empty list, or of what the node goes back to (I8)."""
    key = "m:v1" if case == "last known good" else "old:v1"
    seen = converged()
    records = {manifest_digest(key): record(key, unlisted_for=90000.0)}
    seen = replace(seen, memory=replace(seen.memory, models=records))
    document = snapshot(models=(), assignments=()) if case == "empty" else snapshot()
    if case == "last known good":
        document = snapshot(models=(model("x"),), assignments=(assignment("x:v1"),))
    wanted = desired(document, verified=case != "unverified")
    assert "remove" not in text(plan(wanted, seen, node(), NOW))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"requires": {"memory": "1TiB"}}, "memory"),
        ({"requires": {"gpuMemory": "1GiB"}}, "GPU memory"),
        ({"requires": {"engines": ("vllm>=0.30",)}}, "vllm"),
        ({"requires": {"engines": ("llamacpp>=2",)}}, "llamacpp>=2"),
    ],
)
def test_incompatible_model_is_not_even_fetched(fields: dict[str, Any], message: str) -> None:
    """Compatibility is decided in the plan, with its reason; what the machine cannot run is not downloaded."""
    made = plan(desired(snapshot(models=(model(**fields),))), observed(), node(), NOW)
    assert [held.reason for held in made.held] == ["Incompatible"]
    assert message in made.held[0].message
    assert made.actions == ()


def test_only_what_fits_is_fetched_of_several() -> None:
    """A model that is served second does not wait for one that this machine cannot run, nor the other way round."""
    for first, second in (("m:v1", "n:v1"), ("n:v1", "m:v1")):
        models = (model("m"), model("n", requires={"memory": "1TiB"}))
        made = plan(desired(snapshot(models=models, assignments=(assignment(first, second),))), observed(), node(), NOW)
        assert [item.id for item in made.actions if item.kind == "download-model"] == ["download/m:v1"]


def test_gpu_runtime_needs_a_gpu_and_uses_its_image() -> None:
    """GPU access is explicit, and a machine without one is told so."""
    wanted = snapshot(runtimes=(runtime(resources={"gpus": 1}),))
    assert text(plan(desired(wanted), observed(), node(), NOW)).endswith("held m:v1 Incompatible")
    made = plan(desired(wanted), observed(machine=hardware(gpus=(gpu(),))), node(), NOW)
    assert "start/m:v1" in text(made)


def test_plan_is_a_function_of_its_arguments() -> None:
    """The same arguments give the same bytes; a changed observation another fingerprint."""
    first, second = (plan(desired(V2), converged(), node(), NOW).to_json() for _ in range(2))
    assert first == second
    other = plan(desired(V2), observed(models=(stored(),)), node(), NOW)
    assert other.observation != plan(desired(V2), converged(), node(), NOW).observation


def test_volatile_readings_do_not_change_the_fingerprint() -> None:
    """Free disk and times do not make a saved plan stale."""
    seen = converged()
    other = replace(seen, state=replace(seen.state, hardware=hardware(disk_free=123 * 2**30)))
    assert plan(desired(), seen, node(), NOW).identity == plan(desired(), other, node(), NOW).identity


def test_saved_plan_survives_the_round_trip() -> None:
    """What was shown is what is compared and run: JSON and back is the same plan."""
    made = plan(desired(V2), converged(), node(), NOW)
    assert Plan.model_validate_json(made.to_json()) == made


def test_unreadable_store_blocks_the_swap() -> None:
    """A store that cannot be read is unknown, not empty: nothing is fetched, nothing is stopped."""
    seen = converged()
    seen = replace(
        seen, state=replace(seen.state, models={**seen.state.models, manifest_digest("m:v2"): Unknown("io")})
    )
    assert text(plan(desired(V2), seen, node(), NOW)) == "held m:v2 StoreUnavailable"


@pytest.mark.parametrize(
    ("by_network", "by_owner", "runs"),
    [((), (), False), (("memory",), (), False), ((), ("memory",), False), (("memory",), ("memory",), True)],
)
def test_weaker_isolation_needs_both(by_network: tuple[str, ...], by_owner: tuple[str, ...], runs: bool) -> None:
    """What a backend cannot enforce is accepted by snapshot and owner, or nothing is started (I10)."""
    wanted = snapshot(runtimes=(runtime(isolation={"allowUnenforced": by_network}),))
    owner = node(backends={"native": {"allowUnenforced": by_owner}})
    made = plan(desired(wanted), observed(models=(stored(),), not_enforced={"native": ("memory",)}), owner, NOW)
    assert ("start/m:v1" in text(made)) is runs
    assert runs or made.held[0].reason == "IsolationRefused"


def test_no_snapshot_means_no_changes() -> None:
    """Before the first snapshot nothing is wanted, and nothing is touched."""
    from reconciler.desired import Desired

    assert text(plan(Desired(None), converged(), node(), NOW)) == ""


def test_absent_image_is_pulled_again_only_after_its_hold() -> None:
    """A refused pull waits, and the runtime with it."""
    hold = Hold(IMAGE, "ImageUnavailable", "refused", 1, NOW + timedelta(minutes=1))
    seen = observed(
        models=(stored(),), backends={"docker": Present(())}, images={f"docker/{IMAGE}": Absent()}, holds={IMAGE: hold}
    )
    wanted = desired(snapshot(runtimes=(container_runtime(),)))
    assert text(plan(wanted, seen, DOCKER, NOW)) == "held image ImageUnavailable"


# --- the care of what is here -------------------------------------------------------------------------------------

ARCHIVED_V2 = snapshot(models=(model(), model(version="v2", state="archived")))
INACTIVE_V2 = snapshot(models=(model(), model(version="v2", state="inactive")))


def with_models(*more: Any, records: Any = (), memory: Any = None, **state: Any) -> Any:
    """A converged node with more in its store."""
    there = converged(records=(record(), *records), **(memory or {}))
    models = {**there.state.models, **dict(more)}
    there = replace(there, state=replace(there.state, models=models, **state))
    kept = {item.manifest: item for item in (record(), *records)}
    return replace(there, memory=replace(there.memory, models=kept))


def cold(key: str) -> tuple[str, Present[Any]]:
    """A model in cold storage."""
    return manifest_digest(key), Present(ArchivedModel(manifest_digest(key), 1000))


def spoilt(key: str) -> tuple[str, Present[Any]]:
    """A quarantined model."""
    return manifest_digest(key), Present(PartialModel(manifest_digest(key), 900, quarantined=True))


def test_a_model_listed_as_archived_moves_to_cold_storage_once() -> None:
    """It is moved while it is stored, and nothing is due once it is there."""
    made = plan(desired(ARCHIVED_V2), with_models(stored("m:v2"), records=(record("m:v2"),)), node(), NOW)
    assert "archive/m:v2" in text(made).splitlines()
    assert made.cost.downtime == "none"
    made = plan(desired(ARCHIVED_V2), with_models(cold("m:v2"), records=(record("m:v2", "Archived"),)), node(), NOW)
    assert text(made) == ""


def test_what_serves_or_may_be_gone_back_to_is_not_archived() -> None:
    """The last known good stays where it can be started, whatever the snapshot lists it as (I5)."""
    listed = snapshot(models=(model(state="archived"), model(version="v2")), assignments=(assignment("m:v2"),))
    made = plan(desired(listed), converged(), node(), NOW)
    assert "archive/m:v1" not in text(made)


@pytest.mark.parametrize("document", [INACTIVE_V2, V2])
def test_a_model_that_is_listed_otherwise_comes_back_from_cold_storage(document: Any) -> None:
    """Needed here or only kept: it is restored, not downloaded; what should serve waits for it (I4)."""
    made = plan(desired(document), with_models(cold("m:v2"), records=(record("m:v2", "Archived"),)), node(), NOW)
    lines = text(made).splitlines()
    assert lines[0] == "restore/m:v2"
    assert not any("download" in line for line in lines)
    assert all("restore/m:v2" in line for line in lines if line.startswith(("stop/", "start/")))


def test_a_listed_model_that_went_bad_is_repaired_though_nobody_needs_it_now() -> None:
    """What is quarantined is downloaded again as far as it is bad; an unfinished download is left alone."""
    size = {"missing": {manifest_digest("m:v2"): 100}, "room": {manifest_digest("m:v2"): 1000}}
    made = plan(desired(INACTIVE_V2), with_models(spoilt("m:v2"), **size), node(), NOW)
    (action,) = made.actions
    assert action.id == "download/m:v2"
    assert "repairs" in action.cause
    assert made.cost.fetch == 100
    unfinished = manifest_digest("m:v2"), Present(PartialModel(manifest_digest("m:v2"), 900))
    assert text(plan(desired(INACTIVE_V2), with_models(unfinished), node(), NOW)) == ""


def test_a_model_in_doubt_is_hashed_wherever_it_lies_and_why_is_told() -> None:
    """A scrub's finding, or a person's wish, is the cause of the action, also of a model that nobody needs now (I2)."""
    digest = manifest_digest("m:v2")
    doubtful = digest, Present(StoredModel(digest, intact=False, size=1000, doubt="the scrub found bad bytes"))
    made = plan(desired(INACTIVE_V2), with_models(doubtful), node(), NOW)
    assert [(action.id, action.cause) for action in made.actions] == [("verify/m:v2", "the scrub found bad bytes")]
    asked = with_models(stored("m:v2"), memory={"checks": {digest: "asked for"}})
    made = plan(desired(INACTIVE_V2), asked, node(), NOW)
    assert [(action.id, action.cause) for action in made.actions] == [("verify/m:v2", "asked for")]


def test_a_check_that_was_asked_for_waits_for_no_window_and_no_backoff() -> None:
    """Hashing fetches nothing: neither the staging window nor a backoff holds it."""
    closed = snapshot(policy={"windows": {"stage": ({"days": ("sun",), "from": "02:00", "to": "03:00"},)}})
    digest = manifest_digest("m:v1")
    hold = Hold(digest, "DownloadFailed", "no", 3, NOW + timedelta(hours=1))
    made = plan(desired(closed), converged(checks={digest: "asked for"}, holds={digest: hold}), node(), NOW)
    assert text(made) == "verify/m:v1"


def test_leftovers_without_a_record_have_a_grace_of_their_own() -> None:
    """An unfinished or quarantined model that is not listed goes after its grace; a listed one never does (I8)."""
    lost = manifest_digest("m:v9")
    seen = lost, Present(PartialModel(lost, 10, own=4096))
    day = 86400.0
    for seconds, due in ((day - 1, ""), (day, f"remove/{lost}")):
        made = plan(desired(), with_models(seen, memory={"leftovers": {lost: seconds}}), node(), NOW)
        assert text(made) == due
    listed = with_models(spoilt("m:v2"), memory={"leftovers": {manifest_digest("m:v2"): 10 * day}})
    assert "remove" not in text(plan(desired(INACTIVE_V2), listed, node(), NOW))


@pytest.mark.parametrize("verified", [True, False])
def test_leftovers_stay_where_the_list_is_empty_or_unverified(verified: bool) -> None:
    """Neither an empty list nor one that nobody signed removes anything (I8)."""
    lost = manifest_digest("m:v9")
    seen = with_models((lost, Present(PartialModel(lost, 10))), memory={"leftovers": {lost: 10.0**9}})
    document = snapshot(models=(), assignments=()) if verified else snapshot()
    assert "remove" not in text(plan(desired(document, verified=verified), seen, node(), NOW))


def test_what_an_interruption_left_is_swept() -> None:
    """It is nobody's, so it needs no list and no grace."""
    made = plan(desired(), with_models(residue=77), node(), NOW)
    assert text(made) == "sweep/models"


def test_a_full_cold_disk_holds_the_move_with_the_numbers() -> None:
    """Space is judged on the disk on which it is taken; the numbers are told."""
    made = plan(
        desired(ARCHIVED_V2), with_models(stored("m:v2"), records=(record("m:v2"),), cold_free=2**28 + 999), node(), NOW
    )
    assert "held m:v2 NoSpace" in text(made)
    (held,) = made.held
    assert "1000 bytes are needed on the cold disk, 999 are free" in held.message


def test_a_repair_needs_room_for_the_whole_new_file() -> None:
    """Good pieces are copied into a new file: little is fetched, and all of it has to fit."""
    digest = manifest_digest("m:v2")
    tight = hardware(disk=2**30, disk_free=2**29)
    seen = with_models(spoilt("m:v2"), missing={digest: 1}, room={digest: 2**29})
    seen = replace(seen, state=replace(seen.state, hardware=tight))
    assert text(plan(desired(INACTIVE_V2), seen, node(), NOW)) == "held m:v2 NoSpace"
