from __future__ import annotations

import tracemalloc

import pytest

from peerlm.errors import AuthError
from peerlm.identity import canonical

SIZE = 500_000

BOMBS = {
    "arrays in arrays that claim half a million": (b"\xdd\x00\x07\xa1\x20" * 1000).ljust(
        SIZE, b"\xc0"
    ),
    "many small arrays": b"\xdd\x00\x07\xa1\x1b" + b"\x90" * (SIZE - 5),
    "many lists in lists": b"\xdc\x01\xf0" + (b"\x91" * 1000 + b"\x00") * 496,
    "many small maps": b"\xdc\x1f\x00" + b"\x80" * 0x1F00,
    "maps in maps": b"\x81\xa1a" * 1000 + b"\xc0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_cost_anything(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(AuthError, match="not canonical"):
            canonical.decode(BOMBS[name], 512 * 1024, "plan")
        assert tracemalloc.get_traced_memory()[1] < 72 << 20
    finally:
        tracemalloc.stop()


def test_the_longest_plan_has_room() -> None:
    longest = canonical.encode({"data": {"shards": ["0" * 64] * 7_700}})
    assert canonical.decode(longest, 512 * 1024, "plan")["data"]["shards"][-1] == "0" * 64
