"""The page as it is read: by a screen reader, on a phone, with many nodes. What a node would say is made up here, so
that nothing changes but what a test is about."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import Tab, opened
from cli_scene import answer_of, member, sample_summary

from peerlm.daemon.page import Page
from peerlm.daemon.sockets import listen_tcp
from peerlm.store.layout import Layout

pytestmark = pytest.mark.timeout(120)

PHONE = 375
TEXT_MIN_PX = 11.0
BEGAN = 1_800_000_000.0


class Told:
    """A page with what is told on it: `status` at the start; from then on each answer is two seconds older."""

    def __init__(self, page: Page, members: int) -> None:
        self.page = page
        others = (member(number, mixed_s_ago=7.0 * number) for number in range(2, members + 1))
        lost = member(members + 1, state="dead", state_s=100.0, reason="no answer to four probes")
        self.status: dict[str, Any] = answer_of(sample_summary(members=(member(1), *others, lost)))
        self._answers = 0
        self._asked = asyncio.Event()
        page.status = self._answer
        for at, seen in enumerate(_past(self.status)):
            page.history.see(seen, BEGAN + 60.0 * at)

    def _answer(self) -> dict[str, Any]:
        self._answers += 1
        self._asked.set()
        for one in self.status["members"]:
            one["state_s"] += 2.0
            if one["mixed_s_ago"] is not None:
                one["mixed_s_ago"] += 2.0
        return self.status

    async def wait_answers(self, number: int) -> None:
        """Until so many more answers have been shown: the page asks again when it has shown one."""
        wanted = self._answers + number + 1
        async with asyncio.timeout(60):
            while self._answers < wanted:
                self._asked.clear()
                await self._asked.wait()


def _past(status: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Six minutes in which every node learns a little, each at its own pace."""
    for at in range(6):
        seen = copy.deepcopy(status)
        for number, one in enumerate(seen["members"]):
            one["tokens_per_s"] = 900.0 + 40 * number + 25 * ((at * (number + 3)) % 5)
            one["val_loss"] = 3.0 - 0.2 * at + 0.02 * number
        seen["consensus_distance"] = 0.02 / (at + 1)
        seen["swarm_tokens_per_s"] = sum(one["tokens_per_s"] for one in seen["members"])
        seen["bytes_sent"], seen["bytes_allreduce"] = 10**6 * (at + 1), 10**8 * (at + 1)
        yield seen


@asynccontextmanager
async def told(folder: Path, members: int, width: int = 1280) -> AsyncIterator[tuple[Told, Tab]]:
    """A page of a swarm of so many live nodes and a dead one, in a browser, with its curves drawn."""
    page = Page(Layout(folder), listen_tcp("127.0.0.1", 0), "127.0.0.1")
    try:
        scene = Told(page, members)
        async with opened(page.url, folder / "browser", width) as tab:
            rows = "document.querySelectorAll('#rows tr').length"
            await tab.wait(rows, lambda n: n == members + 1)
            await tab.wait("document.querySelectorAll('#bytes path').length", lambda n: n == 2)
            yield scene, tab
            other = [line for line in tab.complaints if "healthz" not in line]
            assert other == [] or page.status is None
    finally:
        await page.close()


# ------------------------------------------------------------------------------- other nodes' pages

LINKS = "[...document.querySelectorAll('#rows a')].map(a => [a.textContent, a.href])"
TRIED = "[...tried.values()].length - trying"


async def test_a_page_is_linked_where_a_try_has_found_that_very_node(tmp_path: Path) -> None:
    other = Page(Layout(tmp_path), listen_tcp("127.0.0.1", 0), "127.0.0.1")
    closed = listen_tcp("127.0.0.1", 0)
    nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    closed.close()
    try:
        async with told(tmp_path, members=5) as (scene, tab):
            own, second, third, fourth, fifth, dead = scene.status["members"]
            other.status = lambda: {"node_id": second["id"]}
            for one in (second, third, dead):
                one["page"] = other.url
            own["page"], fourth["page"], fifth["page"] = (
                scene.page.url,
                nobody,
                "javascript:alert(1)",
            )
            await tab.wait(TRIED, lambda number: number == 3)
            assert await tab.wait(LINKS) == [["02020202", other.url]]
            assert not await tab.value("document.getElementById('others').hidden")
            second["state"] = "suspect"
            await tab.wait(LINKS, lambda links: links == [])
    finally:
        await other.close()


# --------------------------------------------------------------------------------- a screen reader

WATCH = """(() => {
  window.seen = [];
  window.rows = [...document.querySelectorAll("#rows tr")];
  new MutationObserver(records => {
    for (const record of records) {
      const element = record.target.nodeType === 1 ? record.target : record.target.parentElement;
      const cell = element.closest("#rows td");
      const place = cell ? "column " + cell.cellIndex : element.closest("[id]").id;
      window.seen.push([record.type, place]);
    }
  }).observe(document.querySelector("header").parentElement, { subtree: true, childList: true, characterData: true,
    attributes: true });
})()"""

DRAWN = ("loss", "distance", "rate-swarm", "rate", "bytes", "map")
"""Pictures: each has one name, and nothing in it is read."""

LAST_EXCHANGE, WHY, PAIRS = "column 9", "column 10", "pairs"


async def seen(tab: Tab) -> list[list[str]]:
    """What was written since the last look, of what is read: kind of change, and where."""
    changes: list[list[str]] = await tab.value("window.seen.splice(0)")
    return [change for change in changes if change[1] not in DRAWN]


