"""Channels between two simulated processes: what the stream of a model in stages goes over.

As in the daemon (`daemon.transfers`): the node that asked dials, the one that was asked waits; both ends say each second that
they are there, and an end that hears nothing for a while gives its channel up. A death that the kernel tells of ends it
at once. Hops come in order, in the time that their bytes take on the line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.types import PeerId, TransferId

if TYPE_CHECKING:
    from peerlm.sim.labour import Labour

BEAT_S = 1.0
SILENT_S = 8.0
REFUSED_S = 0.01

Channel = fx.RunChannel | fx.ServeChannel


@dataclass(slots=True, eq=False)
class ChannelEnd:
    """One side of one channel."""

    effect: Channel
    heard_at: float
    other: ChannelEnd | None = None
    """Once the two are connected."""
    is_open: bool = False
    is_over: bool = False
    free_at: float = 0.0
    """What is sent next does not arrive before."""


class ChannelEnds:
    """One process's ends of channels."""

    def __init__(self, labour: Labour) -> None:
        self._labour = labour
        self._machine, self._world = labour.machine, labour.machine.world
        self._ends: dict[TransferId, ChannelEnd] = {}
        self._says: dict[PeerId, ChannelEnd] = {}
        """The end that hops to a peer go over."""

    # --------------------------------------------------------------------------------- its life

    def run(self, effect: fx.RunChannel) -> None:
        """Dial."""
        end, there = self._begin(effect), self._world.of(effect.peer)
        if there.number in self._world.guarded or not self._world.connects(
            self._machine.number, there.number
        ):
            return  # it will be silent
        if not there.is_up:
            self._labour.later(REFUSED_S, self._end, end, "connect: refused")
            return
        self._world.carry(self._machine, there, there.channel_dialled, self, end, effect)

    def dialled(self, dialler: ChannelEnds, end: ChannelEnd, effect: fx.RunChannel) -> None:
        """The other end has come."""
        serve = self._ends.get(effect.transfer)
        if serve is None or end.is_over or not isinstance(serve.effect, fx.ServeChannel):
            dialler.hear_end(end, "connect: nobody waits for it", self)
            return
        assert (serve.effect.key_up, serve.effect.key_down) == (effect.key_up, effect.key_down), (
            "keys of two channels"
        )
        serve.other, end.other = end, serve

    def serve(self, effect: fx.ServeChannel) -> None:
        """Wait for whoever dials."""
        self._begin(effect)

    def cancel(self, transfer: TransferId) -> None:
        """Nothing is told of it any more; the other end sees it closed."""
        end = self._ends.get(transfer)
        if end is not None:
            self._leave(end)
            self._tell_other(end, "closed")

    def close(self, *, silently: bool = False) -> None:
        """All of them, since the process ends, or its work does."""
        for end in list(self._ends.values()):
            self._leave(end)
            if not silently:
                self._tell_other(end, "closed")

    def open(self) -> frozenset[PeerId]:
        """With whom hops can be exchanged."""
        return frozenset(self._says)

    def _begin(self, effect: Channel) -> ChannelEnd:
        assert effect.transfer not in self._ends, "two channels of one name"
        end = self._ends[effect.transfer] = ChannelEnd(effect, self._world.now)
        self._labour.later(BEAT_S, self._beat, end)
        return end

    def _beat(self, end: ChannelEnd) -> None:
        """Say that we are here, unless the other has been silent for too long."""
        if end.is_over:
            return
        if self._world.now - end.heard_at > SILENT_S:
            self._end(end, f"nothing came for {SILENT_S:g} s")
            self._tell_other(end, "closed")
            return
        if end.other is not None:
            self._carry(end, 0, self._far(end)._heard, end.other)
        self._labour.later(BEAT_S, self._beat, end)

    def _heard(self, end: ChannelEnd, act: Callable[..., None] | None = None, *args: Any) -> None:
        if end.is_over:
            self._tell_other(end, "reset")  # whoever says something does not know it yet
            return
        end.heard_at = self._world.now
        if not end.is_open:
            end.is_open = True
            self._says[end.effect.peer] = end
            self._machine.post(ev.ChannelOpened(end.effect.transfer))
        if act is not None and not end.is_over:
            act(*args)

    def _end(self, end: ChannelEnd, reason: str) -> None:
        if not end.is_over:
            self._leave(end)
            self._machine.post(ev.ChannelEnded(end.effect.transfer, reason))

    def _leave(self, end: ChannelEnd) -> None:
        end.is_over = True
        del self._ends[end.effect.transfer]
        if self._says.get(end.effect.peer) is end:
            del self._says[end.effect.peer]

    def _tell_other(self, end: ChannelEnd, reason: str) -> None:
        if end.other is not None:
            self._far(end).hear_end(end.other, reason, self)

    def hear_end(self, end: ChannelEnd, reason: str, teller: ChannelEnds) -> None:
        """The kernel over there says so, if it can be heard."""
        a, b = teller._machine.number, self._machine.number
        if self._world.network.reaches(a, b):
            self._labour.later(self._world.network.delay_s(a, b), self._end, end, reason)

    # ------------------------------------------------------------------------------------- hops

    def hop(self, peer: PeerId, size: int, hop: object) -> None:
        """To the peer's worker; lost if there is no channel."""
        end = self._says.get(peer)
        if end is None or end.other is None:
            return
        far = self._far(end)
        me = self._machine.keys.peer_id
        self._carry(end, size, far._heard, end.other, far._labour.hear, me, hop)

    def _far(self, end: ChannelEnd) -> ChannelEnds:
        return self._world.of(end.effect.peer).labour.channels

    def _carry(self, end: ChannelEnd, size: int, act: Callable[..., None], *args: Any) -> None:
        """In the order in which it was said."""
        world, there = self._world, self._world.of(end.effect.peer)
        a, b = self._machine.number, there.number
        if not there.is_up or not world.network.reaches(a, b):
            return
        took_s = world.network.transfer_s(a, b, size) if size else world.network.delay_s(a, b)
        end.free_at = max(end.free_at, world.now + took_s)
        far = there.labour
        world.clock.on(end.free_at, self._arrive, far, act, args)

    def _arrive(self, far: Labour, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._world.network.reaches(self._machine.number, far.machine.number):
            far.here(act, *args)
