"""The checker itself: a node as it should be passes, and each invariant that is broken on purpose is found."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from runtime.front.simulated import SimulatedFront
from schemas.digests import digest_bytes
from schemas.observation import Present, StoredModel, Unknown
from tests.support.builders import NOW, assignment, hardware, instance, manifest_digest, model, snapshot, target
from tests.support.invariants.checks import check
from tests.support.invariants.sight import Sight, look
from tests.support.invariants.witness import Witness
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from schemas.snapshot import SnapshotDocument

V1 = snapshot(models=(model("a"), model("b")), assignments=(assignment("a:v1"),))
V2 = snapshot(models=(model("a"), model("b")), assignments=(assignment("b:v1"),), sequence=2)


class Scene:
    """A node that has swapped from `a` to `b`, looked at from outside."""

    def __init__(self, folder: Path) -> None:
        self.node = SimulatedNode(folder / "state", front=SimulatedFront())
        self.node.run(V1)
        self.node.run(V2)
        self._write_mark()
        self.witness = Witness()

    def _write_mark(self) -> None:
        # The scripted source of simulated nodes writes no second copy.
        accepted = self.node.journal.accepted()
        assert accepted is not None
        mark = f'{{"epoch": {accepted.epoch}, "sequence": {accepted.sequence}, "digest": "{accepted.digest}"}}'
        self.node.node.state.mark.write_text(mark)

    def look(self) -> Sight:
        """One look, after a pass."""
        adapters = self.node.node.adapters
        return look(
            self.node.node.state,
            network="testnet",
            now=self.node.clock.moment,
            backends=adapters.backends,
            store=adapters.store,
            front=adapters.front,
            settled=True,
        )

    def forge(self, *statements: str) -> Sight:
        """The look after somebody changed the journal's tables."""
        with closing(sqlite3.connect(self.node.node.state.journal)) as db, db:
            for statement in statements:
                db.execute(statement)
        return self.look()

    def serving(self) -> Any:
        """The instance that runs."""
        return self.node.room.running()[0]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A node in order."""
    return Scene(tmp_path)


def test_a_node_in_order_has_nothing_to_find(scene: Scene) -> None:
    """No false alarm: before, between and after passes of a sound node nothing is found."""
    assert check(scene.look()) == []
    assert scene.witness.looked(scene.look()) == []


def _without_receipt(scene: Scene) -> Sight:
    return scene.forge("UPDATE receipts SET voided_at = '2026-03-02T12:00:00Z' WHERE number = 2")


def _gone_back(scene: Scene) -> Sight:
    scene.witness.looked(scene.look())
    scene.node.node.state.mark.unlink()
    return scene.forge("DELETE FROM accepted WHERE sequence = 2")


def _second_runtime(scene: Scene) -> Sight:
    sight = scene.look()
    return replace(sight, instances={"native": Present((*sight.ours(), instance(target("a:v1"), "ffff")))})


def _same_intent(scene: Scene) -> Sight:
    sight = scene.look()
    other = replace(scene.serving(), name="another", status="exited")
    return replace(sight, instances={"native": Present((*sight.ours(), other))})


def _silent_death(scene: Scene) -> Sight:
    scene.node.room.kill(scene.serving().name)
    return replace(scene.look(), front=None)


def _withdrawn(scene: Scene) -> Sight:
    scene.node.offer(
        snapshot(
            models=(model("a"), model("b")),
            assignments=(assignment("b:v1"),),
            sequence=3,
            withdrawn=({"digest": manifest_digest("b:v1"), "reason": "poisoned"},),
        )
    )
    scene.node.reconciler._source.refresh(NOW)
    scene._write_mark()
    return scene.look()


def _stray(scene: Scene) -> Sight:
    (scene.node.node.state.root / "half-published").touch()
    return scene.look()


def _lost_good(scene: Scene) -> Sight:
    digest = manifest_digest("b:v1")
    scene.node.room.kill(scene.serving().name)
    del scene.node.shelf.stored[digest]
    return scene.forge(f"DELETE FROM models WHERE manifest = '{digest}'")


def _long_wait(scene: Scene) -> Sight:
    sight = scene.look()
    assert sight.status is not None
    held = {"subject": "runtime", "reason": "StartFailed", "message": "it ended", "until": NOW + timedelta(days=400)}
    status = type(sight.status).model_validate({**sight.status.model_dump(), "held": (held,)})
    return replace(sight, status=status)


LOOKS: tuple[tuple[str, str, Callable[[Scene], Sight]], ...] = (
    ("I1", "had expired", lambda s: s.forge("UPDATE accepted SET expires_at = accepted_at")),
    ("I1", "was accepted after", lambda s: s.forge("UPDATE accepted SET sequence = 7 WHERE number = 1")),
    ("I1", "has other bytes", lambda s: s.forge("UPDATE documents SET content = X'7b7d' WHERE kind = 'snapshot'")),
    ("I1", "of the network", lambda s: replace(s.look(), network="mainnet")),
    ("I1", "second copy", lambda s: replace(s.look(), mark=None)),
    ("I1", "went back", _gone_back),
    ("I2", "Active without a receipt", _without_receipt),
    ("I2", "holds no receipt", _without_receipt),
    ("I2", "does not follow", lambda s: s.forge("UPDATE receipts SET previous = 'x' WHERE number = 2")),
    ("I3", "run at the same time", _second_runtime),
    ("I3", "does not run", lambda s: replace(s.look(), instances={"native": Present(())})),
    ("I5", "nothing says why", _silent_death),
    ("I6", "runs what is withdrawn", _withdrawn),
    ("I7", "made 2 instances", _same_intent),
    ("I7", "a pass is said to be under way", lambda s: s.forge("UPDATE passes SET outcome = 'running'")),
    ("I7", "under way, and none is", lambda s: s.forge("UPDATE intents SET outcome = 'running'")),
    ("I7", "belongs to nothing", _stray),
    ("I8", "was forgotten and removed", _lost_good),
    ("I11", "nothing says why", lambda s: s.forge("UPDATE intents SET outcome = 'failed', error = ''")),
    ("I11", "no status", lambda s: replace(s.look(), status=None)),
    ("I11", "longer than anything may wait", _long_wait),
    ("I11", "calls itself Ready", lambda s: replace(s.look(), instances={"native": Present(())})),
)


@pytest.mark.parametrize(("invariant", "words", "broken"), LOOKS, ids=[f"{i}-{w}" for i, w, _ in LOOKS])
def test_what_is_broken_is_seen(scene: Scene, invariant: str, words: str, broken: Callable[[Scene], Sight]) -> None:
    """A node on which one thing was made wrong: one look names the invariant and says what is wrong."""
    found = scene.witness.looked(broken(scene))
    assert [str(item) for item in found if item.invariant == invariant and words in item.message]


def test_a_snapshot_that_nobody_signed_is_seen(scene: Scene) -> None:
    """Whoever plays the network knows what it signed (I1)."""
    scene.witness.legitimate = lambda _digest: False
    assert [item.invariant for item in scene.witness.looked(scene.look())] == ["I1"]


# --- effects ------------------------------------------------------------------------------------------------------


class Moment:
    """What a witness is told of an effect, with one thing changed."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.sight = scene.look()
        self.record = self.sight.record
        self.b = target("b:v1")
        self.serving = scene.serving()
        self.models = {self.b.manifest: StoredModel(self.b.manifest, intact=True, size=1)}

    def start(self, **changes: Any) -> None:
        """The serving instance's start."""
        record = replace(
            self.record,
            intents={
                key: replace(row, outcome="running") if key == self.serving.intent else row
                for key, row in self.record.intents.items()
            },
        )
        facts: dict[str, Any] = {
            "at": NOW,
            "record": record,
            "models": self.models,
            "running": (),
            "blind": (),
            "accelerator": hardware().accelerator,
            **changes,
        }
        intent, wanted = facts.pop("intent", self.serving.intent), facts.pop("target", self.b)
        self.scene.witness.starts(self.serving.name, intent, wanted, **facts)

    def stop(self, starts: str, **changes: Any) -> None:
        """The serving instance's stop, in a plan with this start."""
        plan = f'{{"actions": [{starts}]}}'
        facts: dict[str, Any] = {
            "at": NOW,
            "record": replace(self.record, running_passes=(plan,)),
            "models": self.models,
            "images": frozenset(),
            "running": (self.serving,),
            **changes,
        }
        self.scene.witness.stops(facts.pop("item", self.serving), **facts)

    def remove_model(self, manifest: str, document: SnapshotDocument | None = None, **changes: Any) -> None:
        """A model's removal."""
        record = self.record
        if document is not None:
            content = document.to_json().encode()
            row = replace(self.record.accepted[-1], digest=digest_bytes(content))
            record = replace(record, accepted=(row,), documents={row.digest: ("snapshot", content)})
        seen = StoredModel(manifest, intact=True, size=1)
        facts: dict[str, Any] = {"record": record, "seen": seen, "serving": frozenset(), **changes}
        self.scene.witness.removes_model(manifest, **facts)


