"""What nodes show over HTTP: to a browser, to Prometheus, to scripts, and to those who mean harm; and what of it is
seen on a terminal."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from chromium import opened
from cli_scene import answer_of, member, sample_summary
from swarm import Node, Swarm, exchanged_more, wait_for
from terminal import on_terminal

from peerlm.cli import words
from peerlm.daemon.page import CONNECTIONS_MAX, Page
from peerlm.daemon.sockets import listen_tcp
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout

pytestmark = pytest.mark.timeout(240)

SCHEMA = json.loads((Path(__file__).parents[2] / "peerlm/observe/status.schema.json").read_text())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    swarm = Swarm(tmp_path_factory.mktemp("page"))
    try:
        by_itself = {"observe.sample_every_s": "2", "observe.sample_prompt": "Oh"}
        founder = swarm.found(**{"page.port": "0", **by_itself})
        second = swarm.join(founder, "", **{"page.port": "0"})
        swarm.wait_whole()
        yield founder, second
    finally:
        swarm.close()


def url_of(node: Node) -> str:
    return str(node.status()["page"])


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """(status, text, headers in small letters)."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), _small(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), _small(error.headers)


def _small(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_status_history_metrics_and_health(pair: tuple[Node, Node]) -> None:
    url = url_of(pair[0])
    code, text, headers = get(url + "status")
    assert code == 200
    jsonschema.validate(json.loads(text), SCHEMA)
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    code, text, _ = get(url + "history")
    history = json.loads(text)
    assert code == 200
    assert len(history["points"]) >= 2
    assert [e["kind"] for e in history["events"]][:1] == ["start"]
    assert any(e["kind"] == "joined" for e in history["events"])
    code, text, headers = get(url + "metrics")
    assert code == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert re.search(r"^peerlm_swarm_tokens [1-9]", text, re.MULTILINE)
    assert get(url + "healthz")[:2] == (200, "ok\n")
    node_id = pair[0].status()["node_id"]
    code, text, headers = get(f"{url}healthz?node={node_id}")
    assert (code, text, headers["access-control-allow-origin"]) == (200, "ok\n", "*")
    assert get(f"{url}healthz?node={'0' * 32}")[:2] == (404, "another node\n")
    assert "access-control-allow-origin" not in get(url + "status")[2]
    assert get(url + "readyz")[:2] == (200, "ready\n")


def test_names_that_are_not_ours_and_paths_that_are_not_there(pair: tuple[Node, Node]) -> None:
    url = url_of(pair[0])
    code, text, _ = get(url + "status", Host="evil.example")
    assert (code, text) == (403, "peerlm: Host 'evil.example' is not a name of this machine\n")
    for host in ("localhost", "localhost:7703", "127.0.0.1:1", "[::1]:7703", "10.1.2.3"):
        assert get(url + "status", Host=host)[0] == 200, host
    assert get(url + "../../etc/passwd")[0] == 404
    request = urllib.request.Request(url + "sample", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=20)


def test_whoever_connects_and_says_nothing_or_nonsense_holds_up_nobody(
    pair: tuple[Node, Node],
) -> None:
    node = pair[0]
    before = node.status()["exchanges"]["ok"]
    port = int(url_of(node).rstrip("/").rsplit(":", 1)[1])
    guests = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3 * CONNECTIONS_MAX)]
    for number, guest in enumerate(guests):
        try:
            guest.sendall(
                (b"GET / HTTP/1.1\r\nX: ", b"\x00\xff" * 4000, b"POST /sample HTTP/1.1\r\n")[
                    number % 3
                ]
            )
        except OSError:
            continue  # one too many: hung up on
    node.wait(lambda s: s["exchanges"]["ok"] > before + 3, "it goes on mixing")
    for guest in guests:
        guest.close()
    wait_for(lambda: _answers(url_of(node)), "it answers again")


def _answers(url: str) -> bool:
    try:
        return get(url + "healthz")[0] == 200
    except OSError:
        return False


