"""What is found before tokens are made, by several nodes: one job follows from it, whoever concludes it, dies or comes late."""

from __future__ import annotations

import random

import pytest
from jobs_scene import FIRST, JOB, Swarm, expected, shards_of
from store_scene import peer_of

from peerlm.events import ManifestRead
from peerlm.node.finishing import FINISH_S, TURN_S
from peerlm.node.jobs import GONE_S, JOBS_MAX
from peerlm.store.manifest import Kind
from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.message import JobNews, JobResult, NameRecord

TASKS = 20


def swarm_of(count: int, seed: int = 1) -> Swarm:
    swarm = Swarm(count, TASKS, seed)
    swarm.add_job(job=FIRST)
    return swarm


def named(swarm: Swarm) -> list[bytes]:
    """What the job's name has stood for, in order."""
    return [r.manifest for r in swarm.records if r.name == "job-plays" and r.manifest]


def run_until_concluded(swarm: Swarm) -> PeerId:
    while not swarm.concluded:
        assert swarm.now < 100
        swarm.step()
    return swarm.concluded[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_nodes_makes_the_same_corpus(count: int) -> None:
    swarm = swarm_of(count)
    swarm.run(1)
    assert {job["sweep"] for n in swarm.nodes.values() for job in n.jobs.standing()} == {"prints"}
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected(TASKS)}
    assert swarm.living() == ["plays"]
    assert named(swarm) == [FIRST, JOB]
    assert 2 * TASKS <= len(swarm.all_made()) <= 2 * TASKS + 2 * count


@pytest.mark.parametrize("seed", range(8))
def test_whoever_dies_whenever_the_corpus_is_the_same(seed: int) -> None:
    rng = random.Random(seed)
    swarm = swarm_of(5, seed)
    for peer in rng.sample(list(swarm.nodes), rng.randint(1, 4)):
        swarm.run(rng.uniform(0, 3))
        if swarm.nodes[peer].jobs.standing():
            swarm.kill(peer)
    swarm.run_to_end()
    assert set(swarm.corpora) == {expected(TASKS)}


def test_one_concludes_it_however_long_that_takes() -> None:
    swarm = swarm_of(4)
    swarm.conclude_s = 5 * TURN_S
    swarm.run_to_end()
    assert len(swarm.concluded) == 1
    assert set(swarm.corpora) == {expected(TASKS)}


@pytest.mark.parametrize("how", ["dies", "has no process"])
def test_if_it_dies_meanwhile_another_does(how: str) -> None:
    swarm = swarm_of(3)
    swarm.conclude_s = 2.0
    while not any(node.at and node.at[1] == TASKS for node in swarm.nodes.values()):
        swarm.step()
    swarm.run(1)
    first = next(p for p, node in swarm.nodes.items() if node.at and node.at[1] == TASKS)
    if how == "dies":
        swarm.kill(first)
    else:
        node = swarm.nodes[first]
        node.has_process, node.at = False, None
        node.jobs.connected(swarm.now, is_there=False)
    swarm.run_to_end()
    assert swarm.concluded
    assert first not in swarm.concluded
    assert set(swarm.corpora) == {expected(TASKS)}


def test_a_next_job_that_went_with_who_wrote_it_is_written_again() -> None:
    swarm = swarm_of(3)
    first = run_until_concluded(swarm)
    others = [node for peer, node in swarm.nodes.items() if peer != first]
    assert not any(JOB in node.manifests for node in others)
    swarm.kill(first)
    swarm.run(1)
    assert not any(JOB in node.jobs._jobs for node in others), "nobody knows what it was"
    swarm.run(GONE_S + 3 * TURN_S)
    swarm.run_to_end()
    assert len(swarm.concluded) >= 2
    assert named(swarm)[:3] == [FIRST, JOB, JOB]
    assert set(swarm.corpora) == {expected(TASKS)}


