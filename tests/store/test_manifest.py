"""Manifests as bytes: one encoding of each, and nothing else is one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.errors import ChunkCorrupt
from peerlm.store.manifest import CHUNK_BYTES, Chunk, Kind, Manifest, of_files, read_manifest
from peerlm.types import ObjectHash

chunks = st.builds(
    Chunk, st.binary(min_size=32, max_size=32).map(ObjectHash), st.integers(1, CHUNK_BYTES)
)
paths = st.text('ab/é"\\{],[', min_size=1, max_size=6).filter(
    lambda path: all(part for part in path.split("/"))
)
manifests = st.builds(
    of_files,
    st.sampled_from(Kind),
    st.dictionaries(paths, st.lists(chunks, max_size=3), max_size=3).map(lambda d: d.items()),
    st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3)),
)


def whole(manifest: Manifest) -> dict[str, object]:
    found: dict[str, object] = json.loads(manifest.encode())
    return found


@settings(max_examples=60)
@given(manifests)
def test_it_is_the_json_of_its_fields_and_comes_back_as_it_was(manifest: Manifest) -> None:
    encoded = manifest.encode()
    assert encoded == json.dumps(whole(manifest), sort_keys=True, separators=(",", ":")).encode()
    assert read_manifest(encoded) == manifest


@settings(max_examples=150)
@given(manifests, st.data())
def test_what_was_touched_is_refused_or_another_manifest(
    manifest: Manifest, data: st.DataObject
) -> None:
    encoded = manifest.encode()
    at = data.draw(st.integers(0, len(encoded) - 1))
    other = data.draw(st.sampled_from([b"", b"0", b" ", b'"', b"]", b",", b"{", b"\xff", b"\\"]))
    touched = encoded[:at] + other + encoded[at + data.draw(st.integers(0, 1)) :]
    try:
        found = read_manifest(touched)
    except ChunkCorrupt:
        return
    assert found.encode() == touched


ONE = of_files(Kind.FILES, [("a", [Chunk(ObjectHash(b"h" * 32), 5)])], {}).encode()


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (b"manifest-1", b"manifest-2", "this peerlm reads"),
        (b",5]", b",0]", "no hash and size"),
        (b",5]", b",05]", "no hash and size"),
        (b",5]", b",4194305]", "no size of a chunk"),
        (b'["a",0,1]', b'["a",0,2]', "not listed"),
        (b'["a",0,1]', b'["a",0,1],["a",0,1]', "two files of one path"),
        (b'["a",0,1]', b'["../a",0,1]', "no path below"),
        (b'["a",0,1]', b'["a",0,1.0]', "is no count"),
        (b'["a",0,1]', b'["a",0]', "not enough values"),
        (b'["a",0,1]', b'["\\u0061",0,1]', "another encoding"),
        (b'"meta":{}', b'"meta":[]', "other fields"),
        (b'"meta":{}', b'"meta":{},"more":1', "other fields"),
        (b'"meta":{}', b'"meta":{"a":NaN}', "not JSON compliant"),
        (b'"meta":{}', b'"meta":' + b'{"a":' * 100_000, "Error"),
        (b'"kind":"files"', b'"kind":"program"', "not a valid Kind"),
    ],
)
def test_what_is_wrong_is_said(before: bytes, after: bytes, why: str) -> None:
    assert before in ONE
    with pytest.raises(ChunkCorrupt, match=why):
        read_manifest(ONE.replace(before, after))
