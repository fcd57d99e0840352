"""A corpus made by several nodes: one manifest, whoever does what, dies, comes late or lies."""

from __future__ import annotations

import random

import pytest
from jobs_scene import JOB, STEP_S, Swarm, expected, shards_of
from node_scene import World
from store_scene import peer_of

from peerlm import effects as fx
from peerlm.errors import StateError
from peerlm.node.dealing import MAKERS_MAX, PAGE_TASKS, SHARDS_MAX, STRAGGLER_S, Deal
from peerlm.node.finishing import TURN_S
from peerlm.node.jobs import GONE_S, RETRY_S
from peerlm.node.made import Made, read_made
from peerlm.node.status import as_json
from peerlm.store.manifest import Kind
from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.message import JobAsk, JobNews, JobResult, JobShard, NameRecord


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_nodes_makes_the_same_corpus(count: int) -> None:
    swarm = Swarm(count)
    swarm.add_job()
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    assert swarm.living() == ["plays"]
    made = swarm.all_made()
    assert sorted(set(made)) == list(range(60))
    assert len(made) <= 60 + 2, "hardly anything is made twice"
    assert all(node.made for node in swarm.nodes.values()), "all take part"


def test_five_need_a_third_of_the_time() -> None:
    one, five = Swarm(1), Swarm(5)
    for swarm in (one, five):
        swarm.add_job()
        swarm.run_to_end()
    assert five.now < one.now / 3


@pytest.mark.parametrize("seed", range(12))
def test_whoever_dies_whenever_the_corpus_is_the_same(seed: int) -> None:
    rng = random.Random(seed)
    swarm = Swarm(5, seed=seed)
    swarm.add_job()
    doomed = rng.sample(list(swarm.nodes), rng.randint(1, 4))
    for peer in doomed:
        swarm.run(rng.uniform(0, 6))
        if swarm.nodes[peer].jobs.standing():
            swarm.kill(peer)
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    there = [node.disk for node in swarm.nodes.values() if node.is_up]
    assert all(any(s.hash in d for d in there) for task in range(60) for s in shards_of(task))


def test_what_a_dead_one_made_is_made_again() -> None:
    swarm = Swarm(3)
    swarm.add_job()
    swarm.run(5)
    dead = peer_of(2)
    gone = list(swarm.nodes[dead].made)
    assert gone
    swarm.kill(dead)
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    again = [t for peer, node in swarm.nodes.items() if peer != dead for t in node.made]
    assert {task for task in gone if shards_of(task)} <= set(again)


def test_a_daemon_that_cannot_read_what_it_made_hears_it_from_others() -> None:
    swarm = Swarm(2)
    swarm.add_job()
    swarm.run(8)
    peer = peer_of(2)
    before = swarm.nodes[peer]
    swarm.kill(peer)
    swarm.run(GONE_S + 1)
    again = swarm.add(peer, kept=None)
    again.disk.update(before.disk)
    swarm.run(1)
    shown = [task for task in before.made if shards_of(task)]
    assert again.jobs.standing()[0]["made_by"][peer.hex()] >= len(shown) - 2
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}


@pytest.mark.parametrize("count", [1, 3])
def test_when_all_stop_at_once_the_job_goes_on_with_what_was_made(count: int) -> None:
    swarm = Swarm(count)
    swarm.add_job()
    swarm.run(8)
    before = len(swarm.all_made())
    assert 60 > before > 10
    swarm.restart(*swarm.nodes)
    swarm.run(1)
    done = [node.jobs.standing()[0]["done"] for node in swarm.nodes.values()]
    assert min(done) >= before - 4 * count, "what was made in the last second is lost"
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    assert len(swarm.all_made()) <= 60 + 6 * count
    swarm.run(2)
    assert all(node.kept == b"peerlm-made-1\n" for node in swarm.nodes.values())