def test_a_sample_is_written_once_for_a_snapshot(pair: tuple[Node, Node]) -> None:
    node = pair[1]
    node.wait(lambda s: s["snapshot"]["number"] > 0, "it has a snapshot")
    node.ask("pause")
    request = urllib.request.Request(
        url_of(node) + "sample", method="POST", headers={"X-Peerlm": "sample"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 202
        assert json.loads(answer.read())["writing"]
    sample = wait_for(lambda: _sample(url_of(node)), "it is written", 120)
    assert sample["why"] == ""
    assert sample["snapshot"] > 0
    assert sample["text"]
    node.ask("resume")


def _sample(url: str) -> dict[str, Any] | None:
    """Of the node's status, once it is written."""
    sample: dict[str, Any] = json.loads(get(url + "status")[1])["sample"]
    return None if sample["writing"] else sample


def test_on_a_terminal(pair: tuple[Node, Node]) -> None:
    node = pair[0]
    node.wait(lambda s: s["val_loss"] is not None, "it has evaluated")
    whole = node.ask("history")
    assert whole["points"]
    assert node.ask("history", since=whole["points"][-1]["at"] + 1e6) == {
        "points": [],
        "events": [],
    }
    with pytest.raises(PeerlmError, match="since must be a number of seconds"):
        node.ask("history", since="yesterday")
    with on_terminal("top", "--state", node.folder) as terminal:
        for words in ("2 of 2 alive", "Members 2, by node", " joined", "Validation loss"):
            terminal.wait_text(words)
        terminal.type("q")
        assert terminal.wait_end() == 0
    assert "Traceback" not in terminal.text


async def test_in_a_browser(pair: tuple[Node, Node], tmp_path: Path) -> None:
    node = pair[0]
    pair[1].wait(exchanged_more(pair[1]), "they mix")
    async with opened(url_of(node), tmp_path / "browser") as tab:
        await tab.wait("document.querySelectorAll('#rows tr').length", lambda n: n == 2)
        await tab.wait("document.querySelectorAll('#loss path').length", lambda n: n >= 1)
        await tab.wait("document.querySelectorAll('#map line').length", lambda n: n == 1)
        tokens = await tab.value("document.getElementById('left').textContent")
        await tab.wait("document.getElementById('left').textContent", lambda t: t != tokens)
        assert await tab.value("document.getElementById('events').textContent.includes('joined')")
        assert await tab.value("document.documentElement.lang") == "en"
        nameless = (
            "[...document.querySelectorAll('svg')].filter(s => !s.querySelector('title')).length"
        )
        assert await tab.value(nameless) == 0
        await tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=375,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        assert await tab.value("document.documentElement.scrollWidth") <= 375
        focused = []
        for _ in range(6):
            for kind in ("keyDown", "keyUp"):
                await tab.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key="Tab",
                    code="Tab",
                    windowsVirtualKeyCode=9,
                )
            focused.append(
                await tab.value("document.activeElement.id || document.activeElement.className")
            )
        assert focused[0] == "skip"
        assert "events" in focused
        assert "write" in focused
        listed = "document.getElementById('pairs').textContent"
        ours, theirs = sorted(node.id[:8] for node in pair)
        assert f"{ours} with {theirs}, " in await tab.value(listed)
        await tab.wait("document.getElementById('sample').textContent.startsWith('Oh')")
        assert tab.complaints == []
        assert len(await tab.picture()) > 10_000


CONTRAST_MIN = 4.5
"""Of text on what it stands on, as WCAG has it."""

WORST_CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => rgb(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgb(colour)[3] === 255) return colour;
    }
    return "white";
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter(n => n.nodeType === 3 && n.textContent.trim());
    if (!words.length || !element.getClientRects().length || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const pair = [light(element.closest("svg") ? style.fill : style.color), light(ground(element))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < worst[0]) worst = [contrast, words[0].textContent.trim()];
  }
  return worst;
})()"""


async def test_the_exchanges_of_all_nodes_are_seen_and_listed_from_any(tmp_path: Path) -> None:
    """Of five nodes: this one mixes with the second, the others among each other."""
    status = answer_of(sample_summary(members=tuple(member(n) for n in range(1, 6))))
    ids = [m["id"] for m in status["members"]]
    mixed = {0: [(1, 2.0)], 1: [(0, 2.0), (2, 64.0)], 2: [(3, 8.0)], 3: [(2, 4.0)], 4: []}
    for number, partners in mixed.items():
        told = [{"id": ids[partner], "s_ago": ago} for partner, ago in partners]
        status["members"][number] |= {"mixed_with": told}
    status["members"][1]["mixed_s_ago"] = 2.5
    status["sample"]["text"] = "<b>PETRUCHIO:</b>\nNay, come again"
    page = Page(Layout(tmp_path), listen_tcp("127.0.0.1", 0), "127.0.0.1")
    page.status = lambda: status
    try:
        async with opened(page.url, tmp_path / "browser") as tab:
            listed = "[...document.querySelectorAll('#pairs li')].map(item => item.textContent)"
            assert await tab.wait(listed) == [
                "01010101 with 02020202, 2 s ago",
                "03030303 with 04040404, 4 s ago",
                "02020202 with 03030303, 1 min 4 s ago",
            ]
            assert await tab.value("document.querySelectorAll('#map line').length") == 3
            names = [node["name"]["value"] for node in await tab.tree() if "name" in node]
            (told,) = [name for name in names if "have exchanged" in name]
            assert told.startswith("3 pairs of 5 nodes have exchanged in five minutes: 01010101")
            assert told.endswith("02020202 with 03030303, 1 min 4 s ago")
            assert "exchanges, the latest first" in names
            text = await tab.value("document.getElementById('sample').textContent")
            assert text == status["sample"]["text"]
            of = await tab.value("document.getElementById('sample-of').textContent")
            assert of.startswith("with snapshot 4, at 2.40 M tokens of the swarm, ")
            status["members"][4]["mixed_with"] = [{"id": ids[0], "s_ago": 1.0}]
            status["sample"] |= {"writing": True, "through_swarm": True}
            await tab.wait("document.querySelectorAll('#map line').length", lambda n: n == 4)
            assert (await tab.value(listed))[0] == "01010101 with 05050505, 1 s ago"
            of = await tab.value("document.getElementById('sample-of').textContent")
            assert of.startswith("through the stages of several nodes, at 2.40 M tokens")
            assert of.endswith("; the node writes …")
            status["sample"] |= {"text": "", "at": None, "writing": False, "why": "none: no room"}
            await tab.wait("document.getElementById('sample-of').textContent === 'none: no room'")
            for m in status["members"]:
                m |= {"mixed_with": [], "mixed_s_ago": None}
            await tab.wait("document.querySelectorAll('#map line').length", lambda n: n == 0)
            assert await tab.value("document.querySelector('#map title').textContent") == (
                "0 pairs of 5 nodes have exchanged in five minutes"
            )
            assert tab.complaints == []
    finally:
        await page.close()


async def test_it_is_read_in_light_and_in_dark_and_without_eyes(
    pair: tuple[Node, Node], tmp_path: Path
) -> None:
    async with opened(url_of(pair[0]), tmp_path / "browser") as tab:
        await tab.wait("document.querySelectorAll('#rows tr').length", lambda n: n == 2)
        await tab.wait("document.querySelectorAll('#rate path').length", lambda n: n == 2)
        assert await tab.value("document.querySelectorAll('#rate-swarm path').length") == 1
        grounds = set()
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            await tab.call("Emulation.setEmulatedMedia", features=[feature])
            grounds.add(await tab.value("getComputedStyle(document.body).backgroundColor"))
            contrast, text = await tab.value(WORST_CONTRAST)
            assert contrast >= CONTRAST_MIN, (scheme, contrast, text)
        assert len(grounds) == 2
        told = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in await tab.tree()
        ]
        names = {role: {name for r, name in told if r == role} for role, _ in told}
        assert {"Run", "Events", "Members", "Who mixes with whom"} <= names["heading"]
        assert {"node", "state", "tokens/s", "why"} <= names["columnheader"]
        assert len(names["rowheader"]) == 2
        assert "Write a sample" in names["button"]
        for role in ("button", "link", "image", "img", "progressbar", "region"):
            assert "" not in names.get(role, set()), f"a nameless {role}"
        assert any("validation loss over time; now" in name for _, name in told)
        ours, theirs = (node.id[:8] for node in pair)
        both = " with ".join(sorted((ours, theirs)))
        assert any("have exchanged" in name and both in name for _, name in told)


async def test_the_page_outlives_its_node(pair: tuple[Node, Node], tmp_path: Path) -> None:
    node = pair[1]
    url, seen = url_of(node), "document.getElementById('trouble').hidden"
    points = len(json.loads(get(url + "history")[1])["points"])
    async with opened(url, tmp_path / "browser") as tab:
        await tab.wait("document.querySelectorAll('#rows tr').length", lambda n: n == 2)
        node.signal(15)
        node.wait_end()
        await tab.wait(seen, lambda hidden: not hidden)
        assert await tab.value("document.querySelectorAll('#rows tr').length") == 2
        node.up()
        await tab.wait(seen, limit_s=60.0)
        assert url_of(node) == url
        await tab.wait(
            "document.getElementById('events').textContent.split('started').length",
            lambda n: n >= 3,
        )
    assert len(json.loads(get(url + "history")[1])["points"]) >= points


def test_a_node_writes_a_text_by_itself_says_what_it_is_of_and_keeps_it(
    pair: tuple[Node, Node],
) -> None:
    node = pair[0]
    sample = node.wait(lambda s: s["sample"]["text"], "it has written one", 120)["sample"]
    assert sample["text"].startswith("Oh")
    assert sample["why"] == ""
    assert not sample["through_swarm"]
    assert 0 < sample["snapshot"] <= node.status()["snapshot"]["number"]
    assert 0 < sample["tokens"] <= node.status()["swarm_tokens"]
    assert 0 < time.time() - sample["at"] < 240
    assert 0 < sample["cpu_s"] < 20
    node.signal(15)
    node.wait_end()
    node.up()
    assert node.wait(lambda s: s["sample"]["text"], "it is there")["sample"] == sample
    with on_terminal("top", "--state", node.folder) as terminal:
        terminal.wait_text(f"text at {words.count(sample['tokens'])} tokens: Oh")
        terminal.type("t")
        terminal.wait_text(f"snapshot {sample['snapshot']}, at ")
        terminal.type("q")
        assert terminal.wait_end() == 0


async def test_when_one_node_is_gone_the_swarm_is_followed_from_another(
    pair: tuple[Node, Node], tmp_path: Path
) -> None:
    first, second = pair
    first.wait(exchanged_more(first), "they mix")
    names = {node: str(node.status()["node_id"])[:8] for node in pair}
    urls = {node: url_of(node) for node in pair}
    title = "document.getElementById('title')?.textContent ?? ''"
    links = "[...document.querySelectorAll('#rows a')].map(a => [a.textContent, a.href])"
    async with opened(urls[second], tmp_path / "browser") as tab:
        for here, there in ((second, first), (first, second)):
            await tab.wait(title, lambda text, node=here: text.endswith(names[node]))
            assert await tab.wait(links) == [[names[there], urls[there]]]
            await tab.call("Page.navigate", url=urls[there])
        await tab.wait(title, lambda text: text.endswith(names[second]))
        assert await tab.wait(links) == [[names[first], urls[first]]]
        assert tab.complaints == []
        first.kill()
        rows = "[...document.querySelectorAll('#rows tr')].map(r => [r.cells[0].textContent, r.cells[2].textContent])"
        await tab.wait(rows, lambda rows: [names[first], "dead"] in rows, 60.0)
        assert await tab.value(links) == []
        await tab.wait(
            "document.getElementById('events').textContent",
            lambda text: f"{names[first]} at" in text and "was declared dead" in text,
        )
        tokens = await tab.value("document.getElementById('left').textContent")
        await tab.wait("document.getElementById('left').textContent", lambda t: t != tokens)
        assert await tab.value("document.getElementById('trouble').hidden")
