"""What of the text this swarm has read, as this node knows it: told to the others, kept on the disk, handed to the worker.

The worker says what it has finished, and every few seconds those who share the text are told what is new of it; all that is
known is told on a new link, and now and then to one of them, which makes good what got lost on the way. So after
a death only what the dead had not told yet is read again, and ranges that it was in the midst of: no more than a shard.

Each word from a peer is taken as it is, within the few passes that are read at a time (`data.passes` says why that
does). A node of a release that tells nothing reads its share unseen: those that are ahead of it read that too.

Of a mixture each text has a record of its own, and a message is about one text. A new plan keeps the records of the texts
that it names too.

The record of a node's own text (`local`, alone or in a mixture) is this node's alone: kept, and never told or heard. What it is
called only the worker knows, who has the text.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from peerlm.config import Plan
from peerlm.config.mixture import OWN
from peerlm.data.passes import (
    NUMBER_MAX,
    RANGES_MAX,
    Lane,
    Passes,
    as_own,
    from_bytes,
    indices,
    is_own,
    to_bytes,
)
from peerlm.data.records import Record, decode, encode, parts_of
from peerlm.effects import Effect, Save, Send
from peerlm.events import WorkerProgressed
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import RangesDone

TELL_S = 3.0
TELL_PEERS = 16
"""News is told so often; among more trainers than these, as much rarer."""

WHOLE_S = 10.0
"""How often one of the others is told everything; of a mixture, of each text."""

SAVE_S = 10.0

MUCH_OF_SHARD = 8
"""One part in so many of a text's largest shard is told of sooner than that; with what is begun (`data.assign.lanes`) and what
the worker has not reported, a death makes others read no more than one shard again."""

MUCH_S = 0.5
"""But no more often than so."""


@dataclass(slots=True)
class _Known:
    """Of one text."""

    passes: Passes
    lanes: list[Lane] = field(default_factory=list)
    new: dict[int, int] = field(default_factory=dict)
    """Finished here, and not told yet."""
    shard_share: float = math.inf
    """Of the text, what is in its largest shard; infinite: not known."""

    @property
    def is_anything(self) -> bool:
        return bool(self.passes.lowest or self.passes.numbers() or self.lanes)

    @property
    def is_much_new(self) -> bool:
        much = max(1.0, self.passes.ranges * self.shard_share / MUCH_OF_SHARD)
        return sum(bits.bit_count() for bits in self.new.values()) >= much

    def read(self, ranges: int, finished: Sequence[tuple[int, int]], lanes: list[Lane]) -> None:
        """The worker has cut it into so many ranges, and finished these."""
        if self.passes.ranges not in (0, ranges):
            self.passes = Passes(self.passes.text)
        if not self.passes.ranges:
            self.passes.cut_into(ranges)
        for number, index in finished:
            new = self.passes.add(number, 1 << index)
            if new:
                self.new[number] = self.new.get(number, 0) | new
        self.lanes = lanes

    def all(self) -> list[RangesDone]:
        """Words that say all that is known."""
        if not self.is_anything:
            return []
        numbers = self.passes.numbers() or [self.passes.lowest]
        return [word for n in numbers for word in self.word(n, self.passes.bits(n))]

    def take_new(self) -> list[RangesDone]:
        new, self.new = self.new, {}
        return [word for number, bits in sorted(new.items()) for word in self.word(number, bits)]

    def word(self, number: int, bits: int) -> list[RangesDone]:
        """That these ranges are finished; none where there is no number to say it by."""
        text, lowest = self.passes.text, self.passes.lowest
        if lowest > NUMBER_MAX:
            return []
        raw = to_bytes(bits)
        if 2 * bits.bit_count() < len(raw):
            few = indices(bits)
            return [RangesDone(text, lowest, number, b"", struct.pack(f"<{len(few)}H", *few))]
        return [RangesDone(text, lowest, number, raw, b"")]


class Coverage:
    """Of one node. `kept`: what `Save("passes")` kept, or nothing; what is about other texts than the plan's counts for
    nothing."""

    def __init__(self, plan: Plan, kept: bytes, rng: random.Random, now: Instant) -> None:
        self._rng = rng
        self._known: dict[bytes, _Known] = {}
        """By text, in the plan's order; its own as the worker has named it, if it has."""
        self._lacks_own = False
        """The worker has said that there is no own text."""
        self._order = b""
        if kept:
            found, self._order = decode(kept)
            if plan.data.source == OWN:  # earlier releases did not mark it
                for record in found:
                    record.passes.text = as_own(record.passes.text)
            self._known = {
                record.passes.text: _Known(record.passes, list(record.lanes)) for record in found
            }
        self._is_saved = True
        self._tell_at, self._whole_at = after(now, TELL_S), after(now, WHOLE_S)
        self._much_at = now
        self._whole_turn = 0
        self._save_at = after(now, SAVE_S)
        self.use_plan(plan)

    def use_plan(self, plan: Plan) -> None:
        """Texts that it did not have begin anew. The worker goes on with the old ones until the new are here: what it says of
        those that are gone is void."""
        own, self._lacks_own = self._own, False
        parts, sizes = parts_of(plan), plan.data.shard_tokens
        self._read_about([own if part.is_own and own else part.text for part in parts])
        for part in parts if sizes else ():
            if not part.is_own:
                counts = [sizes[place] for place in part.places]
                self._known[part.text].shard_share = max(counts) / sum(counts)

    def _read_about(self, texts: Sequence[bytes]) -> None:
        known = self._known
        self._known = {text: known.get(text) or _Known(Passes(text)) for text in texts}

    @property
    def _own(self) -> bytes | None:
        return next(filter(is_own, self._known), None)

    @property
    def _shared(self) -> list[_Known]:
        """What others may hear, and be heard about."""
        return [known for text, known in self._known.items() if not is_own(text)]

    # -------------------------------------------------------------------------------- for a person

    @property
    def texts(self) -> list[bytes]:
        """What is read here, in the plan's order."""
        return [text for text in self._known if not (is_own(text) and self._lacks_own)]

    def positions(self) -> list[tuple[int, float]]:
        """Of each of `texts`: the lowest pass that is not over, and the share of its ranges that are finished."""
        found = [self._known[text].passes for text in self.texts]
        return [(passes.lowest, passes.position) for passes in found]

    @property
    def number(self) -> int:
        """The lowest pass that is not over, of the text that is least far."""
        return min(self.positions(), default=(0, 0.0))[0]

    @property
    def position(self) -> float:
        """Share of its ranges that are finished."""
        return min(self.positions(), default=(0, 0.0))[1]

    # -------------------------------------------------------------------------------- the worker

    def for_start(self) -> bytes:
        """What a new worker goes on from."""
        return self._encoded() if self._is_anything else b""

    def for_steering(self) -> bytes:
        """What the worker should know of the others, and a checkpoint's reader of all."""
        shared = self._shared
        if not any(known.is_anything for known in shared):
            return b""
        return encode([Record(known.passes) for known in shared])

    def _encoded(self) -> bytes:
        found = [Record(known.passes, known.lanes) for known in self._known.values()]
        return encode(found, self._order)

    @property
    def _is_anything(self) -> bool:
        return any(known.is_anything for known in self._known.values())

    def read(self, event: WorkerProgressed) -> None:
        """The worker has finished ranges, and is in the midst of others."""
        if not event.texts:
            return
        is_of_plan = self._takes_names(event.texts)
        flat, finished = iter(event.finished), [list[tuple[int, int]]() for _ in event.texts]
        for which, number, index in zip(flat, flat, flat, strict=True):
            finished[which].append((number, index))
        flat, lanes = iter(event.lanes), [list[Lane]() for _ in event.texts]
        for which, *lane in zip(flat, flat, flat, flat, strict=True):
            lanes[which].append(Lane(*lane))
        for at, text in enumerate(event.texts):
            if (known := self._known.get(text)) is not None:
                known.read(event.ranges[at], finished[at], lanes[at])
                self._is_saved = False
        if is_of_plan:
            self._order = event.order

    def _takes_names(self, texts: Sequence[bytes]) -> bool:
        """The worker reads what the plan names, so it is known what this node's own text is, or that there is none."""
        shared = [text for text in texts if not is_own(text)]
        if shared != [text for text in self._known if not is_own(text)]:
            return False
        named = next(filter(is_own, texts), None)
        if (own := self._own) is not None:
            self._lacks_own = named is None
            self._read_about([named or own if text == own else text for text in self._known])
        return own is not None or named is None

    # --------------------------------------------------------------------------------- the others

    def heard(self, message: RangesDone) -> None:
        """A member that may train says what is finished."""
        known = self._known.get(message.text)
        if known is None or is_own(message.text):
            return
        before = known.passes.lowest
        known.passes.reach(message.lowest)
        few = struct.unpack_from(f"<{len(message.few) // 2}H", message.few)
        raw = bytearray(RANGES_MAX // 8)
        for index in few:
            raw[index >> 3] |= 1 << (index & 7)
        bits = from_bytes(message.bits) | from_bytes(bytes(raw))
        if known.passes.add(message.number, bits) or known.passes.lowest != before:
            self._is_saved = False

    def link_up(self, peer: PeerId) -> list[Effect]:
        """Somebody who may share the text is there: tell all that is known."""
        return [Send(peer, word) for known in self._shared for word in known.all()]

    def wake(self, readers: Sequence[PeerId], now: Instant) -> list[Effect]:
        """Do what is due; call it a few times a second. `readers`: who shares the text with this node."""
        effects: list[Effect] = []
        is_much = self._much_at <= now and any(known.is_much_new for known in self._shared)
        if self._tell_at <= now or is_much:
            self._much_at = after(now, MUCH_S)
            self._tell_at = after(now, TELL_S * max(1.0, len(readers) / TELL_PEERS))
            effects += self._tell(readers)
        if self._whole_at <= now:
            self._whole_at = after(now, WHOLE_S / max(1, len(self._known)))
            if readers:
                effects += self._tell_all_of_one(self._rng.choice(readers))
        if self._save_at <= now:
            self._save_at = after(now, SAVE_S)
            effects += self._save()
        return effects

    def leave(self, readers: Sequence[PeerId]) -> list[Effect]:
        """The last word before this node goes."""
        return [*self._tell(readers), *self._save()]

    def _tell(self, readers: Sequence[PeerId]) -> list[Effect]:
        words = [word for known in self._shared for word in known.take_new()]
        return [Send(peer, word) for peer in readers for word in words]

    def _tell_all_of_one(self, peer: PeerId) -> list[Effect]:
        """Of one text after the other, lest what is told at once grow with the mixture."""
        shared = self._shared
        if not shared:
            return []
        self._whole_turn = (self._whole_turn + 1) % len(shared)
        return [Send(peer, word) for word in shared[self._whole_turn].all()]

    def _save(self) -> list[Effect]:
        if self._is_saved:
            return []
        self._is_saved = True
        return [Save("passes", self._encoded())]
