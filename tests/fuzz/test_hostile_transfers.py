"""One end of a bulk transfer against a peer that holds the keys and sends whatever frames it likes."""

from __future__ import annotations

from effort import some
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlm.daemon.transfer import DOWN, UP, Offer, Transfer, Want, offer_of
from peerlm.errors import PeerlmError, WireError
from peerlm.types import Instant, TransferId
from peerlm.wire.frame import (
    CHUNK_BYTES,
    REASON_BYTES_MAX,
    Cipher,
    Header,
    Kind,
    chunk_bytes,
    parse,
)

ID, KEY_UP, KEY_DOWN = TransferId(bytes(16)), bytes(32), b"d" * 32
SIZE = 2 * CHUNK_BYTES + 100
WIDTH = 3
QUEUED_MAX = 64
"""Frames that may wait to be sent: few, and whatever the peer sends, no more."""

numbers = st.sampled_from([0, 1, 2, 3, 4, 2**63, 2**64 - 1])
totals = st.sampled_from([0, 1, 100, SIZE, SIZE, SIZE + 1, 1 << 40])


class Besieged(RuleBasedStateMachine):
    @initialize(
        initiator=st.booleans(),
        offers=st.sampled_from(["nothing", "memory", "disk"]),
        sink=st.booleans(),
        exact=st.booleans(),
    )
    def begin(self, initiator: bool, offers: str, sink: bool, exact: bool) -> None:
        self.now = Instant(0.0)
        offer = None if offers == "nothing" else offer_of(bytes(SIZE))
        if offers == "disk":
            offer = Offer(SIZE, lambda offset, length: bytes(length), slow=True)
        self.end = Transfer(
            id=ID,
            initiator=initiator,
            key_up=KEY_UP,
            key_down=KEY_DOWN,
            security="plain",
            offer=offer,
            want=Want(SIZE, exact, (lambda offset, data: None) if sink else None),
            width=WIDTH,
            began_at=self.now,
            progress_timeout_s=5.0,
            timeout_s=60.0,
        )
        self.theirs = Cipher(KEY_DOWN, DOWN, "plain") if initiator else Cipher(KEY_UP, UP, "plain")
        self.ours = Cipher(KEY_UP, UP, "plain") if initiator else Cipher(KEY_DOWN, DOWN, "plain")
        self.serial = 0
        self.landed: list[int] = []

    @rule(
        kind=st.sampled_from(list(Kind)),
        ref=numbers,
        total=totals,
        skip=st.sampled_from([0, 1, 1, 1, 5]),
        damage=st.sampled_from([False, False, False, True]),
        times=st.sampled_from([1, 1, 1, 200]),
    )
    def frame(self, kind: Kind, ref: int, total: int, skip: int, damage: bool, times: int) -> None:
        for _ in range(times):
            self.serial += skip
            length = max(0, chunk_bytes(ref, total)) if kind is Kind.DATA else 0
            body = bytes(length) if kind is not Kind.ABORT else b"\xff" * (ref % REASON_BYTES_MAX)
            header = Header(kind, ID, self.serial, ref, total, len(body))
            packed, sealed = self.theirs.seal(header, body)
            sealed = bytes(sealed)
            if damage:
                sealed = sealed[:-1] + bytes([sealed[-1] ^ 1])
            try:
                parsed = parse(packed)
            except WireError:
                return
            was_heard = self.end._serial_heard
            dropped = self.end.on_frame(parsed, packed, sealed, self.now)
            assert dropped in ("", "replayed", "unasked", "corrupt")
            assert not damage or dropped, "a damaged frame was taken"
            assert self.serial > was_heard or dropped, "a frame was taken twice"

    @rule(count=st.integers(0, 12))
    def send(self, count: int) -> None:
        for _ in range(count):
            if self.end.next_job() is None:
                return
            packed, sealed = self.end.next_frame()
            header = parse(packed)
            self.ours.open(header, packed, sealed, memoryview(bytearray(header.length)))

    @precondition(lambda self: self.end.reads)
    @rule()
    def disk_reads(self) -> None:
        chunk = self.end.reads.pop(0)
        self.end.loaded(chunk, bytes(chunk_bytes(chunk, SIZE)))

    @precondition(lambda self: self.end.writes)
    @rule()
    def disk_writes(self) -> None:
        offset, data = self.end.writes.pop(0)
        assert offset not in self.landed, "a chunk was written twice"
        assert offset + len(data) <= SIZE
        self.landed.append(offset)
        self.end.written()

    @rule(seconds=st.sampled_from([0.1, 0.3, 2.0, 6.0]))
    def tick(self, seconds: float) -> None:
        self.now = Instant(self.now + seconds)
        self.end.tick(self.now)

    @rule()
    def reply(self) -> None:
        if self.end.offer is None and not self.end.initiator:
            self.end.give(bytes(SIZE))

    @invariant()
    def it_is_bounded(self) -> None:
        if not hasattr(self, "end"):
            return
        end = self.end
        assert end.failure is None or isinstance(end.failure, PeerlmError)
        assert len(str(end.failure)) < 1000
        assert len(end._outbox) <= QUEUED_MAX, "a peer can fill our memory with questions"
        assert len(end._queued) <= 4 * WIDTH
        assert len(end.reads) <= 4 * WIDTH
        assert len(end._loaded) <= 4 * WIDTH
        assert len(end.writes) <= WIDTH
        assert end.bytes_received <= SIZE
        assert len(end.want.memory) <= SIZE
        if end._window is not None:
            assert len(end._window._in_flight) <= WIDTH
        end.next_job()


TestBesieged = Besieged.TestCase
TestBesieged.settings = some(40, 40)
