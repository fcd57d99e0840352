"""Texts that go different ways do not wait for each other; those that go the same way go together."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from ring_scene import ME, Host, Ring, peer
from serve_scene import drained, job_of
from test_ring import PROMPT, alone, ring_service, scene, steps

from peerlm.serve import lap as laps
from peerlm.serve.gateway import Gateway, Shape, _Session
from peerlm.serve.lap import Kind, Lap
from peerlm.serve.route import Turn
from peerlm.serve.service import Job, Service
from peerlm.types import Instant, PeerId

SHAPE = (3, 32, 256, 48)
TWO_IN_THE_MIDDLE = ((0, 0), (1, 1), (1, 1), (2, 2))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


HOP_S = 0.02
"""Of a lap there are five."""


def watch(ring: Ring, slow: Host | None = None, times: float = 100.0) -> list[Lap]:
    """Laps as hosts of stage 0 get them from the gateway. What goes to `slow` takes so many times as long."""
    sent: list[Lap] = []

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        if source == ME and laps.read_head(data).kind is Kind.FORWARD:
            sent.append(laps.unpack(data, *SHAPE))
        is_slow = slow is not None and target == slow.peer
        return [(HOP_S * times if is_slow else HOP_S, data)]

    ring.meddle = meddle
    return sent


def on_both(ring: Ring, service: Service, middle: Host) -> tuple[Job, Job]:
    """Two long texts that are under way, the first through `middle` and the second not."""
    for seed in range(20):
        jobs = [job_of(PROMPT, 1000, rng_seed=seed + i) for i in range(2)]
        for job in jobs:
            service.submit(job)
        for _ in range(4):
            service.step()
        through = [ring.gateway._sessions[slot].legs[1].host == middle.peer for slot in (0, 1)]
        if through[0] != through[1]:
            return (jobs[0], jobs[1]) if through[0] else (jobs[1], jobs[0])
        for job in jobs:
            service.cancel(job)
        while not service.is_idle:
            service.step()
    raise AssertionError("both always go the same way")


def drawn_until(service: Service, ring: Ring, seconds: float) -> Counter[Job]:
    """Tokens of each text within so long."""
    drawn: Counter[Job] = Counter()
    stop = ring.now + seconds
    while ring.now < stop:
        for told in service.step():
            assert not told.error, told.error
            drawn[told.job] += told.drawn
    return drawn


def test_a_host_a_hundred_times_slower_holds_up_only_who_goes_through_it() -> None:
    _, ring, hosts = scene("hybrid", TWO_IN_THE_MIDDLE)
    service = ring_service(ring)
    through, beside = on_both(ring, service, hosts[1])
    watch(ring)
    quick = drawn_until(service, ring, 1.0)
    watch(ring, slow=hosts[1])
    drawn_until(service, ring, 0.1)
    drawn = drawn_until(service, ring, 4.5)
    assert quick[beside] == quick[through] == 10
    assert 1 <= drawn[through] <= 3, "each token takes a hundred hops"
    assert drawn[beside] >= 44, "five each"
    assert ring.gateway.again == 0


def test_texts_that_go_the_same_way_go_together_whenever_they_began() -> None:
    model, ring, _ = scene("hybrid")
    sent = watch(ring)
    service, jobs = ring_service(ring), [job_of(PROMPT, 30, rng_seed=i) for i in range(4)]
    found: dict[Job, list[int]] = {job: [] for job in jobs}
    for job in jobs:
        service.submit(job)
        for _ in range(3):
            for told in service.step():
                found[told.job] += [pick.token for pick in told.piece.picks]
    del sent[:]
    for _ in range(12):
        for told in service.step():
            found[told.job] += [pick.token for pick in told.piece.picks]
    sizes = [len(lap.rows) for lap in sent[3:]]
    assert set(sizes) == {4}, sizes
    for job, ids in drained(service).items():
        found[job] += ids
    assert all(found[job] == alone(model, job) for job in jobs)


def test_a_prompt_holds_nobody_up_who_is_writing() -> None:
    """It begins alone, however long that takes, and goes with the others from then on."""
    _, ring, hosts = scene("hybrid")
    service, writing = ring_service(ring), job_of(PROMPT, 200)
    service.submit(writing)
    steps(service, 4)

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        begins = laps.read_head(data).kind is Kind.FORWARD and not read(data).rows[0].start
        return [(2.0 if begins and target == hosts[1].peer else HOP_S, data)]

    def read(data: bytes) -> Lap:
        return laps.unpack(data, *SHAPE)

    ring.meddle = meddle
    service.submit(coming := job_of(PROMPT, 200, rng_seed=1))
    drawn = drawn_until(service, ring, 2.0)
    assert drawn[writing] >= 19
    assert drawn[coming] == 0
    drawn_until(service, ring, 0.4)
    together = drawn_until(service, ring, 0.8)
    assert together[coming] == together[writing] == 8


def test_who_is_cancelled_on_the_way_disturbs_nobody_and_frees_its_slot_when_it_is_back() -> None:
    model, ring, hosts = scene("hybrid", TWO_IN_THE_MIDDLE)
    service = ring_service(ring, slots=2)
    through, beside = on_both(ring, service, hosts[1])
    watch(ring, slow=hosts[1])
    drawn_until(service, ring, 0.5)
    assert len(service._under_way) == 1, "the other is back"
    service.cancel(through)
    service.submit(later := job_of(PROMPT, 8))
    drawn = drawn_until(service, ring, 0.8)
    assert drawn[later] == 0, "its slot is not free yet"
    assert drawn[beside] >= 7
    service.cancel(beside)
    ids = drained(service)[later]
    assert ids == alone(model, later)
    assert ring.gateway.again == 0


def test_all_can_be_cancelled_at_once() -> None:
    model, ring, _ = scene("hybrid")
    service, jobs = ring_service(ring), [job_of(PROMPT, 50, rng_seed=i) for i in range(3)]
    for job in jobs:
        service.submit(job)
    for _ in range(4):
        service.step()
    assert service.cancel_all() == jobs
    assert service.is_idle
    service.submit(later := job_of(PROMPT, 8))
    assert drained(service)[later] == alone(model, later)


def test_who_waits_to_go_a_way_that_is_silent_goes_another_with_those_ahead() -> None:
    """Not after them, to wait as long again."""
    gateway = Gateway(Shape(3, 32, 256, 48), 7, random.Random(1))
    hosts = [peer(name) for name in "abcd"]
    runs = dict(zip(hosts, TWO_IN_THE_MIDDLE, strict=True))
    gateway.hosts_are(ME, runs, Instant(0.0))
    gateway.begin([Turn(0, 0, PROMPT)], Instant(0.0))
    legs = gateway._sessions[0].legs
    for slot in (0, 1):  # both have begun, and the first is ahead
        gateway._sessions[slot] = _Session(legs, 1, [1, 2, 3], ("v",) * 3)
    gateway._turns, gateway._under_way = {}, {}
    sent = gateway.begin([Turn(0, 3, (4,))], Instant(1.0))
    assert len(sent) == 1
    assert gateway.begin([Turn(1, 3, (4,))], Instant(1.1)) == []
    assert gateway.look(Instant(2.0)) == []
    late = gateway.look(Instant(100.0)) + gateway.look(Instant(103.0))
    assert len(late) == 2, "each begins anew"
    assert all(not laps.unpack(data, *SHAPE).rows[0].start for _, data in late)
