"""Sudden death on demand: a child works until its parent kills it."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable


def kill_after(delay_s: float, work: Callable[[], None]) -> None:
    """Run `work` in a forked child and SIGKILL it `delay_s` seconds after it has begun."""
    begun, begin = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child only writes files
        child = os.fork()
    if child == 0:
        try:
            os.write(begin, b"!")
            work()
        finally:
            os._exit(1)  # reached only when `work` ends or raises: the parent then complains
    os.close(begin)
    assert os.read(begun, 1) == b"!"
    os.close(begun)
    signal.sigtimedwait([], delay_s)  # waits without spinning
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