def test_what_was_made_and_is_not_on_the_disk_any_more_is_made_again() -> None:
    swarm = Swarm(1)
    swarm.add_job()
    swarm.run(8)
    node = swarm.nodes[peer_of(1)]
    gone = next(task for task in node.made if shards_of(task))
    node.disk.difference_update(ObjectHash(s.hash) for s in shards_of(gone))
    swarm.restart(peer_of(1))
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    assert swarm.all_made().count(gone) == 2


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"peerlm-made-2\n", b"peerlm-made-1\nx", b"peerlm-made-1\nab cd\n"]
)
def test_a_damaged_record_of_what_was_made_is_one_line(data: bytes) -> None:
    with pytest.raises(StateError, match="it is made again"):
        read_made(data, peer_of(1))


def test_anothers_results_are_not_ours() -> None:
    made = Made(peer_of(1), b"", Instant(0.0))
    made.add(JOB, result(3, peer_of(1)))
    assert read_made(made.encode(), peer_of(1)) == {JOB: {3: result(3, peer_of(1))}}
    with pytest.raises(StateError):
        read_made(made.encode(), peer_of(2))


def test_a_long_record_is_written_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerlm.node.made.BYTES_S", 10)
    made = Made(peer_of(1), b"", Instant(0.0))
    made.add(JOB, result(3, peer_of(1)))
    (save,) = made.save(Instant(0.0))
    assert isinstance(save, fx.Save)
    made.add(JOB, result(4, peer_of(1)))
    assert made.save(Instant(len(save.data) / 10 - 1)) == []
    assert made.save(Instant(len(save.data) / 10))


def test_one_who_is_back_soon_has_lost_nothing() -> None:
    swarm = Swarm(3)
    swarm.add_job()
    swarm.run(5)
    peer = peer_of(2)
    swarm.kill(peer)
    swarm.run(GONE_S / 2)
    swarm.nodes[peer].is_up = True
    swarm.look_around()
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    assert len(swarm.all_made()) <= 60 + 3


@pytest.mark.parametrize("seed", range(3))
def test_chunks_that_do_not_exist_are_found_out_before_the_corpus_has_its_name(seed: int) -> None:
    swarm = Swarm(4, seed=seed)
    swarm.nodes[peer_of(3)].lies = True
    swarm.add_job()
    swarm.run(4)
    assert swarm.nodes[peer_of(1)].jobs.standing()[0]["made_by"][peer_of(3).hex()]
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}
    disks = [node.disk for node in swarm.nodes.values()]
    hashes = [s.hash for task in range(60) for s in shards_of(task)]
    assert all(any(h in disk for disk in disks) for h in hashes)


def test_who_comes_late_takes_part_and_hears_what_is_done() -> None:
    swarm = Swarm(2)
    swarm.add_job()
    swarm.run(6)
    late = swarm.add(peer_of(9))
    swarm.run(1)
    assert late.jobs.standing()[0]["done"] > 10
    swarm.run_to_end()
    assert late.made
    assert set(swarm.corpora) == {expected()}


def test_one_whose_process_ends_in_the_middle_leaves_its_tasks_to_others() -> None:
    swarm = Swarm(2, task_s=2.0)
    swarm.add_job()
    swarm.run(3)
    node = swarm.nodes[peer_of(2)]
    node.has_process, node.at = False, None
    swarm.perform(peer_of(2), node.jobs.connected(swarm.now, is_there=False))
    swarm.run(1)
    assert swarm.nodes[peer_of(1)].jobs.standing()[0]["makers"] == [peer_of(1).hex()]
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected()}


def test_who_cannot_read_the_source_says_so_once_and_tries_again_later() -> None:
    swarm = Swarm(2)
    node = swarm.nodes[peer_of(2)]
    node.has_process = False
    swarm.add_job()
    swarm.perform(peer_of(2), node.jobs.failed(JOB, "no such bucket", swarm.now))
    swarm.run(1)
    shown = swarm.nodes[peer_of(1)].jobs.standing()[0]
    assert shown["troubles"] == {peer_of(2).hex(): "no such bucket"}
    assert node.logs == ["job_refused"]
    assert node.jobs.choose(swarm.now) is None
    assert node.jobs.choose(Instant(swarm.now + RETRY_S)) == JOB


