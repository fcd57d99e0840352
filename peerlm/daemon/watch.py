"""Looks at the node each second, for whoever looks at it from outside: service manager, page, curves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from peerlm.daemon.loop import now, wall
from peerlm.daemon.notify import Health, Notifier
from peerlm.errors import StateError
from peerlm.observe.history import History, read_history
from peerlm.store import disk
from peerlm.store.disk import Layout

SAVE_S = 30.0
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
    look: Look, notifier: Notifier, history: History, layout: Layout, threads: Executor
) -> None:
    """Runs until cancelled; then the history is saved once more."""
    save_at = now() + SAVE_S

    async def save() -> None:
        data = history.to_bytes()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(StateError):  # a full disk is told of by the snapshots
            await loop.run_in_executor(threads, disk.write_atomic, layout.history, data)

    try:
        while True:
            health, status = look()
            notifier.tell(health)
            history.see(status, wall())
            if now() >= save_at:
                save_at = now() + SAVE_S
                await save()
            await asyncio.sleep(notifier.pause_s)
    finally:
        await asyncio.shield(save())
