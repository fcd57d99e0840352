"""The member merge as a state machine: tables hear facts in any order, from each other and from owners.

The oracle is a list of every fact a table was ever told: whatever the order, the grouping and the
repetitions, it must hold the greatest of them. That is commutative, associative, idempotent and
monotone in one sentence.
"""

from __future__ import annotations

from dataclasses import replace

from effort import some
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from membership_harness import peer_id, record_of, sign

from peerlm.membership.member import Member, State, accused, from_alive, precedence, rank_of
from peerlm.membership.profile import LAN
from peerlm.membership.sync import NoVitals, digest, newer_than
from peerlm.membership.table import Table
from peerlm.types import Instant, PeerId
from peerlm.wire.codec import decode_as
from peerlm.wire.message import Alive, NodeRecord, Suspect

TABLES, OWNERS = 3, 2
NUMBERS, PLACES = st.integers(0, OWNERS - 1), st.integers(0, TABLES - 1)


class Merge(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.tables = [Table(LAN) for _ in range(TABLES)]
        self.told: list[dict[PeerId, list[Member]]] = [{} for _ in range(TABLES)]
        self.records: dict[int, list[NodeRecord]] = {
            number: [record_of(number)] for number in range(OWNERS)
        }
        self.goodbyes: set[bytes] = set()

    # ------------------------------------------------------------------------------- owners mint

    @rule(number=NUMBERS, how=st.sampled_from(["refute", "restart", "leave", "move"]))
    def mint(self, number: int, how: str) -> None:
        """Only an owner makes a later record; this one may also forget what it said (a disk rolled
        back), so that it makes two of one rank."""
        last = self.records[number][-1]
        match how:
            case "refute":
                record = replace(last, counter=last.counter + 1)
            case "restart":
                record = replace(last, epoch=last.epoch + 1, counter=0, left=False)
            case "leave":
                record = replace(last, counter=last.counter + 1, left=True)
            case _:
                record = replace(last, intro_port=last.intro_port + 1)
        if record.left:
            self.goodbyes.add(sign(record).record)
        self.records[number].append(record)

    @rule(number=NUMBERS, at=PLACES, which=st.integers(0, 50))
    def hear_a_record(self, number: int, at: int, which: int) -> None:
        """Any record that was ever signed, however old."""
        record = self.records[number][which % len(self.records[number])]
        self.tell(at, from_alive(record, sign(record), self.tick()))

    @rule(number=NUMBERS, at=PLACES, state=st.sampled_from([State.SUSPECT, State.DEAD]))
    def accuse(self, number: int, at: int, state: State) -> None:
        member = self.tables[at].get(peer_id(number))
        if member is not None:
            self.tell(at, accused(member, state, self.tick()))

    # ------------------------------------------------------------------------------- tables meet

    @rule(source=PLACES, to=PLACES)
    def merge(self, source: int, to: int) -> None:
        for member in list(self.tables[source].all().values()):
            self.tell(to, member)

    @rule(source=PLACES, to=PLACES)
    def digest_and_delta(self, source: int, to: int) -> None:
        """What a digest brings is what telling everything would have brought."""
        ours, theirs = self.tables[source].all(), self.tables[to].all()
        entries = {PeerId(e.peer): e for e in digest(theirs.values(), NoVitals())}
        delta = newer_than(entries, ours.values(), NoVitals(), peer_id(99))
        records = [decode_as(NodeRecord, r.record) for r in delta if isinstance(r, Alive)]
        for member in ours.values():
            known = theirs.get(member.peer)
            is_relayed = member.is_live or known is not None
            lacks = known is None or rank_of(member.record) > rank_of(known.record)
            assert (member.record in records) == (is_relayed and lacks), member
        for rumor in delta:
            if isinstance(rumor, Alive):
                record = decode_as(NodeRecord, rumor.record)
                self.tell(to, from_alive(record, rumor, self.tick()))
            else:
                assert isinstance(rumor, Suspect), "a digest decided instead of doubting"
        for member in ours.values():
            held = self.tables[to].get(member.peer)
            if held is None:
                assert not member.is_live, "somebody alive was not told of"
            else:
                assert rank_of(held.record) >= rank_of(member.record), "an older record was kept"

    # --------------------------------------------------------------------------------- promises

    @invariant()
    def each_holds_the_greatest_it_was_told(self) -> None:
        for table, told in zip(self.tables, self.told, strict=True):
            table.check()
            assert table.all().keys() == told.keys()
            for peer, facts in told.items():
                assert table.get(peer) == max(facts, key=precedence)

    @invariant()
    def who_left_said_so_itself(self) -> None:
        for table in self.tables:
            for member in table.all().values():
                is_goodbye = member.alive.record in self.goodbyes
                assert (member.state is State.LEFT) == is_goodbye

    @invariant()
    def changes_tell_of_no_rise_without_a_later_incarnation(self) -> None:
        for table in self.tables:
            for change in table.drain_changes():
                if change.old is not None and change.new < change.old:
                    assert change.restarted or change.record.counter > 0

    def teardown(self) -> None:
        """Everybody told everything: all hold the same."""
        if not hasattr(self, "tables"):
            return
        for _ in range(2):
            for source in range(TABLES):
                for to in range(TABLES):
                    self.merge(source, to)
        first = dict(self.tables[0].all())
        assert all(dict(table.all()) == first for table in self.tables)

    # ---------------------------------------------------------------------------------- private

    def tick(self) -> Instant:
        self.now += 1.0
        return Instant(self.now)

    def tell(self, at: int, fact: Member) -> None:
        held = self.tables[at].get(fact.peer)
        taken = self.tables[at].put(fact)
        self.told[at].setdefault(fact.peer, []).append(fact)
        after = self.tables[at].get(fact.peer)
        assert after is not None
        assert taken == (after != held)
        if held is not None and after.state < held.state:
            assert rank_of(after.record) > rank_of(held.record), "risen without a later incarnation"
        assert not self.tables[at].put(fact), "the same fact was news twice"


TestMerge = Merge.TestCase
TestMerge.settings = some(60, 40)
