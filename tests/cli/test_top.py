"""`peerlm top`: the screen before a daemon that does as a test says, and the command on a real terminal."""

from __future__ import annotations

import asyncio
import copy
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cli_scene import Cli, FakeDaemon, answer_of, assert_one_line, member, sample_summary
from terminal import on_terminal
from textual.pilot import Pilot

from peerlm.cli import top_screen
from peerlm.cli import top_view as view
from peerlm.cli.curve import plot
from peerlm.cli.top_asking import Asking, Story
from peerlm.cli.top_members import MembersTable
from peerlm.cli.top_screen import Help, Top
from peerlm.daemon.control import NoDaemon
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout
from peerlm.types import PeerId

LAYOUT = Layout(Path("/nowhere"))
NOW = 1_700_000_000.0

STILL_S = 600.0
"""Between two questions where none but the first matters."""


def point(number: int, **changes: Any) -> dict[str, Any]:
    said = {"at": NOW + 2 * number, "tokens": 1000 * number, "tokens_per_s": 5000.0, "loss": 3.0}
    said |= {"val_loss": 4.0 - 0.1 * number, "distance": 0.01, "alive": 2}
    return said | {"bytes_sent": 1, "bytes_allreduce": 10} | changes


def event(at: float, text: str, kind: str = "joined") -> dict[str, Any]:
    return {"at": NOW + at, "kind": kind, "text": text, "peer": "02020202"}


@dataclass
class Daemon:
    """What a test's daemon answers. `trouble`: raised instead; `is_awake`: cleared, it answers nothing."""

    status: dict[str, Any] = field(default_factory=lambda: answer_of(sample_summary()))
    points: list[dict[str, Any]] = field(default_factory=lambda: [point(n) for n in range(20)])
    events: list[dict[str, Any]] = field(default_factory=lambda: [event(1, "ada joined")])
    trouble: PeerlmError | None = None
    no_history: PeerlmError | None = None
    is_awake: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_awake.set()

    def ask(self, layout: Layout, command: str, **args: Any) -> dict[str, Any]:
        self.asked.append((command, args))
        assert self.is_awake.wait(30)
        if self.trouble:
            raise self.trouble
        if command == "status":
            return copy.deepcopy(self.status)
        if self.no_history:
            raise self.no_history
        later = {"points": self.points, "events": self.events}
        return {name: [x for x in said if x["at"] > args["since"]] for name, said in later.items()}

    def screen(self, pause_s: float = 0.1) -> Top:
        asking = Asking(LAYOUT, self.ask, pause_s)
        return Top(asking, asking.first())


def shown(app: Top) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


async def until(pilot: Pilot[None], *words: str, absent: str = "") -> str:
    """Waits until these words stand on the screen, and `absent` does not; what stands there."""
    try:
        async with asyncio.timeout(60):
            while True:
                text = shown(pilot.app)
                if all(w in text for w in words) and not (absent and absent in text):
                    return text
                await pilot.pause(0.01)
    except TimeoutError:
        raise AssertionError(f"{words}, without {absent!r}:\n{shown(pilot.app)}") from None


def table(pilot: Pilot[None]) -> MembersTable:
    return pilot.app.query_one(MembersTable)


def many(count: int) -> dict[str, Any]:
    members = (
        member(n % 250 + 1, peer=peer(n), address=f"tcp://10.0.0.1:{n}") for n in range(count)
    )
    return answer_of(sample_summary(peer=peer(0), members=tuple(members)))


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(2) * 8)


# ------------------------------------------------------------------------------- what it shows


async def test_it_shows_what_the_page_shows() -> None:
    async with Daemon().screen(STILL_S).run_test(size=(100, 30)) as pilot:
        text = await until(pilot, "Validation loss 2.100", "ada joined", "q Quit")
    for words in (
        "plays  training  1 of 2 alive  node 01010101",
        "12.5 %  2.5 M of 20 M tokens  about 58 min 20 s left",
        "swarm 5 k tokens/s  val loss 1.810  loss 1.750  distance 1.2 %",
        "sent 12.3 MB, all-reduce 99 MB (8 ×)",
        "why mixing: 12 exchanges done",
        "01010101*  10.0.0.1:7700  alive  training  2.35 k  1.750  1.800  1.2 %",
        "02020202   10.0.0.2:7700  dead   –",
        "4.000 ▏",
        "q Quit",
        "? Help",
    ):
        assert words in text, words