def test_a_next_job_of_which_files_went_with_who_wrote_it_is_written_again() -> None:
    swarm = swarm_of(3)
    swarm.has_files = set()
    first = run_until_concluded(swarm)
    swarm.fetch()
    swarm.kill(first)
    others = [node for peer, node in swarm.nodes.items() if peer != first]
    assert all(JOB in node.jobs._jobs for node in others)
    swarm.run(2)
    assert all(node.jobs.standing()[0]["troubles"] for node in others)
    swarm.run_to_end()
    assert len(swarm.concluded) >= 2
    assert set(swarm.corpora) == {expected(TASKS)}


def test_findings_are_held_until_somebody_has_begun_with_the_next() -> None:
    swarm = swarm_of(2)
    run_until_concluded(swarm)
    node = next(node for node in swarm.nodes.values() if node.made)
    hashes = [ObjectHash(s.hash) for task in node.made for s in shards_of(task, FIRST)]
    assert any(map(node.jobs.holds, hashes))
    while not any(
        node.jobs.standing() and node.jobs.standing()[0]["makers"] for node in swarm.nodes.values()
    ):
        swarm.step()
    swarm.run(1)
    assert not any(map(node.jobs.holds, hashes))
    assert FIRST not in node.jobs._jobs


def test_what_was_begun_anew_under_its_name_stays() -> None:
    swarm = swarm_of(2)
    swarm.conclude_s = 3.0
    while not any(node.at and node.at[1] == TASKS for node in swarm.nodes.values()):
        swarm.step()
    other = ObjectHash(b"o" * 32)
    anew = NameRecord("job-plays", Kind.JOB, other, 9, 9, peer_of(9), 2.0, 2, False, "elsewhere")
    swarm.tell_name(anew)
    swarm.run(3 * TURN_S)
    assert set(named(swarm)) == {FIRST, other}
    assert named(swarm)[-1] == other


def test_findings_that_cannot_be_read_are_made_again() -> None:
    swarm = swarm_of(2)
    swarm.conclude_s = 2.0
    while not any(node.at and node.at[1] == TASKS for node in swarm.nodes.values()):
        swarm.step()
    node = next(node for node in swarm.nodes.values() if any(map(shards_of, node.made)))
    gone = next(task for task in node.made if shards_of(task))
    for each in swarm.nodes.values():
        each.disk.difference_update(ObjectHash(s.hash) for s in shards_of(gone, FIRST))
    swarm.run_to_end()
    assert len(swarm.concluded) == 1
    assert swarm.all_made().count(gone) >= 3
    assert set(swarm.corpora) == {expected(TASKS)}


def test_of_whoever_found_what_is_damaged_all_is_made_again() -> None:
    swarm = swarm_of(2)
    swarm.conclude_s = 2.0
    while not any(node.at and node.at[1] == TASKS for node in swarm.nodes.values()):
        swarm.step()
    me, node = next((p, n) for p, n in swarm.nodes.items() if n.at and n.at[1] == TASKS)
    (liar,) = (peer for peer in swarm.nodes if peer != me)
    (theirs, mine) = (
        [r.task for r in node.jobs.rows(FIRST) if r.maker == maker] for maker in (liar, me)
    )
    assert theirs
    node.at, swarm.nodes[liar].has_process = None, False
    swarm.perform(me, node.jobs.false(FIRST, theirs[0], "no fingerprints", swarm.now))
    assert node.logs == ["findings_false"]
    assert [r.task for r in node.jobs.rows(FIRST)] == mine
    told = JobResult(theirs[0], liar, 1, shards_of(theirs[0], FIRST))
    node.jobs.received(liar, JobNews(FIRST, False, "", (), (told,)), swarm.now)
    assert [r.task for r in node.jobs.rows(FIRST)] == mine, "nothing more of it is believed"
    swarm.run_to_end()
    assert swarm.concluded == [me]
    assert set(swarm.corpora) == {expected(TASKS)}
    assert all(swarm.all_made().count(task) >= 3 for task in theirs)


