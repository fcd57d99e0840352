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


FREE_AMID_USED = """
import ctypes, sys
from pathlib import Path
from peerlm.daemon.heaps import give_back
def resident(): return int(Path("/proc/self/statm").read_text().split()[1])
libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_trim"):
    sys.exit("nothing to ask here")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
held = [libc.malloc(20_000) for _ in range(1000)]
for block in held:
    libc.memset(block, 1, 20_000)
for number, block in enumerate(held):
    if number % 20 != 19:
        libc.free(block)
before = resident()
give_back()
assert before - resident() > 3000, (before, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="heaps of glibc")
def test_what_is_free_amid_what_is_used_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREE_AMID_USED], capture_output=True, text=True, check=False
    )
    if "nothing to ask" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