async def test_it_follows_the_daemon_and_tells_what_happens() -> None:
    daemon = Daemon()
    async with daemon.screen().run_test(size=(100, 30)) as pilot:
        await until(pilot, "2.5 M of 20 M")
        daemon.status["swarm_tokens"] = 5_000_000
        daemon.events.append(event(50, "bob was declared dead", "dead"))
        daemon.points.append(point(30, val_loss=1.234))
        news = ("5 M of 20 M tokens", "bob was declared dead", "ada joined", "loss 1.234")
        text = await until(pilot, *news)
        assert text.index("bob was declared dead") < text.index("ada joined")
    since = [args["since"] for command, args in daemon.asked if command == "history"]
    assert since[0] == 0.0
    assert set(since[1:]) <= {NOW + 38, NOW + 50, NOW + 60}, "it may ask between two changes"


async def test_a_daemon_that_goes_away_is_awaited_and_read_anew() -> None:
    daemon = Daemon()
    async with daemon.screen().run_test(size=(100, 30)) as pilot:
        await until(pilot, "training")
        daemon.trouble = NoDaemon("no peerlm daemon runs on /nowhere: start it with `peerlm up`")
        await until(
            pilot, "has not answered for", "no peerlm daemon runs on /nowhere", "2.5 M of 20 M"
        )
        daemon.asked.clear()
        daemon.status["swarm_tokens"] = 3_000_000
        daemon.events = [event(100, "this node started")]
        daemon.trouble = None
        text = await until(pilot, "3 M of 20 M", "this node started", absent="has not answered")
        assert "ada joined" not in text
    since = [args["since"] for command, args in daemon.asked if command == "history"]
    assert since[0] == 0.0


async def test_a_slow_answer_holds_up_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_screen, "SILENT_S", 0.05)
    monkeypatch.setattr(top_screen, "TICK_S", 0.02)
    daemon = Daemon()
    async with daemon.screen().run_test(size=(100, 30)) as pilot:
        daemon.is_awake.clear()
        await until(pilot, "has not answered for")
        await pilot.press("s")
        await until(pilot, "by state")
        await pilot.press("question_mark")
        await until(pilot, "quit")
        await pilot.press("escape")
        daemon.is_awake.set()
        monkeypatch.setattr(top_screen, "SILENT_S", 30.0)
        await until(pilot, absent="has not answered for")
        daemon.is_awake.clear()
        await pilot.press("q")
    daemon.is_awake.set()


async def test_a_daemon_of_another_version_has_no_history_to_tell() -> None:
    daemon = Daemon(no_history=PeerlmError("no command 'history'; there are join, status"))
    async with daemon.screen(STILL_S).run_test(size=(100, 30)) as pilot:
        await until(pilot, "2.5 M of 20 M", "no command 'history'")


async def test_what_is_not_well_is_said() -> None:
    troubled = sample_summary(
        phase="fetching",
        phase_reason="no text yet",
        worker_state="backing_off",
        snapshot_error="disk full",
        swarm_tokens_per_s=0.0,
        fetched_bytes=5_000_000,
        fetch_total_bytes=10_000_000,
    )
    async with (
        Daemon(answer_of(troubled), [], []).screen(STILL_S).run_test(size=(100, 30)) as pilot
    ):
        await until(
            pilot,
            "fetching: no text yet",
            "worker backing off: killed by signal 9",
            "snapshot fails: disk full",
            "time left unknown",
            "fetching 5 MB of 10 MB",
            "not measured yet",
            "nothing yet",
        )


async def test_help_closes_and_what_comes_meanwhile_is_shown_after_it() -> None:
    daemon = Daemon()
    async with daemon.screen().run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, Help)
        asked = len(daemon.asked)
        daemon.status["swarm_tokens"] = 7_000_000
        while len(daemon.asked) < asked + 3:
            await pilot.pause(0.01)
        await pilot.press("question_mark")
        await until(pilot, "7 M of 20 M")