def test_a_node_that_finds_damaged_what_it_has_made_itself_takes_no_part() -> None:
    swarm = swarm_of(1)
    node = swarm.nodes[peer_of(1)]
    for logs in (["findings_false"], ["findings_false", "job_refused"]):
        while node.at is None or node.at[1] != TASKS:
            swarm.step()
        node.at = None
        swarm.perform(peer_of(1), node.jobs.false(FIRST, 3, "no fingerprints", swarm.now))
        assert node.logs == logs
    assert node.jobs.standing()[0]["troubles"] == {peer_of(1).hex(): "no fingerprints"}
    assert node.jobs.false(FIRST, 3, "no fingerprints", swarm.now) == []


def test_who_says_for_ever_that_it_concludes_is_not_waited_for_for_ever() -> None:
    swarm = swarm_of(2)
    liar = peer_of(2)
    swarm.nodes[liar].has_process = False
    jobs = swarm.nodes[peer_of(1)].jobs
    said = JobNews(FIRST, True, "", (TASKS,), ())
    while swarm.now < FINISH_S or not swarm.concluded:
        assert swarm.now < FINISH_S + 6 * TURN_S
        jobs.received(liar, said, swarm.now)
        swarm.step()
        if 4 * TURN_S < swarm.now < 5 * TURN_S:
            assert jobs.standing()[0]["done"] == TASKS
            assert swarm.concluded == []
            swarm.now = Instant(FINISH_S)
    assert swarm.concluded == [peer_of(1)]


def stands_for(swarm: Swarm, number: int, job: ObjectHash, lamport: int, sweep: str) -> None:
    """The name of job `number`; its manifest is read by the first node."""
    name, wall = f"job-{number:02}", float(number)
    swarm.tell_name(
        NameRecord(name, Kind.JOB, job, 9, lamport, peer_of(1), wall, 2, False, "there")
    )
    jobs = swarm.nodes[peer_of(1)].jobs
    jobs.read(ManifestRead(job, (), tasks=1, sweep=sweep), swarm.now)


def test_as_many_jobs_as_are_followed_go_on_with_their_next_sweeps() -> None:
    swarm = Swarm(1)
    jobs = swarm.nodes[peer_of(1)].jobs
    first, second = ([ObjectHash(bytes((of, n)) * 16) for n in range(JOBS_MAX)] for of in (1, 2))
    for number, job in enumerate(first):
        stands_for(swarm, number, job, 1, "prints")
    stands_for(swarm, 99, ObjectHash(b"w" * 32), 1, "")
    assert len(jobs.standing()) == JOBS_MAX, "one waits"
    for number, job in enumerate(second):
        stands_for(swarm, number, job, 2, "")
    assert {job["manifest"] for job in jobs.standing()} == {job.hex() for job in second}
    assert list(jobs._jobs) == [*first, *second]
    for job in second:
        assert jobs.next(job, swarm.now) == 0
    jobs.follow(swarm.now)
    assert list(jobs._jobs) == second


def test_names_that_are_written_again_and_again_leave_no_more_jobs_than_are_followed() -> None:
    swarm = Swarm(1)
    jobs = swarm.nodes[peer_of(1)].jobs
    for lamport in range(1, 3 * JOBS_MAX):
        stands_for(swarm, 1, ObjectHash(bytes((lamport,)) * 32), lamport, "prints")
    assert [job.is_over for job in jobs._jobs.values()] == [True] * JOBS_MAX + [False]


def test_makers_are_asked_first_for_findings() -> None:
    swarm = swarm_of(2)
    swarm.conclude_s = 5.0
    while not any(node.at and node.at[1] == TASKS for node in swarm.nodes.values()):
        swarm.step()
    me, node = next((p, n) for p, n in swarm.nodes.items() if n.at and n.at[1] == TASKS)
    (other,) = (peer for peer in swarm.nodes if peer != me)
    rows = node.jobs.rows(FIRST)
    theirs = [ObjectHash(s.hash) for r in rows if r.maker == other for s in r.shards]
    assert theirs
    assert {node.jobs.makers_of(chunk) for chunk in theirs} == {(other,)}
