"""Looks at the node each second, for whoever looks at it from outside: service manager, page, curves, writers, and who has a
sample text written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from peerlm.daemon.heaps import give_back
from peerlm.daemon.loop import now, wall
from peerlm.daemon.notify import Health, Notifier
from peerlm.daemon.sampling import Sampling
from peerlm.daemon.writing import Writing
from peerlm.errors import StateError
from peerlm.observe.history import History, read_history
from peerlm.store import disk
from peerlm.store.layout import Layout

SAVE_S = 30.0

SEEK_S = 60.0
"""A node that listens and has found nobody for so long counts as started: a machine's boot waits for it."""

HISTORY_BYTES_MAX = 16 << 20

Look = Callable[[], tuple[Health, dict[str, Any]]]
"""What a service manager is told, and what `peerlm status --json` prints, as it is now."""


def history_of(layout: Layout) -> History:
    """As the last life of the node has left it; none is no harm."""
    with contextlib.suppress(StateError):
        if layout.history.exists():
            return read_history(disk.read_file(layout.history, HISTORY_BYTES_MAX))
    return History()


async def keep_watch(
    look: Look,
    notifier: Notifier,
    history: History,
    writing: Writing,
    sampling: Sampling,
    layout: Layout,
    threads: Executor,
) -> None:
    """Runs until cancelled; then the node is looked at and the history saved once more. Saving waits for the
    disk, telling never does: a service manager would take a slow disk for a loop that is stuck. With it, memory that has
    come free is given back to the system."""
    began, save_at = now(), now() + SAVE_S
    saving: asyncio.Task[None] | None = None

    def write(text: str) -> None:
        try:
            disk.write_atomic(layout.history, text.encode())
        finally:
            give_back()

    async def save() -> None:
        text, loop = history.to_text(), asyncio.get_running_loop()
        with contextlib.suppress(StateError):  # a full disk is told of by the snapshots
            await loop.run_in_executor(threads, write, text)

    try:
        while True:
            health, status = look()
            if now() - began > SEEK_S:
                health = replace(health, is_ready=True)
            notifier.tell(health)
            history.see(status, wall())
            writing.see(status, wall())
            sampling.see(status, wall())
            if now() >= save_at and (saving is None or saving.done()):
                save_at, saving = now() + SAVE_S, asyncio.create_task(save())
            await asyncio.sleep(notifier.pause_s)
    finally:
        try:
            writing.see(look()[1], wall())
        finally:
            if saving is not None:
                await asyncio.shield(saving)
            await asyncio.shield(save())
