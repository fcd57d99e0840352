"""A fetch among donors that lie about sizes, stall, send wrong bytes, vanish and come back; then one
honest donor comes, and everything wanted arrives."""

from __future__ import annotations

import math
import random

from effort import some
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlm.store.donor import Limits
from peerlm.store.fetch import CancelPull, Fault, Fetch, Phase, PullEffect, StartPull
from peerlm.types import Instant, ObjectHash, PeerId, TransferId

DONORS = [PeerId(bytes([n]) * 16) for n in range(5)]
HONEST = PeerId(b"h" * 16)
LIMITS = Limits(per_donor=2, total=4, object_bytes_max=1 << 20)
keys, donors, picks = st.integers(0, 7), st.sampled_from(DONORS), st.integers(0, 99)
sizes = st.sampled_from([0, 1, 1000, 5000, 1 << 20, (1 << 20) + 1, 1 << 40])


def hash_of(key: int, donor: PeerId) -> ObjectHash:
    return ObjectHash(bytes([key]) * 16 + donor)


class Shopping(RuleBasedStateMachine):
    @initialize(
        wants=st.dictionaries(keys, st.sampled_from([0, 1000, 5000]), min_size=1), seed=picks
    )
    def begin(self, wants: dict[int, int], seed: int) -> None:
        self.now = Instant(0.0)
        self.wants = wants
        self.fetch = Fetch(wants, random.Random(seed), self.now, LIMITS)
        self.pulls: dict[TransferId, StartPull] = {}
        self.over: list[TransferId] = []
        self.arrived: set[object] = set()
        self.wrong: dict[PeerId, Instant] = {}
        """Who has sent wrong bytes, and when last."""

    @rule(peer=donors, offered=st.sets(keys))
    def offers(self, peer: PeerId, offered: set[int]) -> None:
        offer = {key: hash_of(key, peer) for key in offered}
        self.carry(self.fetch.donor_offers(peer, offer, self.now))

    @rule(peer=donors)
    def gone(self, peer: PeerId) -> None:
        self.carry(self.fetch.donor_gone(peer, self.now))
        assert not [p for p in self.pulls.values() if p.peer == peer]

    @precondition(lambda self: self.pulls)
    @rule(pick=picks, size=sizes)
    def sized(self, pick: int, size: int) -> None:
        pull = self.pick(pick)
        known = self.wants[pull.key]  # type: ignore[index]
        lies = size != known if known else not 0 < size <= LIMITS.object_bytes_max
        self.wrong |= {pull.peer: self.now} if lies else {}
        self.carry(self.fetch.sized(pull.transfer, size, self.now))
        assert (pull.transfer in self.pulls) != lies, "a size that cannot be was believed"

    @precondition(lambda self: self.pulls)
    @rule(pick=picks, received=sizes)
    def progress(self, pick: int, received: int) -> None:
        self.carry(self.fetch.progress(self.pick(pick).transfer, received, self.now))

    @precondition(lambda self: self.pulls)
    @rule(pick=picks)
    def pulled(self, pick: int) -> None:
        pull = self.pulls.pop(self.pick(pick).transfer)
        self.over.append(pull.transfer)
        assert pull.key not in self.arrived, "the same thing was fetched twice"
        self.arrived.add(pull.key)
        self.carry(self.fetch.pulled(pull.transfer, self.now))

    @precondition(lambda self: self.pulls)
    @rule(pick=picks, fault=st.sampled_from(list(Fault)))
    def failed(self, pick: int, fault: Fault) -> None:
        pull = self.pulls.pop(self.pick(pick).transfer)
        self.over.append(pull.transfer)
        self.wrong |= {pull.peer: self.now} if fault is Fault.CORRUPT else {}
        self.carry(self.fetch.failed(pull.transfer, fault, self.now))

    @precondition(lambda self: self.over)
    @rule(pick=picks, size=sizes)
    def reports_of_what_is_over(self, pick: int, size: int) -> None:
        """They come late, and change nothing."""
        transfer, before = self.over[pick % len(self.over)], self.fetch.status(self.now)
        for effects in (
            self.fetch.sized(transfer, size, self.now),
            self.fetch.progress(transfer, size, self.now),
            self.fetch.pulled(transfer, self.now),
            self.fetch.failed(transfer, Fault.CORRUPT, self.now),
        ):
            assert effects == []
        assert self.fetch.status(self.now) == before

    @rule(seconds=st.sampled_from([0.0, 0.4, 3.0, 6.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.now = Instant(self.now + seconds)
        self.wake()

    @rule()
    def wake_when_due(self) -> None:
        if not math.isinf(self.fetch.deadline()):
            self.now = Instant(max(self.now, self.fetch.deadline()))
            self.wake()

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "fetch"):
            return
        self.fetch.check()
        assert set(self.fetch._pulls) == set(self.pulls), "pulls that nobody was told of"
        status = self.fetch.status(self.now)
        assert (status.phase is Phase.DONE) == (len(self.arrived) == len(self.wants))
        assert not set(status.unoffered) & self.arrived
        assert status.bytes_done >= 0
        assert status.eta_s >= 0
        if self.pulls:
            assert self.fetch.deadline() < math.inf, "a pull that may last for ever"

    def teardown(self) -> None:
        if not hasattr(self, "fetch"):
            return
        offer = {key: hash_of(key, HONEST) for key in self.wants}
        self.carry(self.fetch.donor_offers(HONEST, offer, self.now))
        for _ in range(60):
            for pull in [p for p in self.pulls.values() if p.peer == HONEST]:
                if pull.transfer in self.pulls:
                    self.carry(self.fetch.sized(pull.transfer, pull.size_bytes or 700, self.now))
                    del self.pulls[pull.transfer]
                    self.arrived.add(pull.key)
                    self.carry(self.fetch.pulled(pull.transfer, self.now))
            if not math.isinf(self.fetch.deadline()):
                self.now = Instant(max(self.now, self.fetch.deadline()))
                self.wake()
        assert self.fetch.phase is Phase.DONE, "one honest donor is not enough"
        assert math.isinf(self.fetch.deadline())

    # ---------------------------------------------------------------------------------- private

    def pick(self, pick: int) -> StartPull:
        return list(self.pulls.values())[pick % len(self.pulls)]

    def wake(self) -> None:
        self.carry(self.fetch.wake(self.now))
        assert self.fetch.deadline() > self.now, "woken again at once, for ever"

    def carry(self, effects: list[PullEffect]) -> None:
        for effect in effects:
            match effect:
                case StartPull():
                    assert effect.transfer not in self.pulls
                    wrong_at = self.wrong.get(effect.peer, -math.inf)
                    is_over = self.now - wrong_at >= LIMITS.excluded_s[0]
                    assert is_over, "asked who had sent wrong bytes a moment ago"
                    assert effect.object_hash == hash_of(effect.key, effect.peer)  # type: ignore[arg-type]
                    self.pulls[effect.transfer] = effect
                case CancelPull():
                    if self.pulls.pop(effect.transfer, None) is not None:
                        self.over.append(effect.transfer)


TestShopping = Shopping.TestCase
TestShopping.settings = some(50, 40)
