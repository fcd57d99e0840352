from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from membership_harness import record_of, sign

from peerlm.membership.member import Member, State, accused, from_alive, precedence
from peerlm.membership.profile import LAN
from peerlm.membership.table import Table
from peerlm.types import Instant

NOW = Instant(0.0)


def merge(*facts: Member) -> Member:
    """What a table holds after hearing these facts about one peer."""
    table = Table(LAN)
    for fact in facts:
        table.put(fact)
    [held] = table.all().values()
    return held


@st.composite
def facts(draw: st.DrawFn) -> Member:
    """Facts about one peer, from few numbers so that ties are common."""
    left = draw(st.booleans())
    record = record_of(1, draw(st.integers(1, 3)), draw(st.integers(0, 3)), left=left)
    record = replace(record, intro_port=draw(st.integers(1, 2)))
    member = from_alive(record, sign(record), Instant(draw(st.integers(0, 2))))
    if not left:
        member = replace(member, state=State(draw(st.integers(0, 2))))
    return member


@given(facts(), facts())
def test_merge_does_not_care_who_speaks_first(a: Member, b: Member) -> None:
    assert merge(a, b) == merge(b, a)


@given(facts(), facts(), facts())
def test_merge_does_not_care_how_facts_are_grouped(a: Member, b: Member, c: Member) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(facts(), facts())
def test_hearing_a_fact_twice_changes_nothing(a: Member, b: Member) -> None:
    assert merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)


@given(facts(), facts())
def test_a_merge_never_moves_down(a: Member, b: Member) -> None:
    assert precedence(merge(a, b)) >= max(precedence(a), precedence(b))


@given(facts(), facts())
def test_nobody_rises_again_without_a_later_incarnation(a: Member, b: Member) -> None:
    merged = merge(a, b)
    if merged.state < a.state:
        assert merged.incarnation > a.incarnation


def test_a_restart_beats_its_own_old_death() -> None:
    old = record_of(1, epoch=4, counter=9)
    dead = accused(from_alive(old, sign(old), NOW), State.DEAD, NOW)
    new = record_of(1, epoch=5)
    assert merge(dead, from_alive(new, sign(new), NOW)).state is State.ALIVE


def test_a_goodbye_is_final_for_its_epoch_and_for_no_other() -> None:
    goodbye = record_of(1, epoch=2, counter=1, left=True)
    left = from_alive(goodbye, sign(goodbye), NOW)
    late = record_of(1, epoch=2, counter=7)
    assert merge(left, from_alive(late, sign(late), NOW)).state is State.LEFT
    again = record_of(1, epoch=3)
    assert merge(left, from_alive(again, sign(again), NOW)).state is State.ALIVE


def test_no_verdict_stands_above_a_goodbye() -> None:
    goodbye = record_of(1, left=True)
    left = from_alive(goodbye, sign(goodbye), NOW)
    assert accused(left, State.DEAD, Instant(5.0)) == left
