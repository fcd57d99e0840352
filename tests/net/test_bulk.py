from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
import pytest_asyncio

from peerlm.daemon import callers, kept, mover
from peerlm.daemon.bulk import Bulk, Cost
from peerlm.daemon.talks import RefusedHere
from peerlm.errors import ChunkCorrupt, ConfigError, Unreachable, WireError
from peerlm.mix.chunks import CHUNK, stream_bytes
from peerlm.mix.flow import Answering, Asking
from peerlm.mix.fragment import SlowFragment
from peerlm.wire.frame import HEADER_BYTES, TAG_BYTES, UP, Cipher, Kind, Preface

PROGRESS_S, TIMEOUT_S = 5.0, 15.0
HERE = "127.0.0.1"
FP32 = ("fp32", "fp32")
SEEDS = count()


@dataclass(frozen=True)
class Agreement:
    """What two nodes agree on over the control plane before bytes move."""

    id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    keys: tuple[bytes, bytes] = field(
        default_factory=lambda: (secrets.token_bytes(32), secrets.token_bytes(32))
    )


def fragment(size: int, scale: float = 1.0) -> SlowFragment:
    noise = np.random.default_rng(next(SEEDS)).standard_normal(size, np.float32)
    return SlowFragment(np.float32(scale) * (1 + np.float32(0.1) * noise))


def side(kind, slow: SlowFragment, codecs=FP32):
    return kind(
        slow,
        codec_request=codecs[0],
        codec_reply=codecs[1],
        weight=0.5,
        clip_norm=1e9,
        rng=np.random.default_rng(1),
        difference=np.empty(slow.size, np.float32),
    )


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Callable[..., Bulk]]:
    made: list[Bulk] = []

    def bulk(**kwargs) -> Bulk:
        made.append(Bulk(HERE, 0, **kwargs))
        return made[-1]

    yield bulk
    for each in made:
        await each.close()


def ask(
    ann: Bulk, port: int, a: Agreement, slow: SlowFragment, codecs=FP32, progress_s=PROGRESS_S
) -> Awaitable[Cost]:
    asking = side(Asking, slow, codecs)
    return ann.exchange(a.id, HERE, port, asking, a.keys, progress_s, TIMEOUT_S)


def answer(
    bob: Bulk, a: Agreement, slow: SlowFragment, codecs=FP32, progress_s=PROGRESS_S
) -> Awaitable[Cost]:
    return bob.answer(a.id, side(Answering, slow, codecs), a.keys, progress_s, TIMEOUT_S)


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a counter tells nobody
            await asyncio.sleep(0.002)


async def assert_exchange_works(
    ann: Bulk, bob: Bulk, port: int = 0, size: int = 3 * CHUNK + 7, codecs=FP32
) -> None:
    """What one gains the other loses, and in the end they are where they should be."""
    a, mine, yours = Agreement(), fragment(size), fragment(size)
    phis = mine.phi.copy(), yours.phi.copy()
    asking, answering = side(Asking, mine, codecs), side(Answering, yours, codecs)
    await asyncio.gather(
        bob.answer(a.id, answering, a.keys, PROGRESS_S, TIMEOUT_S),
        ann.exchange(a.id, HERE, port or bob.port, asking, a.keys, PROGRESS_S, TIMEOUT_S),
    )
    flows = asking.apply(), answering.apply()
    assert flows[0].raw_norm == flows[1].raw_norm
    assert np.array_equal(asking._difference, answering._difference)
    error = np.abs(mine.phi + yours.phi - sum(phis)).max(initial=0.0)
    assert error <= 1e-6 * 8
    if codecs == FP32:
        assert np.allclose(mine.phi, sum(phis) / 2, atol=1e-6)


@pytest.mark.parametrize("security", ["aead", "plain"])
@pytest.mark.parametrize("codecs", [FP32, ("fp16", "fp16"), ("int8", "int4")])
async def test_an_exchange_of_16_mib_each_way(make, security, codecs) -> None:
    ann, bob = make(security=security), make(security=security)
    await assert_exchange_works(ann, bob, size=4 << 20, codecs=codecs)


