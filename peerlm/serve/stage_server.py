"""The process that advances other nodes' texts through the stages that this node holds.

A daemon starts it as `python -m peerlm.serve.stage_server SOCKET PARENT` when laps may come, and it ends by itself
when none has come for long: its weights are a copy, read from the newest snapshot, so training and serving never touch
each other. They lie, with what is remembered of sessions, on the device that the worker trains on, if there is room; laps
have their numbers in the host's memory. Laps are taken as they come; those that wait for the same stages go through the model as
one batch. New sessions begin with the newest weights, read in a thread of their own; older ones keep theirs.

This file moves laps; who is remembered is decided in `guests`, numbers are made in `engine`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peerlm.config import Plan
from peerlm.errors import PeerlmError, WireError
from peerlm.model.stages import held_parameters, stages
from peerlm.serve import lap as laps
from peerlm.serve.guests import CROWDED, Forgotten, Guests, Way, cache_of
from peerlm.serve.lap import Kind, Lap, Numbers
from peerlm.serve.route import Turn
from peerlm.serve.stage_weights import Reader, Weights
from peerlm.store.layout import Layout
from peerlm.train.channel import Channel, DaemonGone, tell
from peerlm.train.limits import die_with
from peerlm.train.protocol import Hop, Nonsense, Served, ServeSetup, unpacked
from peerlm.types import Instant, PeerId

if TYPE_CHECKING:
    from peerlm.serve.engine import Slots

LOOK_S = 1.0
"""How often idle sessions and newer weights are looked for."""

IDLE_S = 600.0
"""Without sessions and laps for so long, the process ends; the next lap starts another."""

WAITING_MAX, WAITING_BYTES_MAX = 64, 32 << 20
"""Laps of one neighbour that wait, and their numbers."""

TOGETHER_TOKENS = 512
"""Of several laps in one batch."""

VERSIONS_MAX, OLDER_S = 2, 600.0
"""Versions of the weights in memory at once, and for how long sessions may hold on to an older one."""

NICENESS = 2
"""Behind daemons, which must answer probes in time, and before training."""


Places = list[tuple[int, Weights]]
"""Slot and version of each row."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    lap: Lap
    came: Instant


def main(arguments: list[str]) -> int:
    """Exit status: 0 when idle or when the daemon went, 1 after a failure it has told."""
    connection, parent = (int(argument) for argument in arguments)
    if not die_with(parent):
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    os.set_inheritable(connection, False)
    channel = Channel(socket.socket(fileno=connection))
    try:
        setup = channel.receive_one()
        assert isinstance(setup, ServeSetup), setup
        StageServer(setup, channel).run()
    except DaemonGone:
        return 0
    except PeerlmError as error:
        return tell(channel, error)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return tell(channel, error)
    return 0


