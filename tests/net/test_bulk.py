from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
import zmq

from peerlm.daemon import mover
from peerlm.daemon.bulk import Bulk
from peerlm.errors import ChunkCorrupt, ConfigError, Unreachable, WireError
from peerlm.wire.frame import CHUNK_BYTES, cookie

PROGRESS_S, TIMEOUT_S = 5.0, 15.0
HERE = "127.0.0.1"


@dataclass(frozen=True)
class Agreement:
    """What two nodes agree on over the control plane before bytes move."""

    id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    up: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    down: bytes = field(default_factory=lambda: secrets.token_bytes(32))


def bytes_of(length: int) -> bytes:
    return secrets.token_bytes(length)


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Callable[..., Bulk]]:
    made: list[Bulk] = []

    def bulk(**kwargs) -> Bulk:
        made.append(Bulk(HERE, 0, **kwargs))
        return made[-1]

    yield bulk
    for each in made:
        await each.close()


def exchange(
    ann: Bulk, port: int, a: Agreement, request: bytes, reply_max: int, progress_s=PROGRESS_S
) -> Awaitable[memoryview]:
    return ann.exchange(a.id, HERE, port, request, reply_max, a.up, a.down, progress_s, TIMEOUT_S)


async def respond(
    bob: Bulk, a: Agreement, request_bytes: int, reply: bytes, progress_s=PROGRESS_S
) -> memoryview:
    request = await bob.expect(a.id, request_bytes, a.up, a.down, progress_s, TIMEOUT_S)
    await bob.reply(a.id, reply)
    return request


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a counter tells nobody
            await asyncio.sleep(0.002)