@pytest.mark.parametrize("size", [1, 5, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("codecs", [FP32, ("int8", "int4")])
async def test_small_exchanges(make, size, codecs) -> None:
    await assert_exchange_works(make(), make(), size=size, codecs=codecs)


async def test_many_exchanges_at_once_and_nothing_is_left_of_them(make, monkeypatch) -> None:
    monkeypatch.setattr(kept, "DIALLED_S", 0.3)
    ann, bob = make(), make()
    await asyncio.gather(*(assert_exchange_works(ann, bob) for _ in range(10)))
    await until(lambda: not bob._mover._entries and not ann._mover._entries)
    await until(lambda: not bob._mover._parting and not ann._mover._parting)
    assert (ann._mover._held_bytes, bob._mover._held_bytes) == (0, 0)
    assert not ann._mover._callers
    for each in (ann, bob):
        await until(lambda mover=each._mover: len(mover._selector.get_map()) == 2)
        assert not each._mover._parting.kept, (
            "the listener and the way to wake it are all that is left"
        )
    assert ann.counters["bytes_sent"] >= 10 * stream_bytes("fp32", 3 * CHUNK + 7)


async def test_what_an_exchange_took_and_what_the_line_gave_is_told(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    mine, yours = fragment(8 * CHUNK), fragment(8 * CHUNK)
    theirs, ours = await asyncio.gather(answer(bob, a, yours), ask(ann, bob.port, a, mine))
    for cost in (theirs, ours):
        assert 0 < cost.work_s < 5
        if sys.platform == "linux":
            assert cost.line_bytes_s > 1e6  # loopback, however busy


async def test_a_ceiling_is_the_line(make) -> None:
    ann, bob, a = make(upload_bytes_s=50e6), make(), Agreement()
    mine, yours = fragment(8 * CHUNK), fragment(8 * CHUNK)
    _, ours = await asyncio.gather(answer(bob, a, yours), ask(ann, bob.port, a, mine))
    assert ours.line_bytes_s <= 50e6


async def test_an_initiator_may_come_before_it_is_expected(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    early = asyncio.ensure_future(ask(ann, bob.port, a, fragment(100)))
    await until(lambda: bool(bob._mover._callers))
    await answer(bob, a, fragment(100))
    await early


async def test_names_are_looked_up(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    asking = side(Asking, fragment(9))
    await asyncio.gather(
        ann.exchange(a.id, "localhost", bob.port, asking, a.keys, PROGRESS_S, TIMEOUT_S),
        answer(bob, a, fragment(9)),
    )


async def test_another_size_than_agreed_is_the_peers_fault(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    outcomes = await asyncio.gather(
        ask(ann, bob.port, a, fragment(99)), answer(bob, a, fragment(100)), return_exceptions=True
    )
    assert isinstance(outcomes[0], Unreachable)
    assert "gave up" in str(outcomes[0])
    assert isinstance(outcomes[1], WireError)
    assert "where one of" in str(outcomes[1])


async def test_weights_that_fail_a_gate_are_told_to_both(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    outcomes = await asyncio.gather(
        ask(ann, bob.port, a, fragment(CHUNK, scale=50.0)),
        answer(bob, a, fragment(CHUNK)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], Unreachable | RefusedHere)
    assert isinstance(outcomes[1], RefusedHere)
    assert str(outcomes[1]).startswith("norm: |x̂|")


async def test_wrong_keys_move_nothing(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    other = Agreement(id=a.id)
    outcomes = await asyncio.gather(
        ask(ann, bob.port, a, fragment(9), progress_s=0.5),
        answer(bob, other, fragment(9), progress_s=0.5),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, Unreachable) for outcome in outcomes)
    assert bob.counters["callers_corrupt"] == 1


async def test_nobody_there_is_told_as_connect(make) -> None:
    ann = make()
    with socket.socket() as free:
        free.bind((HERE, 0))
        with pytest.raises(Unreachable, match="Connection refused") as caught:
            await ask(ann, free.getsockname()[1], Agreement(), fragment(1))
    assert caught.value.step == "connect"


async def test_silence_is_told_as_connect(make) -> None:
    ann = make()
    with socket.socket() as deaf:
        deaf.bind((HERE, 0))
        deaf.listen()
        with pytest.raises(Unreachable, match=r"no answer in 0\.3 s") as caught:
            await ask(ann, deaf.getsockname()[1], Agreement(), fragment(1), progress_s=0.3)
    assert caught.value.step == "connect"


async def test_who_is_never_asked_gives_up(make) -> None:
    bob = make()
    with pytest.raises(Unreachable, match=r"no answer in 0\.3 s"):
        async with asyncio.timeout(5):
            await answer(bob, Agreement(), fragment(1), progress_s=0.3)


async def test_one_transfer_has_one_name(make) -> None:
    bob, a = make(), Agreement()
    first = asyncio.ensure_future(answer(bob, a, fragment(1)))
    await until(lambda: a.id in bob._mover._entries)
    with pytest.raises(Unreachable, match="under way already"):
        await answer(bob, a, fragment(1))
    first.cancel()


async def test_bytes_held_at_once_are_bounded(make, monkeypatch) -> None:
    monkeypatch.setattr(mover, "HELD_BYTES_MAX", 1000)
    bob = make()
    first = asyncio.ensure_future(answer(bob, Agreement(), fragment(150)))
    await until(lambda: bool(bob._mover._entries))
    with pytest.raises(Unreachable, match="1 transfers of 600 bytes are under way") as caught:
        await answer(bob, Agreement(), fragment(150))
    assert caught.value.step == "admission"
    first.cancel()


async def stalled(ann: Bulk, bob: Bulk) -> tuple[Agreement, asyncio.Future, asyncio.Future]:
    """An exchange that has begun and cannot end, since its responder's ceiling is so low."""
    a = Agreement()
    asked = asyncio.ensure_future(ask(ann, bob.port, a, fragment(20 * CHUNK)))
    answered = asyncio.ensure_future(answer(bob, a, fragment(20 * CHUNK)))
    await until(lambda: bob.counters["bytes_received"] > CHUNK)
    return a, asked, answered


async def test_cancelling_ends_both_sides(make) -> None:
    ann, bob = make(), make(download_bytes_s=10_000)
    a, asked, answered = await stalled(ann, bob)
    bob.cancel(a.id, "the plan has changed")
    with pytest.raises(Unreachable, match="gave up: the plan has changed"):
        await asked
    with pytest.raises(Unreachable, match="the plan has changed"):
        await answered


async def test_a_cancelled_task_ends_its_transfer(make) -> None:
    ann, bob = make(), make(download_bytes_s=10_000)
    _, asked, answered = await stalled(ann, bob)
    asked.cancel()
    await until(lambda: not ann._mover._entries)
    answered.cancel()
    await until(lambda: not bob._mover._entries)


async def test_closing_ends_what_is_under_way(make) -> None:
    bob = Bulk(HERE, 0)
    waiting = asyncio.ensure_future(answer(bob, Agreement(), fragment(1)))
    await until(lambda: bool(bob._mover._entries))
    await bob.close()
    with pytest.raises(Unreachable, match="stopping"):
        await waiting


# ---------------------------------------------------------------------------------- bad networks


class Wire:
    """A TCP proxy that can flip a bit of what goes to the target, and cut its connections."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.flip_at: set[int] = set()
        self.cut_at: set[int] = set()
        """Bytes of both directions together."""
        self.seen = self.carried = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._connect, HERE, 0)
        return self.server.sockets[0].getsockname()[1]

    async def _connect(self, reader, writer) -> None:
        there, back = await asyncio.open_connection(HERE, self.target)
        self.writers += [writer, back]
        pair = (writer, back)
        self.tasks.append(asyncio.ensure_future(self._carry(there, writer, pair, spoil=False)))
        self.tasks.append(asyncio.ensure_future(self._carry(reader, back, pair, spoil=True)))

    async def _carry(self, reader, writer, pair, spoil: bool) -> None:
        while data := await reader.read(65_536):
            self.carried += len(data)
            if spoil:
                start, self.seen = self.seen, self.seen + len(data)
                data = bytearray(data)
                for at in [at for at in self.flip_at if start <= at < self.seen]:
                    data[at - start] ^= 1
            if cuts := {at for at in self.cut_at if at < self.carried}:
                self.cut_at -= cuts
                for each in pair:
                    each.transport.abort()
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
@pytest.mark.parametrize("at", [5, 40, 700_000, 2_000_000])
async def test_a_flipped_bit_ends_an_exchange_and_nothing_is_applied(
    make, monkeypatch, security, at
) -> None:
    monkeypatch.setattr(callers, "CALLER_S", 0.3)  # a preface with such a bit is nobody's
    ann, bob, a = make(security=security), make(security=security), Agreement()
    wire = Wire(bob.port)
    wire.flip_at = {at}
    mine, yours = fragment(6 * CHUNK), fragment(6 * CHUNK)
    port = await wire.start()
    outcomes = await asyncio.gather(
        ask(ann, port, a, mine, progress_s=0.5),
        answer(bob, a, yours, progress_s=0.5),
        return_exceptions=True,
    )
    assert all(isinstance(each, Unreachable | ChunkCorrupt | WireError) for each in outcomes)
    await wire.stop()


async def test_a_cut_connection_ends_an_exchange(make) -> None:
    ann, bob, a = make(), make(), Agreement()
    wire = Wire(bob.port)
    wire.cut_at = {2_000_000}
    outcomes = await asyncio.gather(
        ask(ann, await wire.start(), a, fragment(20 * CHUNK)),
        answer(bob, a, fragment(20 * CHUNK)),
        return_exceptions=True,
    )
    assert [each.step for each in outcomes] == ["transfer", "transfer"]
    await wire.stop()


# -------------------------------------------------------------------------------------- strangers


class Stranger:
    """A bare connection to the bulk port that says what it likes."""

    def __init__(self, bulk: Bulk, *words: bytes) -> None:
        self.socket = socket.create_connection((HERE, bulk.port))
        for each in words:
            self.socket.sendall(each)

    async def is_hung_up(self) -> bool:
        self.socket.settimeout(5)
        try:
            return await asyncio.to_thread(self.socket.recv, 1) == b""
        except ConnectionError:
            return True


def begin(a: Agreement, attempt: int = 1, first: int = 0, key: bytes | None = None) -> bytes:
    """The first words of a dialler."""
    frame = memoryview(bytearray(HEADER_BYTES + 8 + TAG_BYTES))
    Cipher(key or a.keys[0], UP, attempt, "aead").seal(Kind.BEGIN, frame, first.to_bytes(8, "big"))
    return Preface(a.id, attempt).pack() + bytes(frame)


async def test_strangers_are_turned_away_and_disturb_nobody(make, monkeypatch) -> None:
    monkeypatch.setattr(callers, "CALLER_S", 0.3)
    ann, bob, a = make(), make(), Agreement()
    waiting = asyncio.ensure_future(answer(bob, a, fragment(100)))
    await until(lambda: a.id in bob._mover._entries)
    strangers = [
        Stranger(bob),
        Stranger(bob, b"x" * 1000),
        Stranger(bob, begin(Agreement())),
        Stranger(bob, begin(a, key=a.keys[1])),
        Stranger(bob, begin(a)[:30]),
    ]
    for stranger in strangers:
        assert await stranger.is_hung_up()
        stranger.socket.close()
    await assert_exchange_works(ann, bob)
    assert not waiting.done()
    await asyncio.gather(waiting, ask(ann, bob.port, a, fragment(100)))


async def test_callers_are_few(make, monkeypatch) -> None:
    monkeypatch.setattr(callers, "CALLERS_MAX", 5)
    ann, bob = make(), make()
    strangers = [Stranger(bob) for _ in range(20)]
    await until(lambda: bob.counters["callers_denied"] == 15)
    assert len(bob._mover._callers) == 5
    await assert_exchange_works(ann, bob)
    for stranger in strangers:
        stranger.socket.close()


async def test_callers_that_are_turned_away_while_they_speak_harm_nobody(make, monkeypatch) -> None:
    monkeypatch.setattr(callers, "CALLERS_MAX", 3)
    ann, bob = make(), make()
    for _ in range(100):
        crowd = [Stranger(bob, b"x") for _ in range(6)]
        for stranger in crowd:
            stranger.socket.close()
    await assert_exchange_works(ann, bob)


async def test_a_repeated_beginning_does_not_take_the_place_of_the_true_one(make) -> None:
    ann, bob = make(), make(download_bytes_s=10_000)
    a, asked, answered = await stalled(ann, bob)
    for attempt in (1, 2):
        thief = Stranger(bob, begin(a, attempt))
        assert await thief.is_hung_up()
        assert bob.counters["callers_replayed"] == attempt
        assert not asked.done()
        assert not answered.done()
        thief.socket.close()
    asked.cancel()
    answered.cancel()


async def test_a_peer_with_the_keys_may_not_say_more_than_agreed(make) -> None:
    bob, a = make(), Agreement()
    answered = asyncio.ensure_future(answer(bob, a, fragment(CHUNK)))
    await until(lambda: a.id in bob._mover._entries)
    hostile = Stranger(bob, begin(a), b"\x02" + (2**31).to_bytes(4, "big"), bytes(100_000))
    with pytest.raises(WireError, match="with a body of 2147483648 bytes"):
        await answered
    hostile.socket.close()


# ------------------------------------------------------------------------------------- the plane


async def test_ceilings_hold(make) -> None:
    """By the bytes moved against the clock; the bucket's arithmetic is tested without one."""
    rate = stream_bytes("fp32", CHUNK)
    ann, bob = make(upload_bytes_s=4 * rate), make(download_bytes_s=8 * rate)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await assert_exchange_works(ann, bob, size=3 * CHUNK)
    assert loop.time() - began >= 0.25  # a burst of one chunk, one in debt, one waited for


async def test_a_ceiling_that_makes_a_chunk_take_longer_than_patience_is_no_silence(make) -> None:
    ann, bob, a = make(upload_bytes_s=CHUNK), make(), Agreement()
    size = 2 * CHUNK  # each chunk takes four seconds
    asked = asyncio.ensure_future(ask(ann, bob.port, a, fragment(size), progress_s=0.5))
    answered = asyncio.ensure_future(answer(bob, a, fragment(size), progress_s=0.5))
    await until(lambda: bob.counters["bytes_received"] > 3 * CHUNK)
    assert not asked.done()
    assert not answered.done()
    asked.cancel()
    answered.cancel()


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
    waiting = asyncio.ensure_future(answer(bob, Agreement(), fragment(1)))
    await until(lambda: bool(bob._mover._entries))

    def bug() -> None:
        raise AssertionError("a promise broken")

    bob._mover.call(bug)
    with pytest.raises(AssertionError, match="a promise broken"):
        await waiting
    await until(lambda: bool(told))
    await bob.close()
