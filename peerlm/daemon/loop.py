"""The driver: turns effects into I/O and what comes of it into events.

Events wait in one queue and are handled one at a time on the loop, in order; each gives effects,
which are carried out at once and in order. One timer stands for the node's deadline. Nothing here
decides: every `if` is about how, not whether. A fault of our own (an exception in a core, a broken
invariant) ends the daemon, which starts again from its state directory; a fault of anybody else is
an event.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, assert_never

from peerlm import effects as fx
from peerlm.daemon.bulk import Bulk
from peerlm.daemon.cutting import Cutting
from peerlm.daemon.desk import Desk
from peerlm.daemon.dial_back import try_dial
from peerlm.daemon.introduction import Introduction
from peerlm.daemon.keeping import Keeping
from peerlm.daemon.link import Links
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.page import Page
from peerlm.daemon.preparing import Preparing
from peerlm.daemon.sampling import Sampling
from peerlm.daemon.scrubbing import Scrubbing
from peerlm.daemon.serving import Serving
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.daemon.transfers import Transfers
from peerlm.daemon.worker_link import WorkerLink
from peerlm.effects import Effect
from peerlm.errors import PeerlmError, StateError
from peerlm.events import Event, LoopLagged, ObjectKept, SaveFailed
from peerlm.identity import files
from peerlm.identity.root import SignedPlan, verify_plan
from peerlm.node.node import Node
from peerlm.observe.history import History
from peerlm.store import disk
from peerlm.store.layout import StateDirectory
from peerlm.types import FragmentId, Instant, WallTime

if TYPE_CHECKING:
    from peerlm.daemon.holding import Holding

BATCH = 64
"""Events handled before the loop gets its turn."""

LAG_PROBE_S = 0.1
LAG_TOLD_S = 0.5
"""A loop that was held up this long tells membership, which then doubts itself, not its peers."""

LAGS_KEPT = 600
"""Probes of the loop's lag kept for the status: about the last minute."""

SAVE_AGAIN_S = 5.0
"""What could not be saved is tried again after this time."""

Save = fx.Save | fx.SaveChain | fx.SaveRevocations

OF_STORE = (
    *(fx.ReadManifest, fx.DropChunks, fx.MakeProof),
    *(fx.TellReaders, fx.TellSurveyed, fx.TellCheckpoint),
)

CHECK_S = 5.0
"""How often the node's invariants are checked."""


def now() -> Instant:
    """The monotonic clock of this daemon."""
    return Instant(time.monotonic())


def wall() -> WallTime:
    return WallTime(time.time())


