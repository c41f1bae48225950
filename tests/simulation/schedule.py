"""One schedule: what happens to a node, step by step, out of one number; and what must be so afterwards."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.memory import AskCheck, Note
from reconciler.rollback import way_back
from reconciler.target import withdrawn
from reconciler.verbs import record
from schemas.control import Left, Rollback
from schemas.errors import NothingToGoBackTo
from schemas.observation import Difference, GpuReport, Instance
from schemas.plan import DownloadModel, StopInstance
from tests.desired_state.network import signatures
from tests.simulation.faults import CrashError
from tests.simulation.network import (
    HOSTILE,
    NAMES,
    URLS,
    WISHES,
    Signed,
    following,
    hostile,
    hostile_files,
    model_digest,
    valid,
)
from tests.simulation.world import World
from tests.support.builders import NODE_ID, gpu, hardware

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from reconciler.loop import PassResult
    from tests.support.invariants.checks import Violation

STEPS: Final = (5, 12)
"""Things that happen in one schedule, at least and at most."""

_PATIENCE: Final = 12
"""Passes, each after whatever is waited for, within which a node without faults has to be still."""

_memo: dict[tuple[object, ...], str] = {}


def remember_signatures() -> None:
    """Recover each signature once per process: it takes milliseconds, and the same ones come in every schedule."""
    if _memo:
        return
    real = signatures._recover

    def recover(encoded: object, signature: str) -> str:
        key = (encoded, signature)
        if key not in _memo:
            _memo[key] = real(encoded, signature)  # type: ignore[arg-type]
        return _memo[key]

    _memo["installed",] = ""
    signatures._recover = recover  # type: ignore[assignment]


@dataclass(slots=True)
class Outcome:
    """How a schedule ended."""

    seed: str
    violations: list[Violation]
    trace: list[str] = field(repr=False)
    points: int = 0
    crashes: int = 0
    passes: int = 0
    faults: int = 0

    def text(self) -> str:
        """The whole story, for people."""
        found = [f"  {item}" for item in self.violations] or ["  nothing is wrong"]
        return "\n".join((f"seed {self.seed}", *self.trace, "found:", *found))


def run(seed: int | str) -> Outcome:
    """Play one schedule. The same seed plays the same one."""
    remember_signatures()
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=shared if shared.is_dir() else None))
    try:
        outcome = Schedule(str(seed), folder / "state").play()
        # Where it lay is another place each time.
        outcome.trace = [line.replace(str(folder), "") for line in outcome.trace]
        outcome.violations = [replace(one, message=one.message.replace(str(folder), "")) for one in outcome.violations]
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Schedule:
    """One node's fate."""

    def __init__(self, seed: str, folder: Path) -> None:
        self.seed = seed
        self.world = World(seed, folder)
        self.chance = self.world.chance
        self.passes = 0
        self.newest = 0
        self.best: Signed | None = None
        self.signed: set[str] = set()
        self.bad: set[str] = set()
        """Names of models that never work."""
        self.world.witness.legitimate = self.signed.__contains__

    def play(self) -> Outcome:
        """All of it; ends with the first violation."""
        world = self.world
        try:
            self._publish()
            world.boot()
            for _ in range(self.chance.randint(*STEPS)):
                self._step()
                if world.witness.violations:
                    return self._outcome()
            self._recover()
        finally:
            if world.journal is not None:
                world.journal.close()
        return self._outcome()

    def _outcome(self) -> Outcome:
        faults = self.world.faults
        found = list(self.world.witness.violations)
        return Outcome(self.seed, found, self.world.trace, faults.points, faults.crashes, self.passes, faults.struck)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        chance, faults = self.chance, self.world.faults
        for _ in range(chance.choice((0, 1, 1, 2))):
            names = list(HAPPENINGS)
            name = chance.choices(names, [HAPPENINGS[name][0] for name in names])[0]
            self.world.trace.append(f"- {name}")
            HAPPENINGS[name][1](self)
        faults.calm()
        kind = chance.random()
        if kind < 0.35:
            faults.crash_in = chance.randint(1, chance.choice((20, 60, 200)))
        elif kind < 0.6:
            faults.share = chance.choice((0.02, 0.1, 0.4))
            faults.only = chance.choice(("", "", "files", "journal", "backend", "store", "front", "git", "engine"))
        if kind > 0.5 and chance.random() < 0.2:
            faults.crash_in = chance.randint(1, 100)
        self._pass()
        self.world.clock.pass_time(chance.choice((1, 30, 30, 70, 300, 3700)))

    def _pass(self) -> PassResult | None:
        world, self.passes = self.world, self.passes + 1
        before = world.serving()
        world.trace.append(f"{self.passes}. pass at {world.clock.now():%d %H:%M:%S}, {world.serving()} running")
        struck = world.faults.struck
        try:
            result, error = world.attempt()
        except CrashError:
            self._restart()
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, the daemon would have died of it
            world.witness._say("I11", f"the agent died of {type(error).__name__}: {error}")
            return None
        if error:
            world.trace.append(f"    the pass was refused: {error}")
            if world.faults.struck == struck or not error.startswith(("NoSpace", "DiskFailed")):
                world.witness._say("I7", f"a pass is refused, and no disk failed: {error}")
        else:
            assert result is not None
            if before and struck == world.faults.struck:
                self._judge_suspension(before, result)
            held = [f"{item.subject}: {item.reason}" for item in result.plan.held]
            left = [action.id for action in result.plan.actions]
            source = result.status.condition("SourceVerified")
            if source is not None and source.reason != "Verified":
                world.trace.append(f"    {source.reason}: {source.message}")
            world.trace.append(f"    exit {result.exit_code}, held {held}, left {left}, {world.serving()} running")
        self._look(settled=result is not None and not result.plan.actions and not world.stop.asked)
        return result

    def _judge_suspension(self, before: list[str], result: PassResult) -> None:
        """I6: whoever suspends changes in the middle of a swap has something that serves in the end."""
        world = self.world
        gone = [item for item in result.outcomes if isinstance(item.action, StopInstance) and item.action.drain]
        # The way back itself has to be a way.
        lies = {model_digest(key.partition(":")[0]) for key in before} & world.engine.lies
        broken = lies or any(room.unavailable or room.bad_starts & {*before} for room in world.rooms.values())
        # Nothing may start where a GPU computes nothing, or has not been given back.
        broken = broken or any(card.fault or card.processes for card in world.machine.read().gpus)
        # Nor is one whose bytes went bad, and that no source has.
        failed = [item.action for item in result.outcomes if item.status == "failed"]
        broken = broken or any(isinstance(action, DownloadModel) and action.model in before for action in failed)
        suspended = world.journal is not None and world.journal.fact("suspended")
        if suspended and gone and not broken and not world.stop.asked and not world.serving():
            world.witness._say("I6", f"{before} served, changes were suspended in the middle, and nothing serves")

    def _look(self, *, settled: bool) -> None:
        # In the end nothing is wrong with what was seen: it is only looked at.
        self.world.faults.calm()
        for found in self.world.witness.looked(self.world.look(settled=settled)):
            self.world.trace.append(f"    ! {found}")

    def _restart(self) -> None:
        chance, world = self.chance, self.world
        power = chance.random() < 0.4
        lost = power and chance.random() < 0.1
        world.trace.append(
            f"    {'power is lost' if power else 'the agent is killed'}{', the journal too' if lost else ''}"
        )
        for attempt in range(3):
            world.crash(power=power, journal_lost=lost)
            world.faults.calm()
            if attempt < 2 and chance.random() < 0.1:
                world.faults.crash_in = 1
            try:
                world.boot()
                break
            except CrashError:
                continue
        self._look(settled=False)

    # --- what happens ---------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """A new snapshot, shown by all repositories, or by one of them first."""
        chance = self.chance
        if self.best is not None and self.best.sequence % 10 == 0 and chance.random() < 0.15:
            signed = following(self.newest, WISHES.index(self.best.wish))
        else:
            self.newest += 1
            signed = valid(min(self.newest, 20), chance.randrange(len(WISHES)))
        self._sign(signed)
        for url in URLS if chance.random() < 0.7 else (chance.choice(URLS),):
            self._show(url, signed)

    def _sign(self, signed: Signed) -> None:
        self.signed.add(signed.digest)
        if self.best is None or signed.sequence > self.best.sequence:
            self.best = signed

    def _show(self, url: str, signed: Signed) -> None:
        self.world.trace.append(f"    {url[8:11]} shows {signed.what} {signed.sequence}: {signed.wish}")
        files = signed.files() if signed.what == "valid" else hostile_files(signed)
        self.world.servers[url].show(files)

    def _hostile(self) -> None:
        """A repository shows what nobody may believe."""
        number = max(1, self.newest + self.chance.choice((-1, 0, 1)))
        signed = hostile(self.chance.choice(HOSTILE), min(number, 20))
        if signed.what in ("expired", "begins-later", "other-network", "later-epoch", "unchained"):
            # Really signed, and not to be accepted all the same.
            self.world.trace.append("    (signed by enough)")
        if signed.what == "unchained":
            # On a node that has accepted nothing yet there is nothing that it would have to follow.
            self.signed.add(signed.digest)
        self._show(self.chance.choice(URLS), signed)

    def _equivocate(self) -> None:
        """Two snapshots of one sequence, both signed."""
        if self.best is None or self.best.sequence % 10:
            return
        other = valid(self.best.sequence // 10, (WISHES.index(self.best.wish) + 1) % len(WISHES))
        self.signed.add(other.digest)
        self._show(self.chance.choice(URLS), other)

    def _go_back(self) -> None:
        """A repository shows an older commit."""
        server = self.world.servers[self.chance.choice(URLS)]
        if server.shown > 0:
            server.shown = self.chance.randrange(server.shown)

    def _repositories(self) -> None:
        """A repository goes away, or comes back."""
        server = self.world.servers[self.chance.choice(URLS)]
        server.down = not server.down

    def _kill(self) -> None:
        """An engine dies, or its health is bad."""
        for room in self.world.rooms.values():
            for item in room.running():
                if self.chance.random() < 0.7:
                    room.kill(item.name)
                else:
                    room.instances[item.name] = replace(item, health="unhealthy", detail="no token for 60 s")

    def _hands(self) -> None:
        """Somebody else changes what runs: a limit, or what only another instance has again."""
        for room in self.world.rooms.values():
            for item in room.running():
                limit = Difference("memory", "8 GiB", "4 GiB", mendable=True)
                room.change(item.name, self.chance.choice((limit, Difference("network", "none", "bridge"))))

    def _backend(self) -> None:
        """A backend cannot be seen for a while."""
        room = self.world.rooms[self.chance.choice(("native", "docker"))]
        room.unavailable = "" if room.unavailable else "connection refused"

    def _engine(self) -> None:
        """A model does not start, or answers as another would; or does again."""
        name = self.chance.choice(NAMES)
        if self.chance.random() < 0.5:
            for room in self.world.rooms.values():
                room.bad_starts ^= {f"{name}:v1"}
        else:
            self.world.engine.lies ^= {model_digest(name)}

    def _mirrors(self) -> None:
        """Sources of models are out of reach, or send other bytes; or do not any more."""
        shelf = self.world.shelf
        if self.chance.random() < 0.5:
            shelf.unreachable = not shelf.unreachable
        else:
            shelf.corrupt_sources ^= {model_digest(self.chance.choice(NAMES))}

    def _images(self) -> None:
        """An image disappears from the engine, or from the registry."""
        room, image = self.world.rooms["docker"], self.chance.choice(sorted(self.world.rooms["docker"].pullable))
        if self.chance.random() < 0.5:
            room.images.discard(image)
        elif len(room.pullable) > 1:
            room.pullable.discard(image)

    def _bytes(self) -> None:
        """Stored files change: by their looks, in truth, or both."""
        shelf = self.world.shelf
        stored = sorted(shelf.stored)
        if stored:
            digest = self.chance.choice(stored)
            self.chance.choice((shelf.touch, shelf.taint, shelf.rotten.add))(digest)

    def _space(self) -> None:
        """The disk is full, or has room again."""
        shelf = self.world.shelf
        shelf.capacity = 2**50 if shelf.capacity == 0 else 0

    def _clock(self) -> None:
        """The wall clock is set."""
        clock = self.world.clock
        clock.skew = self.chance.choice(
            (timedelta(), timedelta(hours=-2), timedelta(hours=5), timedelta(days=40), timedelta(days=-3))
        )

    def _gpu(self) -> None:
        """The GPU is gone, there again, or has another driver."""
        lost = replace(gpu(), fault="has fallen off the bus")
        cards = ((), (gpu(),), (replace(gpu(), driver="580.2"),), (lost,), (lost, gpu("GPU-2")), (gpu(), gpu("GPU-2")))
        reports = self.chance.choice(((), (GpuReport(self.chance.randbytes(4).hex(), "GPU-1", "Xid 79"),)))
        self.world.machine.hardware = hardware(gpus=self.chance.choice(cards), gpu_reports=reports)

    def _operator(self) -> None:
        """A person at the node."""
        world, now = self.world, self.world.clock.now()
        assert world.journal is not None
        what = self.chance.choice(("suspend", "resume", "retry", "rollback", "verify", "plan", "gc"))
        world.trace.append(f"    reconcile {what}")
        if what == "suspend":
            world.journal.set_fact("suspended", "maintenance")
        elif what == "resume":
            world.journal.set_fact("suspended", "")
        elif what == "retry":
            world.journal.forget_rejections(None, Note("Normal", "RetryAsked", "by hand"), now)
        elif what == "rollback":
            self._roll_back(now)
        elif what == "verify":
            asked = [AskCheck(digest, "asked for") for digest in sorted(world.shelf.stored)]
            world.journal.apply(asked, now)
        elif what == "plan":
            world.dry_run()
        else:
            self._idle()

    def _midway(self) -> None:
        """A person who asks for something while something is under way."""
        hand = self.world.hand
        hand.word, hand.after = self.chance.choice(("suspend", "suspend", "retry")), self.chance.randint(1, 6)

    def _roll_back(self, now: datetime) -> None:
        """`reconcile rollback`: whatever is wanted is held back, if there is a way back."""
        world = self.world
        accepted = world.journal.accepted() if world.journal is not None else None
        if world.journal is None or accepted is None:
            return
        desired, observed = world.node.look(accepted.digest)
        try:
            back = way_back(desired, observed, world.node.config, now)
        except NothingToGoBackTo as error:
            world.trace.append(f"    {error.message}")
            return
        accelerator = observed.state.hardware.accelerator
        left = tuple(
            Left(subject=item.subject(accelerator), model=item.model, snapshot=desired.digest) for item in back.leave
        )
        record(Rollback(to=back.good.target.model, leave=left), world.journal, now)

    def _idle(self) -> None:
        """What a daemon does while nothing is due: look for bit rot."""
        self.world.reconciler.idle(self.world.stop)

    def _strangers(self) -> None:
        """Instances that are not ours: with our marks and an unknown intent, or another node's."""
        room = self.world.rooms["native"]
        if not room.specs:
            return
        spec = room.specs[min(room.specs)]
        ours = self.chance.random() < 0.5
        name = f"reconcile-testnet-{self.chance.randbytes(6).hex()}"
        node_id = NODE_ID if ours else "0x" + "2" * 40
        # Another node keeps off GPUs that are in use, as ours does.
        free = [card.uuid for card in self.world.machine.hardware.gpus if not self._is_taken(card.uuid)]
        gpus = () if ours or not free else (self.chance.choice(free),)
        room.specs[name] = replace(spec, name=name, intent=name[-12:], node_id=node_id, gpus=gpus)
        status = "exited" if ours else "running"
        room.instances[name] = Instance(name, name[-12:], "native", spec.target.spec_digest, status, gpus=gpus)

    def _is_taken(self, uuid: str) -> bool:
        """Whether anybody runs on a GPU."""
        rooms = self.world.rooms.values()
        return any(uuid in room.specs[item.name].gpus for room in rooms for item in room.running())

    def _strangers_leave_gpus(self) -> None:
        """Other nodes end what they run on GPUs."""
        for room in self.world.rooms.values():
            for item in room.running():
                if room.specs[item.name].node_id != NODE_ID and item.gpus:
                    room.kill(item.name)

    def _new_agent(self) -> None:
        """The agent is restarted, by hand or by an upgrade."""
        self.world.crash()
        self.world.boot()

    def _asked_to_stop(self) -> None:
        """SIGTERM, in the middle of whatever comes next."""
        self.world.stop.asked = True
        self._pass()
        self.world.crash()
        self.world.boot()

    # --- the end --------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Faults stop: the node comes to what is wanted, or says why not (liveness)."""
        world = self.world
        world.trace.append("- faults stop")
        self._mend()
        world.crash()
        world.boot()
        self.newest += 1
        final = valid(min(self.newest, 20), self.chance.randrange(len(WISHES)))
        self._sign(final)
        for url in URLS:
            self._show(url, final)
        if self.chance.random() < 0.3 and world.serving() != [f"{final.wish.serve}:v1"]:
            # What has passed its probe already, and runs, is not asked again before its time.
            self.bad.add(final.wish.serve)
            world.engine.lies = frozenset({model_digest(final.wish.serve)})
            world.trace.append(f"    {final.wish.serve} answers wrongly for good")
        result = self._until_still()
        if result is None or world.witness.violations:
            return
        if not self.bad and self._short_of(final, result):
            assert world.journal is not None
            if not result.plan.held:
                world.witness._say("I7", f"the node is still, does not serve {final.wish.serve}, and does not say why")
            world.journal.forget_rejections(None, Note("Normal", "RetryAsked", "by hand"), world.clock.now())
            world.trace.append("- reconcile retry")
            result = self._until_still() or result
        self._judge_end(final, result)

    def _mend(self) -> None:
        world = self.world
        world.faults.calm()
        world.clock.skew = timedelta()
        world.stop.asked = False
        world.engine.lies = frozenset()
        world.machine.hardware = hardware(gpus=(gpu(),))
        self._strangers_leave_gpus()
        world.shelf.unreachable, world.shelf.capacity = False, 2**50
        world.shelf.corrupt_sources.clear()
        for server in world.servers.values():
            server.down = False
        for room in world.rooms.values():
            room.unavailable = ""
            room.bad_starts.clear()
        from tests.simulation.network import IMAGES

        world.rooms["docker"].pullable |= set(IMAGES)
        assert world.journal is not None
        world.journal.set_fact("suspended", "")

    def _until_still(self) -> PassResult | None:
        """Passes, each after what the one before waits for."""
        result = None
        for _ in range(_PATIENCE):
            result = self._pass()
            if result is None or self.world.witness.violations:
                return None
            until = [item.until for item in result.plan.held if item.until is not None]
            if not result.plan.actions and not until:
                return result
            wait = max(((moment - self.world.clock.now()).total_seconds() for moment in until), default=30.0)
            self.world.clock.pass_time(min(max(wait, 1.0), 3700.0) + 1)
        if result is not None and result.plan.held and not any(one.status == "done" for one in result.outcomes):
            return result  # it goes on trying, less and less often, and says so
        self.world.witness._say("I7", f"after {_PATIENCE} passes without a fault the node is not still")
        return None

    def _short_of(self, final: Signed, result: PassResult) -> bool:
        return self.world.serving() != [f"{final.wish.serve}:v1"] or result.exit_code != 0

    def _judge_end(self, final: Signed, result: PassResult) -> None:
        world, serving = self.world, self.world.serving()
        record = world.record()
        if record.in_force is None or record.in_force.digest != final.digest:
            world.witness._say("I7", f"sequence {final.sequence} is shown everywhere, and not in force")
        elif not self.bad and self._short_of(final, result):
            world.witness._say(
                "I7", f"without a fault {serving} serves, not {final.wish.serve} (exit {result.exit_code})"
            )
        elif self.bad:
            self._judge_way_back(final, result)

    def _judge_way_back(self, final: Signed, result: PassResult) -> None:
        world, serving = self.world, self.world.serving()
        if serving == [f"{final.wish.serve}:v1"] or result.exit_code == 0:
            world.witness._say("I5", f"{final.wish.serve} answers wrongly, and serves")
        record = world.record()
        document, good = record.snapshot(), record.good
        if good is None or document is None or withdrawn(document, good) or good.model == f"{final.wish.serve}:v1":
            return
        refused = good.subject(world.machine.hardware.accelerator) in record.rejections
        if not refused and serving != [good.model]:
            world.witness._say("I5", f"{final.wish.serve} failed, {good.model} was good, and {serving} serves")


HAPPENINGS: Final[dict[str, tuple[int, Callable[[Schedule], None]]]] = {
    "a new snapshot": (8, Schedule._publish),
    "a hostile snapshot": (4, Schedule._hostile),
    "two snapshots of one sequence": (1, Schedule._equivocate),
    "a repository goes back": (2, Schedule._go_back),
    "a repository goes or comes": (2, Schedule._repositories),
    "an engine dies": (4, Schedule._kill),
    "somebody changes an engine": (2, Schedule._hands),
    "a backend hides or shows": (2, Schedule._backend),
    "a model goes bad or good": (3, Schedule._engine),
    "mirrors fail or recover": (3, Schedule._mirrors),
    "images go": (1, Schedule._images),
    "stored bytes change": (3, Schedule._bytes),
    "the disk fills or empties": (1, Schedule._space),
    "the clock is set": (2, Schedule._clock),
    "the GPU changes": (2, Schedule._gpu),
    "GPUs are left": (1, Schedule._strangers_leave_gpus),
    "an operator": (4, Schedule._operator),
    "an operator in the middle": (3, Schedule._midway),
    "nothing is due": (1, Schedule._idle),
    "strangers": (2, Schedule._strangers),
    "a new agent": (2, Schedule._new_agent),
    "a stop is asked for": (1, Schedule._asked_to_stop),
}
