"""A side of an exchange that says what it was given, whatever that is, and keeps what it hears."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peerlm.mix.chunks import chunk_at, chunk_bytes, chunk_count


class Words:
    """Stands in for `flow.Asking` and `flow.Answering`: chunks `to_say` against chunks of these sizes."""

    held_bytes = 0

    def __init__(self, to_say: Sequence[bytes], to_hear: Sequence[int], codec_reply: str) -> None:
        self.chunks, self.codec_reply = len(to_say), codec_reply
        self.came: list[bytes] = []
        self._to_say, self._to_hear = list(to_say), list(to_hear)

    @property
    def heard(self) -> int:
        return len(self.came)

    @property
    def has_all(self) -> bool:
        return len(self.came) == len(self._to_hear)

    def judge(self) -> None:
        return None

    # as initiator

    def request_bytes(self, index: int) -> int:
        return len(self._to_say[index]) if self._asks else self._to_hear[index]

    def reply_bytes(self, index: int) -> int:
        return self._to_hear[index] if self._asks else len(self._to_say[index])

    _asks = True

    def request(self, index: int, out: memoryview) -> bytes:
        return self._to_say[index]

    def place(self) -> None:
        return None

    def hear(self, encoded: bytes) -> None:
        self.came.append(bytes(encoded))

    # as responder

    def answer(self, encoded: bytes, out: memoryview) -> bytes:
        said = self._to_say[self.heard]
        self.hear(encoded)
        return said


class Replies(Words):
    """The responder's."""

    _asks = False


def chunk_sizes(codec: str, size: int) -> list[int]:
    return [chunk_bytes(codec, i, size) for i in range(chunk_count(size))]


def fp32_chunks(values: NDArray[np.float32]) -> list[bytes]:
    """Chunks of whatever values: what `encode` makes, without its scruples."""
    return [values[chunk_at(i, values.size)].tobytes() for i in range(chunk_count(values.size))]
