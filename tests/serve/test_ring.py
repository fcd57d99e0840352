"""Texts through stages on several hosts are the texts that one process writes, whatever becomes of the hosts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_scene import ME, Host, Ring, peer, ring_service, staged
from serve_scene import drained, job_of, model_of, plan_of
from test_engine import WAYS, prompts

from peerlm.errors import ConfigError, WireError
from peerlm.model.generate import generate
from peerlm.model.model import LanguageModel
from peerlm.serve import lap as laps
from peerlm.serve.engine import _tensors
from peerlm.serve.gateway import WAIT_S, Gateway, Shape
from peerlm.serve.guests import FULL
from peerlm.serve.lap import Head, Kind, Lap, Leg, Row
from peerlm.serve.route import Turn
from peerlm.serve.service import Job, Service
from peerlm.types import Instant, PeerId

PROMPT = tuple(b"ROMEO: what light")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def scene(
    kind: str = "attention", runs: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (2, 2))
) -> tuple[LanguageModel, Ring, list[Host]]:
    plan = staged(plan_of(kind), 1 + max(last for _, last in runs))
    model = model_of(plan)
    hosts = [Host(plan, model, f"h{i}", first, last) for i, (first, last) in enumerate(runs)]
    return model, Ring(plan, hosts), hosts


def alone(model: LanguageModel, job: Job, **sampling: float) -> list[int]:
    options = {"temperature": 0.0, **sampling}
    seed = job.rng_seeds[0]
    return list(generate(model, job.prompts[0], job.tokens_max, rng_seed=seed, **options))


MIXED, LONG = range(5, 29, 3), (64,)
"""Tokens of one text after another."""


@pytest.mark.parametrize(
    ("kind", "runs", "tokens"),
    [
        ("attention", ((0, 0), (1, 1), (2, 2)), LONG),
        ("attention", ((0, 0), (1, 1), (2, 2), (3, 3)), MIXED),
        ("attention", ((0, 0), (0, 0), (1, 2), (1, 1), (2, 2)), MIXED),
        ("lstm", ((0, 0), (1, 1)), MIXED),
        ("gru", ((0, 0), (1, 1)), MIXED),
        ("hybrid", ((0, 0), (1, 1), (2, 2)), LONG),
        ("hybrid", ((0, 2), (1, 1)), MIXED),
    ],
)
def test_twenty_prompts_through_stages_are_as_one_at_a_time(
    kind: str, runs: tuple[tuple[int, int], ...], tokens: Sequence[int]
) -> None:
    model, ring, hosts = scene(kind, runs)
    service = ring_service(ring, slots=7, chunk=24)
    jobs = [
        job_of(prompt, tokens[i % len(tokens)], rng_seed=i, **WAYS[i % len(WAYS)])
        for i, prompt in enumerate(prompts(20, model.context))
    ]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    for i, job in enumerate(jobs):
        assert found[job] == alone(model, job, **WAYS[i % len(WAYS)]), f"prompt {i}"
    ring.begin([])
    while ring._line:
        ring._deliver(*ring._line.pop(0))
    assert all(not host.server._guests for host in hosts), "who is told forgets"
    assert ring.gateway.again == 0


def steps(service: Service, count: int) -> list[int]:
    """Of the only session: so many ids at least, if it goes on so long."""
    ids: list[int] = []
    while len(ids) < count and not service.is_idle:
        for told in service.step():
            assert not told.error, told.error
            ids += [pick.token for pick in told.piece.picks]
    return ids


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_host_that_dies_takes_no_text_with_it(kind: str, victim: int, is_seen: bool) -> None:
    """Also when the text is longer than what the model looks back on."""
    runs = ((0, 0), (1, 1), (2, 2), (0, 0), (1, 1), (2, 2))
    model, ring, _ = scene(kind, runs)
    service, job = ring_service(ring), job_of(PROMPT, 60)
    service.submit(job)
    ids = steps(service, 40)
    legs = ring.gateway._sessions[0].legs
    began = ring.now
    ring.kill(ring.hosts[legs[victim].host], is_seen=is_seen)
    ids += drained(service)[job]
    assert ids == alone(model, job)
    assert ring.gateway.again == 1
    assert ring.now - began < 7.0


def test_who_waits_for_others_of_its_gateway_is_not_taken_for_lost() -> None:
    """Texts that begin go alone, one after the other; the first host needs as long for each."""
    model, ring, hosts = scene("hybrid")
    free_at = 0.0

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        nonlocal free_at
        if target != hosts[0].peer or source != ME:
            return [(0.001, data)]
        free_at = max(free_at, ring.now) + 0.4
        return [(free_at - ring.now, data)]

    ring.meddle = meddle
    service = ring_service(ring, slots=32, chunk=1024)
    service.submit(job_of(PROMPT, 1))
    drained(service)
    jobs = [job_of(PROMPT, 3, rng_seed=i) for i in range(32)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    assert [found[job] for job in jobs] == [alone(model, job) for job in jobs]
    assert ring.now > 12
    assert ring.gateway.again == 0


def test_a_host_that_has_forgotten_reads_it_all_again() -> None:
    model, ring, hosts = scene("hybrid")
    service, job = ring_service(ring), job_of(PROMPT, 24, temperature=1.0)
    service.submit(job)
    ids = steps(service, 10)
    hosts[1].forget_all()
    ids += drained(service)[job]
    assert ids == alone(model, job, temperature=1.0)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30))
def test_whatever_is_lost_late_or_twice_the_text_is_the_same(seed: int) -> None:
    rng = random.Random(seed)
    model, ring, _ = scene("hybrid", ((0, 0), (1, 1), (2, 2), (0, 1), (2, 2)))

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        chance = rng.random()
        if chance < 0.02:
            return []
        if chance < 0.05:
            return [(rng.uniform(0, 100), data), (rng.uniform(0, 1), data)]
        if chance < 0.06:
            return [(0.001, data[: rng.randrange(len(data))])]
        return [(rng.uniform(0, 0.1), data)]

    ring.meddle = meddle
    service = ring_service(ring, slots=3)
    jobs = [job_of(prompt, 8) for prompt in prompts(4, 30)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    assert [found[job] for job in jobs] == [alone(model, job) for job in jobs]


def test_a_stage_that_nobody_holds_is_named() -> None:
    _, ring, _ = scene(runs=((0, 0), (1, 1), (2, 2)))
    ring.kill(ring.hosts[peer("h1")])
    service = ring_service(ring)
    service.submit(job_of(PROMPT, 4))
    (told,) = service.step()
    assert told.error == "nobody who serves holds stage 1 of the model"
    assert service.is_idle
    assert WAIT_S <= ring.now < WAIT_S + 1


def test_who_says_to_hold_stages_that_are_none_is_no_host() -> None:
    _, ring, _ = scene(runs=((0, 0), (1, 1)))
    runs = {peer("h0"): (0, 0), peer("one"): (1, 1 << 60), peer("two"): (1, 0)}
    assert ring.gateway.hosts_are(ME, runs, Instant(0.0)) == [], "nobody new is to be made ready"
    assert ring.gateway.lacking() == 1
    runs = {peer("h0"): (1, 1)}
    assert [to for to, _ in ring.gateway.hosts_are(ME, runs, Instant(0.0))] == [peer("h0")]


def test_it_goes_on_when_somebody_holds_the_stage_again() -> None:
    model, ring, hosts = scene(runs=((0, 0), (1, 1), (2, 2)))
    service, job = ring_service(ring), job_of(PROMPT, 20)
    service.submit(job)
    ids = steps(service, 10)
    ring.kill(hosts[1])
    hosts[1].forget_all()
    tick = ring.gateway.look

    def look(now: float) -> object:
        if now > 10 and peer("h1") not in ring.hosts:
            ring.hosts[peer("h1")] = hosts[1]
            ring.tell_hosts()
        return tick(now)

    ring.gateway.look = look  # type: ignore[assignment]
    ids += drained(service)[job]
    assert ids == alone(model, job)


def test_where_there_is_no_room_the_session_goes_elsewhere_or_waits() -> None:
    plan = staged(plan_of("hybrid"), 3)
    model = model_of(plan)
    hosts = [Host(plan, model, "small", 0, 2, sessions=1), Host(plan, model, "large", 0, 2)]
    ring = Ring(plan, hosts)
    service = ring_service(ring)
    jobs = [job_of(PROMPT, 6, rng_seed=i) for i in range(6)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    assert all(found[job] == alone(model, job) for job in jobs)


def test_where_all_slots_are_taken_a_host_that_dies_takes_no_text_with_it() -> None:
    plan = staged(plan_of("hybrid"), 2)
    model = model_of(plan)
    runs = ((0, 0), (0, 0), (1, 1))
    hosts = [Host(plan, model, f"h{i}", *run, sessions=4) for i, run in enumerate(runs)]
    ring = Ring(plan, hosts)
    service, jobs = ring_service(ring), [job_of(PROMPT, 20, rng_seed=i) for i in range(4)]
    for job in jobs:
        service.submit(job)
    ids: dict[Job, list[int]] = {job: [] for job in jobs}
    for _ in range(8):
        for told in service.step():
            ids[told.job] += [pick.token for pick in told.piece.picks]
    ring.kill(hosts[0])
    found = drained(service)
    assert [ids[job] + found[job] for job in jobs] == [alone(model, job) for job in jobs]
    assert ring.gateway.again > 0


def test_a_text_for_which_there_is_no_room_takes_no_other_with_it() -> None:
    """It fails where others would have to wait for it; one alone waits."""
    plan = staged(plan_of("hybrid"), 2)
    model = model_of(plan)
    ring = Ring(plan, [Host(plan, model, "a", 0, 0, 2), Host(plan, model, "b", 1, 1, 2)])
    service, jobs = ring_service(ring), [job_of(PROMPT, 30, rng_seed=i) for i in range(3)]
    for job in jobs:
        service.submit(job)
    told = [news for _ in range(60) for news in service.step()]
    (error,) = [news.error for news in told if news.error]
    assert error.endswith("no room for another session")
    assert [news.is_full for news in told if news.error] == [True]
    wrote = [job for job in jobs if all(not news.error for news in told if news.job is job)]
    assert len(wrote) == 2
    assert ring.now < 15


def test_a_host_takes_as_many_texts_as_its_memory_does_for() -> None:
    plan = staged(plan_of("attention"), 2)
    model = model_of(plan)
    one = Host(plan, model, "a", 0, 1, sessions=1).server._slots.bytes
    assert Host(plan, model, "a", 0, 1, cache_bytes=3 * one + 1).server._slots.count == 3
    with pytest.raises(ConfigError, match="free memory"):
        Host(plan, model, "a", 0, 1, cache_bytes=one - 1)


def test_a_host_that_was_full_is_asked_as_soon_as_a_text_there_has_ended() -> None:
    plan = staged(plan_of("hybrid"), 2)
    model = model_of(plan)
    ring = Ring(plan, [Host(plan, model, "a", 0, 1, sessions=1)])
    service, jobs = ring_service(ring), [job_of(PROMPT, n, rng_seed=n) for n in (1, 2)]
    for job in jobs:
        service.submit(job)
    (full, told) = [news for _ in range(2) for news in service.step()]
    assert (full.job, full.is_full, told.job) == (jobs[1], True, jobs[0])
    service.submit(again := job_of(PROMPT, 3))
    assert drained(service)[again] == alone(model, again)
    assert ring.now < 1


def test_a_node_that_has_everything_asks_nobody_while_it_can() -> None:
    gateway = Gateway(Shape(3, 32, 256, 48), 7, random.Random(1))
    runs = {ME: (0, 2), peer("other"): (0, 2), **{peer(f"h{i}"): (i, i) for i in range(3)}}
    gateway.hosts_are(ME, runs, Instant(0.0))
    asked = gateway.begin([Turn(slot, 0, PROMPT) for slot in range(8)], Instant(0.0))
    forward = [(to, data) for to, data in asked if laps.read_head(data).kind is Kind.FORWARD]
    assert [to for to, _ in forward] == [ME] * 8
    lost = laps.lost(laps.read_head(forward[0][1]), ME, FULL)
    ((to, _),) = gateway.hear(ME, lost, Instant(0.1))
    assert to != ME


def test_sessions_go_where_the_way_is_short() -> None:
    runs = {peer(f"{kind}{i}"): (i, i) for kind in ("near", "far") for i in range(3)}
    ways = {p: (0.2, 0.2) if p.startswith(b"far") else (0.001, 0.002) for p in runs}
    for asked, least in ((ways, 50), ({}, 15)):
        legs = list[PeerId]()
        for seed in range(20):
            gateway = Gateway(Shape(3, 32, 256, 48), 7, random.Random(seed))
            gateway.hosts_are(ME, runs, Instant(0.0), ways=asked)
            for _, data in gateway.begin([Turn(0, 0, PROMPT)], Instant(0.0)):
                if laps.read_head(data).kind is Kind.FORWARD:
                    legs += [leg.host for leg in laps.unpack(data, 3, 32, 256, 48).legs]
        assert len(legs) == 60
        assert least <= sum(leg.startswith(b"near") for leg in legs) < (61 if asked else 45)


def test_a_prompt_that_nobody_reads_to_its_end_says_so_and_others_go_on_later() -> None:
    model, ring, hosts = scene("hybrid")
    service, job = ring_service(ring, chunk=16), job_of(PROMPT * 2, 4)
    service.submit(job)
    service.step()
    ring.kill(hosts[1])
    (told,) = service.step()
    assert told.error == "nobody who serves holds stage 1 of the model"
    ring.hosts[hosts[1].peer] = hosts[1]
    ring.tell_hosts()
    later = job_of(PROMPT, 4)
    service.submit(later)
    assert drained(service)[later] == alone(model, later)


def test_numbers_that_are_none_are_not_left_in_a_slot() -> None:
    _, ring, (host,) = scene("attention", ((0, 2),))
    host.server._guests.version.held._part.blocks[0]["attention"].value.weight.data.fill_(
        float("nan")
    )
    service = ring_service(ring)
    service.submit(job_of(PROMPT, 2))
    assert "not finite" in service.step()[0].error
    assert all(bool(tensor.isfinite().all()) for tensor in _tensors(host.server._slots.parts))


def test_a_head_that_makes_no_numbers_is_passed_by() -> None:
    model, ring, hosts = scene("hybrid", ((0, 2), (0, 2)))
    hosts[0].server._guests.version.held._part.output.norm.weight.data.fill_(float("nan"))
    service, jobs = ring_service(ring), [job_of(PROMPT, 6, rng_seed=i) for i in range(6)]
    for job in jobs:
        service.submit(job)
    found = drained(service)
    assert [found[job] for job in jobs] == [alone(model, job) for job in jobs]


def test_a_session_keeps_its_weights_and_says_which() -> None:
    model, ring, hosts = scene("hybrid")
    newer = model_of(hosts[0].plan, rng_seed=2)
    service, first = ring_service(ring), job_of(PROMPT, 20)
    service.submit(first)
    ids = steps(service, 5)
    for i, host in enumerate(hosts):
        host.load(newer, f"v2-{i}")
    second = job_of(PROMPT, 20)
    service.submit(second)
    found = drained(service)
    assert ids + found[first] == alone(model, first)
    assert found[second] == alone(newer, second)
    assert first.version_name == "v1"
    assert second.version_name.startswith("stages-")


def test_a_single_host_that_has_everything_names_its_own_version() -> None:
    model, ring, _ = scene("hybrid", ((0, 2),))
    service, job = ring_service(ring), job_of(PROMPT, 4)
    service.submit(job)
    assert drained(service)[job] == alone(model, job)
    assert job.version_name == "v1"


def test_weights_that_make_no_numbers_are_passed_by() -> None:
    model, ring, hosts = scene("hybrid", ((0, 0), (1, 1), (2, 2), (1, 1)))
    broken = hosts[1].server._guests.version.held._part
    next(broken.parameters()).data.fill_(float("nan"))
    service, job = ring_service(ring), job_of(PROMPT, 6)
    service.submit(job)
    assert drained(service)[job] == alone(model, job)


def test_a_host_that_answers_for_another_is_not_believed() -> None:
    """Logits are taken from the host that has them, and for laps that are under way."""
    model, ring, hosts = scene("hybrid")
    service, job = ring_service(ring), job_of(PROMPT, 8)

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        head = laps.read_head(data)
        if target == hosts[1].peer:  # it forges an answer to whatever it is sent
            lap = laps.unpack(data, 3, 32, 256, 48)
            home = Head(Kind.HOME, head.origin, head.gateway, head.number)
            wanted = sum(row.wanted for row in lap.rows)
            names = (("forged",) * len(lap.rows),) * 3
            forged = Lap(
                home,
                lap.legs,
                3,
                lap.rows,
                numbers=np.ones((wanted, 256), np.float32),
                versions=names,
                seconds=(0.0,) * 3,
            )
            ring._line.append((ring.now, -1, target, ME, laps.pack(forged)))
            ring._line.sort()
        return [(0.001, data)]

    ring.meddle = meddle
    service.submit(job)
    assert drained(service)[job] == alone(model, job)


def test_a_lap_that_comes_late_is_not_taken_for_the_text_that_has_its_slot_now() -> None:
    model, ring, hosts = scene("hybrid")
    kept: list[bytes] = []

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        if target == hosts[1].peer and laps.read_head(data).kind is Kind.FORWARD:
            kept.append(data)
            if (
                len(kept) == 11
            ):  # the second text's second lap: before it the first one's first arrives again
                return [(0.001, kept[0]), (0.002, data)]
        return [(0.001, data)]

    ring.meddle = meddle
    service, first, second = ring_service(ring, slots=1), job_of(PROMPT, 9), job_of(PROMPT[::-1], 9)
    service.submit(first)
    service.submit(second)
    found = drained(service)
    assert found[first] == alone(model, first)
    assert found[second] == alone(model, second)
    assert ring.gateway.again == 0


def test_a_session_is_not_twice_in_one_batch() -> None:
    """Two laps that begin it wait at once, as after a while in which a host stood still."""
    _, _, (host, *_) = scene("attention")
    legs = tuple(Leg(peer(f"h{i}"), i, i) for i in range(3))
    for life in (1, 2):
        lap = Lap(Head(Kind.FORWARD, ME, 7, life), legs, 0, (Row(0, 0, 3, life=life),), (1, 2, 3))
        host.server._take(ME, laps.pack(lap), 0.0)
    assert len(host.server._together()) == 1


@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.OVER])
def test_only_who_hands_a_session_over_may_go_on_with_it(kind: Kind) -> None:
    _, _, hosts = scene("attention")
    legs = tuple(Leg(peer(f"h{i}"), i, i) for i in range(3))
    forward = kind is Kind.FORWARD
    tokens = (1,) if forward else ()
    lap = Lap(Head(kind, ME, 7, 1), legs, 0, (Row(0, 0, int(forward), life=1),), tokens)
    assert hosts[0].hear(peer("h2"), laps.pack(lap), 0.0) == []
    assert hosts[0].nonsense == 1


def lap_of(**changes: object) -> Lap:
    legs = (Leg(peer("a"), 0, 0), Leg(peer("b"), 1, 2))
    rows = (Row(3, 0, 4, False), Row(5, 9, 1))
    fields = {"legs": legs, "rows": rows, "tokens": (1, 2, 3, 4, 255), **changes}
    return Lap(Head(Kind.FORWARD, ME, 1 << 62, 9), **fields)


PASSED = {
    "at": 1,
    "tokens": (),
    "numbers": np.ones((5, 4), np.float32),
    "versions": (("v1", ""),),
    "seconds": (0.25,),
}
"""The first leg."""


def test_a_lap_arrives_as_it_was_sent() -> None:
    shape = (3, 4, 256, 48)
    sent = lap_of()
    assert laps.unpack(laps.pack(sent), *shape) == sent
    stream = np.arange(20, dtype=np.float32).reshape(5, 4)
    sent = lap_of(**{**PASSED, "numbers": stream})
    got = laps.unpack(laps.pack(sent), *shape)
    assert (got.at, got.versions, got.seconds) == (1, (("v1", ""),), (0.25,))
    assert np.array_equal(got.numbers, stream)
    lost = laps.unpack(laps.lost(sent.head, peer("a"), "why\nso"[:3]), *shape)
    assert (lost.head.kind, lost.culprit, lost.reason) == (Kind.LOST, peer("a"), "why")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": (1, 2, 3, 4, 256)},
        {"tokens": (1, 2, 3, 4)},
        {"legs": (Leg(peer("a"), 0, 1), Leg(peer("b"), 1, 2))},
        {"legs": (Leg(peer("a"), 0, 1),)},
        {"legs": ()},
        {"at": 3},
        {"at": 1},
        {"rows": (Row(3, 0, 4), Row(3, 9, 1))},
        {"rows": (Row(3, 45, 4), Row(5, 9, 1))},
        {"rows": ()},
        {"at": 1, "tokens": (), "numbers": np.full((5, 4), np.nan, np.float32)},
        {**PASSED, "seconds": (float("inf"),)},
        {**PASSED, "seconds": (-0.1,)},
        {**PASSED, "versions": (("v1",),)},
        {"reason": "x\x1b[2J"},
    ],
)
def test_a_lap_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(WireError, match="lap: "):
        laps.unpack(laps.pack(lap_of(**changes)), 3, 4, 256, 48)


def test_more_logits_than_fit_are_not_asked_for() -> None:
    vocab = 1 << 21
    assert laps.wanted_max(vocab) == 1
    one = lap_of(rows=(Row(3, 0, 5),))
    assert laps.unpack(laps.pack(one), 3, 4, vocab, 48).wanted == 1
    with pytest.raises(WireError, match="rows"):
        laps.unpack(laps.pack(lap_of(rows=(Row(3, 0, 4), Row(5, 9, 1)))), 3, 4, vocab, 48)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    for head in (b"", laps.pack(lap_of())[:33]):
        with pytest.raises(WireError):
            laps.unpack(head + data, 3, 4, 256, 48)