async def test_where_only_seconds_change_only_they_are_written(tmp_path: Path) -> None:
    async with told(tmp_path, members=4) as (scene, tab):
        await tab.value(WATCH)
        await scene.wait_answers(3)
        changes = await seen(tab)
        assert {tuple(change) for change in changes} == {
            ("characterData", LAST_EXCHANGE),
            ("characterData", WHY),
            ("characterData", PAIRS),
        }
        stayed = "window.rows.filter((row, i) => row === document.querySelectorAll('#rows tr')[i]).length"
        assert await tab.value(stayed) == 5
        scene.status["members"].insert(2, {**scene.status["members"][1], "id": "02ff" * 8})
        scene.status["why"] = ["mixing: 13 exchanges done"]
        await tab.wait("document.querySelectorAll('#rows tr').length", lambda n: n == 6)
        kinds = [kind for kind, place in await seen(tab) if place == "rows"]
        assert kinds == ["childList"], "one row more, and the others are where they were"
        assert await tab.value("window.rows.every(row => row.isConnected)")
        assert await tab.value("document.querySelectorAll('#rows tr')[2].cells[0].textContent") == (
            "02ff02ff"
        )


async def test_that_the_node_is_silent_is_read_out_once(tmp_path: Path) -> None:
    async with told(tmp_path, members=2) as (scene, tab):
        await tab.value(WATCH)
        await scene.page.close()
        scene.page.status = None
        await tab.wait("document.getElementById('trouble').hidden", lambda hidden: not hidden)
        shown = [change for change in await seen(tab) if change[1] == "trouble"]
        assert shown
        said = await tab.value("document.getElementById('silence').textContent")
        for _ in range(2):
            told_before = said
            said = await tab.wait(
                "document.getElementById('silence').textContent",
                lambda text, before=told_before: text != before,
            )
        assert [place for _, place in await seen(tab) if place != "silence"] == []
        assert not await tab.value(
            "Boolean(document.getElementById('silence').closest('[role=alert], [aria-live]'))"
        )


# ------------------------------------------------------------------------------------ on a phone

SMALLEST_TEXT = """[...document.querySelectorAll("svg text")].map(text =>
  [parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b), text.textContent])
  .sort((a, b) => a[0] - b[0])[0]"""

OVERLAPS = """%s.flatMap(id => {
  const boxes = [...document.querySelectorAll(`#${id} text`)].map(text => [text.getBoundingClientRect(), text.textContent]);
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b]) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom).map(([, other]) => [id, one, other]));
})"""

BEYOND = """[...document.querySelectorAll("svg *")].filter(e => {
  const box = e.getBoundingClientRect(), own = e.closest("section").getBoundingClientRect();
  return box.width && (box.left < own.left || box.right > own.right || box.top < own.top || box.bottom > own.bottom);
}).map(e => e.textContent)"""

UNFIT = """["loss", "distance", "rate-swarm", "rate", "bytes", "map"].filter(id => {
  const svg = document.querySelector(`#${id} svg`);
  return svg.viewBox.baseVal.width !== Math.floor(document.getElementById(id).clientWidth);
})"""


@pytest.mark.parametrize("members", [5, 39])
async def test_text_in_pictures_is_as_large_on_a_phone(tmp_path: Path, members: int) -> None:
    """Of many nodes the names on the map point outwards: that they overlap cannot be told from the boxes around them."""
    places = ["loss", "distance", "rate-swarm", "rate", "bytes", *(["map"] if members < 8 else [])]
    async with told(tmp_path, members) as (_, tab):
        for width, is_phone in ((PHONE, True), (1280, False), (PHONE, True)):
            await tab.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=800,
                deviceScaleFactor=1,
                mobile=is_phone,
            )
            await tab.wait(UNFIT, lambda places: places == [])
            size, text = await tab.value(SMALLEST_TEXT)
            assert size >= TEXT_MIN_PX, (width, text)
            assert await tab.value(OVERLAPS % places) == [], width
            assert await tab.value(BEYOND) == [], width
            assert await tab.value("document.documentElement.scrollWidth") <= width


# ---------------------------------------------------------------------------------- many nodes

LOOKS = """[...document.querySelectorAll("#%s path")].map(path =>
  path.getAttribute("stroke") + " " + path.getAttribute("stroke-dasharray"))"""

KEYS = """[...document.querySelectorAll("#%s-key > span")].map(entry =>
  [entry.textContent, entry.firstElementChild.getAttribute("style")])"""


async def test_each_of_many_nodes_has_a_curve_of_its_own_and_a_name_for_it(tmp_path: Path) -> None:
    async with told(tmp_path, members=20) as (_, tab):
        for place, others in (("rate", ["swarm"]), ("loss", [])):
            looks = await tab.value(LOOKS % place)
            if others:
                looks += await tab.value(LOOKS % "rate-swarm")
            keys = await tab.value(KEYS % place)
            assert len(set(looks)) == len(looks) == 20 + len(others)
            assert [name for name, _ in keys] == others + [
                f"{number:02x}" * 4 for number in range(1, 21)
            ]
            assert len({look for _, look in keys}) == len(keys)
        assert await tab.value("document.getElementById('rate-more').hidden")


async def test_of_more_nodes_than_can_be_told_apart_it_says_so(tmp_path: Path) -> None:
    async with told(tmp_path, members=40) as (_, tab):
        assert len(await tab.value(LOOKS % "loss")) == 32
        more = await tab.value("document.getElementById('loss-more').textContent")
        assert more == "8 more nodes are in the table of members alone"
