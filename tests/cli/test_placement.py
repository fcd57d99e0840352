"""`peerlm placement`: who holds which stages, from what a node says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from cli_scene import SMALL, Cli, FakeDaemon, answer_of, assert_one_line, member, sample_summary

from peerlm.node.status import MemberSummary, PlacementSummary, StageSummary, Summary
from peerlm.observe.placement import placement_of

NEEDS = (StageSummary(10, 10, 5), StageSummary(10, 10, 5), StageSummary(10, 10, 5))
NONE = (1, 0)


def auto(number: int, held: tuple[int, int], room: int = 20, **changes: Any) -> MemberSummary:
    said = {"stages": held, "target": held, "is_auto": True, "memory_host": room, **changes}
    return member(number, tokens_per_s=100.0, **said)


def summary(*members: MemberSummary, why: str = "stages 0 lack hosts") -> Summary:
    placement = PlacementSummary(is_auto=True, why=why, stages=NEEDS)
    return sample_summary(stages=(0, 0, 3), members=members, placement=placement)


def found(*members: MemberSummary) -> dict[str, Any]:
    return placement_of(answer_of(summary(*members)))


def test_it_tells_who_is_ready_who_loads_and_what_hangs_on_one() -> None:
    one = auto(1, (0, 0), room=60)
    two = auto(2, (1, 1), target=(2, 2))
    come = auto(3, NONE, target=(1, 1), phase="starting")
    dead = auto(4, (0, 0), state="dead")
    told = found(one, two, come, dead)
    assert [e["ready"] for e in told["stages"]] == [[one.peer.hex()], [], []]
    assert told["stages"][1]["draining"] == [two.peer.hex()]
    assert told["stages"][1]["loading"] == [come.peer.hex()]
    assert told["stages"][2]["loading"] == [two.peer.hex()]
    assert told["stages"][0]["tokens_per_s"] == 100.0
    assert [e["spare"] for e in told["stages"]] == [[], [one.peer.hex()], [one.peer.hex()]]
    assert (told["lacking"], told["single"]) == ([1, 2], [0])
    assert [n["id"] for n in told["nodes"]] == [m.peer.hex() for m in (one, two, come)]


@pytest.mark.parametrize("phase", ["ready", "training", "draining", "settling", "done"])
def test_who_is_paused_or_done_holds_its_stages(
    phase: str, peerlm: Cli, daemon: FakeDaemon
) -> None:
    members = [auto(n, (n - 1, n - 1), phase=phase) for n in (1, 2, 3)]
    told = found(*members)
    assert [e["ready"] for e in told["stages"]] == [[m.peer.hex()] for m in members]
    assert told["lacking"] == []
    left = dataclasses.replace(summary(*members[:2]), phase=phase)
    daemon.answers["status"] = answer_of(left)
    out = peerlm("placement", "--state", daemon.layout.root).out
    is_over = phase in ("draining", "settling", "done")
    assert ("stage 2; no text is answered until" in out) is is_over
    assert ("stage 2; nothing is learnt until" in out) is not is_over
    assert "loading" not in out


@pytest.mark.parametrize("phase", ["starting", "seeking", "fetching", "installing"])
def test_who_has_no_weights_yet_loads(phase: str) -> None:
    told = found(auto(1, (0, 0), phase=phase))
    assert told["stages"][0]["loading"]
    assert told["lacking"] == [0, 1, 2]


def test_who_holds_everything_is_no_host_for_others() -> None:
    told = found(auto(1, (0, 0)), member(2, stages=(0, 2)))
    assert [len(e["ready"]) for e in told["stages"]] == [1, 0, 0]
    assert set(told["nodes"][1]["states"].values()) == {"whole"}


def test_stages_that_cannot_be_are_none() -> None:
    told = found(auto(1, (0, 0)), auto(2, (0, 2**40), target=(7, 9)))
    assert told["nodes"][1]["states"] == {}


def test_a_device_of_its_own_has_to_have_room_too() -> None:
    assert not found(auto(1, (0, 0), memory_device=10))["stages"][1]["spare"]
    assert found(auto(1, (0, 0), memory_device=20))["stages"][1]["spare"]


def test_a_model_in_one_piece_lacks_nothing() -> None:
    told = placement_of(answer_of(sample_summary()))
    assert (told["lacking"], told["single"]) == ([], [])


def test_the_command_shows_a_table_and_says_why(peerlm: Cli, daemon: FakeDaemon) -> None:
    able = {"flops_s": 2e9, "line_bytes_s": 5e6, "delay_s": 0.02, "away_s": 0.03}
    nodes = (
        auto(1, (0, 1), paces={"attention": 900}, busy=0.9, texts=4, **able),
        member(2, stages=(1, 1), busy=0.4),
        auto(3, NONE, phase="starting"),
    )
    daemon.answers["status"] = answer_of(summary(*nodes))
    out = peerlm("placement", "--explain", "--state", daemon.layout.root).out
    for line in (
        "node       stage 0  stage 1  stage 2  decides    tok/s   busy  texts",
        "01010101*  ready    ready    –        by itself  100     90 %  ≤ 4",
        "hosts      1        2        0",
        "busy       90 %     65 %     –",
        "without a host: stage 2; nothing is learnt until it has one",
        "single points of failure: stage 0",
        "01010101  stages 0 lack hosts",
        "; works 90 % of the time; has up to 4 texts going through it; computes 2 GFLOP/s; its line carries 5 MB/s; 20 ms from its neighbours; 30 ms from here",
        "          tok/s of one module: attention 900",
        "02020202  its owner has fixed its stages",
        "03030303  has not decided yet",
    ):
        assert line in out, out
    told = json.loads(peerlm("placement", "--json", "--state", daemon.layout.root).out)
    assert told == placement_of(daemon.answers["status"])


def test_whose_weights_are_old_is_said() -> None:
    told = found(auto(1, (0, 0)), auto(2, (0, 0), weights_tokens=12_345, is_behind=True))
    assert [n["why"] for n in told["nodes"]] == [
        "stages 0 lack hosts",
        "decided by itself; no texts: its weights are of 12,345 tokens, old beside another host's",
    ]


def test_old_weights_of_which_no_more_is_known_and_a_daemon_that_says_nothing_of_them() -> None:
    told = found(auto(1, (0, 0)), auto(2, (0, 0), weights_tokens=None, is_behind=True))
    assert told["nodes"][1]["why"].endswith(
        "; no texts: its weights were old beside another host's"
    )
    earlier = answer_of(summary(auto(1, (0, 0))))
    for said in earlier["members"]:
        del said["behind"], said["weights_tokens"], said["busy"], said["texts"]
    (node,) = placement_of(earlier)["nodes"]
    assert node["why"] == "stages 0 lack hosts"
    assert (node["busy"], node["texts"]) == (None, 0)


@pytest.mark.parametrize("more", [(), ("--set-node", "host.device_bytes=5")])
def test_a_first_node_has_to_have_room_for_the_first_stage(
    peerlm: Cli, tmp_path: Path, more: tuple[str, ...]
) -> None:
    options = ("--set", "model.stages=2", "--host", "auto", "--set-node", "host.memory_bytes=1000")
    outcome = peerlm("init", "--state", tmp_path / "node", *SMALL, *options, *more)
    assert_one_line(outcome, 2, "stage 0 takes", "host.memory_bytes", "model.stages")
    assert not (tmp_path / "node").exists()
