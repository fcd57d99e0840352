"""What `status` shows and prints, held to the schema and to docs/status.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_scene import Cli, FakeDaemon, answer_of, member, sample_summary

from peerlm.cli import views, words
from peerlm.node.dial_back import Reached
from peerlm.node.status import MemberSummary, StoreSummary, headline, is_ready

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(resources.files("peerlm.observe").joinpath("status.schema.json").read_text())
CONTROL_CODES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def keys_of(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`members[].id` and the like: every key the schema names."""
    for name, inner in schema.get("properties", {}).items():
        yield prefix + name
        yield from keys_of(inner, f"{prefix}{name}.")
        if "items" in inner:
            yield from keys_of(inner["items"], f"{prefix}{name}[].")


def objects_of(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if schema.get("type") == "object":
        yield schema
    for inner in schema.get("properties", {}).values():
        yield from objects_of(inner)
        yield from objects_of(inner.get("items", {}))


def test_what_a_node_says_fits_the_schema() -> None:
    jsonschema.validate(answer_of(sample_summary()), SCHEMA)
    newborn = sample_summary(
        loss=None, val_loss=None, consensus_distance=None, members=(), address="", phase="seeking"
    )
    jsonschema.validate(answer_of(newborn), SCHEMA)


def test_the_schema_allows_nothing_more_and_nothing_less() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for schema in objects_of(SCHEMA):
        if "properties" in schema:
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**answer_of(sample_summary()), "mood": "fine"}, SCHEMA)


def test_every_key_is_explained_once() -> None:
    page = (ROOT / "docs" / "status.md").read_text()
    documented = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert sorted(documented) == sorted(keys_of(SCHEMA))


def test_json_is_one_object_as_the_daemon_gave_it(peerlm: Cli, daemon: FakeDaemon) -> None:
    outcome = peerlm("status", "--json", "--state", daemon.layout.root)
    assert outcome.code == 0
    assert json.loads(outcome.out) == daemon.answers["status"]
    members = json.loads(peerlm("peers", "--json", "--state", daemon.layout.root).out)
    assert members == daemon.answers["status"]["members"]


def test_in_a_pipe_status_is_plain_lines(peerlm: Cli, daemon: FakeDaemon) -> None:
    out = peerlm("status", "--state", daemon.layout.root).out
    assert not CONTROL_CODES.search(out)
    assert "01010101*  10.0.0.1:7700  training  yes    1 M     2.35 k  1.750  1.800  1.2 %" in out
    assert "02020202   10.0.0.2:7700  dead      no " in out
    for fact in (
        "01010101 of run plays (aaaaaaaa), training",
        "2.5 M of 20 M by the swarm (12.5 %), 1 M here; 5 k/s, about 58 min 20 s left",
        "1.750 training, 1.810 validation",
        "plays 75.0 %: pass 1, 25.0 % read, loss 1.800; news 25.0 %: pass 3, 50.0 % read, loss –",
        "running on cpu, 2.5 k tokens/s, 1 thread; restarted 1 times, last: killed by signal 9",
        "12 ok, 2 busy, 1 timed out; distance 1.2 %",
        "12.3 MB sent, 11 MB received; all-reduce would have sent 99 MB",
        "number 4, at 2.4 M tokens of the swarm",
    ):
        assert fact in out, fact


def test_the_view_on_a_terminal_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console(width=80, force_terminal=True, color_system=None)
    console.print(views.status_view(answer_of(sample_summary())))
    out = capsys.readouterr().out
    assert "01010101* 10.0.0.1:7700 training yes      1 M 2.35 k 1.750 1.800 1.2 %" in out
    for name, line in views.facts(answer_of(sample_summary())):
        assert name in out
        assert all(word in out for word in line.split()), line


def test_a_run_that_goes_on_from_a_checkpoint_names_it(peerlm: Cli, daemon: FakeDaemon) -> None:
    assert "goes on" not in peerlm("status", "--state", daemon.layout.root).out
    daemon.answers["status"] = answer_of(sample_summary(continues="ab" * 32))
    jsonschema.validate(daemon.answers["status"], SCHEMA)
    said = peerlm("status", "--state", daemon.layout.root).out
    assert "goes on   from checkpoint abababababababab" in said


def test_peers_shows_whole_ids_and_marks_this_node(peerlm: Cli, daemon: FakeDaemon) -> None:
    lines = peerlm("peers", "--state", daemon.layout.root).out.splitlines()
    assert lines[1].startswith("01" * 16 + "*")
    assert "dead" in lines[2]


def test_peers_says_below_what_is_in_the_way_of_whom(peerlm: Cli, daemon: FakeDaemon) -> None:
    dead = member(2, state="dead", state_s=75.0, reason="it answered nobody in time")
    other = member(3, reason="another plan: train.lr\x1b[2J")
    daemon.answers["status"] = answer_of(sample_summary(members=(member(1), dead, other)))
    lines = peerlm("peers", "--state", daemon.layout.root).out.splitlines()
    assert lines[4:6] == ["", "02020202: dead for 1 min 15 s: it answered nobody in time"]
    assert lines[6].startswith("03030303: another plan: train.lr")
    assert not CONTROL_CODES.search("".join(lines))


def test_why_prints_each_reason(peerlm: Cli, daemon: FakeDaemon) -> None:
    alone = sample_summary(participating=False, members=(member(1),), notes=("a note",))
    daemon.answers["status"] = answer_of(alone)
    out = peerlm("why", "--state", daemon.layout.root).out
    assert "this node is alone" in out
    assert "a note" in out


