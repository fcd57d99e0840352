"""What of the text this swarm has read, as this node knows it: told to the others, kept on the disk, handed to the worker.

The worker says what it has finished, and every few seconds those who share the text are told what is new of it; all that is
known is told on a new link, and now and then to one of them, which makes good what got lost on the way. So after
a death only what the dead had not told yet is read again, and ranges that it was in the midst of.

Each word from a peer is taken as it is, within the few passes that are read at a time (`data.passes` says why that
does). A node of a release that tells nothing reads its share unseen: those that are ahead of it read that too.

With `data.source = local` the record is this node's alone: kept, and never told or heard.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from peerlm.config import Plan
from peerlm.data.passes import (
    NUMBER_MAX,
    RANGES_MAX,
    Lane,
    Passes,
    decode,
    from_bytes,
    indices,
    text_of,
    to_bytes,
)
from peerlm.effects import Effect, Save, Send
from peerlm.events import WorkerProgressed
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import RangesDone

TELL_S = 3.0
TELL_PEERS = 16
"""News is told so often; among more trainers than these, as much rarer."""

WHOLE_S = 10.0
"""How often one of the others is told everything."""

SAVE_S = 10.0

LOCAL = "local"


class Coverage:
    """Of one node. `kept`: what `Save("passes")` kept, or nothing; what is about another text than the plan's counts for
    nothing."""

    def __init__(self, plan: Plan, kept: bytes, rng: random.Random, now: Instant) -> None:
        self._rng = rng
        self._is_alone = plan.data.source == LOCAL
        self._lanes: list[Lane] = []
        self._passes = Passes()
        if kept:
            self._passes, self._lanes = decode(kept)
        self._new: dict[int, int] = {}
        """Finished here, and not told yet."""
        self._is_saved = True
        self._tell_at, self._whole_at = after(now, TELL_S), after(now, WHOLE_S)
        self._save_at = after(now, SAVE_S)
        self.use_plan(plan)

    def use_plan(self, plan: Plan) -> None:
        """Other text begins anew. The worker goes on with the old until the new is here: what it says of that is void."""
        self._is_alone = plan.data.source == LOCAL
        if not self._is_alone:
            self._read_about(text_of(plan.data.shards, plan))

    def _read_about(self, text: bytes) -> None:
        if text != self._passes.text:
            self._passes, self._lanes, self._new = Passes(text), [], {}

    # -------------------------------------------------------------------------------- for a person

    @property
    def number(self) -> int:
        """The lowest pass that is not over."""
        return self._passes.lowest

    @property
    def position(self) -> float:
        """Share of its ranges that are finished."""
        return self._passes.position

    # -------------------------------------------------------------------------------- the worker

    def for_start(self) -> bytes:
        """What a new worker goes on from."""
        return self._passes.encode(self._lanes) if self._is_known else b""

    def for_steering(self) -> bytes:
        """What the worker should know of the others."""
        return self._passes.encode() if self._is_known and not self._is_alone else b""

    @property
    def _is_known(self) -> bool:
        return bool(self._passes.lowest or self._passes.numbers() or self._lanes)

    def read(self, event: WorkerProgressed) -> None:
        """The worker has finished ranges, and is in the midst of others."""
        if not event.ranges:
            return
        if self._is_alone:
            self._read_about(event.text)
        if event.text != self._passes.text:
            return
        if self._passes.ranges not in (0, event.ranges):
            self._passes = Passes(event.text)
        if not self._passes.ranges:
            self._passes.cut_into(event.ranges)
        for number, index in zip(event.finished[::2], event.finished[1::2], strict=True):
            new = self._passes.add(number, 1 << index)
            if new:
                self._new[number] = self._new.get(number, 0) | new
        flat = iter(event.lanes)
        self._lanes = [Lane(*lane) for lane in zip(flat, flat, flat, strict=True)]
        self._is_saved = False

    # --------------------------------------------------------------------------------- the others

    def heard(self, message: RangesDone) -> None:
        """A member that may train says what is finished."""
        if self._is_alone or message.text != self._passes.text:
            return
        before = self._passes.lowest
        self._passes.reach(message.lowest)
        few = struct.unpack_from(f"<{len(message.few) // 2}H", message.few)
        raw = bytearray(RANGES_MAX // 8)
        for index in few:
            raw[index >> 3] |= 1 << (index & 7)
        bits = from_bytes(message.bits) | from_bytes(bytes(raw))
        if self._passes.add(message.number, bits) or self._passes.lowest != before:
            self._is_saved = False

    def link_up(self, peer: PeerId) -> list[Effect]:
        """Somebody who may share the text is there: tell all that is known."""
        return [Send(peer, message) for message in self._whole()]

    def wake(self, readers: Sequence[PeerId], now: Instant) -> list[Effect]:
        """Do what is due; call it a few times a second. `readers`: who shares the text with this node."""
        effects: list[Effect] = []
        if self._tell_at <= now:
            self._tell_at = after(now, TELL_S * max(1.0, len(readers) / TELL_PEERS))
            effects += self._tell(readers)
        if self._whole_at <= now:
            self._whole_at = after(now, WHOLE_S)
            if readers:
                effects += self.link_up(self._rng.choice(readers))
        if self._save_at <= now:
            self._save_at = after(now, SAVE_S)
            effects += self._save()
        return effects

    def leave(self, readers: Sequence[PeerId]) -> list[Effect]:
        """The last word before this node goes."""
        return [*self._tell(readers), *self._save()]

    def _tell(self, readers: Sequence[PeerId]) -> list[Effect]:
        new, self._new = self._new, {}
        if not self._may_tell:
            return []
        messages = [self._message(number, bits) for number, bits in sorted(new.items())]
        return [Send(peer, message) for peer in readers for message in messages]

    def _whole(self) -> list[RangesDone]:
        if not (self._may_tell and self._is_known):
            return []
        numbers = self._passes.numbers() or [self._passes.lowest]
        return [self._message(number, self._passes.bits(number)) for number in numbers]

    @property
    def _may_tell(self) -> bool:
        return not self._is_alone and self._passes.lowest <= NUMBER_MAX

    def _message(self, number: int, bits: int) -> RangesDone:
        lowest = self._passes.lowest
        raw = to_bytes(bits)
        if 2 * bits.bit_count() < len(raw):
            few = indices(bits)
            return RangesDone(
                self._passes.text, lowest, number, b"", struct.pack(f"<{len(few)}H", *few)
            )
        return RangesDone(self._passes.text, lowest, number, raw, b"")

    def _save(self) -> list[Effect]:
        if self._is_saved:
            return []
        self._is_saved = True
        return [Save("passes", self._passes.encode(self._lanes))]
