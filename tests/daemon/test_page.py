"""How much the page takes from whoever connects, and that it is nobody's way into training."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from peerlm.daemon.page import CONNECTIONS_MAX, Page
from peerlm.daemon.sockets import listen_tcp
from peerlm.store.layout import Layout

LIFE_S = 3.0
REQUEST = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    made = Page(Layout(tmp_path), listen_tcp("127.0.0.1", 0), "127.0.0.1", life_s=LIFE_S)
    made.status = lambda: {"ready": True, "why": ["mixing"], "snapshot": {"number": 1}}
    yield made
    await made.close()


async def connected(page: Page) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(page.url.rstrip("/").rsplit(":", 1)[1])
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(page: Page, what: bytes) -> bytes:
    """The whole answer, up to the end of the connection."""
    reader, writer = await connected(page)
    writer.write(REQUEST % what)
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_connection_carries_one_request(page: Page) -> None:
    answer = await ask(page, b"healthz")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in answer


async def test_who_says_nothing_is_hung_up_on_and_there_are_only_so_many(page: Page) -> None:
    await ask(page, b"healthz")
    silent = [await connected(page) for _ in range(CONNECTIONS_MAX)]
    for reader, _ in silent:
        assert not reader.at_eof()
    reader, writer = await connected(page)
    assert await reader.read() == b"", "one too many"
    writer.close()
    for reader, writer in silent:
        assert await reader.read() == b"", "too long"
        writer.close()
    assert (await ask(page, b"readyz")).startswith(b"HTTP/1.1 200")


async def test_it_can_be_closed_twice_and_after_nobody_came(page: Page, tmp_path: Path) -> None:
    await ask(page, b"healthz")
    await page.close()
    await page.close()
    unseen = Page.listen(Layout(tmp_path), "127.0.0.1", 0, or_free=True)
    await unseen.close()


async def test_what_keeps_it_from_serving_is_logged_and_ends_only_the_page(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    page.report = lambda *entry: told.append(entry)
    monkeypatch.setattr(Page, "_serve", failing)
    with pytest.raises(ConnectionError):
        await ask(page, b"healthz")
    assert [entry[:2] for entry in told] == [("error", "page_failed")]
    await page.close()


async def failing(page: Page) -> None:
    raise ImportError("no aiohttp")


async def test_before_there_is_a_node_it_says_so(page: Page) -> None:
    page.status = None
    for what in (b"", b"status", b"metrics", b"readyz", b"history"):
        assert (await ask(page, what)).startswith(b"HTTP/1.1 503")


async def test_a_fault_of_the_page_is_logged_and_answered(page: Page) -> None:
    told: list[Any] = []
    page.report = lambda *entry: told.append(entry)
    page.status = dict
    assert (await ask(page, b"readyz")).startswith(b"HTTP/1.1 500")
    ((level, event, fields),) = told
    assert (level, event) == ("error", "page_failed")
    assert "KeyError" in fields["traceback"]


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff" * 9000]
)
async def test_nonsense_is_no_news(
    page: Page, garbage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = await connected(page)
    writer.write(garbage)
    writer.write_eof()
    await reader.read()
    writer.close()
    said = capsys.readouterr()
    assert said.out + said.err == ""
