"""Pools that do not grow."""

from __future__ import annotations

import threading

from peerlm.daemon.pools import full_pool


def test_all_threads_run_from_the_start_and_no_more_come() -> None:
    before = threading.active_count()
    with full_pool(3, "some") as pool:
        assert threading.active_count() == before + 3
        assert [f.result() for f in [pool.submit(int, n) for n in range(50)]] == list(range(50))
        assert threading.active_count() == before + 3
    assert threading.active_count() == before
