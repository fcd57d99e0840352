"""Work that is handed to processes beside this one: how many there is room for, and how they are begun.

Ctrl-C goes to all processes of a terminal. Whoever began them is to end them in its own way, so none of them may get it,
not even in the moments before it could say so itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def processors() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@contextmanager
def no_interrupt() -> Iterator[None]:
    """SIGINT waits till after; a process begun here never gets it, not even while Python starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
