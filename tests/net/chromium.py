"""A real headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

START_S = 30.0
ANSWER_S = 20.0
POLL_S = 0.2

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)


class Tab:
    """One page. `complaints`: what its console has said that is no plain log, and exceptions."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._asked = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["params"]))
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] in (
                "error",
                "warning",
                "assert",
            ):
                self.complaints.append(json.dumps(said["params"]["args"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] in (
                "error",
                "warning",
            ):
                self.complaints.append(json.dumps(said["params"]["entry"]))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._asked += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._asked] = answer
        await self._socket.send_json({"id": self._asked, "method": method, "params": params})
        said = await asyncio.wait_for(answer, ANSWER_S)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def value(self, script: str) -> Any:
        """Of a JavaScript expression."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait(
        self, script: str, is_so: Callable[[Any], bool] = bool, limit_s: float = 30.0
    ) -> Any:
        """The first value of `script` that is so."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while not is_so(value := await self.value(script)):
            assert loop.time() < end, f"{script}: still {value!r} after {limit_s:g} s"
            await asyncio.sleep(POLL_S)
        return value

    async def tree(self) -> list[dict[str, Any]]:
        """What a screen reader gets: all nodes that are not ignored."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [node for node in nodes if not node["ignored"]]

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextlib.asynccontextmanager
async def opened(url: str, folder: Path, width: int = 1280) -> AsyncIterator[Tab]:
    """`url` in a new browser. Skips the test where there is no Chromium."""
    program = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if program is None:
        pytest.skip("needs Chromium")
    process = await asyncio.create_subprocess_exec(
        *(
            program,
            *FLAGS,
            f"--user-data-dir={folder}",
            f"--window-size={width},900",
            "about:blank",
        ),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = await _port_of(folder)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(t for t in await answer.json() if t["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Runtime", "Log", "Page", "Network"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Page.navigate", url=url)
                yield tab
                listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def _port_of(folder: Path) -> int:
    loop = asyncio.get_running_loop()
    end = loop.time() + START_S
    file = folder / "DevToolsActivePort"
    while True:
        lines = file.read_text().splitlines() if file.exists() else []
        if lines:
            return int(lines[0])
        assert loop.time() < end, "Chromium does not start"
        await asyncio.sleep(POLL_S)