class StageServer:
    """Raises `ConfigError` when no session fits into memory, `DeviceLost` when the device is not there."""

    def __init__(self, setup: ServeSetup, channel: Channel) -> None:
        from peerlm.serve.engine import Slots, use_threads

        use_threads(setup.threads)
        self._me, self._channel = setup.peer, channel
        self._plan = unpacked(Plan, setup.plan)
        self._held = range(setup.first_stage, setup.last_stage + 1)
        cut = stages(self._plan)
        self._count = len(cut)
        blocks = range(cut[self._held[0]].blocks.start, cut[self._held[-1]].blocks.stop)
        device, cache_bytes = _room(setup, 4 * held_parameters(self._plan, self._held))
        self._slots: Slots = Slots(self._plan, setup.sessions, cache_bytes, device, blocks)
        self._reader = Reader(Layout(Path(setup.state)), self._plan, self._held, self._slots)
        self._guests: Guests[Weights] | None = None
        self._waiting: deque[_Waiting] = deque()
        self._laps = self._lost = 0
        self._told = Served(0, 0, 0)
        self._looked_at = self._busy_at = self._renewed_at = Instant(time.monotonic())

    def run(self) -> None:
        """Until idle for long. Raises `DaemonGone`."""
        self._renew()
        while True:
            for message in self._channel.receive(0.0 if self._waiting else LOOK_S):
                self._busy_at = Instant(time.monotonic())
                if isinstance(message, Hop):
                    self._take(message.peer, message.data, Instant(time.monotonic()))
            now = Instant(time.monotonic())
            if self._waiting:
                self._advance(now)
            if now - self._looked_at >= LOOK_S:
                self._looked_at = now
                self._renew()
                if self._guests is not None:
                    self._guests.forget_idle(now)
                    if now - self._renewed_at > OLDER_S:
                        self._guests.forget_older()
                self._tell()
                if now - self._busy_at > IDLE_S and not self._guests:
                    return

    # ------------------------------------------------------------------------------------ laps in

    def _take(self, peer: PeerId, data: bytes, now: Instant) -> None:
        model = self._plan.model
        try:
            lap = laps.unpack(data, self._count, model.dim, self._plan.data.vocab, model.context)
        except WireError as error:
            self._channel.send(Nonsense(peer, str(error)))
            self._refuse(peer, data, str(error))
            return
        if peer != (lap.head.origin if lap.head.kind is Kind.OVER else lap.before):
            self._channel.send(Nonsense(peer, "lap: another node's to say"))
            return
        self._laps += lap.head.kind is Kind.FORWARD
        match lap.head.kind:
            case Kind.OVER if self._guests is not None:
                self._guests.over(_handed(lap), lap.rows)
            case Kind.FORWARD if not self._is_ours(lap):
                self._lose(lap, f"stages {self._held[0]} to {self._held[-1]} are held here")
            case Kind.FORWARD if self._is_crowded(peer):
                self._lose(lap, CROWDED)
            case Kind.FORWARD:
                self._waiting.append(_Waiting(lap, now))

    def _refuse(self, peer: PeerId, data: bytes, why: str) -> None:
        """Tell the gateway of a lap that `peer` has handed over as nonsense, if its head can be read: it need not wait for it."""
        try:
            head = laps.read_head(data)
        except WireError:
            return
        if head.kind is Kind.FORWARD:
            self._lost += 1
            self._channel.send(Hop(head.origin, laps.lost(head, peer, why)))

    def _tell(self) -> None:
        """How much there is to do, if that is news."""
        served = Served(len(self._guests or ()), self._laps, self._lost)
        if served != self._told:
            self._told = served
            self._channel.send(served)

    def _is_crowded(self, peer: PeerId) -> bool:
        numbers = [w.lap.numbers for w in self._waiting if w.lap.before == peer]
        waiting_bytes = sum(array.nbytes for array in numbers if array is not None)
        return len(numbers) >= WAITING_MAX or waiting_bytes > WAITING_BYTES_MAX

    def _is_ours(self, lap: Lap) -> bool:
        if lap.at == len(lap.legs):
            return self._held[0] == 0 and lap.legs[0].host == self._me
        leg = lap.legs[lap.at]
        return leg.host == self._me and leg.first in self._held and leg.last in self._held

    # ---------------------------------------------------------------------------------- laps out

    def _advance(self, now: Instant) -> None:
        """The lap that waits longest, and with it those for the same stages."""
        if self._guests is None and not self._renew(wait=True):
            why = (
                "its weights cannot be read"
                if self._reader.trouble
                else "no weights are kept here yet"
            )
            for waiting in self._waiting:
                self._lose(waiting.lap, why)
            self._waiting.clear()
            return
        together = self._together()
        if together[0].lap.at == len(together[0].lap.legs):
            self._finish(together)
            return
        leg = together[0].lap.legs[together[0].lap.at]
        seated = self._seated(together, now)
        if not seated:
            return
        made = self._made(seated, leg.first, leg.last)
        now = Instant(time.monotonic())
        for waiting, places in seated:
            streams, made = made[: len(places)], made[len(places) :]
            self._send_on(waiting, places, np.concatenate(streams), now)

    def _together(self) -> list[_Waiting]:
        first = self._waiting.popleft()
        chosen, others = [first], deque[_Waiting]()
        tokens, seen = _tokens(first.lap), _sessions(first.lap)
        for waiting in self._waiting:
            lap = waiting.lap
            fits = _way(lap) == _way(first.lap) and tokens + _tokens(lap) <= TOGETHER_TOKENS
            if fits and seen.isdisjoint(_sessions(lap)):
                chosen.append(waiting)
                tokens += _tokens(lap)
            else:
                others.append(waiting)
            seen |= _sessions(lap)  # a session's tokens are never taken out of order
        self._waiting = others
        return chosen

    def _seated(self, together: list[_Waiting], now: Instant) -> list[tuple[_Waiting, Places]]:
        assert self._guests is not None
        seated = []
        for waiting in together:
            try:
                places = self._guests.seat(_handed(waiting.lap), waiting.lap.rows, now)
            except Forgotten as why:
                self._lose(waiting.lap, str(why))
            else:
                seated.append((waiting, places))
        return seated

    def _made(self, seated: list[tuple[_Waiting, Places]], first: int, last: int) -> list[Numbers]:
        """The stream of each row, lap by lap, behind the stages `first` to `last`."""
        turns, given, versions = [], [], []
        for waiting, places in seated:
            lap, at = waiting.lap, 0
            for row, (slot, weights) in zip(lap.rows, places, strict=True):
                tokens = lap.tokens[at : at + row.length] or (0,) * row.length
                turns.append(Turn(slot, row.start, tokens))
                versions.append(weights)
                if lap.numbers is not None:
                    given.append(lap.numbers[at : at + row.length])
                at += row.length

        def advance(weights: Weights, rows: list[int]) -> list[Numbers]:
            stream = np.concatenate([given[i] for i in rows]) if given else None
            out = weights.held.advance([turns[i] for i in rows], stream, first, last)
            return np.split(out, np.cumsum([len(turns[i].tokens) for i in rows])[:-1])

        return _by_version(versions, advance)

    def _send_on(self, waiting: _Waiting, places: Places, stream: Numbers, now: Instant) -> None:
        lap = waiting.lap
        if not np.isfinite(stream).all():
            for slot, _ in places:
                self._slots.clear(slot)
            self._lose(lap, f"the numbers of stage {lap.legs[lap.at].last} are not finite")
            return
        names = tuple(weights.name for _, weights in places)
        lap = replace(
            lap,
            at=lap.at + 1,
            tokens=(),
            numbers=stream,
            versions=(*lap.versions, names),
            seconds=(*lap.seconds, min(now - waiting.came, laps.SECONDS_MAX)),
        )
        if lap.at < len(lap.legs):
            self._say(lap.legs[lap.at].host, lap)
            return
        lasts = np.cumsum([row.length for row in lap.rows]) - 1
        wanted = [last for row, last in zip(lap.rows, lasts, strict=True) if row.wanted]
        lap = replace(lap, numbers=stream[wanted])
        if lap.legs[0].host == self._me:
            self._finish([_Waiting(lap, now)])
        else:
            self._say(lap.legs[0].host, lap)

    def _finish(self, together: list[_Waiting]) -> None:
        """What came around becomes logits and goes home."""
        known, lasts, versions = [], [], []
        for waiting in together:
            try:
                versions += self._weights_of(waiting.lap)
            except Forgotten as why:
                self._lose(waiting.lap, str(why))
                continue
            assert waiting.lap.numbers is not None
            lasts += list(waiting.lap.numbers)
            known.append(waiting)

        def finish(weights: Weights, rows: list[int]) -> list[Numbers]:
            return list(weights.held.logits(np.stack([lasts[i] for i in rows])))

        made = _by_version(versions, finish)
        for waiting in known:
            lap = waiting.lap
            mine, made = made[: lap.wanted], made[lap.wanted :]
            logits = np.stack(mine) if mine else None
            if logits is not None and not np.isfinite(logits).all():
                self._lose(lap, "the numbers of the head are not finite")
                continue
            home = replace(lap, head=replace(lap.head, kind=Kind.HOME), numbers=logits)
            self._say(lap.head.origin, home)

    def _weights_of(self, lap: Lap) -> list[Weights]:
        """Of each wanted row, those that its session goes through its first leg with here. Raises `Forgotten`."""
        assert self._guests is not None
        head = lap.head
        way = (head.origin, head.origin, head.gateway)
        return [self._guests.version_of(way, row) for row in lap.rows if row.wanted]

    def _lose(self, lap: Lap, reason: str) -> None:
        self._lost += 1
        answer = laps.lost(lap.head, self._me, reason)
        self._channel.send(Hop(lap.head.origin, answer))

    def _say(self, peer: PeerId, lap: Lap) -> None:
        data = laps.pack(lap)
        if len(data) > laps.BYTES_MAX:  # by what was said of others: names, and rows without an end
            self._lose(lap, "it has grown too large")
        else:
            self._channel.send(Hop(peer, data))

    # ----------------------------------------------------------------------------------- weights

    def _renew(self, *, wait: bool = False) -> bool:
        """Take over newer weights that have been read, and have newer ones read. Whether there are any."""
        now = Instant(time.monotonic())
        if self._guests is None or len(self._guests.versions()) < VERSIONS_MAX:
            self._reader.look(now, wait=wait)
        if (weights := self._reader.found(now)) is not None:
            if self._guests is None:
                self._guests = Guests(self._slots.count, weights)
            self._guests.version = weights
            self._renewed_at = now
        return self._guests is not None


