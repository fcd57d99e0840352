"""Exchanges and pulls between two simulated processes: the flow arithmetic is real, the bytes are not.

A transfer takes what its bytes take on the network between the two machines, a fragment weighing
what the *plan's* fragment weighs, however small the learner's is. Both ends have their time-outs,
and whichever end is dead, frozen, cut off or has cancelled by the time something arrives never sees
it; so a reply can be lost after the responder has moved, as on a real network.

After each completed exchange the two flows are compared: what one side gained the other must have
lost, up to what clipping kept back. That is the promise all of mixing rests on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.mix import flow
from peerlm.mix.codec import encoded_size
from peerlm.mix.exchange_records import Standing
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.loops import norm
from peerlm.mix.vector import Vector
from peerlm.types import FragmentId, PeerId, TransferId
from peerlm.wire.message import ExchangeRequest

if TYPE_CHECKING:
    from peerlm.sim.labour import Labour
    from peerlm.sim.machine import Machine

PROGRESS_S = 1.0
"""How often a pull that flows tells how far it is."""

REFUSED_S = 0.01
"""Until it is known that nobody listens at a port."""

ROUNDING = 1e-5
"""Relative to |φ|: what fp32 additions of two flows may differ by."""

Run = fx.RunExchange | fx.RunPull
Serve = fx.ServeExchange | fx.ServePull


@dataclass(slots=True)
class _Running:
    effect: Run | Serve
    lost_at: float
    """When the end that waits gives up."""
    ramp: float = 1.0
    """The share that this end has told the other to move."""
    settling: bool = False


class Transfers:
    """One process's ends of all transfers under way."""

    def __init__(self, labour: Labour, rng: np.random.Generator) -> None:
        self._labour, self._rng = labour, rng
        self._machine, self._world = labour.machine, labour.machine.world
        self._running: dict[TransferId, _Running] = {}
        self._asked: dict[int, float] = {}
        """The ramp in our last request, by fragment."""

    def asks(self, request: ExchangeRequest) -> None:
        """This node sends a request."""
        self._asked[request.fragment] = self._standing.ramp

    def run(self, effect: Run) -> None:
        """Begin what this node asked for."""
        there, machine = self._world.of(effect.peer), self._machine
        self._begin(effect)
        if not there.is_up:
            self._labour.later(REFUSED_S, self._lost, effect.transfer, "connect: refused")
            return
        if there.number in self._world.guarded:
            return  # its packets are dropped without a word
        assert (effect.host, effect.bulk_port) == (there.host, there.port + 2) or (
            there.life > 1
        ), "a transfer to a port nobody has ever listened at"
        network = self._world.network
        if isinstance(effect, fx.RunPull):
            took_s = network.transfer_s(there.number, machine.number, effect.size)
            for tick in range(1, int(took_s / PROGRESS_S) + 1):
                share = tick * PROGRESS_S / took_s
                self._labour.later(tick * PROGRESS_S, self._flows, effect, there, share)
        else:
            size = self._bytes(effect.codec_request, effect.fragment)
            took_s = network.transfer_s(machine.number, there.number, size)
        self._expect(effect.transfer, took_s)
        there.labour.transfers._expect(effect.transfer, took_s)
        if not self._world.is_lost():
            self._labour.later(took_s, self._arrived, effect, there)

    def serve(self, effect: Serve) -> None:
        """Be ready for what a peer was granted."""
        self._begin(effect)

    def cancel(self, transfer: TransferId) -> None:
        self._running.pop(transfer, None)

    def close(self) -> None:
        """None is told of any more."""
        self._running.clear()

    # ----------------------------------------------------------------------------------- private

    @property
    def _standing(self) -> Standing:
        node = self._machine.node
        assert node is not None
        return node.work.exchanges.standing

    def _bytes(self, codec: str, fragment: FragmentId) -> int:
        return encoded_size(codec, self._world.sizes[fragment])

    def _begin(self, effect: Run | Serve) -> None:
        if isinstance(effect, fx.RunExchange | fx.ServeExchange):
            assert effect.fragment in self._labour.slow, (
                f"an exchange of fragment {effect.fragment}, which is not held here"
            )
            for running in self._running.values():
                other = running.effect
                assert (
                    not isinstance(other, fx.RunExchange | fx.ServeExchange)
                    or other.fragment != effect.fragment
                ), f"two exchanges of fragment {effect.fragment} at once"
        running = self._running[effect.transfer] = _Running(effect, self._world.now)
        if isinstance(effect, fx.RunExchange | fx.ServeExchange):
            standing = self._standing
            is_asker = isinstance(effect, fx.RunExchange)
            running.ramp = self._asked[effect.fragment] if is_asker else standing.ramp
            running.settling = standing.settling
        self._expect(effect.transfer, 0.0)

    def _expect(self, transfer: TransferId, took_s: float) -> None:
        """Bytes flow for so long; silence counts from then on."""
        running = self._running.get(transfer)
        if running is not None:
            effect = running.effect
            wait_s = took_s + effect.progress_timeout_s
            if isinstance(effect, fx.RunExchange | fx.ServeExchange):
                wait_s = min(wait_s, effect.timeout_s)
            running.lost_at = self._world.now + wait_s
            self._labour.later(wait_s, self._give_up, transfer, running.lost_at)

    def _give_up(self, transfer: TransferId, at: float) -> None:
        running = self._running.get(transfer)
        if running is not None and running.lost_at == at:
            peer, is_ours = running.effect.peer, isinstance(running.effect, Run)
            is_walled = is_ours and self._world.of(peer).number in self._world.guarded
            self._lost(transfer, "connect: no answer" if is_walled else "no byte")

    def _flows(self, effect: fx.RunPull, there: Machine, share: float) -> None:
        """So much of an object is here, if both ends still are."""
        if self._counterpart(effect.transfer, there) is not None:
            self._machine.post(ev.PullProgressed(effect.transfer, int(share * effect.size)))

    def _lost(self, transfer: TransferId, why: str) -> None:
        self._ended(transfer, "lost", why)

    def _line_to(self, peer: PeerId) -> float:
        """What the way there takes, in bytes/s."""
        wire = self._world.network.wire_of(self._machine.number, self._world.of(peer).number)
        return wire.stream_bytes_s()

    def _counterpart(self, transfer: TransferId, there: Machine) -> Run | Serve | None:
        """The other end of a transfer, if it is there and hears us."""
        if not there.is_up or self._world.is_silent(self._machine.number, there.number):
            return None
        running = there.labour.transfers._running.get(transfer)
        return running.effect if running is not None and transfer in self._running else None

    def _arrived(self, effect: Run, there: Machine) -> None:
        serve = self._counterpart(effect.transfer, there)
        if isinstance(effect, fx.RunPull):
            if isinstance(serve, fx.ServePull):
                self._pulled(effect, there)
        elif isinstance(serve, fx.ServeExchange):
            self._exchange(effect, serve, there)

    # --------------------------------------------------------------------------------- exchanges

    def _exchange(self, run: fx.RunExchange, serve: fx.ServeExchange, there: Machine) -> None:
        assert (serve.key_up, serve.key_down) == (run.key_up, run.key_down), "keys of two exchanges"
        slow = self._labour.slow[run.fragment]
        request = flow.make_request(slow, run.codec_request, self._rng)
        theirs = there.labour.transfers
        served = theirs._running[serve.transfer]
        before = _moved_by(serve, there.labour.slow[run.fragment]).copy()
        response = theirs._respond(serve, request.payload)
        if not isinstance(response, flow.Response):
            return
        gained = _moved_by(serve, there.labour.slow[run.fragment]) - before
        size = self._bytes(run.codec_reply, run.fragment)
        took_s = self._world.network.transfer_s(there.number, self._machine.number, size)
        self._expect(run.transfer, took_s)
        if not self._world.is_lost():
            reply = bytes(response.payload)
            booked = response.flow.withheld_norm
            self._labour.later(took_s, self._absorb, run, served, there, reply, gained, booked)

    def _respond(
        self, serve: fx.ServeExchange, payload: memoryview
    ) -> flow.Response | flow.Refused:
        response = flow.respond(
            self._labour.slow[serve.fragment],
            payload,
            codec_request=serve.codec_request,
            codec_reply=serve.codec_reply,
            weight=serve.weight,
            clip_norm=serve.clip_norm,
            rng=self._rng,
            through_momentum=serve.through_momentum,
        )
        if isinstance(response, flow.Refused):
            self._ended(serve.transfer, "refused", response.reason)
        else:
            self._labour.moved(serve.fragment)
            sent = self._bytes(serve.codec_reply, serve.fragment)
            received = self._bytes(serve.codec_request, serve.fragment)
            self._ended(serve.transfer, "ok", "", response.flow, sent, received)
        return response

    def _absorb(
        self,
        run: fx.RunExchange,
        served: _Running,
        there: Machine,
        reply: bytes,
        gained: Vector,
        booked: float,
    ) -> None:
        """The reply has come; `gained` [n] is what the responder's φ, or its m, moved by."""
        silent = self._world.is_silent(self._machine.number, there.number)
        if run.transfer not in self._running or not there.is_up or silent:
            return
        slow = self._labour.slow[run.fragment]
        before = _moved_by(run, slow).copy()
        result = flow.absorb(
            slow,
            reply,
            codec_reply=run.codec_reply,
            weight=run.weight,
            clip_norm=run.clip_norm,
            through_momentum=run.through_momentum,
        )
        if isinstance(result, flow.Refused):
            self._ended(run.transfer, "refused", result.reason)
            return
        ran = self._running[run.transfer]
        self._check_sum(ran, served, result, _moved_by(run, slow) - before + gained, booked)
        self._labour.moved(run.fragment)
        sent = self._bytes(run.codec_request, run.fragment)
        received = self._bytes(run.codec_reply, run.fragment)
        self._ended(run.transfer, "ok", "", result, sent, received)

    def _check_sum(
        self,
        ran: _Running,
        served: _Running,
        result: flow.Flow,
        missing: Vector,
        booked: float,
    ) -> None:
        """What one side gained the other lost, but for what clipping kept back and what the ramp of a
        newcomer weighs differently: each side moves what the other has told it to. `missing` [n] is
        the sum of both."""
        run, serve = ran.effect, served.effect
        assert isinstance(run, fx.RunExchange)
        assert isinstance(serve, fx.ServeExchange)
        if run.through_momentum != serve.through_momentum:
            assert ran.settling != served.settling, "one side moves φ, the other m"
            return
        which = f"an exchange of fragment {run.fragment}"
        assert math.isclose(run.weight * ran.ramp, serve.weight * served.ramp, rel_tol=1e-6), (
            f"{which} weighs {run.weight:.4g} on one side and {serve.weight:.4g} on the other, whose "
            f"ramps are {ran.ramp:.4g} and {served.ramp:.4g}"
        )
        bent = abs(run.weight - serve.weight) * result.raw_norm
        scale = 1 + norm(self._labour.slow[run.fragment].phi)
        allowed = booked + result.withheld_norm + bent + ROUNDING * scale
        assert norm(missing) <= allowed, (
            f"{which} made {norm(missing):.3g} of nothing, {allowed:.3g} is booked"
        )

    # ------------------------------------------------------------------------------------- pulls

    def _pulled(self, run: fx.RunPull, there: Machine) -> None:
        data = there.disk.objects.get(run.object_hash)
        if data is None:
            return
        there.labour.transfers._ended(run.transfer, "ok", sent=run.size)
        self._labour.disk.objects[run.object_hash] = data
        self._ended(run.transfer, "ok")

    # --------------------------------------------------------------------------------------- end

    def _ended(
        self,
        transfer: TransferId,
        outcome: str,
        reason: str = "",
        moved: flow.Flow | None = None,
        sent: int = 0,
        received: int = 0,
    ) -> None:
        """Report the end of a transfer, unless it has ended already."""
        running = self._running.pop(transfer, None)
        if running is None:
            return
        match running.effect:
            case fx.RunPull():
                self._machine.post(ev.PullEnded(transfer, outcome, reason))
                return
            case fx.ServePull():
                self._machine.post(ev.PullServed(transfer, outcome, sent))
                return
            case fx.RunExchange():
                kind: type[ev.ExchangeEnded | ev.ExchangeServed] = ev.ExchangeEnded
            case _:
                kind = ev.ExchangeServed
        if moved is None:
            event = kind(transfer, outcome, reason, bytes_sent=sent, bytes_received=received)
        else:
            event = kind(
                transfer,
                outcome,
                reason,
                raw_norm=moved.raw_norm,
                applied_norm=moved.applied_norm,
                phi_norm=moved.phi_norm,
                clipped=moved.clipped,
                booked=moved.withheld_norm,
                bytes_sent=sent,
                bytes_received=received,
                line_bytes_s=self._line_to(running.effect.peer),
            )
        self._machine.post(event)


def _moved_by(effect: fx.RunExchange | fx.ServeExchange, slow: SlowFragment) -> Vector:
    """What an exchange moves on this side."""
    return slow.momentum if effect.through_momentum else slow.phi
