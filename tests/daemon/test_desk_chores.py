"""What is believed of a manifest's notes, which anybody may have written."""

from __future__ import annotations

from typing import Any

import pytest

from peerlm.daemon.desk_chores import _made_by
from peerlm.store.manifest import NOBODY, Chunk, Kind, of_files
from peerlm.types import ObjectHash, PeerId

ADA, BEA = PeerId(b"a" * 16), PeerId(b"b" * 16)
CHUNKS = [Chunk(ObjectHash(bytes([n]) * 32), 7) for n in range(5)]


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ([[NOBODY, 1], [1, 2], [0, 1]], [None, BEA, BEA, ADA, None]),
        ([[0, 5]], [ADA] * 5),
        ([[2, 1], [0, 1]], [None, ADA, None, None, None]),
        ([[0, 1], [0, 5]], [ADA, None, None, None, None]),
        ([[0, 1], [0, -1], [0, 1]], [ADA, None, None, None, None]),
        ([[0, 1], "nonsense", [0, 1]], [ADA, None, None, None, None]),
        ([["0", 1]], [None] * 5),
        ({"0": 1}, [None] * 5),
        (None, [None] * 5),
    ],
)
def test_runs_of_chunks_name_their_makers_as_far_as_they_make_sense(
    made: Any, found: list[PeerId | None]
) -> None:
    manifest = of_files(Kind.CHECKPOINT, [("model", CHUNKS)], {"made": made})
    by = _made_by(manifest, (ADA, BEA))
    assert [by.get(chunk.hash) for chunk in CHUNKS] == found
