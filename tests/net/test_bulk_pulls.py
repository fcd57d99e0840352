"""Objects over the bulk plane, frame by frame from disk to disk, or by way of memory."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading

import pytest
from test_bulk import HERE, PROGRESS_S, Agreement, Wire, make, until

from peerlm.daemon.bulk import Bulk
from peerlm.errors import ChunkCorrupt, Unreachable
from peerlm.wire.frame import CHUNK_BYTES

__all__ = ["make"]


def bytes_of(length: int) -> bytes:
    return secrets.token_bytes(length)


async def pulled(
    ann: Bulk, bob: Bulk, data: bytes, *, port: int = 0, is_whole: bool = False
) -> tuple[bytearray, list[int], int]:
    """Frame by frame, or `is_whole`, by way of memory."""
    a, here, progress = Agreement(), bytearray(len(data)), []
    line = (a.id, HERE, port or bob.port)

    def sink(offset: int, chunk: memoryview) -> None:
        here[offset : offset + len(chunk)] = chunk

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    if is_whole:
        serving = bob.serve_whole(a.id, lambda: data, len(data), a.keys, PROGRESS_S)
        pulling = ann.pull_whole(*line, memoryview(here), a.keys, progress.append, PROGRESS_S)
    else:
        serving = bob.serve(a.id, read, len(data), a.keys, PROGRESS_S)
        pulling = ann.pull(*line, len(data), a.keys, sink, progress.append, PROGRESS_S)
    sent, _ = await asyncio.gather(serving, pulling)
    return here, progress, sent


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("size", [0, 1, 5_000_000])
async def test_an_object_is_pulled(make, size, is_whole) -> None:
    data = bytes_of(size)
    here, progress, sent = await pulled(make(), make(), data, is_whole=is_whole)
    assert here == data
    assert sent == size
    assert progress[-1] == size


async def test_a_slow_disk_holds_no_more_than_a_window(make) -> None:
    ann, bob = make(window=2), make(window=2)
    a, size = Agreement(), 40 * CHUNK_BYTES
    let_go, held = threading.Event(), []

    def sink(offset: int, chunk: memoryview) -> None:
        held.append(offset)
        let_go.wait(5)

    served = asyncio.ensure_future(bob.serve(a.id, lambda o, n: bytes(n), size, a.keys, PROGRESS_S))
    pulling = asyncio.ensure_future(
        ann.pull(a.id, HERE, bob.port, size, a.keys, sink, int, PROGRESS_S)
    )
    await until(lambda: bool(held))
    talk = ann._mover._entries[a.id].talk
    await until(lambda: talk.to_hear() == 0)
    assert talk.first == 2, "chunks that were heard and wait for the disk"
    let_go.set()
    await pulling
    assert await served == size


async def test_a_full_disk_ends_the_pull_on_both_sides(make) -> None:
    ann, bob = make(), make()
    a = Agreement()

    def sink(offset: int, chunk: memoryview) -> None:
        raise OSError(28, "No space left on device")

    served = asyncio.ensure_future(
        bob.serve(a.id, lambda o, n: bytes(n), 10_000_000, a.keys, PROGRESS_S)
    )
    with pytest.raises(OSError, match="No space left"):
        await ann.pull(a.id, HERE, bob.port, 10_000_000, a.keys, sink, int, PROGRESS_S)
    with pytest.raises(Unreachable, match="No space left"):
        await served


async def test_an_unreadable_object_ends_the_pull_on_both_sides(make) -> None:
    ann, bob = make(), make()
    a = Agreement()

    def read(offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    served = asyncio.ensure_future(bob.serve(a.id, read, 1000, a.keys, PROGRESS_S))
    with pytest.raises(Unreachable, match="gave up"):
        await ann.pull(a.id, HERE, bob.port, 1000, a.keys, lambda o, c: None, int, PROGRESS_S)
    with pytest.raises(OSError, match="Input/output"):
        await served


async def test_a_server_that_dies_midway_is_noticed(make) -> None:
    ann, bob = make(window=2), Bulk(HERE, 0, window=2)
    a, size, first_chunk = Agreement(), 50 * CHUNK_BYTES, asyncio.Event()
    loop = asyncio.get_running_loop()
    die = threading.Event()

    def read(offset: int, length: int) -> bytes:
        if offset > 5 * CHUNK_BYTES:
            die.wait(5)
        return bytes(length)

    def sink(offset: int, chunk: memoryview) -> None:
        loop.call_soon_threadsafe(first_chunk.set)

    served = asyncio.ensure_future(bob.serve(a.id, read, size, a.keys, PROGRESS_S))
    pulling = asyncio.ensure_future(ann.pull(a.id, HERE, bob.port, size, a.keys, sink, int, 0.5))
    await first_chunk.wait()
    part = bob._mover._parting.part

    def hang_up(stream) -> None:  # as a kill does, which says no goodbye
        stream.connection.close()
        stream.connection = socket.socket()
        part(stream)

    bob._mover._parting.part = hang_up
    die.set()
    await bob.close()
    with pytest.raises(Unreachable) as caught:
        await pulling
    assert caught.value.step in ("connect", "transfer")
    with pytest.raises(Unreachable):
        await served


@pytest.mark.parametrize("is_whole", [False, True])
async def test_a_pull_goes_on_where_its_connection_was_cut(make, is_whole) -> None:
    ann, bob = make(window=4), make(window=4)
    wire = Wire(bob.port)
    wire.cut_at = {2_000_000, 6_000_000}
    data = bytes_of(8_000_000)
    here, _, sent = await pulled(ann, bob, data, port=await wire.start(), is_whole=is_whole)
    assert here == data
    assert wire.cut_at == set()
    assert len(wire.writers) == 6
    assert wire.carried < len(data) + 3 * 64 * CHUNK_BYTES, "what was here came no second time"
    assert sent > 0
    await wire.stop()


# ------------------------------------------------------------------------------- by way of memory


async def test_what_is_in_memory_as_a_whole_counts_as_held_until_it_is_there(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    data, got, held = bytes_of(100 * CHUNK_BYTES), bytearray(100 * CHUNK_BYTES), []

    def load() -> bytes:
        held.append((ann._mover._held_bytes, bob._mover._held_bytes))
        return data

    await asyncio.gather(
        bob.serve_whole(a.id, load, len(data), a.keys, PROGRESS_S),
        ann.pull_whole(a.id, HERE, bob.port, memoryview(got), a.keys, int, PROGRESS_S),
    )
    assert got == data
    assert held == [(len(data), len(data))], "loaded once"
    await until(lambda: ann._mover._held_bytes == bob._mover._held_bytes == 0)


@pytest.mark.parametrize(
    ("load", "kind"), [(lambda: bytes(999), ChunkCorrupt), (lambda: 1 / 0, ZeroDivisionError)]
)
async def test_what_cannot_be_loaded_ends_the_pull_on_both_sides(make, load, kind) -> None:
    ann, bob, a = make(), make(), Agreement()
    served = asyncio.ensure_future(bob.serve_whole(a.id, load, 1000, a.keys, PROGRESS_S))
    with pytest.raises(Unreachable, match="gave up"):
        await ann.pull_whole(
            a.id, HERE, bob.port, memoryview(bytearray(1000)), a.keys, int, PROGRESS_S
        )
    with pytest.raises(kind):
        await served
