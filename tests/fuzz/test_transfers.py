"""Two honest ends of a bulk transfer, however the network cuts their bytes and breaks their connections."""

from __future__ import annotations

import contextlib
import socket

import numpy as np
import pytest
from bulk_scene import (
    CHUNK_BYTES,
    ELEMENTS,
    FIRST_BYTES,
    FRAGMENT,
    OBJECT,
    TRUE_ELEMENTS,
    WINDOW,
    Disk,
    connected,
    paces,
    play,
    securities,
    sides,
    small_chunks,
    stream,
    weights,
)
from effort import some
from hypothesis import given
from hypothesis import strategies as st

from peerlm.daemon.talks import Answer, Ask, Fetch, Give, RefusedHere
from peerlm.errors import Unreachable
from peerlm.mix import chunks
from peerlm.mix.codec import CODECS, WEIGHT_CODECS

__all__ = ["small_chunks"]


@some(120)
@given(
    request=st.sampled_from(WEIGHT_CODECS),
    reply=st.sampled_from(CODECS),
    size=st.sampled_from([1, 88, ELEMENTS, FRAGMENT]),
    security=securities,
    pace=paces,
)
def test_an_exchange_ends_well_however_its_bytes_are_cut(
    request: str, reply: str, size: int, security: str, pace: list[int]
) -> None:
    a, b = weights(1, size), weights(2, size)
    whole = a.phi.astype(np.float64) + b.phi
    asking, answering = sides(request, reply, a, b)
    ends = connected(Ask(asking), Answer(answering), pace, security)
    assert ends is not None
    play(ends, Disk(), pace)
    for end in ends:
        assert end.failure is None
        assert end.is_good
        assert end.heard_end
        assert end.said_end
    assert ends[0].said_bytes == ends[1].heard_bytes == chunks.stream_bytes(request, size)
    assert ends[0].heard_bytes == ends[1].said_bytes == chunks.stream_bytes(reply, size)
    assert ends[0].wire_bytes[1] == ends[1].wire_bytes[0] + FIRST_BYTES
    assert asking.apply().raw_norm == answering.apply().raw_norm
    np.testing.assert_allclose(a.phi.astype(np.float64) + b.phi, whole, atol=2e-6)
    if request == reply == "fp32":
        np.testing.assert_allclose(a.phi, b.phi, atol=1e-6)


@some(60)
@given(
    scale=st.sampled_from([1e6, 1e30]),
    reply=st.sampled_from(CODECS),
    security=securities,
    pace=paces,
)
def test_who_refuses_says_why(scale: float, reply: str, security: str, pace: list[int]) -> None:
    """The responder's weights are absurd, or do not fit: whoever notices tells the other."""
    asking, answering = sides("fp32", reply, weights(1, FRAGMENT), weights(2, FRAGMENT, scale))
    ends = connected(Ask(asking), Answer(answering), pace, security)
    assert ends is not None
    play(ends, Disk(), pace)
    assert not any(end.is_good for end in ends)
    refusals = [end.failure for end in ends if isinstance(end.failure, RefusedHere)]
    assert {str(why).split(":")[0] for why in refusals} <= {"norm", "impossible", "not finite"}
    for end in ends:
        if end.failure not in refusals:
            assert isinstance(end.failure, Unreachable)
            assert str(refusals[0])[:100] in str(end.failure)


def test_an_exchange_of_true_chunks_crosses_a_narrow_socket() -> None:
    """Frames as long as they get, over sockets that take a little at a time."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(chunks, "CHUNK", TRUE_ELEMENTS)
        size = TRUE_ELEMENTS + 300
        a, b = weights(1, size), weights(2, size)
        asking, answering = sides("fp32", "fp32", a, b)
        sockets = socket.socketpair()
        for narrow in sockets:
            stack.enter_context(narrow)
            narrow.setblocking(False)
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ends = (
            stream(sockets[0], Ask(asking), dials=True, security="aead"),
            stream(sockets[1], Answer(answering), dials=False, security="aead"),
        )
        play(ends, Disk(), [1])
        for end in ends:
            assert end.failure is None
            assert end.is_good
        assert asking.apply().raw_norm == answering.apply().raw_norm
        np.testing.assert_allclose(a.phi, b.phi, atol=1e-6)


@some(120)
@given(
    size=st.sampled_from([0, 1, 100, CHUNK_BYTES, CHUNK_BYTES + 1, len(OBJECT)]),
    cuts=st.lists(st.integers(0, 1600), max_size=4),
    security=securities,
    pace=paces,
    lag=st.sampled_from([1, 5, 100]),
)
def test_a_pull_goes_on_however_often_its_connection_breaks(
    size: int, cuts: list[int], security: str, pace: list[int], lag: int
) -> None:
    disk, got, told = Disk(), bytearray(), list[BaseException | None]()

    def sink(offset: int, data: memoryview) -> None:
        assert offset == len(got), "a chunk was written twice, or left out"
        got.extend(data)

    fetch = Fetch(size, WINDOW, sink, disk, told.append)
    give = Give(size, WINDOW, lambda at, length: OBJECT[:size][at:][:length], disk, told.append)
    for attempt, left in enumerate([*cuts, float("inf")], start=1):
        ends = connected(fetch, give, pace, security, attempt, left)
        if ends is None:
            continue
        play(ends, disk, pace, lag)
        if ends[0].failure is None:
            break
        assert isinstance(ends[0].failure, Unreachable)
        assert left < float("inf"), ends[0].failure
    assert bytes(got) == OBJECT[:size]
    assert set(told) <= {None}
