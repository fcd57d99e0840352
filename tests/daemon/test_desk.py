"""The store's desk: what it has put is on the disk, whatever is dropped at the same time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from blake3 import blake3

from peerlm import effects as fx
from peerlm.config import StoreSection
from peerlm.daemon import desk as desks
from peerlm.daemon.desk import Desk
from peerlm.daemon.desk_client import LENGTH
from peerlm.daemon.desk_making import MakingDesk
from peerlm.daemon.verifying import Verifying
from peerlm.errors import StateError
from peerlm.node.awaited import Awaited
from peerlm.node.checkpoints import Checkpoints
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.objects import Objects
from peerlm.types import Instant, ObjectHash, PeerId, WallTime
from peerlm.wire.message import NameRecord


def desk_on(
    objects: Objects,
    pool: ThreadPoolExecutor,
    posted: list[Any],
    scrubbing: Any = None,
    node: Any = None,
    verifying: Verifying | None = None,
) -> Desk:
    async def saved(_: str) -> None:
        pass

    return Desk(
        lambda: node,
        posted.append,
        lambda call: None,
        saved,
        objects,
        scrubbing,
        pool,
        lambda: Instant(0.0),
        lambda: WallTime(0.0),
        verifying or Verifying(Path("/absent/verified"), pool, lambda: WallTime(0.0)),
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


class Gone:
    """The writing end of a connection whose other end has hung up after `frames` of the answer: uvloop's way."""

    def __init__(self, frames: int) -> None:
        self.said: list[Any] = []
        self._frames = frames

    def is_closing(self) -> bool:
        return len(self.said) == self._frames

    def write(self, data: bytes) -> None:
        if self.is_closing():
            raise RuntimeError("unable to perform operation; the handler is closed")
        if len(data) > LENGTH.size:
            self.said.append(msgpack.unpackb(data))

    async def drain(self) -> None:
        pass


class Scrubs:
    def __init__(self) -> None:
        self.read = 0

    async def scrub_now(self, progress: Callable[[int, int], None]) -> Any:
        for self.read in range(1, 10):
            progress(self.read, 9)
        raise AssertionError("it goes on for nobody")


def talked(tmp_path: Path, writer: Gone, *requests: Any, **more: Any) -> None:
    StateDirectory(tmp_path).close()

    async def scene(pool: ThreadPoolExecutor) -> None:
        reader = asyncio.StreamReader()
        for request in requests:
            data = msgpack.packb(request)
            reader.feed_data(LENGTH.pack(len(data)) + data)
        reader.feed_eof()
        desk = desk_on(Objects(Layout(tmp_path)), pool, [], **more)
        await desk.talk(reader, writer)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(scene(pool))


def test_who_hangs_up_amid_a_scrub_ends_it_and_nothing_else(tmp_path: Path) -> None:
    scrubs, writer = Scrubs(), Gone(2)
    talked(tmp_path, writer, ["scrub"], scrubbing=scrubs)
    assert scrubs.read == 3
    assert writer.said == [[None, [1, 9]], [None, [2, 9]]]


def test_a_fault_of_ours_is_an_answer_and_the_daemon_goes_on(tmp_path: Path) -> None:
    writer = Gone(9)
    talked(tmp_path, writer, ["names"], ["nothing"])  # there is no node: AttributeError
    assert [(verdict, line[:23]) for verdict, line in writer.said] == [
        (False, "internal error in names"),
        (False, "the store's desk does n"),
    ]


