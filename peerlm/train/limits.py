"""What every process that trains keeps to: it ends with its parent, and within its memory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> bool:
    """Have the kernel kill this process when the parent ends. False: it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def limit_memory(most_bytes: int) -> None:
    """Let allocations beyond `limits.memory_bytes` fail here, rather than slow the whole host."""
    if most_bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