async def assert_exchange_works(ann: Bulk, bob: Bulk, port: int = 0, size: int = 300_000) -> None:
    a, request, reply = Agreement(), bytes_of(size), bytes_of(size // 2)
    served = asyncio.ensure_future(respond(bob, a, len(request), reply))
    await until(lambda: a.id in bob._mover._entries)
    got = await exchange(ann, port or bob.port, a, request, len(reply))
    asked = await served
    assert (got, asked) == (reply, request)


@pytest.mark.parametrize("security", ["aead", "plain"])
async def test_an_exchange_of_16_mib_each_way(make, security) -> None:
    await assert_exchange_works(make(security=security), make(security=security), size=16 << 20)


@pytest.mark.parametrize("size", [2, CHUNK_BYTES, CHUNK_BYTES + 1])
async def test_small_exchanges(make, size) -> None:
    await assert_exchange_works(make(), make(), size=size)


async def test_an_empty_exchange(make) -> None:
    await assert_exchange_works(make(), make(), size=0)


async def test_many_exchanges_at_once_and_nothing_is_left_of_them(make) -> None:
    ann, bob = make(), make()
    await asyncio.gather(*(assert_exchange_works(ann, bob) for _ in range(10)))
    await until(lambda: not bob._mover._entries and not ann._mover._entries)
    assert (ann._mover._held_bytes, bob._mover._held_bytes) == (0, 0)
    assert not ann._mover._by_dealer
    assert ann.counters["bytes_sent"] == bob.counters["bytes_received"]


async def test_an_initiator_may_come_before_it_is_expected(make) -> None:
    ann, bob = make(), make()
    a, request = Agreement(), bytes_of(100)
    early = asyncio.ensure_future(exchange(ann, bob.port, a, request, 5))
    await until(lambda: bob.counters["connections_denied"] > 0)
    await respond(bob, a, 100, b"reply")
    assert await early == b"reply"


async def test_names_are_looked_up(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    got, _ = await asyncio.gather(
        ann.exchange(a.id, "localhost", bob.port, b"x", 5, a.up, a.down, PROGRESS_S, TIMEOUT_S),
        respond(bob, a, 1, b"reply"),
    )
    assert got == b"reply"


async def test_too_large_a_reply_is_the_peers_fault(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    served = asyncio.ensure_future(respond(bob, a, 1, bytes(100)))
    with pytest.raises(WireError, match="offers 100 bytes, must be at most 99"):
        await exchange(ann, bob.port, a, b"x", 99)
    await served


async def test_another_size_than_agreed_is_the_peers_fault(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    refused = asyncio.ensure_future(respond(bob, a, 99, b""))
    with pytest.raises(Unreachable, match=r"gave up: .* offers 100 bytes, must be 99"):
        await exchange(ann, bob.port, a, bytes(100), 10)
    with pytest.raises(WireError):
        await refused


async def test_wrong_keys_move_nothing(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    other = Agreement(id=a.id, up=a.up)  # let in, but nothing it is told can be read
    served = asyncio.ensure_future(respond(bob, other, 100, b"", progress_s=1.0))
    await until(lambda: a.id in bob._mover._entries)
    outcomes = await asyncio.gather(
        exchange(ann, bob.port, a, bytes(100), 10, progress_s=1.0),
        served,
        return_exceptions=True,
    )
    assert all(isinstance(outcome, (Unreachable, ChunkCorrupt)) for outcome in outcomes)
    assert ann.counters["dropped_corrupt"] > 0


async def test_nobody_there_is_told_as_connect(make) -> None:
    ann = make()
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        with pytest.raises(Unreachable, match=r"no answer in 0\.3 s") as caught:
            await exchange(ann, taken.getsockname()[1], Agreement(), b"x", 1, progress_s=0.3)
    assert caught.value.step == "connect"


async def test_one_transfer_has_one_name(make) -> None:
    bob, a = make(), Agreement()
    first = asyncio.ensure_future(respond(bob, a, 1, b""))
    await until(lambda: a.id in bob._mover._entries)
    with pytest.raises(Unreachable, match="under way already"):
        await respond(bob, a, 1, b"")
    first.cancel()


async def test_bytes_held_at_once_are_bounded(make, monkeypatch) -> None:
    monkeypatch.setattr(mover, "HELD_BYTES_MAX", 1000)
    bob = make()
    first = asyncio.ensure_future(respond(bob, Agreement(), 600, b""))
    await until(lambda: bool(bob._mover._entries))
    with pytest.raises(Unreachable, match="1 transfers of 600 bytes are under way") as caught:
        await respond(bob, Agreement(), 600, b"")
    assert caught.value.step == "admission"
    first.cancel()


async def test_cancelling_ends_both_sides(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    started = asyncio.ensure_future(exchange(ann, bob.port, a, b"x", 10))
    assert await bob.expect(a.id, 1, a.up, a.down, PROGRESS_S, TIMEOUT_S) == b"x"
    bob.cancel(a.id, "the plan has changed")
    with pytest.raises(Unreachable, match="gave up: the plan has changed"):
        await started
    with pytest.raises(Unreachable, match="too late"):
        await bob.reply(a.id, b"y")


async def test_a_cancelled_task_ends_its_transfer(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    started = asyncio.ensure_future(exchange(ann, bob.port, a, b"x", 10))
    await bob.expect(a.id, 1, a.up, a.down, PROGRESS_S, TIMEOUT_S)
    started.cancel()
    await until(lambda: not ann._mover._entries and not bob._mover._entries)


async def test_closing_ends_what_is_under_way(make) -> None:
    bob = Bulk(HERE, 0)
    waiting = asyncio.ensure_future(respond(bob, Agreement(), 1, b""))
    await until(lambda: bool(bob._mover._entries))
    await bob.close()
    with pytest.raises(Unreachable, match="stopping"):
        await waiting


# ------------------------------------------------------------------------------------------ pulls


async def pulled(
    ann: Bulk, bob: Bulk, data: bytes, *, port: int = 0, progress_s: float = PROGRESS_S
) -> tuple[bytearray, list[int], int]:
    a, here, progress = Agreement(), bytearray(len(data)), []

    def sink(offset: int, chunk: memoryview) -> None:
        here[offset : offset + len(chunk)] = chunk

    served = asyncio.ensure_future(
        bob.serve(a.id, lambda o, n: data[o : o + n], len(data), a.up, a.down, progress_s)
    )
    await ann.pull(
        a.id, HERE, port or bob.port, len(data), a.up, a.down, sink, progress.append, progress_s
    )
    return here, progress, await served


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
async def test_an_object_is_pulled(make, size) -> None:
    data = bytes_of(size)
    here, progress, sent = await pulled(make(), make(), data)
    assert here == data
    assert sent == size
    assert progress[-1] == size


async def test_a_slow_disk_holds_no_more_than_a_window(make) -> None:
    ann, bob = make(window=2), make(window=2)
    a, size = Agreement(), 20 * CHUNK_BYTES
    let_go, held = threading.Event(), []

    def sink(offset: int, chunk: memoryview) -> None:
        held.append(offset)
        let_go.wait(5)

    served = asyncio.ensure_future(
        bob.serve(a.id, lambda o, n: bytes(n), size, a.up, a.down, PROGRESS_S)
    )
    pulling = asyncio.ensure_future(
        ann.pull(a.id, HERE, bob.port, size, a.up, a.down, sink, int, PROGRESS_S)
    )
    await until(lambda: bool(held) and ann.counters["bytes_received"] >= 2 * CHUNK_BYTES)
    assert bob._mover._entries[a.id].transfer.bytes_sent == 2 * CHUNK_BYTES
    let_go.set()
    await pulling
    assert await served == size


async def test_a_full_disk_ends_the_pull_on_both_sides(make) -> None:
    ann, bob = make(), make()
    a = Agreement()

    def sink(offset: int, chunk: memoryview) -> None:
        raise OSError(28, "No space left on device")

    served = asyncio.ensure_future(
        bob.serve(a.id, lambda o, n: bytes(n), 10_000_000, a.up, a.down, PROGRESS_S)
    )
    with pytest.raises(OSError, match="No space left"):
        await ann.pull(a.id, HERE, bob.port, 10_000_000, a.up, a.down, sink, int, PROGRESS_S)
    with pytest.raises(Unreachable, match="No space left"):
        await served


async def test_an_unreadable_object_ends_the_pull_on_both_sides(make) -> None:
    ann, bob = make(), make()
    a = Agreement()

    def read(offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    served = asyncio.ensure_future(bob.serve(a.id, read, 1000, a.up, a.down, PROGRESS_S))
    with pytest.raises(Unreachable, match="gave up"):
        await ann.pull(a.id, HERE, bob.port, 1000, a.up, a.down, lambda o, c: None, int, PROGRESS_S)
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

    served = asyncio.ensure_future(bob.serve(a.id, read, size, a.up, a.down, PROGRESS_S))
    pulling = asyncio.ensure_future(
        ann.pull(a.id, HERE, bob.port, size, a.up, a.down, sink, int, 0.5)
    )
    await first_chunk.wait()
    bob._mover._remove = lambda entry, goodbye: (
        bob._mover._entries.clear()
    )  # a kill says no goodbye
    await bob.close()
    with pytest.raises(Unreachable, match=r"nothing came for 0\.5 s") as caught:
        await pulling
    assert caught.value.step == "transfer"
    die.set()
    with pytest.raises(Unreachable):
        await served


# ---------------------------------------------------------------------------------- bad networks


class Wire:
    """A TCP proxy that can flip a bit and cut its connections."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.flip_at: set[int] = set()
        self.seen = 0
        self.cut_at: set[int] = set()
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._connect, HERE, 0)
        return self.server.sockets[0].getsockname()[1]

    async def _connect(self, reader, writer) -> None:
        there, back = await asyncio.open_connection(HERE, self.target)
        self.writers += [writer, back]
        self.tasks.append(asyncio.ensure_future(self._carry(there, writer, spoil=False)))
        self.tasks.append(asyncio.ensure_future(self._carry(reader, back, spoil=True)))

    async def _carry(self, reader, writer, spoil: bool) -> None:
        while data := await reader.read(65_536):
            if spoil:
                start, self.seen = self.seen, self.seen + len(data)
                data = bytearray(data)
                for at in [at for at in self.flip_at if start <= at < self.seen]:
                    data[at - start] ^= 1
                if cuts := {at for at in self.cut_at if at < self.seen}:
                    self.cut_at -= cuts
                    for each in self.writers:
                        each.close()
                    return
            writer.write(data)
            await writer.drain()
        writer.close()

    async def stop(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize("security", ["aead", "plain"])
async def test_corrupt_chunks_are_found_and_fetched_again(make, security) -> None:
    ann, bob = make(security=security), make(security=security)
    wire = Wire(bob.port)
    wire.flip_at = {700_000, 2_000_000, 2_900_000}
    await assert_exchange_works(ann, bob, await wire.start(), size=3_000_000)
    assert bob.counters["dropped_corrupt"] == 3
    await wire.stop()


async def test_a_cut_connection_is_made_anew_and_the_transfer_goes_on(make) -> None:
    ann, bob = make(), make()
    wire = Wire(bob.port)
    wire.cut_at = {900_000, 2_500_000}
    await assert_exchange_works(ann, bob, await wire.start(), size=3_000_000)
    assert wire.cut_at == set()
    assert len(wire.writers) >= 6
    await wire.stop()


# -------------------------------------------------------------------------------------- strangers


class Stranger:
    """A bare DEALER at the bulk port, with the credentials it likes."""

    def __init__(self, bulk: Bulk, name: bytes = b"", secret: bytes = b"") -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if name:
            self.socket.set(zmq.PLAIN_USERNAME, name)
            self.socket.set(zmq.PLAIN_PASSWORD, secret)
        self.socket.connect(f"tcp://{HERE}:{bulk.port}")

    def close(self) -> None:
        self.socket.close()
        self.context.term()


async def test_strangers_and_unknown_transfers_are_ignored(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    waiting = asyncio.ensure_future(respond(bob, a, 1, b""))
    await until(lambda: a.id in bob._mover._entries)
    strangers = [
        Stranger(bob),
        Stranger(bob, b"\xff\xfe", b"x"),
        Stranger(bob, secrets.token_hex(16).encode(), b"x"),
        Stranger(bob, a.id.hex().encode(), cookie(a.down)),
    ]
    for stranger in strangers:
        stranger.socket.send_multipart([b"h" * 48, bytes(1000)])
    await until(lambda: bob.counters["connections_denied"] >= 3)
    await assert_exchange_works(ann, bob)
    assert not waiting.done()
    waiting.cancel()
    for stranger in strangers:
        stranger.close()


async def test_garbage_with_a_stolen_cookie_does_not_disturb_the_transfer(make) -> None:
    ann, bob = make(), make()
    a = Agreement()
    serving = asyncio.ensure_future(respond(bob, a, 3_000_000, b"reply"))
    await until(lambda: a.id in bob._mover._entries)
    thief = Stranger(bob, a.id.hex().encode(), cookie(a.up))
    for parts in ([b""], [b"x" * 48, b""], [b"y"] * 9, [bytes(48), bytes(CHUNK_BYTES)]):
        thief.socket.send_multipart(parts)
    thief.socket.send_multipart([b"z", bytes(CHUNK_BYTES * 2)])  # oversized: costs the connection
    await until(lambda: bob.counters["dropped_garbage"] >= 4)
    assert await exchange(ann, bob.port, a, bytes(3_000_000), 10) == b"reply"
    assert await serving == bytes(3_000_000)
    thief.close()


async def test_ceilings_hold(make) -> None:
    """By the bytes moved against the clock; the bucket's arithmetic is tested without one."""
    ann, bob = make(upload_bytes_s=4 * CHUNK_BYTES), make(download_bytes_s=8 * CHUNK_BYTES)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await assert_exchange_works(ann, bob, size=3 * CHUNK_BYTES)
    assert loop.time() - began >= 0.25  # a burst of one chunk, one in debt, one waited for


async def test_a_taken_port_is_a_line_or_another_port(make) -> None:
    bob = make()
    with pytest.raises(ConfigError, match=f"port {bob.port} on {HERE} is in use"):
        Bulk(HERE, bob.port)
    other = Bulk(HERE, bob.port, or_free=True)
    assert other.port not in (0, bob.port)
    await other.close()


async def test_a_crash_of_the_thread_is_told_to_all(make) -> None:
    bob = Bulk(HERE, 0)
    told: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    waiting = asyncio.ensure_future(respond(bob, Agreement(), 1, b""))
    await until(lambda: bool(bob._mover._entries))

    def bug() -> None:
        raise AssertionError("a promise broken")

    bob._mover.call(bug)
    with pytest.raises(AssertionError, match="a promise broken"):
        await waiting
    await until(lambda: bool(told))
    await bob.close()
