"""Vitals of all nodes, and the swarm's token count that is made of them.

The count is a grow-only map {(peer, boot epoch): tokens}: each node raises its own entry alone, and
entries merge by maximum, so any order of gossip gives the same sum and it never goes backwards. A
restarted node counts in a new entry; its old ones stay for ever. (G-counter; Shapiro et al. 2011.)

The last signed pulse of each entry is kept too, so that push-pull can hand on old epochs with their
proof. Entries restored from a snapshot are bare numbers: they count, but are not passed on.
Signatures are the caller's business, before `merge`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peerlm.types import PeerId
from peerlm.wire.message import Pulse, Vitals

ENTRIES_MAX = 10_000
"""Entries kept: about 150 restarts of each of 64 nodes. An epoch without tokens takes none once
the next has begun. When full, new entries are refused, so nobody can push out tokens that were
counted; the count then lags the truth and still never goes backwards."""

NEWCOMERS_MAX = ENTRIES_MAX * 3 // 4
"""From here on peers never counted are refused, and the rest is left to restarts of known ones."""


TOKENS_MAX = 2**50
"""Of one node in one boot epoch: a claim beyond counts as this much."""

TOTAL_MAX = 2**62
"""What a message can hold; the sum of claims stops here."""


@dataclass(slots=True)
class _Entry:
    tokens: int = 0
    version: int = -1
    pulse: Pulse | None = None


class Ledger:
    """Newest vitals by peer, tokens by (peer, epoch). Serves push-pull as its `VitalsShelf`."""

    def __init__(self, entries_max: int = ENTRIES_MAX, newcomers_max: int = NEWCOMERS_MAX) -> None:
        self._entries_max = entries_max
        self._newcomers_max = newcomers_max
        self._entries: dict[PeerId, dict[int, _Entry]] = {}
        self._newest: dict[PeerId, Vitals] = {}
        self._n_entries = 0
        self._total = 0
        self._tallied: tuple[int, tuple[tuple[PeerId, int, int], ...]] = (0, ())
        """What was counted when the total was this."""
        self.hearsay = 0
        """Of the total, what was there already when this node first heard of it."""
        self.refused = 0
        """Facts not taken because the ledger was full."""
        self.version = 0
        """Grows with every fact taken in."""
        self.standing = 0
        """Grows when a peer's newest vitals differ in more than figures: see `_standing_of`."""

    # -------------------------------------------------------------------------------- merging

    def is_news(self, vitals: Vitals) -> bool:
        """Whether `merge` would take these: only then verify the signature, and pass them on."""
        peer = PeerId(vitals.peer)
        epochs = self._entries.get(peer)
        entry = None if epochs is None else epochs.get(vitals.epoch)
        if entry is not None and vitals.version <= entry.version:
            return False  # as most of what is heard
        if entry is None and not self._has_room(peer):
            return False
        newest = self._newest.get(peer)
        known_tokens, known_version = (entry.tokens, entry.version) if entry else (0, -1)
        if newest is not None and vitals.epoch < newest.epoch:
            return vitals.version > known_version and vitals.tokens > known_tokens
        return vitals.version > known_version

    def merge(self, vitals: Vitals, pulse: Pulse) -> bool:
        """Take verified vitals with their proof. True: they were news, pass the pulse on."""
        if not self.is_news(vitals):
            return False
        peer = PeerId(vitals.peer)
        entry = self._entry(peer, vitals.epoch)
        assert entry is not None, "news without room"
        before, is_first = self._total, entry.version < 0
        entry.version, entry.pulse = vitals.version, pulse
        self._raise(entry, vitals.tokens)
        if is_first:
            self.hearsay += self._total - before
        newest = self._newest.get(peer)
        if newest is None or vitals.epoch >= newest.epoch:
            self._newest[peer] = vitals
            self.standing += newest is None or _standing_of(newest) != _standing_of(vitals)
        self.version += 1
        self._drop_empty(peer)
        return True

    def count_own(self, me: PeerId, epoch: int, tokens: int) -> None:
        """Our own tokens count at once; others hear of them with the next pulse."""
        if tokens > 0 and (entry := self._entry(me, epoch)) is not None:
            self._raise(entry, tokens)

    def forget(self, peer: PeerId) -> None:
        """Drop what an expelled peer says of itself. Its tokens were trained, and stay."""
        if self._newest.pop(peer, None) is not None:
            self.standing += 1
        self.version += 1
        for entry in self._entries.get(peer, {}).values():
            entry.pulse = None

    def restore(self, tallies: Iterable[tuple[PeerId, int, int]]) -> None:
        """Merge the (peer, epoch, tokens) of a snapshot."""
        before = self._total
        for peer, epoch, tokens in tallies:
            if tokens > 0 and (entry := self._entry(peer, epoch)) is not None:
                self._raise(entry, tokens)
        self.hearsay += self._total - before

    # --------------------------------------------------------------------------------- reading

    def total(self) -> int:
        """Tokens the swarm has trained on, as far as is known here. Never decreases."""
        return self._total if self._total < TOTAL_MAX else TOTAL_MAX

    def tallies(self) -> tuple[tuple[PeerId, int, int], ...]:
        """(peer, epoch, tokens) of every entry with tokens, sorted: for a snapshot."""
        if self._tallied[0] != self._total:
            counted = tuple(
                (peer, epoch, self._entries[peer][epoch].tokens)
                for peer in sorted(self._entries)
                for epoch in sorted(self._entries[peer])
                if self._entries[peer][epoch].tokens
            )
            self._tallied = (self._total, counted)
        return self._tallied[1]

    def unproven(self) -> list[tuple[PeerId, int, int]]:
        """Those of `tallies` that no pulse stands behind: nobody hears of them by push-pull."""
        return [
            entry for entry in self.tallies() if self._entries[entry[0]][entry[1]].pulse is None
        ]

    def tokens_of(self, peer: PeerId) -> int:
        """Tokens of one node over all its epochs."""
        return sum(entry.tokens for entry in self._entries.get(peer, {}).values())

    def latest(self, peer: PeerId) -> Vitals | None:
        """A peer's newest vitals, if it ever sent any."""
        return self._newest.get(peer)

    def version_of(self, peer: PeerId) -> tuple[int, int]:
        """(epoch, version) of a peer's newest vitals; (0, 0) for none."""
        newest = self._newest.get(peer)
        return (0, 0) if newest is None else (newest.epoch, newest.version)

    def pulses_since(self, peer: PeerId, epoch: int, version: int) -> list[Pulse]:
        """Signed vitals newer than that, later epochs' too, oldest first."""
        entries = self._entries.get(peer, {})
        return [
            entry.pulse
            for at, entry in sorted(entries.items(), key=lambda item: item[0])
            if entry.pulse is not None and (at, entry.version) > (epoch, version)
        ]

    def check(self) -> None:
        """Assert that the running sums are right."""
        entries = [entry for epochs in self._entries.values() for entry in epochs.values()]
        assert len(entries) == self._n_entries <= self._entries_max, "entry count is off"
        assert sum(entry.tokens for entry in entries) == self._total, "token sum is off"

    # --------------------------------------------------------------------------------- private

    def _entry(self, peer: PeerId, epoch: int) -> _Entry | None:
        """The entry, made if there is room."""
        epochs = self._entries.get(peer)
        if epochs is not None and epoch in epochs:
            return epochs[epoch]
        if not self._has_room(peer):
            self.refused += 1
            return None
        self._n_entries += 1
        return self._entries.setdefault(peer, {}).setdefault(epoch, _Entry())

    def _has_room(self, peer: PeerId) -> bool:
        is_newcomer = peer not in self._entries
        return self._n_entries < (self._newcomers_max if is_newcomer else self._entries_max)

    def _raise(self, entry: _Entry, tokens: int) -> None:
        tokens = min(tokens, TOKENS_MAX)
        if tokens > entry.tokens:
            self._total += tokens - entry.tokens
            entry.tokens = tokens

    def _drop_empty(self, peer: PeerId) -> None:
        """Past epochs that counted nothing need no entry."""
        epochs, current = self._entries[peer], self._newest[peer].epoch
        for epoch in [e for e, entry in epochs.items() if e < current and not entry.tokens]:
            del epochs[epoch]
            self._n_entries -= 1


def _standing_of(vitals: Vitals) -> tuple[object, ...]:
    """What decides how others deal with a node."""
    v = vitals
    held = v.first_stage, v.last_stage
    room = v.store_bytes, v.store_label
    return v.epoch, v.phase, v.active, v.participating, v.settled, v.plan_revision, held, room
