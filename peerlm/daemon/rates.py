"""How fast streams may move: under the ceilings that a person has set, and as fast as each way takes it.

The ceilings are of all streams together (`daemon.throttle`): under one, little is moved at a time, and when
nothing is left all streams pause. The pace is of each host (`daemon.pacing`): it is found from what TCP measures on the
way there, and the system keeps it. Used in the bulk thread only.
"""

from __future__ import annotations

import time
from collections import Counter

from peerlm.daemon.pacing import Paces
from peerlm.daemon.sockets import line_of, pace
from peerlm.daemon.stream import Stream
from peerlm.daemon.throttle import TokenBucket
from peerlm.types import Instant
from peerlm.wire.frame import CHUNK_BYTES

SLICE_BYTES = 16 * 1024
"""What is moved at a time under a ceiling, so that a low one never looks like silence."""


class Rates:
    """`counters`: bytes received and sent. `resume_at`: when a ceiling that was met leaves room again; infinity for none."""

    def __init__(
        self, upload_bytes_s: float, download_bytes_s: float, counters: Counter[str], now: Instant
    ) -> None:
        self._upload = TokenBucket(upload_bytes_s, CHUNK_BYTES, now)
        self._download = TokenBucket(download_bytes_s, CHUNK_BYTES, now)
        self._counters = counters
        self._paces = Paces()
        self.resume_at = float("inf")

    def read(self, stream: Stream) -> bool:
        """Let a stream read one frame, or what a ceiling allows; whether anything moved."""
        limited = self._download.is_limited
        if limited and not (stream.wants_to_read and self._may_move(self._download)):
            return False
        before = stream.wire_bytes[0]
        moved = stream.read(SLICE_BYTES if limited else None)
        self._counters["bytes_received"] += stream.wire_bytes[0] - before
        if limited:
            self._download.take(stream.wire_bytes[0] - before, Instant(time.monotonic()))
        return moved

    def write(self, stream: Stream) -> bool:
        """The same of writing."""
        limited = self._upload.is_limited
        if limited and not (stream.wants_to_write and self._may_move(self._upload)):
            return False
        before = stream.wire_bytes[1]
        moved = stream.write(SLICE_BYTES if limited else None)
        self._counters["bytes_sent"] += stream.wire_bytes[1] - before
        if limited:
            self._upload.take(stream.wire_bytes[1] - before, Instant(time.monotonic()))
        return moved

    def _may_move(self, bucket: TokenBucket) -> bool:
        """Whether a ceiling leaves room; if not, all streams are to be looked at again when it does."""
        now = Instant(time.monotonic())
        delay_s = bucket.delay_s(now)
        if delay_s > 0:
            self.resume_at = min(self.resume_at, now + delay_s)
        return delay_s <= 0

    def may_resume(self, now: float) -> bool:
        """Once for each pause: whether it is over."""
        if now < self.resume_at:
            return False
        self.resume_at = float("inf")
        return True

    def line_bytes_s(self, stream: Stream) -> float:
        """What its connection could send, under our own ceiling; 0 if that is not known."""
        return self._upload.least(line_of(stream.connection).delivered_bytes_s)

    def set_pace(self, stream: Stream) -> None:
        """As was found on this and other connections with that host."""
        rate = self._paces.of(stream.host, Instant(time.monotonic())).rate_bytes_s
        if rate != stream.paced_bytes_s:
            stream.paced_bytes_s = rate
            pace(stream.connection, rate)

    def look(self, stream: Stream, now: Instant) -> None:
        """Learn from what its connection has carried."""
        line = line_of(stream.connection)
        if line.acked_bytes != stream.acked_bytes:
            stream.acked_bytes = line.acked_bytes
            self._paces.of(stream.host, now).look(line, now)
            self.set_pace(stream)