def test_the_next_names_the_corpus_if_the_first_does_not() -> None:
    swarm = Swarm(3)
    swarm.add_job()
    while not any(job["done"] == 60 for n in swarm.nodes.values() for job in n.jobs.standing()):
        swarm.step()
    for _ in range(2):  # the processes of whoever is ready end just then
        while not any(
            n.has_process and n.jobs._jobs[JOB].finishing.stage == "ready"
            for n in swarm.nodes.values()
        ):
            for node in swarm.nodes.values():
                if node.at is None and node.jobs._jobs[JOB].deal.is_complete:
                    node.jobs.next(JOB, swarm.now)
            swarm.now = Instant(swarm.now + STEP_S)
            for peer, node in swarm.nodes.items():
                swarm.perform(peer, node.jobs.wake(swarm.now))
            while swarm.queue:
                sender, to, message = swarm.queue.pop(0)
                swarm.perform(to, swarm.nodes[to].jobs.received(sender, message, swarm.now))
        first = next(
            n
            for n in swarm.nodes.values()
            if n.jobs._jobs[JOB].finishing.stage == "ready" and n.has_process
        )
        first.has_process = False
    swarm.run(3 * TURN_S)
    assert set(swarm.corpora) == {expected()}


def test_a_corpus_that_is_made_again_stays_pinned() -> None:
    swarm = Swarm(2)
    before = NameRecord("plays", Kind.CORPUS, b"c" * 32, 9, 1, peer_of(1), 1.0, 2, True, "there")
    swarm.tell_name(before)
    swarm.add_job()
    swarm.run_to_end()
    (record,) = [e.record for e in swarm.nodes[peer_of(1)].names if e.record.name == "plays"]
    assert (record.manifest, record.is_pinned) == (expected(), True)


def test_a_job_that_is_removed_is_over_everywhere() -> None:
    swarm = Swarm(2)
    swarm.add_job()
    swarm.run(2)
    swarm.tell_name(NameRecord("job-plays", Kind.JOB, b"", 0, 2, peer_of(1), 2.0, 2, False, ""))
    swarm.run(1)
    assert swarm.corpora == []
    for node in swarm.nodes.values():
        assert node.jobs.standing() == []
        assert node.jobs.next(JOB, swarm.now) == "over"
        assert not node.jobs.made(JOB, 1, 1, shards_of(1), swarm.now)


def test_makers_are_asked_first_for_the_corpus_chunks() -> None:
    swarm = Swarm(2)
    swarm.add_job()
    swarm.run_to_end()
    by = {
        s.hash: peer for peer, node in swarm.nodes.items() for t in node.made for s in shards_of(t)
    }
    for me, node in swarm.nodes.items():
        theirs = [ObjectHash(h) for h, maker in by.items() if maker != me]
        hinted = [node.jobs.makers_of(h) for h in theirs]
        assert hinted.count(()) <= 2
        assert not any(me in peers for peers in hinted)


# ------------------------------------------------------------------------------ one node's ledger


SOMEBODY = peer_of(7)


def result(task: int, maker: PeerId = SOMEBODY) -> JobResult:
    return JobResult(task, maker, 1, shards_of(task))


def test_results_in_any_order_give_the_same() -> None:
    found = [result(task, peer_of(maker)) for task in range(20) for maker in (1, 2)]
    deals = []
    for seed in range(3):
        deal = Deal(JOB, 20, peer_of(9))
        for one in random.Random(seed).sample(found, len(found)):
            deal.add(one, lambda _: True)
        deal.check()
        deals.append([deal.done[task].shards for task in range(20)])
    assert deals[0] == deals[1] == deals[2]


def test_what_peers_say_is_bounded() -> None:
    deal = Deal(JOB, 10, peer_of(9))
    assert not deal.add(result(10), lambda _: True)
    for maker in range(1, 40):
        deal.add(result(2, peer_of(maker)), lambda _: False)
    assert len(deal._results[2]) == MAKERS_MAX
    assert deal.add(result(2, peer_of(77)), lambda r: r.maker == peer_of(77))
    assert 2 in deal.done
    deal._shards = deal._told[SOMEBODY] = SHARDS_MAX
    assert not deal.add(result(1), lambda _: True)
    deal.claim(peer_of(1), [5, 10, 999_999], Instant(0.0))
    assert set(deal._claims) == {5}
    assert deal.compared(0, b"\xff" * 4096) == ([], True)


