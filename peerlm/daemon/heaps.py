"""Few heaps of the C library, and given back what is free in them, so that a daemon is as large after a month as after an hour.

glibc gives every thread a heap of its own until there are eight a processor. What one thread has freed no other takes, and
of a heap only the end goes back to the system; so each keeps the most that its thread ever needed at once, and as
threads of a pool take whatever work comes, in time each of them has met the largest. A daemon's threads allocate little:
tensors lie in vectors that are lent (`daemon.spare`), small objects in heaps of Python's own. What lies free amid what is
used is given back only when asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

M_ARENA_MAX = -8
HEAPS = 2
"""The loop's, and one for all threads beside it."""


def bound_heaps(most: int = HEAPS) -> bool:
    """From here on threads share so many heaps; those that there are stay. Call before any thread is started. False:
    the C library of this system knows no such bound, as musl's, which has a single heap."""
    if sys.platform != "linux":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(set_option(M_ARENA_MAX, most))


def give_back() -> None:
    """To the system, what is free in all heaps: milliseconds. What is needed of it again costs a page fault each."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