def _room(setup: ServeSetup, weights_bytes: int) -> tuple[str, int]:
    """The device to answer on, and bytes for what is remembered there. It is the worker's, but for one whose own memory the
    worker has taken so much of that the weights do not fit: then it is the processor. Raises `DeviceLost`."""
    from peerlm.train.device import choose_device, free_bytes

    device = choose_device(setup.device)
    free = free_bytes(device)
    if free is None:
        return str(device), setup.cache_bytes
    if VERSIONS_MAX * weights_bytes + cache_of(free) <= free:
        return str(device), cache_of(free)
    sys.stderr.write(
        f"peerlm: texts are answered on the processor: {free / 1e6:.0f} MB are free on {device}, and "
        f"weights take {VERSIONS_MAX} times {weights_bytes / 1e6:.0f} MB\n"
    )
    return "cpu", setup.cache_bytes


def _by_version(
    versions: Sequence[Weights], make: Callable[[Weights, list[int]], list[Numbers]]
) -> list[Numbers]:
    """What `make` makes of rows, in their order; it is called once for each version, with its rows."""
    made: dict[int, Numbers] = {}
    for weights in dict.fromkeys(versions):
        rows = [i for i, found in enumerate(versions) if found is weights]
        made.update(zip(rows, make(weights, rows), strict=True))
    return [made[i] for i in range(len(versions))]


def _tokens(lap: Lap) -> int:
    return sum(row.length for row in lap.rows)


def _handed(lap: Lap) -> Way:
    return (lap.before, lap.head.origin, lap.head.gateway)


def _sessions(lap: Lap) -> set[tuple[Way, int]]:
    return {(_handed(lap), row.slot) for row in lap.rows}


def _way(lap: Lap) -> tuple[int, int]:
    """The stages that come next; behind the last: the head."""
    if lap.at == len(lap.legs):
        return (-1, -1)
    return (lap.legs[lap.at].first, lap.legs[lap.at].last)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # a thread may still be reading