def test_a_node_that_nobody_can_dial_says_so_beside_what_it_does(
    peerlm: Cli, daemon: FakeDaemon
) -> None:
    guarded = Reached(guarded=True, not_by=2, failure="no answer from 10.0.0.1 port 7700")
    daemon.answers["status"] = answer_of(sample_summary(address="", reached=guarded))
    lines = peerlm("why", "--state", daemon.layout.root).out.splitlines()
    assert lines[0].startswith("mixing: 12 exchanges")
    assert lines[1].startswith("nobody can dial this node (no answer from 10.0.0.1 port 7700): it ")
    shown = peerlm("status", "--state", daemon.layout.root).out
    assert "address   none: nobody can dial it, it dials out\n" in shown
    partly = sample_summary(reached=Reached(by=1, not_by=1, failure="no answer"))
    daemon.answers["status"] = answer_of(partly)
    lines = peerlm("why", "--state", daemon.layout.root).out.splitlines()
    assert lines[1].startswith("1 member cannot dial this node (no answer): ")


def test_why_ends_with_what_is_wrong_with_the_store(peerlm: Cli, daemon: FakeDaemon) -> None:
    full = StoreSummary(10**9, 10**9, 2, lacking=3, is_full=True, wrong=("this node is full",))
    daemon.answers["status"] = answer_of(sample_summary(store=full))
    lines = peerlm("why", "--state", daemon.layout.root).out.splitlines()
    assert lines[0].startswith("mixing: 12 exchanges")
    assert lines[-1] == "the store: this node is full"


def test_the_store_has_a_line_where_there_is_something_in_it() -> None:
    assert "store" not in dict(views.facts(answer_of(sample_summary())))
    lacking = StoreSummary(10**9, 25 * 10**6, 2, lacking=3, swarm_lacking=5, is_full=True)
    line = dict(views.facts(answer_of(sample_summary(store=lacking))))["store"]
    assert line == "2 names; 25 MB of 1 GB here; lacking: 3 here, 5 in the swarm; full"


def test_what_is_wrong_is_shown() -> None:
    troubled = answer_of(
        sample_summary(
            worker_state="backing_off",
            snapshot_error="disk full",
            fetched_bytes=5_000_000,
            fetch_total_bytes=10_000_000,
            swarm_tokens_per_s=0.0,
            address="",
            nonfinite_steps=3,
        )
    )
    text = "\n".join(views.plain_status(troubled))
    for fact in (
        "backing off; restarted 1 times",
        "3 steps were not finite",
        "fails: disk full",
        "5 MB of 10 MB",
        "time left unknown",
        "not known yet",
    ):
        assert fact in text, fact


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (words.count(0), "0"),
        (words.count(999), "999"),
        (words.count(1234), "1.23 k"),
        (words.count(20_000_000), "20 M"),
        (words.size(512), "512 B"),
        (words.size(1_500_000_000), "1.5 GB"),
        (words.span(59), "59 s"),
        (words.span(75), "1 min 15 s"),
        (words.span(3600), "1 h"),
        (words.span(200_000), "2 d 7 h"),
        (words.share(0.00012), "0.012 %"),
        (words.share(None), "–"),
        (words.time_left(10, 10, 5.0), "budget reached"),
        (words.counts({"ok": 0, "busy": 0}), "none yet"),
    ],
)
def test_figures_are_short(given: str, text: str) -> None:
    assert given == text


def test_a_peers_text_cannot_command_the_terminal(peerlm: Cli, daemon: FakeDaemon) -> None:
    from rich.console import Console

    evil = "tcp://[/red]\x1b[2J\nfake line\u202e"
    status = answer_of(sample_summary(members=(member(1), member(2, address=evil))))
    status["why"] = ["refused by \x1b]0;title\x07 them\nand more"]
    daemon.answers["status"] = status
    for command in ("status", "peers", "why"):
        out = peerlm(command, "--state", daemon.layout.root).out
        assert not CONTROL_CODES.search(out)
        assert "\u202e" not in out
        assert not [line for line in out.splitlines() if line.startswith(("fake", "and more"))]
    console = Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as shown:
        console.print(views.status_view(status))
    assert "[/red]" in shown.get()
    assert "\x1b" not in shown.get()


# ------------------------------------------------------------------------- for a service manager


def test_the_headline_of_a_node_that_mixes() -> None:
    assert headline(sample_summary()) == (
        "plays: training, 2,500,000 tokens (12.5%), 0 of 1 others alive, validation loss 1.810"
    )


def test_the_headline_of_one_that_does_not_says_why() -> None:
    alone = sample_summary(participating=False, val_loss=None, members=(member(1),))
    assert headline(alone).startswith(
        "plays: training, 2,500,000 tokens (12.5%), 0 of 0 others alive;"
    )
    assert "this node is alone" in headline(alone)


@pytest.mark.parametrize(
    ("phase", "others", "ready"),
    [
        ("starting", (), False),
        ("seeking", (member(2, state="dead"),), False),
        ("seeking", (member(2),), True),
        ("fetching", (), True),
        ("training", (), True),
        ("done", (), True),
    ],
)
def test_ready_is_who_has_weights_or_somebody_to_get_them_from(
    phase: str, others: tuple[MemberSummary, ...], ready: bool
) -> None:
    assert is_ready(sample_summary(phase=phase, members=(member(1), *others))) is ready
