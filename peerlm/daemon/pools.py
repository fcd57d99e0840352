"""Thread pools that are full from the start, so that a daemon has as many threads after a month as after a minute."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def full_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads all run already."""
    pool, all_run = ThreadPoolExecutor(workers, name), threading.Barrier(workers)
    for started in [pool.submit(all_run.wait) for _ in range(workers)]:
        started.result()
    return pool
