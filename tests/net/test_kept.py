"""Bulk connections that are used for one transfer after another between the same two nodes."""

from __future__ import annotations

import asyncio

import pytest
from test_bulk import (
    Agreement,
    answer,
    ask,
    assert_exchange_works,
    fragment,
    make,
    until,
)
from test_bulk_pulls import pulled

from peerlm.daemon import kept, mover
from peerlm.daemon.bulk import Bulk
from peerlm.daemon.sockets import drop
from peerlm.daemon.stream import Rest, Stream
from peerlm.errors import PeerlmError
from peerlm.mix.chunks import CHUNK
from peerlm.wire.frame import Kind

__all__ = ["make"]


def begun(bulk: Bulk) -> tuple[int, int]:
    """Transfers that it began on fresh connections, and on kept ones."""
    return bulk.counters["begun_fresh"], bulk.counters["begun_kept"]


async def both_keep(ann: Bulk, bob: Bulk, count: int = 1) -> None:
    await until(lambda: ann.waiting == bob.waiting == count)


@pytest.mark.parametrize("security", ["aead", "plain"])
async def test_transfers_of_two_nodes_follow_each_other_on_one_connection(make, security) -> None:
    ann, bob = make(security=security), make(security=security)
    for codecs in (("fp32", "fp32"), ("int8", "int4"), ("fp32", "fp32")):
        await assert_exchange_works(ann, bob, codecs=codecs)
        await both_keep(ann, bob)
    assert (await pulled(ann, bob, b"words"))[0] == b"words"
    await both_keep(ann, bob)
    await assert_exchange_works(ann, bob)
    assert begun(ann) == (1, 4)


async def test_what_is_under_way_at_once_takes_connections_of_its_own(make) -> None:
    ann, bob = make(), make()
    for _ in range(3):
        await asyncio.gather(*(assert_exchange_works(ann, bob) for _ in range(2)))
        await both_keep(ann, bob, 2)
    assert begun(ann) == (2, 4)


async def test_a_kept_connection_gives_no_right(make) -> None:
    """The next transfer on it must prove its own key."""
    ann, bob = make(), make()
    await assert_exchange_works(ann, bob)
    await both_keep(ann, bob)
    a = Agreement()
    stranger = Agreement(id=a.id)
    outcomes = await asyncio.gather(
        answer(bob, a, fragment(CHUNK), progress_s=0.5),
        ask(ann, bob.port, stranger, fragment(CHUNK), progress_s=0.5),
        return_exceptions=True,
    )
    assert all(isinstance(each, PeerlmError) for each in outcomes)
    assert bob.counters["callers_corrupt"] >= 1
    assert bob.counters["bytes_sent"] < 5 * CHUNK * 4
    await assert_exchange_works(ann, bob)


async def test_one_that_the_other_end_has_closed_meanwhile_costs_nothing(make) -> None:
    ann, bob = make(), make()
    ann._mover._parting._on_kept = lambda *words: None  # it has not heard of it yet
    await assert_exchange_works(ann, bob)
    await both_keep(ann, bob)

    def close_all() -> None:
        for connection in bob._mover._parting.kept.clear():
            drop(bob._mover._selector, connection)

    bob._mover.call(close_all)
    await until(lambda: not bob._mover._parting.kept)
    await assert_exchange_works(ann, bob)
    assert begun(ann) == (2, 1)


async def test_one_that_was_closed_is_forgotten(make) -> None:
    ann, bob = make(), make()
    await assert_exchange_works(ann, bob)
    await both_keep(ann, bob)
    await bob.close()
    await until(lambda: not ann._mover._parting.kept)


async def test_they_end_when_they_have_waited_long_enough(make, monkeypatch) -> None:
    monkeypatch.setattr(kept, "DIALLED_S", 0.2)
    ann, bob = make(), make()
    await assert_exchange_works(ann, bob)
    await both_keep(ann, bob)
    await until(lambda: not ann._mover._parting.kept and not bob._mover._parting.kept)
    assert not bob._mover._callers
    assert "callers_denied" not in bob.counters
    await assert_exchange_works(ann, bob)
    assert begun(ann) == (2, 0)


class OlderListener(Stream):
    """As it was before there was KEEP."""

    def _next_kind(self) -> Kind | None:
        kind = super()._next_kind()
        return None if kind is Kind.KEEP else kind

    def rest(self) -> Rest:
        return Rest.OVER if self.is_good else super().rest()


class OlderDialler(Stream):
    def rest(self) -> Rest:
        return Rest.OVER if self.is_good else super().rest()


@pytest.mark.parametrize("older", [OlderListener, OlderDialler])
async def test_who_does_not_know_of_keeping_is_understood(make, monkeypatch, older) -> None:
    dials = older is OlderDialler
    monkeypatch.setattr(
        mover, "Stream", lambda *a, **k: (older if k["dials"] is dials else Stream)(*a, **k)
    )
    ann, bob = make(), make()
    for turn in range(3):
        await assert_exchange_works(ann, bob)
        await until(lambda: not ann._mover._parting.kept and not bob._mover._parting.kept)
        assert begun(ann) == (turn + 1, 0)
    assert (await pulled(ann, bob, b"words"))[0] == b"words"


async def test_an_exchange_that_breaks_off_leaves_nothing_kept(make) -> None:
    ann, bob = make(), make(download_bytes_s=10_000)
    a = Agreement()
    outcomes = asyncio.gather(
        answer(bob, a, fragment(4 * CHUNK)),
        ask(ann, bob.port, a, fragment(4 * CHUNK)),
        return_exceptions=True,
    )
    await until(lambda: ann.counters["bytes_sent"] > 0)
    for each in (ann, bob):
        each.cancel(a.id, "no time")
    assert all(isinstance(each, PeerlmError) for each in await outcomes)
    await until(lambda: not ann._mover._parting and not bob._mover._parting)
    assert not ann._mover._parting.kept
    assert not bob._mover._parting.kept