def _start(manifest: str, image: str = "") -> str:
    image_field = f', "image": "{image}"' if image else ""
    return f'{{"kind": "start-instance", "target": {{"manifest": "{manifest}", "model": "b:v1"{image_field}}}}}'


B = manifest_digest("b:v1")
GONE = manifest_digest("gone:v1")
ONLY_B = snapshot(models=(model("b"),), assignments=(assignment("b:v1"),), sequence=2)
EMPTY = snapshot(models=(), assignments=(), sequence=2)
EFFECTS: tuple[tuple[str, str, Callable[[Moment], None]], ...] = (
    ("I1", "nobody signed for", lambda m: m.start(target=target("evil:v1"), models={})),
    ("I2", "not verified", lambda m: m.start(models={})),
    ("I2", "not verified", lambda m: m.start(models={B: StoredModel(B, intact=False, size=1)})),
    ("I2", "holds no receipt", lambda m: m.scene.witness.leads("x", "ffff", at=NOW, record=m.record)),
    ("I3", "is started while", lambda m: m.start(running=(instance(target("a:v1"), "ffff"),))),
    ("I3", "cannot be seen", lambda m: m.start(blind=("native",))),
    ("I4", "before the bytes", lambda m: m.stop(_start(B), models={})),
    ("I4", "before the image", lambda m: m.stop(_start(B, "x@sha256:1"))),
    (
        "I5",
        "remembered as bad",
        lambda m: m.start(record=replace(m.record, rejections=frozenset({m.b.subject(hardware().accelerator)}))),
    ),
    ("I6", "nothing is to come", lambda m: m.stop("")),
    ("I7", "knows no such intent", lambda m: m.start(intent="ffff")),
    ("I7", "by an intent that is done", lambda m: m.start(record=m.record)),
    ("I8", "does not know that it is ours", lambda m: m.stop(_start(B), item=instance(m.b, "ffff"))),
    (
        "I8",
        "does not know that it is ours",
        lambda m: m.scene.witness.removes(instance(m.b, "ffff"), at=NOW, record=m.record),
    ),
    ("I8", "is listed", lambda m: m.remove_model(B)),
    ("I8", "is needed", lambda m: m.remove_model(B)),
    ("I8", "after -1 of", lambda m: m.remove_model(GONE)),
    ("I8", "empty list", lambda m: m.remove_model(GONE, EMPTY)),
    ("I9", "dry run", lambda m: m.scene.witness.looked_only(1, 2)),
    (
        "I11",
        "before its restart is due",
        lambda m: m.start(record=replace(m.record, holds={f"restart/{m.b.spec_digest}": NOW + timedelta(seconds=9)})),
    ),
    ("I10", "without network", lambda m: m.start(unenforced=frozenset({"network"}))),
)


@pytest.mark.parametrize(("invariant", "words", "effect"), EFFECTS, ids=[f"{i}-{w}" for i, w, _ in EFFECTS])
def test_an_effect_that_must_not_be_is_seen(
    scene: Scene, invariant: str, words: str, effect: Callable[[Moment], None]
) -> None:
    """A witness that stands beside an effect names the invariant that it breaks."""
    effect(Moment(scene))
    found = [str(item) for item in scene.witness.violations]
    assert [text for text in found if text.startswith(f"{invariant}:") and words in text], found


def test_effects_of_a_sound_agent_are_no_violations(scene: Scene) -> None:
    """A start, a swap's stop and a removal as they should be."""
    moment = Moment(scene)
    moment.start()
    moment.stop(_start(B))
    moment.remove_model(GONE, ONLY_B, record=replace(moment.record, facts={f"unlisted/{GONE}": "90000"}))
    assert scene.witness.violations == []


def test_a_blind_look_claims_nothing(scene: Scene) -> None:
    """What cannot be seen is not taken for absent by the checker either."""
    assert check(replace(scene.look(), instances={"native": Unknown("no answer")})) == []
