"""The store's desk: what it has put is on the disk, whatever is dropped at the same time."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from peerlm import effects as fx
from peerlm.daemon.desk import Desk
from peerlm.store.disk import Layout, StateDirectory
from peerlm.store.objects import Objects
from peerlm.types import Instant, ObjectHash, WallTime


def desk_on(objects: Objects, pool: ThreadPoolExecutor, posted: list[Any]) -> Desk:
    async def saved(_: str) -> None:
        pass

    nothing: Any = None
    return Desk(
        lambda: nothing,
        posted.append,
        lambda call: None,
        saved,
        objects,
        nothing,
        pool,
        lambda: Instant(0.0),
        lambda: WallTime(0.0),
    )


def test_what_is_put_while_it_is_dropped_is_on_the_disk_in_the_end(tmp_path: Path) -> None:
    StateDirectory(tmp_path).close()
    objects = Objects(Layout(tmp_path))
    data = [random.Random(i).randbytes(100) for i in range(8)]
    names = tuple(objects.put_chunk(one) for one in data)
    posted: list[Any] = []

    async def scene(pool: ThreadPoolExecutor) -> None:
        desk = desk_on(objects, pool, posted)
        desk.perform(fx.DropChunks(names))
        await asyncio.gather(*(desk._put(one) for one in data))
        await asyncio.gather(*desk._tasks)
        await desk.close()

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(scene(pool))
    assert {event.object_hash for event in posted} == set(names)
    assert [objects.read_verified(ObjectHash(blake3(one).digest())) for one in data] == data
