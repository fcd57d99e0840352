"""A switch in user space between machines whose lines are slow, long or lossy: rate, delay and loss.

For kernels without netem. A frame waits for its turn on its sender's line, is on the way for the delay, and
waits for its turn on its receiver's line; each line is as fast as the rate says in each direction, and holds
`QUEUE_S` of frames that wait, beyond which they are dropped as by any router. Loss draws for every frame.

`python -m peerlm.bench.switch RATE DELAY LOSS SEED DESCRIPTOR…` moves frames between the TAP devices behind the
descriptors (bytes/s, s one way, 0 to 1) until it is killed or its standard input ends. A line of JSON there is
the `Trouble` that holds from then on.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

QUEUE_S = 0.1
QUEUE_FRAMES = 32
"""At least so many full frames wait, however slow the line."""

FRAME_BYTES_MAX = 1 << 16
AT_ONCE = 64
"""Frames taken from one device before the others have their turn."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What lines suffer besides what they are. `blocked`: (from, to) ports between which nothing goes; `loss` and
    `corrupt`: shares of frames; `rate`: bytes/s instead of the usual, 0: none; `delay_s`: more, one way."""

    blocked: tuple[tuple[int, int], ...] = ()
    loss: float = 0.0
    corrupt: float = 0.0
    rate: float = 0.0
    delay_s: float = 0.0

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def read_trouble(line: bytes) -> Trouble:
    """What `to_line` wrote."""
    fields = json.loads(line)
    fields["blocked"] = tuple((int(a), int(b)) for a, b in fields["blocked"])
    return Trouble(**fields)


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """A frame that leaves for `port` at `at`; of equal times the earlier first."""

    at: float
    number: int
    port: int
    frame: bytes


class Switch:
    """Decides when which frame leaves. Ports are learnt from the frames' senders; a frame for nobody known
    goes to all others. `rate`: bytes/s; `delay_s`: one way; `loss`: of frames."""

    def __init__(
        self, ports: int, rate: float, delay_s: float, loss: float, rng: random.Random
    ) -> None:
        self._rate, self._delay_s, self._loss, self._rng = rate, delay_s, loss, rng
        self._up, self._down = [0.0] * ports, [0.0] * ports
        self._home: dict[bytes, int] = {}
        self._waiting: list[Due] = []
        self._number = 0
        self._usual = rate, delay_s, loss
        self._blocked: frozenset[tuple[int, int]] = frozenset()
        self._corrupt = 0.0
        self.dropped = self.lost = self.corrupted = 0

    def suffer(self, trouble: Trouble) -> None:
        """From now on this, and nothing of what was before."""
        rate, delay_s, loss = self._usual
        self._rate = trouble.rate or rate
        self._delay_s = delay_s + trouble.delay_s
        self._loss = 1 - (1 - loss) * (1 - trouble.loss)
        self._blocked, self._corrupt = frozenset(trouble.blocked), trouble.corrupt

    def take(self, port: int, frame: bytes, now: float) -> None:
        """A frame has come from the machine at `port`."""
        to, sender = frame[:6], frame[6:12]
        self._home[sender] = port
        known = self._home.get(to)
        others = (p for p in range(len(self._up)) if p != port)
        wanted = others if known is None else [known] if known != port else []
        if self._loss and self._rng.random() < self._loss:
            self.lost += 1
            return
        if (left := self._turn(self._up, port, len(frame), now)) is None:
            return
        if self._corrupt and self._rng.random() < self._corrupt:
            frame = corrupted(frame, self._rng)
            self.corrupted += 1
        for other in wanted:
            if (port, other) in self._blocked:
                self.lost += 1
                continue
            arrives = left + self._delay_s
            if (leaves := self._turn(self._down, other, len(frame), arrives)) is not None:
                self._number += 1
                heapq.heappush(self._waiting, Due(leaves, self._number, other, frame))

    def _turn(self, line: list[float], port: int, size: int, now: float) -> float | None:
        """When so many bytes that come `now` have passed; None if the line's queue is full."""
        waits_s = line[port] - now
        if waits_s > max(QUEUE_S, QUEUE_FRAMES * size / self._rate):
            self.dropped += 1
            return None
        line[port] = max(now, line[port]) + size / self._rate
        return line[port]

    def due(self, now: float) -> Iterator[Due]:
        """Frames whose time has come."""
        while self._waiting and self._waiting[0].at <= now:
            yield heapq.heappop(self._waiting)

    def patience_s(self, now: float) -> float | None:
        """Until the next one is due; None if none waits."""
        return max(0.0, self._waiting[0].at - now) if self._waiting else None


def corrupted(frame: bytes, rng: random.Random) -> bytes:
    """An Ethernet frame with one bit of its TCP load flipped, and the checksum that fits (RFC 1624): what only a
    check of the ends' own can see. A frame without such a load is as it was."""
    ip = 14
    if len(frame) < ip + 20 or frame[12:14] != b"\x08\x00" or frame[ip + 9] != 6:
        return frame
    tcp = ip + 4 * (frame[ip] & 15)
    end = min(len(frame), ip + int.from_bytes(frame[ip + 2 : ip + 4]))
    load = tcp + 4 * (frame[tcp + 12] >> 4) if end > tcp + 20 else end
    words = (end - load) // 2  # the load begins at an even place of the segment
    if words < 1:
        return frame
    at, spoilt = load + 2 * rng.randrange(words), bytearray(frame)
    old = int.from_bytes(frame[at : at + 2])
    new = old ^ (1 << rng.randrange(16))
    sum_ = (~int.from_bytes(frame[tcp + 16 : tcp + 18]) & 0xFFFF) + (~old & 0xFFFF) + new
    sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
    sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
    spoilt[at : at + 2] = new.to_bytes(2)
    spoilt[tcp + 16 : tcp + 18] = (~sum_ & 0xFFFF).to_bytes(2)
    return bytes(spoilt)


def run(switch: Switch, devices: Sequence[int], commands: int) -> None:
    """Move frames until `commands` ends."""
    ports = {descriptor: port for port, descriptor in enumerate(devices)}
    for descriptor in devices:
        os.set_blocking(descriptor, False)
    heard = b""
    while True:
        patience_s = switch.patience_s(time.monotonic())
        ready, _, _ = select.select([*devices, commands], [], [], patience_s)
        if commands in ready:
            ready.remove(commands)
            heard += (more := os.read(commands, 1 << 16))
            if not more:
                return
            *lines, heard = heard.split(b"\n")
            for line in lines:
                switch.suffer(read_trouble(line))
        for descriptor in ready:
            for frame in _frames(descriptor):
                switch.take(ports[descriptor], frame, time.monotonic())
        for due in switch.due(time.monotonic()):
            try:
                os.write(devices[due.port], due.frame)
            except (BlockingIOError, OSError):
                switch.dropped += 1  # as a machine does whose buffer is full, or that is down


def _frames(descriptor: int) -> Iterator[bytes]:
    for _ in range(AT_ONCE):
        try:
            yield os.read(descriptor, FRAME_BYTES_MAX)
        except BlockingIOError:
            return


def main(arguments: Sequence[str]) -> None:
    rate, delay_s, loss = map(float, arguments[:3])
    seed, *devices = map(int, arguments[3:])
    run(Switch(len(devices), rate, delay_s, loss, random.Random(seed)), devices, sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
