"""What a node keeps of its decision comes back as it was, or says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerlm.errors import StateError
from peerlm.store.placed import Copy, Placed, read_placed
from peerlm.types import FragmentId, ObjectHash

COPY = Copy(3, ObjectHash(b"h" * 32), 40, (0.5, -1.0))


@pytest.mark.parametrize("placed", [Placed(), Placed(range(1, 3), {FragmentId(4): COPY})])
def test_it_comes_back_as_it_was(placed: Placed) -> None:
    assert read_placed(placed.encode(), Path("placement"), 3) == placed


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"{}",
        b'{"held": [0], "copies": []}',
        b'{"held": [0, -1], "copies": []}',
        b'{"held": [0, 4], "copies": []}',
        b'{"held": [0, 1], "copies": [[1, 2, "ab", 4, []]]}',
        b'{"held": [0, 1], "copies": [[1, 2, "' + b"ab" * 32 + b'", 4, [NaN]]]}',
        b'{"held": [0, 1], "copies": [[1, 2, 3, 4, []]]}',
        b'{"held": [true, 1], "copies": []}',
        b"[" * 100_000,
    ],
)
def test_what_is_damaged_is_named(wrong: bytes) -> None:
    with pytest.raises(StateError, match="decides anew"):
        read_placed(wrong, Path("placement"), 3)
