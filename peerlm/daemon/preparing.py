"""The process that makes token shards for jobs of the swarm: there while there is a job for this node.

It is `peerlm data work`, which talks to this daemon over the store's desk like any command, reads sources and starts processes
of its own; so nothing that a source or a tokenizer does can hold up or end the daemon. It is nicer than anything that
trains. The kernel ends it with the daemon; one that fails is started again after a while, longer each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping
from pathlib import Path

from peerlm.daemon.worker_process import torch_environment

FAILED_S, FAILED_S_MAX = 1.0, 60.0
"""One that ended is not started again for so long, then twice as long each time."""

GRACE_S = 2.0
"""It has so long to end those that it has started."""


class Preparing:
    """Of one daemon.

    Args:
        root: of the state folder.
        folders: what may be read there for others (`store.folders`).
        tell: writes to the log: level, event, fields.
    """

    def __init__(
        self, root: Path, folders: str, tell: Callable[[str, str, Mapping[str, object]], None]
    ) -> None:
        self._root, self._folders, self._tell = root, folders, tell
        self._life: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def want(self, is_wanted: bool) -> None:
        """Whether there is a job for this node."""
        if is_wanted and self._life is None:
            self._life = asyncio.create_task(self._live())
        elif not is_wanted and self._life is not None:
            life, self._life = self._life, None
            life.cancel()
            self._ending.add(life)
            life.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        self.want(False)
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _live(self) -> None:
        pause_s = FAILED_S
        while True:
            began = _now()
            try:
                status = await self._run()
                why = f"exit status {status}" if status else ""
            except OSError as error:
                why = f"it cannot be started: {error}"
            if why:
                self._tell("warning", "maker_failed", {"why": why})
            if not why or _now() - began > FAILED_S_MAX:
                pause_s = FAILED_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, FAILED_S_MAX)

    async def _run(self) -> int:
        """From its start to its end: its exit status. Raises `OSError`."""
        process = await self._spawn()
        self._tell("info", "maker_started", {"pid": process.pid})
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                await _end(process)

    async def _spawn(self) -> Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-X", "faulthandler", "-m", "peerlm.__main__", "data", "work"),
            *("--state", str(self._root.absolute()), "--parent", str(os.getpid())),
            *("--folders", self._folders),
            stdin=DEVNULL,
            stdout=2,
            stderr=2,
            env=torch_environment(1),
        )


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _now() -> float:
    return asyncio.get_running_loop().time()