def test_one_who_tells_of_too_many_shards_keeps_nobody_else_from_being_heard() -> None:
    tasks, me, liar, honest = 400, peer_of(9), peer_of(3), peer_of(4)
    many = shards_of(1) * 16_384
    deal = Deal(JOB, tasks, me)
    claimed = deal.next([me], Instant(0.0))
    assert claimed is not None
    for maker in range(1, 3):
        for task in range(tasks):
            deal.add(JobResult(task, peer_of(maker), 1, many), lambda _: False, liar)
    assert 0.9 * SHARDS_MAX < deal._shards <= SHARDS_MAX
    assert not deal.add(JobResult(2, peer_of(3), 1, many), lambda _: True, liar)
    assert deal.add(result(2, honest), lambda _: True)
    assert deal.add(JobResult(4, peer_of(5), 1, shards_of(4)), lambda _: True, honest)
    for task in {claimed, 5, tasks - 1}:
        deal.made(JobResult(task, me, 1, many))
        assert deal.done[task].maker == me
    assert deal.claimed() == []
    for task in range(tasks):
        deal.add(JobResult(task, honest, 1, many), lambda _: False)
    assert deal._shards <= 2 * SHARDS_MAX
    deal.check()


def test_what_one_says_that_this_node_made_is_bounded_as_all_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.node.dealing.SHARDS_MAX", 4)
    swarm = Swarm(2)
    me, peer = peer_of(1), peer_of(2)
    node = swarm.add(me, kept=None)
    swarm.add_job()
    (one,) = shards_of(1)
    node.disk.add(ObjectHash(one.hash))
    told = tuple(JobResult(task, me, 1, (one, one)) for task in range(5))
    node.jobs.received(peer, JobNews(JOB, True, "", (), told), swarm.now)
    assert node.jobs.rows(JOB) == list(told[:2])


def test_bitmaps_say_what_another_lacks() -> None:
    tasks = PAGE_TASKS + 9
    mine, theirs = Deal(JOB, tasks, peer_of(1)), Deal(JOB, tasks, peer_of(2))
    for task in (0, 7, PAGE_TASKS - 1, PAGE_TASKS, PAGE_TASKS + 8):
        mine.add(result(task), lambda _: True)
    theirs.add(result(7), lambda _: True)
    theirs.add(result(3), lambda _: True)
    lacking, is_behind = mine.compared(0, theirs.bitmap(0))
    assert ([r.task for r in lacking], is_behind) == ([0, PAGE_TASKS - 1], True)
    lacking, is_behind = mine.compared(PAGE_TASKS, theirs.bitmap(PAGE_TASKS))
    assert ([r.task for r in lacking], is_behind) == ([PAGE_TASKS, PAGE_TASKS + 8], False)


def test_what_another_is_at_is_begun_again_only_when_that_takes_very_long() -> None:
    deal = Deal(JOB, 1, peer_of(1))
    deal.claim(peer_of(2), [0], Instant(0.0))
    makers = [peer_of(1), peer_of(2)]
    assert deal.next(makers, Instant(10.0)) is None
    assert deal.next(makers, Instant(STRAGGLER_S)) == 0
    assert deal.next(makers, Instant(STRAGGLER_S + 1)) is None, "this node is at it now"


def test_own_work_is_believed_before_what_others_say_of_it() -> None:
    deal = Deal(JOB, 2, peer_of(1))
    forged = JobResult(1, peer_of(2), 1, (JobShard(b"f" * 32, 1, 1),))
    deal.add(forged, lambda _: True)
    deal.made(result(1, peer_of(1)))
    assert deal.done[1].shards == shards_of(1)
    assert not deal.add(forged, lambda _: True)
    deal.check()