async def test_x_shows_who_exchanges_with_whom_and_goes_on_doing_so() -> None:
    far, near = PeerId(b"\x03" * 16), PeerId(b"\x02" * 16)
    members = (
        member(1, mixed_with=((near, 7.0),)),
        member(2, mixed_s_ago=7.0, mixed_with=((PeerId(b"\x01" * 16), 7.0), (far, 64.0))),
        member(3, mixed_s_ago=400.0, mixed_with=((near, 32.0),)),
    )
    daemon = Daemon(answer_of(sample_summary(members=members)))
    async with daemon.screen().run_test(size=(100, 30)) as pilot:
        await until(pilot, "02020202 7 s", "01010101 7 s", "02020202 32 s")
        await until(pilot, "this node, mixes with 02020202 7 s")
        await pilot.press("x")
        await until(pilot, "01010101 with 02020202  7 s ago", "02020202 with 03030303  32 s ago")
        assert "400" not in shown(pilot.app)
        for m in daemon.status["members"]:
            m |= {"mixed_with": [], "mixed_s_ago": None}
        await until(pilot, "none in the last five minutes")
        await pilot.press("x")
        await until(pilot, "ada joined")


async def test_the_text_of_the_latest_weights_begins_at_the_head_and_t_shows_all_of_it() -> None:
    daemon = Daemon()
    async with daemon.screen().run_test(size=(100, 30)) as pilot:
        await until(pilot, "text at 2.4 M tokens: MENENIUS: What then?")
        await pilot.press("t")
        await until(pilot, "snapshot 4, at 2.4 M tokens of the swarm", "What then?", "MENENIUS:")
        changes = {"text": "", "at": None, "why": "there is no snapshot yet\x1b[2J"}
        daemon.status["sample"] |= changes
        await until(
            pilot, "there is no snapshot yet\N{REPLACEMENT CHARACTER}[2J", absent="MENENIUS"
        )
        daemon.status["sample"] |= {"writing": True}
        await until(pilot, "the node writes …")
        del daemon.status["sample"]
        await until(pilot, "of a version that writes no texts")
        await pilot.press("escape")
        await until(pilot, "ada joined")


# ------------------------------------------------------------------------- members and their order


def test_of_the_picked_member_is_said_what_is_in_its_way() -> None:
    dead = member(2, state="dead", reason="it answered nobody in time\x1b")
    well, gone = view.rows(answer_of(sample_summary(members=(member(1), dead))), view.ORDERS[0])
    assert well.note == "01" * 16 + ", this node, mixes"
    assert gone.note.startswith("02" * 16 + ": it answered nobody in time")
    assert "\x1b" not in gone.note


@pytest.mark.timeout(60)
async def test_the_picked_member_stays_picked_among_hundreds() -> None:
    daemon = Daemon(many(500))
    async with daemon.screen().run_test(size=(80, 24)) as pilot:
        await until(pilot, "Members 500, by node")
        await pilot.press("end", "up", "up")
        picked = peer(497).hex()
        await until(pilot, "Members 500", picked[:8])
        assert table(pilot).picked.key == picked
        for m in daemon.status["members"]:
            m["tokens_per_s"] = float(int(m["id"][:4], 16) % 97)
        await pilot.press("s", "s")
        await until(pilot, "by tok/s")
        assert table(pilot).picked.key == picked
        assert picked[:8] in shown(pilot.app)
        daemon.status["members"] = daemon.status["members"][::2] + daemon.status["members"][497:498]
        await until(pilot, "Members 251")
        assert table(pilot).picked.key == picked
        daemon.status["members"] = daemon.status["members"][:1]
        await until(pilot, "Members 1,")
        assert table(pilot).picked.key == peer(0).hex()
        daemon.status["members"] = []
        await until(pilot, "Members 0,")
        await pilot.press("down", "end", "pageup", "left", "r")
        assert table(pilot).picked is None


@pytest.mark.timeout(60)
async def test_pages_arrows_and_clicks_move_in_the_table() -> None:
    async with Daemon(many(100)).screen(STILL_S).run_test(size=(60, 24)) as pilot:
        await until(pilot, "Members 100", "Quit")
        await pilot.pause()
        await pilot.press("pagedown", "pagedown", "down")
        lines = table(pilot)._lines
        assert table(pilot).picked.key == peer(2 * (lines - 1) + 1).hex()
        await pilot.press("home")
        assert table(pilot).picked.key == peer(0).hex()
        await pilot.click(MembersTable, offset=(5, 4))
        assert table(pilot).picked.key == peer(2).hex()
        await pilot.press("right")
        assert table(pilot).scroll_offset.x > 0
        await pilot.press("left", "left")
        assert table(pilot).scroll_offset.x == 0


