"""`peerlm checkpoint make`: it says how many nodes have what was made."""

from __future__ import annotations

import json
import time

import pytest
from cli_scene import Cli, assert_one_line
from desk_scene import ME, OTHER, FakeDesk, chunk_of, desk, node

from peerlm.cli import copies
from peerlm.store.manifest import Chunk, Kind, of_files
from peerlm.types import ObjectHash

__all__ = ["desk"]

MAKE = ("checkpoint", "make")


def test_it_is_waited_for_until_two_nodes_have_it(peerlm: Cli, desk: FakeDesk) -> None:
    done = peerlm(*MAKE, "--name", "kept", "--pin")
    assert done.out.splitlines() == [
        "kept: 100 B",
        "durable: 2 nodes have all of it on their disks; 3 are wanted, the rest follows",
    ]
    assert (done.code, desk.records["kept"]["is_pinned"], desk.connections) == (0, True, 0)


def test_what_it_says_to_programs(peerlm: Cli, desk: FakeDesk) -> None:
    told = json.loads(peerlm(*MAKE, "--json").out)
    assert (told["name"], told["kind"], told["tokens"]) == ("checkpoint-000000000007", "checkpoint", 7)  # fmt: skip
    assert (told["bytes"], told["chunks"], told["before"]) == (100, 2, "ab" * 32)
    assert (told["replicas_least"], told["is_durable"]) == (2, True)
    (listed,) = json.loads(peerlm("checkpoint", "ls", "--json").out)
    assert set(told) == {*listed, "is_durable"}


def test_nobody_need_wait(peerlm: Cli, desk: FakeDesk) -> None:
    desk.copies = lambda wanted: 1
    done = peerlm(*MAKE, "--wait", "0")
    assert (done.code, "not waited for copies; 3 replicas are wanted" in done.out) == (0, True)
    told = json.loads(peerlm(*MAKE, "--wait", "0", "--json").out)
    assert (told["replicas_least"], told["is_durable"]) == (None, None)


def test_a_node_alone_is_done_at_once(peerlm: Cli, desk: FakeDesk) -> None:
    desk.nodes, desk.copies = [node(ME)], lambda wanted: 1
    done = peerlm(*MAKE)
    assert (done.code, "there is one copy, here" in done.out) == (0, True)


def test_copies_that_do_not_come_are_an_error(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "STANDSTILL_S", 0.0)
    monkeypatch.setattr(copies, "LOOK_S", 0.001)
    desk.wall = time.time()
    manifest = desk.checkpoint("kept") and desk.records["kept"]["manifest"]
    desk.copies = lambda wanted: 1 if wanted.hex() == manifest else 2
    assert_one_line(peerlm(*MAKE, "--name", "kept"), 1, "kept is in the store, but 1 chunks have not come to 2 nodes")  # fmt: skip


def test_what_died_with_those_that_made_it_is_an_error_sooner(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "NOWHERE_S", 0.0)
    monkeypatch.setattr(copies, "LOOK_S", 0.001)
    desk.wall = time.time()
    made = desk.checkpoint("kept")
    desk.lost = {desk.manifest(made).chunks[0].hash}
    assert_one_line(peerlm(*MAKE, "--name", "kept"), 1, "1 of its chunks are at no node that answers")  # fmt: skip


def test_what_is_made_again_under_the_name_is_waited_for_instead(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "LOOK_S", 0.001)
    lost, looks = chunk_of(b"w" * 50).hash, 0

    def of(wanted: ObjectHash) -> int:
        nonlocal looks
        looks += 1
        if looks == 6:
            listed = [("model.safetensors", [Chunk(desk.put(b"u" * 50), 50)])]
            desk.publish("kept", of_files(Kind.CHECKPOINT, listed, {}), replaces=True)
        return 0 if wanted == lost else 2

    desk.copies = of
    done = peerlm(*MAKE, "--name", "kept")
    assert (done.code, done.out.splitlines()[0]) == (0, "kept: 50 B")
    assert "durable: 2 nodes" in done.out


@pytest.mark.parametrize(
    ("is_pinned", "age_s"), [(True, 1e6), (False, 1e6), (True, 1.0)], ids=["pinned", "old", "other"]
)
def test_a_name_that_is_taken_is_not_taken_over(
    is_pinned: bool, age_s: float, peerlm: Cli, desk: FakeDesk
) -> None:
    desk.wall = time.time() - age_s
    desk.checkpoint("kept", is_pinned=is_pinned)
    before = dict(desk.records["kept"])
    assert_one_line(peerlm(*MAKE, "--name", "kept"), 3, "the name kept is taken (checkpoint", "--replace")  # fmt: skip
    assert desk.records["kept"] == before
    desk.wall += 1.0
    assert peerlm(*MAKE, "--name", "kept", "--pin", "--replace").code == 0
    assert desk.records["kept"]["written_at"] == desk.wall


def test_what_is_no_checkpoint_is_not_replaced(peerlm: Cli, desk: FakeDesk) -> None:
    desk.has("plays", [("a", [b"text"])])
    done = peerlm(*MAKE, "--name", "plays")
    assert_one_line(done, 3, "the name plays is taken (files", "choose another")
    assert "--replace" not in done.err


def test_a_command_that_failed_may_be_said_again(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "STANDSTILL_S", 0.0)
    monkeypatch.setattr(copies, "LOOK_S", 0.001)
    desk.wall, desk.copies = time.time() - 60.0, lambda wanted: 1
    again = (*MAKE, "--name", "kept", "--pin")
    assert peerlm(*again).code == 1
    desk.wall += 1.0
    assert peerlm(*again).code == 1
    assert desk.records["kept"]["written_at"] == desk.wall, "it is made anew"
    desk.wall, desk.copies = desk.wall + 1.0, lambda wanted: 2
    done = peerlm(*again)
    assert (done.code, "durable: 2 nodes" in done.out) == (0, True)
    assert "and is as it was" in done.err
    assert desk.records["kept"]["written_at"] < desk.wall, "what has come meanwhile is enough"


def test_copies_that_have_no_room_are_not_waited_for(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "STANDSTILL_S", 0.0)
    monkeypatch.setattr(copies, "LOOK_S", 0.001)
    desk.copies = lambda wanted: 1
    desk.nodes = [node(ME, used_bytes=10**9 - 60), node(OTHER, used_bytes=10**9 - 10)]
    desk.said = {"chunks": {**desk.status()["chunks"], "due_bytes": 10**9 - 60}}
    done = peerlm(*MAKE, "--name", "kept")
    assert_one_line(done, 3, "kept is in the store, but it does not fit", "10 B at bbbbbbbb", "--wait 0")  # fmt: skip
    assert "kept" in desk.records
    assert peerlm(*MAKE, "--name", "more", "--wait", "0").code == 0


def test_what_others_made_may_have_its_copy_here(peerlm: Cli, desk: FakeDesk) -> None:
    desk.nodes = [node(ME), node(OTHER, used_bytes=10**9)]
    looks = iter([1] * 3)
    desk.copies = lambda wanted: next(looks, 2)
    assert peerlm(*MAKE, "--name", "kept").code == 0