class Driver:
    """Drives one node over real sockets, files and processes.

    Set `introduction`, `links`, `bulk`, `serving`, `desk`, `preparing`, `transfers`, `keeping` and `worker` before `begin`:
    they report through `post`, so the driver is there first. The last three may be replaced (holding.py), when `moves`
    asks for it.
    """

    introduction: Introduction
    links: Links
    bulk: Bulk
    transfers: Transfers
    keeping: Keeping
    worker: WorkerLink
    serving: Serving
    desk: Desk
    preparing: Preparing
    cutting: Cutting
    scrubbing: Scrubbing
    slow: SlowWeights
    node: Node
    holding: Holding
    sampling: Sampling
    page: Page | None = None
    history: History

    def __init__(self, state: StateDirectory, log: DaemonLog, tasks: asyncio.TaskGroup) -> None:
        self.halted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.moves: asyncio.Queue[fx.Rehost] = asyncio.Queue()
        self.lags_s: deque[float] = deque(maxlen=LAGS_KEPT)
        self._state = state
        self._log = log
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Event] = deque()
        self._waiting: list[tuple[tuple[type[Event], ...], asyncio.Future[Event]]] = []
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._probe_at = now()
        self._check_at = now()
        self._began = False
        self._unsaved: dict[str, Save] = {}
        self._saves: set[asyncio.Task[None]] = set()
        # One thread: two versions of a file must reach the disk in order.
        self.saver = ThreadPoolExecutor(1, "peerlm-save")

    # ------------------------------------------------------------------------------- the queue

    def post(self, event: Event) -> None:
        """Take in an event; call on the loop."""
        self._inbox.append(event)
        self._schedule()

    def start_exchange(self, fragment: FragmentId) -> None:
        """Start an exchange of `fragment` now, outer step or not: for measurements."""
        work = self.node.work
        self._perform_all(work.exchanges.start(fragment, work.seen.partners, now()))
        self._arm()

    def take(self, effects: Callable[[], list[Effect]]) -> None:
        """Carry out what the node asks for when it is told something that is no event."""

        def perform() -> None:
            self._perform_all(effects())
            self._arm()

        if self._began:
            self._guarded(perform)

    async def next_of(self, *kinds: type[Event]) -> Event:
        """The next event of one of these kinds, once it has been handled."""
        future: asyncio.Future[Event] = self._loop.create_future()
        self._waiting.append((kinds, future))
        return await future

    def begin(self) -> None:
        """Start the node; events that came before are handled after its first effects."""
        self._began = True
        self._guarded(lambda: self._perform_all(self.node.start(now(), wall())))
        self._schedule()
        self._probe_lag()

    def end(self) -> None:
        """No event is handled and no timer runs from here on."""
        self._began = False
        if self._timer is not None:
            self._timer.cancel()
        self.saver.shutdown()

    def _schedule(self) -> None:
        if self._began and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        if self._began:
            self._guarded(self._handle_some)
        if self._inbox:
            self._schedule()

    def _handle_some(self) -> None:
        for _ in range(min(BATCH, len(self._inbox))):
            event = self._inbox.popleft()
            if isinstance(event, ObjectKept) and not self.desk.has(event.object_hash):
                continue  # it was dropped since
            self._perform_all(self.node.handle(event, now(), wall()))
            self._tell_waiting(event)
        self._arm()

    def _tell_waiting(self, event: Event) -> None:
        for kinds, future in [w for w in self._waiting if isinstance(event, w[0])]:
            self._waiting.remove((kinds, future))
            if not future.done():
                future.set_result(event)

    def _wake(self) -> None:
        def wake() -> None:
            self._perform_all(self.node.wake(now(), wall()))
            if now() >= self._check_at:
                self._check_at = Instant(now() + CHECK_S)
                self.node.check()
            self._arm()

        if self._began:
            self._guarded(wake)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.001, self.node.deadline() - now())
        self._timer = self._loop.call_later(delay_s, self._wake)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Our own fault ends the daemon, with the traceback in its log."""
        try:
            work()
        except Exception as error:
            self._log.write("error", "internal", {"traceback": traceback.format_exc()})
            self._halt(f"internal error: {error!r}; see `peerlm logs`")

    def on_loop_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler. What callbacks and tasks of ours raise is our own fault and
        ends the daemon; what sockets raise that nobody listens to any more is not."""
        error = context.get("exception")
        is_fault = error is not None and not isinstance(error, (OSError, PeerlmError))
        if context.get("fatal", is_fault):
            told = "".join(traceback.format_exception(error)) if error else context["message"]
            self._log.write("error", "internal", {"traceback": told})
            self._halt(f"internal error: {error!r}; see `peerlm logs`")
        else:
            self._log.write("debug", "loop", {"what": context["message"], "why": repr(error)})

    def watch_ended(self, task: asyncio.Task[None]) -> None:
        """Nobody looks at the node any more: a fault of our own, if it was not told to stop."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "the watch ended", "exception": error})

    def unsaved(self) -> str:
        """What of this node's progress is not kept, for a person; empty where the last snapshot was written."""
        snapshots = self.node.work.snapshots
        if not snapshots.error:
            return ""
        kept = f"of {snapshots.tokens:,} tokens of the swarm" if snapshots.number else "none"
        return f"ended, but the last snapshot failed: {snapshots.error}; the newest that is kept: {kept}"

    def _halt(self, error: str) -> None:
        if not self.halted.done():
            self.halted.set_result(error)

    def _probe_lag(self) -> None:
        lag_s = max(0.0, now() - self._probe_at)
        self.lags_s.append(lag_s)
        if lag_s > LAG_TOLD_S:
            self.post(LoopLagged(lag_s))
        self._probe_at = Instant(now() + LAG_PROBE_S)
        if self._began:
            self._loop.call_later(LAG_PROBE_S, self._probe_lag)

    # --------------------------------------------------------------------------------- effects

    def _perform_all(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case fx.Send():
                self.links.send(effect.peer, effect.message)
            case fx.SendFresh():
                self.links.send_fresh(
                    effect.peer, effect.host, effect.control_port, effect.curve_key, effect.message
                )
            case fx.Introduce():
                self.introduction.dial(effect.address, self.node.company.introductions.hello(now()))
            case fx.AnswerIntroduction():
                self.introduction.answer(effect.route, effect.answer)
            case fx.Admit():
                self.links.admit(effect.peer, effect.curve_key)
            case fx.Expel():
                self.links.expel(effect.peer)
            case fx.TryDial():
                self._tasks.create_task(self._try_dial(effect))
            case fx.OpenLink():
                self.links.open(effect.peer, effect.host, effect.control_port, effect.curve_key)
            case fx.Log():
                self._log.write(effect.level, effect.event, dict(effect.fields))
            case fx.Halt():
                self._halt(effect.error)
            case _:
                self._perform_work(effect)

    async def _try_dial(self, effect: fx.TryDial) -> None:
        hello = self.node.company.introductions.hello(now())
        self.post(await try_dial(effect, hello))

    def _perform_work(self, effect: Effect) -> None:
        match effect:
            case fx.RunExchange():
                self.transfers.run_exchange(effect)
            case fx.ServeExchange():
                self.transfers.serve_exchange(effect)
            case fx.RunPull():
                self.transfers.run_pull(effect)
            case fx.ServePull():
                self.transfers.serve_pull(effect)
            case fx.RunChannel():
                self.transfers.run_channel(effect)
            case fx.ServeChannel():
                self.transfers.serve_channel(effect)
            case fx.TellHosts():
                self.serving.hosts_are(effect.hosts, effect.behind, effect.ways_s)
            case fx.CancelTransfer():
                self.transfers.cancel(effect.transfer)
            case fx.StepOuter():
                step = self.worker.step_outer(
                    effect.generation, effect.fragment, effect.applied_seq
                )
                self._tasks.create_task(step)
            case fx.StartWorker():
                self.worker.start(
                    effect.generation,
                    effect.fresh,
                    effect.passes,
                    effect.absent,
                    cold=effect.cold,
                )
            case fx.TellShards():
                self.worker.tell_shards(effect.generation, effect.absent)
            case fx.StopWorker():
                self.worker.stop(effect.generation)
            case fx.SteerWorker():
                self.worker.steer(
                    effect.generation,
                    effect.training,
                    effect.swarm_tokens,
                    effect.members,
                    effect.inner_steps,
                    effect.hosts,
                    effect.passes,
                    effect.ways_s,
                )
            case fx.EvaluateSlow():
                self.worker.evaluate(effect.generation, effect.tokens)
            case fx.KeepOptimizer():
                self.worker.keep_optimizer(effect.generation)
            case fx.DrainWorker():
                self.worker.drain(effect.generation)
            case _:
                self._perform_keeping(effect)

    def _perform_keeping(self, effect: Effect) -> None:
        keeping, slow = self.keeping, self.slow
        match effect:
            case fx.InstallSnapshot():
                self._tasks.create_task(keeping.install_snapshot(slow))
            case fx.InstallObjects():
                self._tasks.create_task(keeping.install_objects(effect, slow))
            case fx.WriteSnapshot():
                self._tasks.create_task(keeping.write_snapshot(effect, slow))
            case fx.Rehost():
                self.moves.put_nowait(effect)
            case fx.DropObjects():
                self._tasks.create_task(keeping.drop_objects(effect.hashes))
            case fx.WriteModel():
                self._tasks.create_task(keeping.write_model(effect.tokens, slow))
            case fx.PrepareCorpus():
                self._tasks.create_task(keeping.prepare_corpus(effect))
            case fx.Save() | fx.SaveChain() | fx.SaveRevocations():
                saving = self._tasks.create_task(self._save(effect))
                self._saves.add(saving)
                saving.add_done_callback(self._saves.discard)
            case fx.UsePlan():
                self._use_plan(effect)
            case fx.CutFragments():
                self.cutting.cut(effect, slow, keeping)
            case fx.MakeShards():
                self.preparing.want(effect.is_wanted)
            case fx.WriteCheckpoint():
                self.cutting.write(effect, keeping)
            case _ if isinstance(effect, OF_STORE):
                self.desk.perform(effect)
            case _:
                raise AssertionError(f"no driver for {type(effect).__name__}")

    def _use_plan(self, effect: fx.UsePlan) -> None:
        gate = self.node.company.gate
        self.use_plan(verify_plan(effect.signed_plan, gate.root_public_key, gate.run_id))

    def use_plan(self, plan: SignedPlan) -> None:
        """What is kept from here on, and the next worker, go by it."""
        self.keeping.plan = plan
        self.worker.plan = plan.plan

    async def _save(self, effect: Save) -> None:
        """Write it, and again later if that fails, unless there is something newer by then."""
        name = _name_of(effect)
        self._unsaved[name] = effect
        try:
            await self._loop.run_in_executor(self.saver, self._save_now, effect)
        except PeerlmError as error:
            self.post(SaveFailed(name, str(error)))
            self._loop.call_later(SAVE_AGAIN_S, self._save_again, name, effect)
        else:
            if self._unsaved.get(name) is effect:
                del self._unsaved[name]

    async def saved(self, name: str) -> None:
        """Until what is kept under this name is on the disk as it is now. Raises `StateError`: it cannot be saved now."""
        while name in self._unsaved and self._saves:  # what it is may have changed again meanwhile
            await asyncio.gather(*self._saves)
        if name in self._unsaved:
            raise StateError(f"{name}: cannot be saved now, and is tried again; see `peerlm logs`")

    def _save_again(self, name: str, effect: Save) -> None:
        if self._began and self._unsaved.get(name) is effect:
            self._tasks.create_task(self._save(effect))

    def _save_now(self, effect: Save) -> None:
        root = self._state.root
        match effect:
            case fx.Save(name="address_book", data=data):
                disk.write_atomic(self._state.address_book, data)
            case fx.Save(name="plan", data=data):
                files.write_plan(root, data)
            case fx.Save(name="catalog", data=data):
                disk.write_atomic(self._state.catalog, data)
            case fx.Save(name="made", data=data):
                disk.write_atomic(self._state.made, data)
            case fx.Save(name="placement", data=data):
                disk.write_atomic(self._state.placement, data)
            case fx.Save(name="passes", data=data):
                disk.write_atomic(self._state.passes, data)
            case fx.Save(name=name):
                raise AssertionError(f"nothing is kept under {name!r}")
            case fx.SaveChain():
                files.write_chain(root, effect.chain)
            case fx.SaveRevocations():
                files.write_revocations(root, effect.blobs)
            case _:
                assert_never(effect)


def _name_of(effect: Save) -> str:
    match effect:
        case fx.Save(name=name):
            return name
        case fx.SaveChain():
            return "chain"
        case fx.SaveRevocations():
            return "revocations"
        case _:
            assert_never(effect)