@pytest.mark.parametrize(
    ("known_at", "seconds", "why"),
    [(0.0, 60.0, "in 0 s: the disk is full"), (-1.0, 0.1, "in 0 s: no node that has it was found")],
)
def test_a_reader_does_not_wait_for_a_disk_that_has_taken_nothing_since_it_began(
    known_at: float,
    seconds: float,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desks, "LOOK_S", 0.01)
    monkeypatch.setattr(desks, "TROUBLED_S", 0.02)
    StateDirectory(tmp_path).close()
    awaited = Awaited()
    awaited.disk_was("the disk is full", Instant(known_at))
    full = SimpleNamespace(
        storing=SimpleNamespace(awaited=awaited, here=(), read_no_more=lambda wanted: [])
    )

    async def scene(pool: ThreadPoolExecutor) -> None:
        desk = desk_on(Objects(Layout(tmp_path)), pool, [], node=full)
        await desk._read(ObjectHash(bytes(32)), 1, seconds)

    with ThreadPoolExecutor(1) as pool, pytest.raises(StateError, match=why):
        asyncio.run(scene(pool))


def test_of_two_checkpoints_wanted_at_once_the_second_is_refused(tmp_path: Path) -> None:
    StateDirectory(tmp_path).close()
    me = PeerId(b"m" * 16)
    inert: Any = [None] * 4
    checkpoints = Checkpoints(me, StoreSection(), {}, list, *inert, Instant(0.0))
    library = SimpleNamespace(checkpoints=checkpoints, want_checkpoint=checkpoints.want)
    node = SimpleNamespace(work=SimpleNamespace(installed=True), library=library)

    async def scene(pool: ThreadPoolExecutor) -> None:
        desk = desk_on(Objects(Layout(tmp_path)), pool, [], node=node)
        desk._take = lambda call: call()  # type: ignore[assignment]
        first = asyncio.create_task(desk._checkpoint("first", False))
        await asyncio.sleep(0)
        with pytest.raises(StateError, match="already: try again"):
            await asyncio.wait_for(desk._checkpoint("second", True), 1.0)
        assert checkpoints._wanted == ("first", False)
        desk.perform(fx.TellCheckpoint("first"))
        assert await first == "first"

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(scene(pool))


def test_what_was_verified_is_remembered_and_said_with_the_name(tmp_path: Path) -> None:
    manifest = ObjectHash(b"m" * 32)
    record = NameRecord("plays", "files", manifest, 10, 1, PeerId(b"w" * 16), 3.0, 3, False, "")
    register = SimpleNamespace(living=lambda: [SimpleNamespace(record=record)])
    node = SimpleNamespace(storing=SimpleNamespace(register=register))
    path, writer = tmp_path / "verified", Gone(9)
    with ThreadPoolExecutor(1) as pool:
        verifying = Verifying(path, pool, lambda: WallTime(7.5))
        asked = (["names"], ["verified", manifest, 2], ["names"], ["verified", manifest, -1])
        talked(tmp_path, writer, *asked, node=node, verifying=verifying)
        again = Verifying(path, pool, lambda: WallTime(9.0))
    before, after, refused = writer.said  # it does not count what is as short as nil
    assert before[1][0]["verified_at"] is None
    assert (after[1][0]["verified_at"], after[1][0]["verified_missing"]) == (7.5, 2)
    assert refused[0] is False
    assert again.said(manifest) == {"verified_at": 7.5, "verified_missing": 2}
    path.write_bytes(b"\x00" * 99)
    assert Verifying(path, pool, lambda: WallTime(9.0)).said(manifest)["verified_at"] is None


def test_damaged_findings_are_told_to_the_job_and_what_it_does_is_done() -> None:
    told: list[Any] = []
    jobs = SimpleNamespace(false=lambda *said: told.append(said) or ["a line"])
    node: Any = SimpleNamespace(library=SimpleNamespace(jobs=jobs))
    done: list[Any] = []
    making = MakingDesk(
        lambda: node,
        lambda call: done.extend(call()),
        *(None, None),  # type: ignore[arg-type]
        lambda: Instant(2.0),
        lambda: WallTime(0.0),
    )
    asyncio.run(making.answer("false", [b"j" * 32, 7, "no fingerprints"]))
    assert (told, done) == ([(b"j" * 32, 7, "no fingerprints", 2.0)], ["a line"])
    with pytest.raises(StateError, match="does not know 'false'"):
        asyncio.run(making.answer("false", [b"j" * 32, 7]))
