"""Threads of a daemon share heaps, so what one has freed another can take."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAPS_OF_MANY_THREADS = """
import ctypes, sys
from peerlm.daemon.heaps import bound_heaps
from peerlm.daemon.pools import full_pool
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info") or not bound_heaps():
    sys.exit("no heaps to count here")
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
with full_pool(12, "some") as pool:
    list(pool.map(lambda n: libc.malloc(5000), range(200)))
    out = libc.fopen(sys.argv[1].encode(), b"w")
    libc.malloc_info(0, ctypes.c_void_p(out))
    libc.fclose(out)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="heaps of glibc")
def test_many_threads_have_two_heaps(tmp_path) -> None:
    told = tmp_path / "heaps.xml"
    done = subprocess.run(
        [sys.executable, "-c", HEAPS_OF_MANY_THREADS, str(told)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "no heaps to count" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert told.read_text().count("<heap nr=") <= 2