def test_a_message_of_a_stranger_or_beyond_the_job_changes_nothing() -> None:
    swarm = Swarm(2)
    swarm.add_job()
    jobs = swarm.nodes[peer_of(1)].jobs
    news = JobNews(JOB, True, "", (1,), (result(1, peer_of(7)),))
    assert jobs.received(peer_of(7), news, swarm.now) == []
    assert jobs.standing()[0]["done"] == 0
    far = JobAsk(JOB, PAGE_TASKS, b"\x00", False)
    assert jobs.received(peer_of(2), far, swarm.now) == []
    odd = JobAsk(JOB, 3, b"\x00", False)
    assert jobs.received(peer_of(2), odd, swarm.now) == []


def test_what_a_node_has_made_that_can_be_asked_it_says_itself() -> None:
    """Else one that means harm could say that another made what it did not, and what it says itself would come too late."""
    swarm = Swarm(3)
    swarm.add_job()
    me, liar, honest = peer_of(1), peer_of(2), peer_of(3)
    jobs = swarm.nodes[me].jobs
    forged = [JobResult(task, honest, 1, shards_of(7)) for task in (3, 4)]
    told = jobs.received(liar, JobNews(JOB, True, "", (), tuple(forged)), swarm.now)
    (asked,) = [effect for effect in told if isinstance(effect, fx.Send)]
    assert (asked.peer, type(asked.message)) == (honest, JobAsk)
    assert jobs.standing()[0]["done"] == 0
    true = result(3, honest)
    jobs.received(honest, JobNews(JOB, True, "", (), (true,)), swarm.now)
    assert jobs.rows(JOB) == [true]
    swarm.kill(honest)
    jobs.received(liar, JobNews(JOB, True, "", (), (result(4, honest),)), swarm.now)
    assert jobs.rows(JOB) == [true, result(4, honest)], "it cannot be asked, and was there just now"


def test_what_another_says_that_this_node_made_is_written_down_only_if_it_may_be_so() -> None:
    swarm = Swarm(2)
    me, peer = peer_of(1), peer_of(2)
    node = swarm.add(me, kept=None)
    swarm.add_job()
    node.disk.update(ObjectHash(s.hash) for task in range(6) for s in shards_of(task))
    one, two = shards_of(1)[0], shards_of(2)[0]
    told = [JobResult(task, me, 1, (one,)) for task in (1, swarm.tasks, 999_999)]
    told += [JobResult(1, me, 1, (two,) * 3), JobResult(2, me, 0, ())]
    for said in told:
        assert node.jobs.received(peer, JobNews(JOB, True, "", (), (said,)), swarm.now) == []
    swarm.run(2 * STEP_S)
    assert read_made(node.kept, me) == {JOB: {1: told[0]}}
    assert not node.jobs.holds(ObjectHash(two.hash))
    assert node.jobs.standing()[0]["made_by"] == {me.hex(): 1}


@pytest.mark.parametrize("kept", [b"", Made(peer_of(1), b"", Instant(0.0)).encode()])
def test_nobody_tells_a_node_that_knows_what_it_made_that_it_made_something_else(
    kept: bytes,
) -> None:
    """Else it would tell that as its own, and be distrusted when the chunks turn out to be something else."""
    swarm = Swarm(2)
    me, liar = peer_of(1), peer_of(2)
    node = swarm.add(me, kept)
    swarm.add_job()
    (other,) = shards_of(1)
    node.disk.add(ObjectHash(other.hash))
    forged = JobResult(5, me, 1, (other,))
    node.jobs.received(liar, JobNews(JOB, True, "", (), (forged,)), swarm.now)
    assert node.jobs.rows(JOB) == []
    assert not node.jobs.holds(ObjectHash(other.hash))


def test_others_see_who_would_take_part_and_who_is_at_it() -> None:
    world = World(1)
    for number in range(3):
        world.add(number, *range(number))
    cores = [world.machines[number].node for number in range(3)]
    assert all(cores)

    def seen_by(number: int) -> list[str]:
        said = as_json(world.summary(number))["members"]
        return [member["preprocess"] for member in sorted(said, key=lambda m: m["address"])]

    world.within(20, lambda: seen_by(0) == ["no", "no", "no"], "no machine has room here")
    cores[1].library.jobs.may_make = True
    cores[2].library.jobs.may_make = cores[2].library.jobs.is_connected = True
    for number in range(3):
        world.within(30, lambda n=number: seen_by(n) == ["no", "able", "at work"], "all know")
