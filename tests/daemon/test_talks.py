"""The two ends of a channel: messages as they were said, however the line cuts them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.daemon.talks import MESSAGE_BYTES_MAX, SAID_BYTES_MAX, Converse
from peerlm.errors import WireError
from peerlm.train import hop, protocol
from peerlm.wire.frame import CHUNK_BYTES


class Listener:
    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.talk = Converse(self.heard.append)


def pass_on(talk: Converse, listener: Converse) -> int:
    """All that one has to say, chunk by chunk; returns their number."""
    chunks = 0
    while talk.to_say():
        length, chunk = talk.to_say(), bytes(talk.say(memoryview(bytearray())))
        assert len(chunk) == length == listener.to_hear()
        listener.hear(chunk)
        chunks += 1
    return chunks


def test_the_first_that_both_hear_is_a_sign_of_life() -> None:
    one, two = Listener(), Listener()
    pass_on(one.talk, two.talk)
    pass_on(two.talk, one.talk)
    assert one.heard == two.heard == [b""]
    assert one.talk.to_say() == 0  # not yet, and never "all is said"
    assert not one.talk.is_done


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_messages_come_as_they_were_said(messages: list[bytes]) -> None:
    speaker, listener = Listener(), Listener()
    for message in messages:
        speaker.talk.add(message)
    pass_on(speaker.talk, listener.talk)
    assert listener.heard == [b"", *messages]


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_message_of_many_chunks_is_put_together(chunks: int, more: int) -> None:
    speaker, listener = Listener(), Listener()
    message = bytes(range(256)) * (chunks * CHUNK_BYTES // 256 + 1)
    message = message[: chunks * CHUNK_BYTES + more]
    speaker.talk.add(b"before")
    speaker.talk.add(message)
    speaker.talk.add(b"")
    assert pass_on(speaker.talk, listener.talk) == 5 + -(-len(message) // CHUNK_BYTES)
    assert listener.heard == [b"", b"before", message, b""]


def test_a_talk_that_is_cut_anywhere_has_told_whole_messages_only() -> None:
    said = [b"", b"one", b"two" * CHUNK_BYTES, b""]
    for cut in range(11):
        speaker, listener = Listener(), Listener()
        for message in said[1:]:
            speaker.talk.add(message)
        for _ in range(cut):
            if speaker.talk.to_say():
                listener.talk.hear(bytes(speaker.talk.say(memoryview(bytearray()))))
        assert listener.heard == said[: len(listener.heard)]


@pytest.mark.parametrize("length", [MESSAGE_BYTES_MAX + 1, 1 << 40, (1 << 64) - 1])
def test_a_message_too_long_is_refused_before_there_is_memory_for_it(length: int) -> None:
    listener = Listener()
    with pytest.raises(WireError, match="at most"):
        listener.talk.hear(struct.pack("!Q", length))
    assert listener.heard == []


def test_the_longest_message_is_one_that_the_worker_takes() -> None:
    assert MESSAGE_BYTES_MAX == hop.BYTES_MAX
    message = protocol.Hop(protocol.PeerId(b"p" * 16), bytes(MESSAGE_BYTES_MAX))
    assert protocol.Frames().feed(protocol.frame(message)) == [message]


def test_who_does_not_read_costs_bounded_memory_and_hears_on_later() -> None:
    speaker, listener = Listener(), Listener()
    message = bytes(MESSAGE_BYTES_MAX)
    for _ in range(9):
        speaker.talk.add(message)
    pass_on(speaker.talk, listener.talk)
    assert len(listener.heard) == 1 + SAID_BYTES_MAX // MESSAGE_BYTES_MAX
    speaker.talk.add(b"again")
    pass_on(speaker.talk, listener.talk)
    assert listener.heard[-1] == b"again"


def test_a_connection_that_was_of_no_use_costs_no_sign_of_life() -> None:
    speaker, listener = Listener(), Listener()
    speaker.talk.say(memoryview(bytearray()))
    speaker.talk.rewind()
    pass_on(speaker.talk, listener.talk)
    assert listener.heard == [b""]
    speaker.talk.add(b"a hop")
    speaker.talk.say(memoryview(bytearray()))
    speaker.talk.rewind()
    speaker.talk.add(b"another")
    pass_on(speaker.talk, listener.talk)
    assert listener.heard == [b"", b"", b"another"], "nothing from the middle of one"
