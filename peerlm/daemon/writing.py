"""Hands a node's curves to the writers that node.toml asks for, each in a process of its own.

Nothing here waits for a writer but its own task: readings queue up for one that is slow, and when there are too many
the oldest goes. One that fails or dies is said so once, and again when it is well; its readings of that time are lost.
At the end each gets a few seconds, and is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peerlm.config import ObserveSection
from peerlm.observe.curves import Cadence, Origin, Reading

WAITING_MAX = 60
"""Readings that wait for one writer."""

CLOSE_S = 4.0
"""After this time a writer is killed at the end; its process gives it less."""

KILL_S = 1.0
"""A process that waits for a disk that does not answer is not even killed; nobody waits for it longer."""

AGAIN_S = 30.0
"""Before a writer whose process has ended gets another."""

Report = Callable[[str, str, dict[str, Any]], None]
"""Writes to the daemon's log: level, event, fields."""


class Writing:
    """All writers of a node, from now until `close`; none is as good as some. Call on the loop."""

    def __init__(
        self, settings: ObserveSection, origin: Origin, root: Path, report: Report
    ) -> None:
        """`root`: the folder below which the writers' own is, unless that is told in full."""
        folder = root / settings.folder
        self._cadence = Cadence(settings.every_s)
        self._pens = [_Pen(name, origin, folder, report) for name in settings.writers]

    def see(self, status: dict[str, Any], at: float) -> None:
        """Take in what the node says of itself at wall time `at`; call each second."""
        if self._pens:
            self._give(self._cadence.see(status, at))

    def _give(self, reading: Reading | None) -> None:
        if reading is not None:
            for pen in self._pens:
                pen.give(reading)

    async def close(self) -> None:
        """Hand on what is new, and end all writers, whatever they do."""
        self._give(self._cadence.rest())
        await asyncio.gather(*(pen.close() for pen in self._pens))


class _Pen:
    """One writer's process, and what waits for it."""

    def __init__(self, name: str, origin: Origin, folder: Path, report: Report) -> None:
        self._command = (
            *(sys.executable, "-P", "-m", "peerlm.daemon.writers.process"),
            *(name, str(folder)),
        )
        self._name = name
        self._origin = json.dumps(asdict(origin)).encode() + b"\n"
        self._report = report
        self._waiting: deque[bytes] = deque(maxlen=WAITING_MAX)
        self._news = asyncio.Event()
        self._is_well = True
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def give(self, reading: Reading) -> None:
        if len(self._waiting) == WAITING_MAX:
            self._tell("it takes nothing; the oldest points are dropped")
        self._waiting.append(reading.to_line())
        self._news.set()

    async def close(self) -> None:
        self._closing.set()
        self._news.set()
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=KILL_S)

    async def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if why := await self._one_life():
                    self._tell(why)
            except Exception as error:  # of the system's or our own: the training goes on
                self._tell(f"{type(error).__name__}: {error}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), AGAIN_S)

    async def _one_life(self) -> str:
        """Feed a process until it ends; why it has, if we did not want it to."""
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=_environment()
        )
        try:
            await self._feed(process)
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return "" if self._closing.is_set() else f"its process has ended with status {status}"

    async def _feed(self, process: Process) -> None:
        """A reading, then its answer: what the process has not asked for waits here, where it is bounded."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._origin)
        while (line := await self._next()) is not None:
            if process.stdin.is_closing():
                break
            process.stdin.write(line)
            if not (answer := await process.stdout.readline()):
                break
            why = json.loads(answer)
            if why or not self._waiting:  # one that is merely too slow is not well in between
                self._tell(why)
        process.stdin.close()

    async def _next(self) -> bytes | None:
        while not self._waiting and not self._closing.is_set():
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft() if self._waiting else None

    def _tell(self, why: str) -> None:
        if why and self._is_well:
            self._report("warning", "writer_failed", {"writer": self._name, "why": why})
        elif not why and not self._is_well:
            self._report("info", "writer_well", {"writer": self._name})
        self._is_well = not why


def _environment() -> dict[str, str]:
    """Ours, but for the invite: a writer has no use for it."""
    return {name: value for name, value in os.environ.items() if name != "PEERLM_TOKEN"}
