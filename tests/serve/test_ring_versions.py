"""Which weights a text through several hosts is written with: those it began with at each of them, or it is read again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from ring_scene import LINE_S, ME, Host, Meddle, peer
from serve_scene import drained, job_of, model_of
from test_ring import PROMPT, alone, ring_service, scene, steps

from peerlm.serve import lap as laps
from peerlm.serve.gateway import Gateway, Shape
from peerlm.serve.guests import FULL, UNKNOWN
from peerlm.serve.lap import Kind, Lap
from peerlm.serve.route import Turn
from peerlm.types import Instant, PeerId, short

TWO_IN_THE_MIDDLE = ((0, 0), (1, 1), (1, 1), (2, 2))
SHAPE = (3, 32, 256, 48)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def change_under_way(host: Host, name: str) -> None:
    """It loads other weights, and goes on with them in the texts it has, as no host should."""
    host.load(model_of(host.plan, rng_seed=2), name)
    guests = host.server._guests
    for guest in guests._guests.values():
        guest.version = guests.version


def test_a_host_that_changes_its_weights_in_a_text_is_left_for_another() -> None:
    model, ring, _ = scene("hybrid", TWO_IN_THE_MIDDLE)
    service, job = ring_service(ring), job_of(PROMPT, 24)
    service.submit(job)
    ids = steps(service, 8)
    middle = ring.hosts[ring.gateway._sessions[0].legs[1].host]
    change_under_way(middle, "t9-other")
    ids += drained(service)[job]
    assert ids == alone(model, job), "nothing that the other weights made was taken"
    said = f"{short(middle.peer)}: goes on with t9-other in a text begun with v1"
    assert list(ring.gateway.faults) == [said]
    assert ring.gateway.again == 1
    assert job.version_name == "v1"


def test_where_there_is_no_other_host_the_text_is_read_again_by_the_same() -> None:
    _, ring, hosts = scene("hybrid")
    service, job = ring_service(ring), job_of(PROMPT, 24)
    service.submit(job)
    steps(service, 8)
    assert job.version_name == "v1"
    change_under_way(hosts[1], "t9-other")
    drained(service)
    assert job.version_name.startswith("stages-"), "both had part in it"
    assert len(ring.gateway.faults) == 1
    assert ring.gateway.again == 1
    assert ring.now < 3


def renamed(data: bytes, name: str) -> bytes:
    """The lap, with this name wherever the first leg has named its weights."""
    lap = laps.unpack(data, *SHAPE)
    first = (name,) * len(lap.rows)
    return laps.pack(replace(lap, versions=(first, *lap.versions[1:])))


def test_a_host_has_to_name_the_weights_that_it_begins_with() -> None:
    model, ring, hosts = scene("hybrid", ((0, 2), (0, 2)))
    silent = hosts[0].peer

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        is_home = target == ME and laps.read_head(data).kind is Kind.HOME
        return [(LINE_S, renamed(data, "") if is_home and source == silent else data)]

    ring.meddle = meddle
    service, jobs = ring_service(ring), [job_of(PROMPT, 6, rng_seed=i) for i in range(6)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    assert [found[job] for job in jobs] == [alone(model, job) for job in jobs]
    assert set(ring.gateway.faults) == {
        f"{short(silent)}: does not name the weights that a text begins with"
    }


def cut_short(source: PeerId, target: PeerId, end: int) -> Meddle:
    """What goes from one to the other arrives without what is behind `end`."""

    def meddle(sender: PeerId, receiver: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        return [(LINE_S, data[:end] if (sender, receiver) == (source, target) else data)]

    return meddle


@pytest.mark.parametrize("end", [40, -3])
def test_an_answer_of_a_wrong_shape_is_its_hosts_fault_at_once(end: int) -> None:
    """Nobody waits for what will not come."""
    model, ring, _ = scene("hybrid", ((0, 0), (0, 0), (1, 2)))
    service, job = ring_service(ring), job_of(PROMPT, 16)
    service.submit(job)
    ids = steps(service, 6)
    first = ring.gateway._sessions[0].legs[0].host

    ring.meddle = cut_short(first, ME, end)
    ids += drained(service)[job]
    assert ids == alone(model, job)
    (fault,) = ring.gateway.faults
    assert fault.startswith(f"{short(first)}: lap: ")
    assert ring.now < 2


def test_who_hands_over_nonsense_is_known_to_the_gateway_at_once() -> None:
    model, ring, hosts = scene("hybrid", ((0, 0), (0, 0), (1, 2)))
    service, job = ring_service(ring), job_of(PROMPT, 16)
    service.submit(job)
    ids = steps(service, 6)
    first = ring.gateway._sessions[0].legs[0].host

    ring.meddle = cut_short(first, hosts[2].peer, -9)
    ids += drained(service)[job]
    assert ids == alone(model, job)
    assert hosts[2].nonsense == 1
    assert ring.gateway._hosts[first].avoid_until is not None, "not who found it out"
    assert ring.now < 2


def test_a_head_does_not_go_on_with_other_weights_than_its_first_leg() -> None:
    """The session is forgotten here while its lap is elsewhere."""
    model, ring, hosts = scene("hybrid")
    service, job = ring_service(ring), job_of(PROMPT, 16)
    service.submit(job)
    ids = steps(service, 6)
    lost: list[Lap] = []
    forgets = [True]

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        if (source, target) == (hosts[2].peer, hosts[0].peer) and forgets:
            forgets.clear()
            hosts[0].forget_all()
        if target == ME and laps.read_head(data).kind is Kind.LOST:
            lost.append(laps.unpack(data, *SHAPE))
        return [(LINE_S, data)]

    ring.meddle = meddle
    ids += drained(service)[job]
    assert ids == alone(model, job)
    assert [(lap.culprit, lap.reason) for lap in lost] == [(peer("h0"), UNKNOWN)]
    assert ring.gateway.again == 1


def ways(
    runs: dict[PeerId, tuple[int, int]], behind: tuple[PeerId, ...], count: int = 40
) -> set[tuple[tuple[PeerId, int, int], ...]]:
    """The legs of so many texts."""
    gateway = Gateway(Shape(3, 32, 256, 48), 7, random.Random(1))
    gateway.hosts_are(ME, runs, Instant(0.0), behind)
    gateway.begin([Turn(slot, 0, PROMPT) for slot in range(count)], Instant(0.0))
    return {
        tuple((leg.host, leg.first, leg.last) for leg in session.legs)
        for session in gateway._sessions.values()
    }


A, B, C, D = map(peer, "abcd")


def test_no_text_begins_with_old_weights_while_newer_ones_are_there() -> None:
    runs = {A: (0, 0), B: (1, 1), C: (1, 1), D: (2, 2)}
    assert len(ways(runs, ())) == 2
    assert ways(runs, (B,)) == {((A, 0, 0), (C, 1, 1), (D, 2, 2))}
    assert ways({A: (0, 0), B: (1, 1), D: (2, 2)}, (B,)) == {((A, 0, 0), (B, 1, 1), (D, 2, 2))}


def test_of_several_stages_those_with_a_newer_host_are_left_to_it() -> None:
    runs = {A: (0, 2), B: (1, 1)}
    assert ways(runs, (A,)) == {((A, 0, 0), (B, 1, 1), (A, 2, 2))}
    assert ways({ME: (0, 2), A: (0, 2)}, (ME,)) == {((A, 0, 2),)}
    assert ways({ME: (0, 2), A: (0, 2)}, (A,)) == {((ME, 0, 2),)}


def test_a_text_may_go_through_one_host_twice() -> None:
    model, ring, (around, middle) = scene("hybrid", ((0, 2), (1, 1)))
    runs = {host.peer: host.run for host in (around, middle)}
    ring.gateway.hosts_are(ME, runs, Instant(0.0), (around.peer,))
    service, jobs = ring_service(ring), [job_of(PROMPT, 20, rng_seed=i) for i in range(3)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    assert [found[job] for job in jobs] == [alone(model, job) for job in jobs]


def test_a_text_waits_for_newer_weights_rather_than_take_old_ones() -> None:
    """As where their host has just lost a lap, and is asked again a second later."""
    gateway = Gateway(Shape(1, 32, 256, 48), 7, random.Random(1))
    gateway.hosts_are(ME, {A: (0, 0), B: (0, 0)}, Instant(0.0), (A,))
    asked = gateway.begin([Turn(0, 0, PROMPT)], Instant(0.0))
    ((to, data),) = [s for s in asked if laps.read_head(s[1]).kind is Kind.FORWARD]
    assert to == B
    assert gateway.hear(B, laps.lost(laps.read_head(data), B, "it stumbled"), Instant(0.1)) == []
    assert [to for to, _ in gateway.look(Instant(2.0))] == [B]


@pytest.mark.parametrize(("why", "asked"), [("it stumbled", A), (FULL, B)])
def test_nobody_waits_for_newer_weights_with_which_nothing_comes_back(
    why: str, asked: PeerId
) -> None:
    """Hosts say of themselves how new theirs are. Who has no room for a text has advanced others."""
    gateway = Gateway(Shape(1, 32, 256, 48), 7, random.Random(1))
    gateway.hosts_are(ME, {A: (0, 0), B: (0, 0)}, Instant(0.0), (A,))
    sent = gateway.begin([Turn(0, 0, PROMPT)], Instant(0.0))
    for at in (0.0, 5.0):  # left alone for a second or two
        ((to, data),) = [s for s in sent if laps.read_head(s[1]).kind is Kind.FORWARD]
        assert to == B
        sent = gateway.hear(B, laps.lost(laps.read_head(data), B, why), Instant(at))
        sent = sent or gateway.look(Instant(at + 4.0))
    assert [to for to, _ in sent] == [asked]
