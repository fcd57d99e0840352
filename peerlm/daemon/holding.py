"""What a daemon has for the stages that it holds: slow weights, snapshots, the worker, transfers.

It is built when the daemon starts, and, in a node that decides by itself which stages it holds, taken down and built anew
with others while everything else goes on: membership, links, sockets, the page. Before it is taken down a
snapshot is written that holds what is needed for the old stages and for the new ones, so a death at any moment leaves
one or the other. Where that cannot be written the old ones are begun again.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from peerlm.config import NodeSettings, Plan
from peerlm.daemon.keeping import Keeping
from peerlm.daemon.loop import Driver, now, wall
from peerlm.daemon.memory import memory_of, require_memory
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.daemon.transfers import Transfers
from peerlm.daemon.worker_link import WorkerLink
from peerlm.data.processes import processors
from peerlm.effects import Rehost
from peerlm.errors import ConfigError, PeerlmError
from peerlm.mix.fragment import SlowFragment
from peerlm.model.plan import FragmentSpec, fragments
from peerlm.model.stages import first_held, held_fragments, held_stages, stages
from peerlm.model.stages import memory_of as stages_memory
from peerlm.node.placing import EMPTY, Offered
from peerlm.node.snapshots import Restored
from peerlm.store import disk
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.objects import Objects
from peerlm.store.placed import BYTES_MAX, Placed, read_placed
from peerlm.swarm.hosting import Hosting
from peerlm.types import FragmentId, Memory

if TYPE_CHECKING:
    from peerlm.daemon.main import Home

WHERE = "node.toml: host.stages"


class Holding:
    """Sets `slow`, `keeping`, `worker` and `transfers` of the driver. `held`: stages, perhaps none."""

    def __init__(
        self,
        driver: Driver,
        state: StateDirectory,
        home: Home,
        epoch: int,
        compute: Executor,
        disk: Executor,
    ) -> None:
        self._driver, self._state, self._home, self._epoch = driver, state, home, epoch
        self._compute, self._disk = compute, disk
        self._plan = home.plan.plan
        self.objects = Objects(state, home.settings.limits.disk_bytes)
        self._stack = AsyncExitStack()
        self.offered = offered_by(home, state)
        self.held = self._first_held()

    def _first_held(self) -> range:
        plan, settings = self._plan, self._home.settings
        held = held_stages(settings.host.stages, plan, WHERE)
        if held is not None:
            return held
        assert self.offered is not None, "a model in one piece is held whole"
        if not self.offered.placed.held and self._home.origin:
            return first_held(plan, self.offered.memory, WHERE)
        return self.offered.placed.held

    async def close(self) -> None:
        await self._stack.aclose()

    # ------------------------------------------------------------------------------- what is built

    @property
    def specs(self) -> tuple[FragmentSpec, ...]:
        return held_fragments(self._plan, self.held)

    @property
    def sizes(self) -> dict[FragmentId, int]:
        """Elements of each fragment held."""
        return {spec.id: spec.size for spec in self.specs}

    @property
    def takes(self) -> Memory:
        """What training takes with the stages held."""
        return stages_memory(stages(self._plan), self.held)

    @property
    def hosting(self) -> Hosting:
        stage_of = {f: stage.index for stage in stages(self._plan) for f in stage.fragments}
        first, last = (self.held[0], self.held[-1]) if self.held else EMPTY
        return Hosting(first, last, self._plan.model.stages, stage_of)

    @property
    def restored(self) -> Restored | None:
        """What a snapshot has of all that is held."""
        found = self._driver.keeping.restored
        if found is None or not self.held:
            return None
        sizes, manifest = self.sizes, found.manifest
        offers = tuple(
            (r.id, r.version, r.phi.hash, r.phi.size, r.sketch)
            for r in manifest.fragments
            if r.id in sizes
        )
        return Restored(manifest.number, manifest.contents.swarm_tokens, offers)

    async def build(self) -> None:
        """Raises `ConfigError`, `StateError`."""
        driver, settings, specs = self._driver, self._home.settings, self.specs
        require_memory(self._plan, self.held)
        require_whole(self._plan, settings, self.held)
        driver.slow = SlowWeights(
            {spec.id: SlowFragment(np.zeros(spec.size, np.float32)) for spec in specs},
            self._compute,
        )
        driver.keeping = Keeping(
            driver.post,
            self._state,
            self.objects,
            self._home.gate.run_id,
            self._home.plan,
            specs,
            settings,
            self._epoch,
            self._disk,
            wall,
            moved=lambda fragment: driver.worker.kick(fragment),
            reads=0 in self.held,
        )
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, driver.keeping.find_snapshot)
        driver.worker = await self._stack.enter_async_context(
            WorkerLink(
                driver.post,
                driver.slow,
                self._plan,
                settings,
                self._home.keys.peer_id,
                driver.keeping.corpus_paths,
                threads=threads_of(settings),
                held=self.held,
                hop=lambda peer, data: driver.transfers.hop(peer, data),
                moments=self._state.moments if settings.train.keep_optimizer else None,
            )
        )
        driver.transfers = Transfers(
            driver.post,
            driver.bulk,
            driver.slow,
            self.objects,
            driver.worker.kick,
            np.random.default_rng(int.from_bytes(os.urandom(8))),
            driver.worker.hear,
            driver.serving.hear,
            driver.serving.channel_is,
        )
        self._stack.push_async_callback(driver.transfers.close)

    # --------------------------------------------------------------------------------- what changes

    async def until_halted(self) -> str:
        """Carry out moves to other stages until the daemon is to end; then why."""
        halted, moves = self._driver.halted, self._driver.moves
        while True:
            next_move = asyncio.ensure_future(moves.get())
            both: set[asyncio.Future[Any]] = {halted, next_move}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if halted.done():
                    return halted.result()
            finally:
                if not next_move.done():
                    next_move.cancel()
            await self._move(next_move.result())

    async def _move(self, wanted: Rehost) -> None:
        driver, failure = self._driver, ""
        held = range(wanted.first, wanted.stop)
        try:
            require_memory(self._plan, held)
            await driver.keeping.write_for(wanted, driver.slow)
            self.held = held
        except PeerlmError as error:
            failure = str(error)
        plan = driver.keeping.plan  # a newer revision may hold by now
        await self._stack.aclose()
        await driver.serving.renew()
        await self.build()
        driver.use_plan(plan)
        driver.take(
            lambda: driver.node.rehost(self.hosting, self.sizes, self.restored, failure, now())
        )


def offered_by(home: Home, state: Layout) -> Offered | None:
    """None of a model in one piece: nothing is to be decided. Raises `StateError`."""
    plan, settings = home.plan.plan, home.settings
    if plan.model.stages == 1:
        return None
    is_auto = held_stages(settings.host.stages, plan, WHERE) is None
    placed = Placed()
    if state.placement.exists():
        data = disk.read_file(state.placement, BYTES_MAX)
        placed = read_placed(data, state.placement, plan.model.stages)
    every_s, has_text = settings.limits.snapshot_every_s, bool(settings.data.local)
    return Offered(is_auto, memory_of(settings), placed, every_s, has_text)


def all_sizes(plan: Plan) -> dict[FragmentId, int]:
    return {spec.id: spec.size for spec in fragments(plan)}


def require_whole(plan: Plan, settings: NodeSettings, held: range) -> None:
    """Raises `ConfigError` when a node that holds a part is asked for what only one that holds all can do."""
    workers = settings.train.local_workers
    if len(held) < plan.model.stages and workers > 1:
        raise ConfigError(
            f"node.toml: train.local_workers = {workers}: only a node that holds all stages has several; "
            "use 1, or host.stages = all"
        )


def threads_of(settings: NodeSettings) -> int:
    """CPU threads of the worker: as set, else the cores shared with the workers there already."""
    if settings.limits.threads:
        return settings.limits.threads
    return max(1, processors() // (1 + _other_workers()))


def _other_workers() -> int:
    """Workers of other nodes on this host."""
    found = 0
    for process in psutil.process_iter(["cmdline"]):
        found += "peerlm.train.worker" in (process.info["cmdline"] or ())
    return found
