"""What a daemon has for its stages is taken down and built anew with others; where that cannot be, with the old ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import numpy as np

from peerlm.cli.main import main
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.loop import Driver
from peerlm.daemon.main import open_daemon, read_home
from peerlm.effects import Rehost, WriteSnapshot
from peerlm.mix.sketch import sketch
from peerlm.model.plan import fragments
from peerlm.model.stages import stages
from peerlm.store import snapshot
from peerlm.store.layout import StateDirectory
from peerlm.store.placed import read_placed
from peerlm.types import FragmentId, ObjectHash

SMALL = ("--set", "model.dim=16", "--set", "model.heads=2", "--set", "model.hidden=16")
STAGES = ("--set", "model.stages=2", "--host", "auto")
HERE = ("--set-node", "network.host=127.0.0.1", "--set-node", "network.port=0")
NONE = WriteSnapshot(0, 0, False, ())

Objects = tuple[tuple[FragmentId, int, ObjectHash, tuple[float, ...]], ...]


@asynccontextmanager
async def newcomer(folder: Path) -> AsyncIterator[Driver]:
    """A daemon that has not decided yet. It begins no run, so it starts no worker either."""
    assert main(["init", "--state", str(folder), *SMALL, *STAGES, *HERE]) == 0
    (folder / "origin").unlink()
    with StateDirectory(folder) as state:
        log = DaemonLog(state.log, "info", quiet=True)
        with closing(log):
            async with asyncio.timeout(20), open_daemon(state, read_home(state), log) as driver:
                driver.begin()
                yield driver
                assert not driver.halted.done(), driver.halted.result()


async def move(driver: Driver, held: range, objects: Objects = ()) -> None:
    """As the node asks for it, and until it has come to something."""
    done = asyncio.ensure_future(driver.holding.until_halted())
    before = driver.node.work
    driver.moves.put_nowait(Rehost(held.start, held.stop, objects, False, NONE))
    await until(lambda: driver.node.work is not before or done.done())
    done.cancel()
    await asyncio.gather(done, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # of what nobody tells
        await asyncio.sleep(0.01)


async def test_a_daemon_goes_on_with_other_stages(tmp_path: Path) -> None:
    async with newcomer(tmp_path / "node") as driver:
        assert driver.node.work.phase == "starting"
        assert len(driver.slow) == 0
        plan = driver.worker.plan
        peer, ports = driver.node.me, driver.node.company.ports
        for held in (range(1, 2), range(2), range(0)):
            left = driver.worker
            await move(driver, held)
            left.start(99, fresh=True)  # as after a worker's end that came late
            assert left._worker is None
            of = {f for stage in stages(plan)[held.start : held.stop] for f in stage.fragments}
            assert set(driver.slow) == of
            await until(lambda held=held: kept_in(tmp_path / "node") == held)
            vitals = driver.node._vitals(driver.node._look_due)
            assert range(vitals.first_stage, vitals.last_stage + 1) == held
            assert driver.node.placing is not None
            assert driver.node.placing.held == held
        assert (driver.node.me, driver.node.company.ports) == (peer, ports)
        driver.node.audit()


async def test_pulled_weights_are_in_the_snapshot_that_it_begins_with(tmp_path: Path) -> None:
    async with newcomer(tmp_path / "node") as driver:
        specs = [s for s in fragments(driver.worker.plan) if s.id in stages_of(driver, 1)]
        objects = tuple(kept(driver, spec.size, spec.id) for spec in specs)
        await move(driver, range(1, 2), objects)
        found = snapshot.load(driver.holding._state).snapshot
        assert found is not None
        assert [r.id for r in found.manifest.fragments] == [spec.id for spec in specs]
        await until(lambda: driver.node.work.installed)
        assert all(driver.slow.fragment(spec.id).phi[-1] == 1.0 for spec in specs)
        assert all(driver.slow.fragment(spec.id).version == 5 for spec in specs)


async def test_a_move_that_fails_leaves_the_node_as_it_was(tmp_path: Path) -> None:
    async with newcomer(tmp_path / "node") as driver:
        await move(driver, range(1))
        missing = ((FragmentId(0), 1, ObjectHash(b"?" * 32), (0.0,) * 32),)
        await move(driver, range(1, 2), missing)
        assert driver.holding.held == range(1)
        assert driver.node.placing is not None
        assert "not kept here" in driver.node.placing.why
        assert driver.node.placing.move is None
        assert "placement_failed" in driver.holding._state.log.read_text()


def kept_in(folder: Path) -> range | None:
    path = folder / "placement"
    return read_placed(path.read_bytes(), path, 2).held if path.exists() else None


def stages_of(driver: Driver, stage: int) -> tuple[FragmentId, ...]:
    return stages(driver.worker.plan)[stage].fragments


def kept(
    driver: Driver, size: int, fragment: FragmentId
) -> tuple[FragmentId, int, ObjectHash, tuple[float, ...]]:
    """All ones, as a donor gave and showed it."""

    values = np.ones(size, np.float32)
    shown = sketch(values, driver.worker.plan.run.rng_seed, fragment)
    name = driver.holding.objects.put(values.data.cast("B"))
    return fragment, 5, name, tuple(float(x) for x in shown)