@pytest.mark.timeout(60)
async def test_tab_goes_round_the_panes_and_c_round_the_curves() -> None:
    async with Daemon().screen(STILL_S).run_test(size=(100, 30)) as pilot:
        seen = []
        for _ in range(4):
            seen.append(pilot.app.focused.id)
            await pilot.press("tab")
        assert seen == ["members", "curve", "events", "members"]
        for title in ("Training loss", "Consensus", "Tokens/s", "Members alive", "Validation"):
            await pilot.press("c")
            await until(pilot, title)


@pytest.mark.parametrize("order", view.ORDERS, ids=lambda o: o.column)
def test_members_are_sorted_by_each_column_and_the_unknown_come_last(order: view.Order) -> None:
    status = answer_of(
        sample_summary(
            members=(
                member(1, loss=2.0, val_loss=2.0, distance=0.1, tokens_per_s=1.0, tokens=1),
                member(2, loss=None, val_loss=None, distance=None, state="dead", phase=""),
                member(3, loss=1.0, val_loss=1.0, distance=0.2, tokens_per_s=9e9, tokens=10**9),
            )
        )
    )
    for m, ago in zip(status["members"], (9.0, None, 3.0), strict=True):
        m["mixed_s_ago"] = ago
    ways = [
        [row.key[1] for row in view.rows(status, order, is_reversed=way)] for way in (False, True)
    ]
    if order.column in ("loss", "val", "dist", "mixed"):
        assert ways == [["3", "1", "2"], ["1", "3", "2"]]
    else:
        assert ways[0] == ways[1][::-1]
        first = {"node": "1", "state": "2", "tok/s": "3", "tokens": "3"}[order.column]
        assert ways[0][0] == first


# --------------------------------------------------------------------------- any terminal, any text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [(40, 10), (20, 6), (3, 2), (250, 70)])
@pytest.mark.parametrize("count", [0, 500])
async def test_any_size_will_do(size: tuple[int, int], count: int) -> None:
    async with Daemon(many(count)).screen(STILL_S).run_test(size=size) as pilot:
        await pilot.press("s", "tab", "down", "question_mark", "escape")
        await pilot.resize_terminal(40, 24)
        await until(pilot, "training", f"Members {count}", "Validation", "Events", "Quit")
        await pilot.resize_terminal(*size)
        await pilot.press("end", "c")


async def test_at_forty_columns_a_dead_member_is_seen_to_be_dead() -> None:
    async with Daemon().screen(STILL_S).run_test(size=(40, 24)) as pilot:
        text = await until(pilot, "10.0.0.2:7700", "dead")
    assert max(map(len, text.splitlines())) == 40


async def test_text_of_peers_is_neither_markup_nor_commands() -> None:
    evil = "[/red][@click=app.quit]x[/]\x1b[2J\x1b]0;t\x07\n\u202e"
    status = answer_of(
        sample_summary(
            run_name=evil,
            phase_reason=evil,
            worker_state="backing_off",
            worker_last_error=evil,
            snapshot_error=evil,
            members=(member(1, phase=evil), member(2, address=f"tcp://{evil}", phase="好" * 9)),
        )
    )
    status["why"] = [evil]
    daemon = Daemon(status, events=[event(1, evil), event(2, evil, "dead")])
    async with daemon.screen().run_test(size=(200, 40)) as pilot:
        text = await until(pilot, "Members 2")
        assert not [c for c in text.replace("\n", "") if not c.isprintable()]
        assert text.count("[/red][@click=app.quit]x[/]") >= 6
        daemon.trouble = PeerlmError(evil)
        text = await until(pilot, "has not answered")
        assert not [c for c in text.replace("\n", "") if not c.isprintable()]
        await pilot.click("#trouble", offset=(8, 1))
        await pilot.click("#head", offset=(8, 0))
        assert pilot.app.is_running


async def test_without_colours_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with Daemon().screen(STILL_S).run_test(size=(80, 24)) as pilot:
        await until(pilot, "Members 2")
        styles = [
            segment.style
            for strip in pilot.app.screen._compositor.render_strips()
            for segment in strip
            if segment.style is not None
        ]
    colours = {c.name for style in styles for c in (style.color, style.bgcolor) if c is not None}
    assert colours <= {"default"}
    assert any(style.reverse for style in styles)


# ------------------------------------------------------------------------------------- curves


def test_a_line_goes_from_corner_to_corner_with_its_scale() -> None:
    lines = plot([0.0, 10.0], [2.0, 1.0], 30, 4, lambda v: f"{v:.1f}")
    assert [line[:5] for line in lines[:3]] == ["2.0 ▏", "    ▏", "1.0 ▏"]
    assert lines[0][5] != "\u2800"
    assert lines[2].rstrip("\u2800") == lines[2]
    assert {len(line) for line in lines} == {30}


def test_the_pen_is_lifted_where_nothing_is_known() -> None:
    values = [1.0, 1.0, *[None] * 6, 1.0, 1.0]
    (row, _, _) = plot([float(n) for n in range(10)], values, 40, 3, lambda v: "")
    assert "\u2800" * 15 in row


@pytest.mark.parametrize(
    ("values", "width", "height"),
    [
        ([], 40, 10),
        ([1.0], 40, 10),
        ([None, None, 1.0], 40, 10),
        ([1.0, 2.0], 5, 10),
        ([1.0, 2.0], 40, 2),
        ([1.0, 2.0], 0, 0),
    ],
)
def test_too_few_values_or_too_little_room_give_nothing(
    values: list[float | None], width: int, height: int
) -> None:
    times = [float(n) for n in range(len(values))]
    assert plot(times, values, width, height, str) == []


@pytest.mark.parametrize("times", [[0.0, 0.0, 0.0], [5.0, 1.0, 3.0]])
@pytest.mark.parametrize("is_log", [True, False])
def test_odd_values_and_clocks_are_drawn_as_they_can_be(times: list[float], is_log: bool) -> None:
    for values in ([0.0, 0.0, 0.0], [1.0, -1.0, 2.0], [1e-30, 1e30, 1.0]):
        for line in plot(times, values, 30, 5, lambda v: f"{v:.0e}", is_log=is_log):
            assert len(line) <= 30


def test_a_story_that_could_not_be_told_keeps_what_was() -> None:
    daemon = Daemon()
    asking = Asking(LAYOUT, daemon.ask)
    assert len(asking.first().story.points) == 20
    daemon.no_history = PeerlmError("internal error")
    story = asking._round().story
    assert (len(story.points), story.trouble) == (20, "internal error")
    assert "internal error" in view.events(story, NOW).plain
    daemon.no_history = None
    assert asking._round().story == Story(daemon.points, daemon.events)


# --------------------------------------------------------------------------------- the command


def test_without_a_daemon_it_says_what_status_says(peerlm: Cli, founded: Path) -> None:
    status = peerlm("status", "--state", founded)
    assert_one_line(status, 3, "no peerlm daemon runs on")
    assert peerlm("top", "--state", founded) == status


def test_without_a_terminal_it_names_what_to_use(peerlm: Cli, daemon: FakeDaemon) -> None:
    daemon.answers["history"] = {"points": [], "events": []}
    outcome = peerlm("top", "--state", daemon.layout.root)
    assert_one_line(outcome, 1, "top needs a terminal", "`peerlm status --watch`")
    assert outcome.out == ""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM])
def test_on_a_terminal_it_comes_and_leaves_it_as_it_was(
    daemon: FakeDaemon, end: str | signal.Signals
) -> None:
    daemon.answers["history"] = {"points": [], "events": [event(1, "ada joined")]}
    with on_terminal("top", "--state", daemon.layout.root) as terminal:
        terminal.wait_text("ada joined")
        if isinstance(end, str):
            terminal.type(end)
        else:
            terminal.process.send_signal(end)
        assert terminal.wait_end() == 0
        assert terminal.said.rfind("\x1b[?1049l") > terminal.said.rfind("\x1b[?1049h") >= 0
        assert "Traceback" not in terminal.text


@pytest.mark.timeout(120)
def test_a_fault_of_ours_ends_it_with_a_line(daemon: FakeDaemon) -> None:
    daemon.answers["history"] = {"points": [], "events": []}
    with on_terminal("top", "--state", daemon.layout.root) as terminal:
        terminal.wait_text("nothing yet")
        daemon.answers["status"] = {"state": "odd"}
        assert terminal.wait_end() == 1
        assert "peerlm: internal error: KeyError" in terminal.text
        assert "Traceback" not in terminal.text
