"""The exchange as a pure machine: who mixes which fragment with whom, and when to give up.

One exchange moves one fragment between one pair, in flow form: both sides use the same decoded
difference, so the sum of all slow weights is conserved whatever the codec, delay or order
(docs/mixing.md). This file holds the protocol around that arithmetic; what exchanges teach is in
outcomes.py, whom to ask in partners.py, and codecs, weights and times in terms.py.

    initiator   ASKING ──accept──▶ MOVING ──▶ applied | lost | refused
                   └─busy, refuse, silence──▶ another partner, three tries in all
    responder   request ──gates──▶ MOVING ──▶ applied | lost | refused

The one rule that may not be bent: a fragment takes part in one exchange at a time on each node.
Overlapping exchanges overshoot and can diverge, so whoever is busy answers so. When two nodes ask
each other for the same fragment at once, the lower node id's request wins and the other is
withdrawn, so that they never refuse each other for ever. A request seen before is answered as
before and never applied twice.

Prior art: AD-PSGD (1710.06952) for pairs on their own clocks and its deadlock, NoLoCo (2506.10911).
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from peerlm.config import Plan
from peerlm.effects import CancelTransfer, Effect, RunExchange, Send, ServeExchange
from peerlm.events import ExchangeEnded, ExchangeServed
from peerlm.mix.exchange_records import Initiated, Phase, Served, Standing, Wish
from peerlm.mix.outcomes import EXCLUDED, Outcomes
from peerlm.mix.partners import Partners
from peerlm.mix.terms import PROGRESS_TIMEOUT_S, Terms
from peerlm.swarm.sampler import Sampler
from peerlm.types import FragmentId, Instant, PeerId, TransferId, after
from peerlm.wire.message import ExchangeAnswer, ExchangeDone, ExchangeRequest

TRIES = 3
"""Partners asked for one exchange before the round is given up; the outer step stays valid."""

RETRY_PAUSE_S = (0.05, 0.25)
"""Before the only partner is asked again, times the tries so far; drawn, so that two nodes that
keep colliding part."""

ASK_TIMEOUT_S = 3.0
"""An answer to a request is one small message: silence this long means try somebody else."""

WATCHDOG_S = 10.0
"""Beyond the driver's own time limits; reaching it means the driver lost an exchange."""

AT_ONCE = 2
"""Exchanges of its own that a node has under way: each keeps a difference of a fragment's size, and a
pair's line is full with one. Further ones wait their turn."""

SERVED_AT_ONCE = 3
"""The same for those of others. One more, for who serves is done a moment after who asked."""

OVERDUE = Instant(-math.inf)

REPLY_MEMORY_S = 30.0
REPLY_MEMORY = 1024
"""How long, and how many, answered transfers are remembered, to answer a repeated request alike."""


class Exchanges:
    """All exchanges of one node.

    Call `start` after an outer step, feed messages and driver events, and call `wake` when
    `deadline()` has come; each returns effects to carry out.

    Args:
        endpoint: where a peer's bulk port can be dialled, or None if it cannot.
        sizes: elements of each fragment that this node holds.
    """

    def __init__(
        self,
        me: PeerId,
        plan: Plan,
        sizes: Mapping[FragmentId, int],
        sampler: Sampler,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
    ) -> None:
        self.standing = Standing()
        self.outcomes = Outcomes(sizes, plan.mix.clip_factor)
        self._me = me
        self._terms = Terms(plan, sizes, self.standing, self.outcomes)
        self._partners = Partners(me, sampler, endpoint, self.outcomes, rng)
        self._endpoint = endpoint
        self._rng = rng
        self._initiated: dict[TransferId, Initiated] = {}
        self._served: dict[TransferId, Served] = {}
        self._busy: dict[FragmentId, TransferId] = {}
        self._put_off: dict[FragmentId, Wish] = {}
        self._answered: OrderedDict[TransferId, tuple[Served, Instant]] = OrderedDict()

    # ------------------------------------------------------------------------------ starting

    def start(
        self, fragment: FragmentId, partners: Sequence[PeerId], now: Instant, count: int = 1
    ) -> list[Effect]:
        """Start an exchange of `fragment` with one of `partners` (sorted by PeerId), and after it
        `count` − 1 more with others. Nothing happens when the fragment is busy or nobody is there:
        being mixed by somebody else is as good."""
        if self.is_busy(fragment) or count < 1 or self.standing.frozen:
            return []
        if not self._terms.mixes:
            return []
        wish = Wish(fragment, tuple(partners), count - 1)
        if self._has_enough:
            self._put_off[fragment] = wish
            return []
        return self._ask(wish, now)

    def stepped(
        self, fragment: FragmentId, partners: Sequence[PeerId], now: Instant
    ) -> list[Effect]:
        """`fragment` has taken an outer step, which `outcomes` know of: start what is to follow it."""
        return self.start(fragment, partners, now, self._terms.exchanges(fragment, len(partners)))

    @property
    def mixes(self) -> bool:
        """Whether the plan's algorithm exchanges at all."""
        return self._terms.mixes

    @property
    def _has_enough(self) -> bool:
        under_way = [e for e in self._initiated.values() if e.phase is not Phase.WAITING]
        return len(under_way) >= AT_ONCE

    def is_taken(self, transfer: TransferId) -> bool:
        """Some exchange has this id. Ids are drawn at random: who uses one twice means harm."""
        taken = (self._initiated, self._served, self._answered)
        return any(transfer in exchanges for exchanges in taken)

    def partner(self, transfer: TransferId) -> PeerId | None:
        """With whom this node has this exchange under way, as its initiator."""
        exchange = self._initiated.get(transfer)
        return None if exchange is None else exchange.peer

    @property
    def are_moving(self) -> bool:
        """Tensors of some exchange are on their way, as far as we know."""
        if not self._initiated:
            return bool(self._served)
        return bool(self._served) or any(e.phase is Phase.MOVING for e in self._initiated.values())

    def is_busy(self, fragment: FragmentId) -> bool:
        """In an exchange, or about to ask for one."""
        return (
            fragment in self._busy
            or fragment in self._put_off
            or any(
                e.phase is Phase.WAITING and e.fragment == fragment
                for e in self._initiated.values()
            )
        )

    def _ask(self, wish: Wish, now: Instant) -> list[Effect]:
        if wish.tries == 0:
            self.outcomes.fragments[wish.fragment].rounds += 1
        choice = self._partners.choose(wish, now, settling=self.standing.settling)
        if choice is None:
            return []
        peer = choice.peer
        exchange = Initiated(
            wish=replace(wish, tries=wish.tries + 1, tried=(*wish.tried, peer)),
            phase=Phase.ASKING,
            asked=now,
            deadline=after(now, ASK_TIMEOUT_S),
            transfer=TransferId(self._rng.randbytes(16)),
            peer=peer,
            share=choice.share,
            codecs=self._terms.codecs(wish.fragment),
            keys=(self._rng.randbytes(32), self._rng.randbytes(32)),
        )
        self._initiated[exchange.transfer] = exchange
        self._busy[wish.fragment] = exchange.transfer
        return [Send(peer, self._request(exchange))]

    def _request(self, exchange: Initiated) -> ExchangeRequest:
        state = self.outcomes.fragments[exchange.fragment]
        return ExchangeRequest(
            transfer=exchange.transfer,
            plan_hash=self.standing.plan_hash,
            fragment=exchange.fragment,
            version=state.version,
            codec_request=exchange.codecs[0],
            codec_reply=exchange.codecs[1],
            request_bytes=self._terms.request_bytes(exchange.fragment, exchange.codecs[0]),
            ramp=self.standing.ramp * exchange.share,
            key_up=exchange.keys[0],
            key_down=exchange.keys[1],
        )

    # ------------------------------------------------------------------------ initiator's side

    def on_answer(self, peer: PeerId, answer: ExchangeAnswer, now: Instant) -> list[Effect]:
        exchange = self._initiated.get(TransferId(answer.transfer))
        if exchange is None or exchange.phase is Phase.WAITING:
            # Too late: we have given it up. Without a word it would wait for our tensors.
            done = Send(peer, ExchangeDone(answer.transfer, applied=False))
            return [done] if answer.verdict == "accept" else []
        if exchange.peer != peer:
            return []
        is_asking = exchange.phase is Phase.ASKING
        if is_asking:
            self._partners.answered(peer, now - exchange.asked)
        if answer.verdict == "accept":
            return self._move(exchange, answer.ramp, now) if is_asking else []
        cancel: list[Effect] = [] if is_asking else [CancelTransfer(exchange.transfer)]
        if answer.verdict == "busy":
            self.outcomes.count("busy", answer.reason)
        else:
            self.outcomes.refused_by(peer, answer.reason, now)
        return cancel + self._next_try(exchange, now)

    def _move(self, exchange: Initiated, ramp: float, now: Instant) -> list[Effect]:
        endpoint = self._endpoint(exchange.peer)
        if endpoint is None:
            return [self._give_up(exchange), *self._next_try(exchange, now)]
        timeout_s = self._terms.timeout_s(exchange.fragment, exchange.codecs)
        exchange.phase = Phase.MOVING
        exchange.deadline = after(now, timeout_s + WATCHDOG_S)
        return [
            RunExchange(
                transfer=exchange.transfer,
                peer=exchange.peer,
                host=endpoint[0],
                bulk_port=endpoint[1],
                fragment=exchange.fragment,
                codec_request=exchange.codecs[0],
                codec_reply=exchange.codecs[1],
                key_up=exchange.keys[0],
                key_down=exchange.keys[1],
                weight=self._terms.weight(ramp * exchange.share),
                clip_norm=self.outcomes.clip_norm(exchange.fragment),
                progress_timeout_s=PROGRESS_TIMEOUT_S,
                timeout_s=timeout_s,
                through_momentum=self._terms.through_momentum,
            )
        ]

    def ended(self, event: ExchangeEnded, now: Instant) -> list[Effect]:
        """The driver has finished the tensors of an exchange this node started."""
        exchange = self._initiated.get(event.transfer)
        if exchange is None or exchange.phase is not Phase.MOVING:
            return []
        self.outcomes.moved(event)
        done: list[Effect] = [
            Send(exchange.peer, ExchangeDone(event.transfer, event.outcome == "ok"))
        ]
        if event.outcome == "ok":
            self.outcomes.count("initiated_ok")
            done += self.outcomes.mixed(exchange, event, now, settling=self.standing.settling)
            self._release(event.transfer, exchange.fragment)
            return done + self._further(exchange, now)
        if event.outcome == "refused":
            self.outcomes.reply_refused(exchange.peer, event.reason, now)
        elif event.outcome == "lost":
            self.outcomes.failed(exchange.peer, event.reason, now)
        return done + self._next_try(exchange, now)

    def _further(self, exchange: Initiated, now: Instant) -> list[Effect]:
        wish = exchange.wish
        if wish.further < 1:
            return []
        met = (*wish.met, exchange.peer)
        return self._ask(Wish(wish.fragment, wish.partners, wish.further - 1, met=met), now)

    def _give_up(self, exchange: Initiated) -> Effect:
        """Tell the responder, whose fragment is locked for us."""
        return Send(exchange.peer, ExchangeDone(exchange.transfer, applied=False))

    def _next_try(self, exchange: Initiated, now: Instant) -> list[Effect]:
        """Another partner at once; the same one again, when there is no other, after a pause."""
        wish = exchange.wish
        self._release(exchange.transfer, exchange.fragment)
        if wish.tries >= TRIES or self.standing.frozen:
            return []
        if self._partners.has_untried(wish, now):
            return self._ask(wish, now)
        # Without the lock while waiting: the partner may be asking us meanwhile.
        exchange.phase = Phase.WAITING
        exchange.deadline = after(now, self._rng.uniform(*RETRY_PAUSE_S) * wish.tries)
        self._initiated[exchange.transfer] = exchange
        return []

    # ------------------------------------------------------------------------ responder's side

    def on_request(self, peer: PeerId, request: ExchangeRequest, now: Instant) -> list[Effect]:
        """Answer a peer's request; `node` has checked that its role lets it mix."""
        transfer = TransferId(request.transfer)
        if (served := self._served_before(peer, transfer, now)) is not None:
            self.outcomes.count("replayed")
            return [self._answer(peer, transfer, "accept", "seen before", served.ramp)]
        if self.is_taken(transfer):
            return [self._answer(peer, transfer, "refuse", "transfer id is taken")]
        verdict, reason = self._judge(peer, request, now)
        if verdict != "accept":
            self.outcomes.note(f"answered {verdict}: {reason}")
            return [self._answer(peer, transfer, verdict, reason)]
        self._withdraw_crossing(FragmentId(request.fragment), peer)
        return self._serve(peer, request, now)

    def _judge(self, peer: PeerId, request: ExchangeRequest, now: Instant) -> tuple[str, str]:
        """Gates in order: what is wrong with the request, then whether it can be served now."""
        standing = self.standing
        if objection := self._terms.objection(request):
            return "refuse", objection
        if self.outcomes.scores.excluded(peer, now):
            return "refuse", EXCLUDED
        if not self.outcomes.scores.allow_request(peer, request.fragment, now):
            return "refuse", "rate"
        if not standing.active or standing.frozen:
            return "busy", "joining" if not standing.active else "frozen"
        verdict = self._judge_lock(peer, FragmentId(request.fragment))
        if verdict[0] == "accept" and len(self._served) >= SERVED_AT_ONCE:
            return "busy", "enough under way"
        return verdict

    def _judge_lock(self, peer: PeerId, fragment: FragmentId) -> tuple[str, str]:
        holder = self._busy.get(fragment)
        if holder is None:
            return "accept", ""
        own = self._initiated.get(holder)
        crossing = own is not None and own.peer == peer and own.phase is Phase.ASKING
        if crossing and peer < self._me:
            return "accept", ""
        return "busy", "crossing" if crossing else "in exchange"

    def _withdraw_crossing(self, fragment: FragmentId, peer: PeerId) -> None:
        holder = self._busy.get(fragment)
        if holder is not None:
            self.outcomes.count("crossed")
            self._release(holder, fragment)
        for exchange in [e for e in self._initiated.values() if e.phase is Phase.WAITING]:
            if exchange.fragment == fragment and exchange.peer == peer:
                self._release(exchange.transfer, fragment)  # as good as our own

    def _serve(self, peer: PeerId, request: ExchangeRequest, now: Instant) -> list[Effect]:
        transfer, fragment = TransferId(request.transfer), FragmentId(request.fragment)
        codecs = (request.codec_request, request.codec_reply)
        timeout_s = self._terms.timeout_s(fragment, codecs)
        deadline, ramp = after(now, timeout_s + WATCHDOG_S), self.standing.ramp
        self._served[transfer] = Served(fragment, peer, request.version, deadline, ramp)
        self._busy[fragment] = transfer
        serve = ServeExchange(
            transfer=transfer,
            peer=peer,
            fragment=fragment,
            codec_request=codecs[0],
            codec_reply=codecs[1],
            request_bytes=request.request_bytes,
            key_up=request.key_up,
            key_down=request.key_down,
            weight=self._terms.weight(request.ramp),
            clip_norm=self.outcomes.clip_norm(fragment),
            progress_timeout_s=PROGRESS_TIMEOUT_S,
            timeout_s=timeout_s,
            through_momentum=self._terms.through_momentum,
        )
        return [serve, self._answer(peer, transfer, "accept", "")]

    def served(self, event: ExchangeServed, now: Instant) -> list[Effect]:
        """The driver has finished, or given up, an exchange a peer started."""
        if event.transfer not in self._served:
            return []
        exchange = self._end_served(event.transfer, now)
        self.outcomes.moved(event)
        if event.outcome == "ok":
            self.outcomes.count("served_ok")
            return self.outcomes.mixed(exchange, event, now, settling=self.standing.settling)
        if event.outcome == "refused":
            return self._refused(event, exchange, now)
        self.outcomes.note(f"served {event.outcome}: {event.reason}")
        return []

    def _refused(self, event: ExchangeServed, exchange: Served, now: Instant) -> list[Effect]:
        reason = self.outcomes.request_refused(exchange, event.reason, now)
        log = self.outcomes.log_of(exchange.peer, event.reason, now)
        return [*log, self._answer(exchange.peer, event.transfer, "refuse", reason)]

    def on_done(self, peer: PeerId, done: ExchangeDone, now: Instant) -> list[Effect]:
        """The initiator gave up: free the fragment now instead of at the deadline."""
        exchange = self._served.get(TransferId(done.transfer))
        if exchange is None or exchange.peer != peer or done.applied:
            return []
        self._end_served(TransferId(done.transfer), now)
        self.outcomes.note("served cancelled by peer")
        return [CancelTransfer(TransferId(done.transfer))]

    def _answer(
        self,
        peer: PeerId,
        transfer: TransferId,
        verdict: str,
        reason: str,
        ramp: float | None = None,
    ) -> Effect:
        """`ramp`: as it was told before; None: ours now."""
        ramp = self.standing.ramp if ramp is None else ramp
        return Send(peer, ExchangeAnswer(transfer, verdict, reason[:400], ramp))

    def _served_before(self, peer: PeerId, transfer: TransferId, now: Instant) -> Served | None:
        """The exchange that `peer` asks for once more. Its answer must be the same, the ramp included: by now
        ours may be another, and the two ends would weigh by different ones."""
        served = self._served.get(transfer)
        if served is None:
            served, at = self._answered.get(transfer, (None, now))
            if now - at >= REPLY_MEMORY_S:
                return None
        return served if served is not None and served.peer == peer else None

    def _end_served(self, transfer: TransferId, now: Instant) -> Served:
        """Unlock the fragment, and remember the transfer so that it never has a second effect."""
        exchange = self._served.pop(transfer)
        assert self._busy.pop(exchange.fragment) == transfer, "served without the lock"
        self._answered[transfer] = (exchange, now)
        while len(self._answered) > REPLY_MEMORY:
            self._answered.popitem(last=False)
        return exchange

    # --------------------------------------------------------------------------------- common

    def use_plan(self, plan: Plan) -> None:
        """A newer revision of the plan holds for exchanges started or accepted from now on."""
        self._terms.use_plan(plan)

    def peer_gone(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Membership declared the peer dead or left: nothing more will come of its exchanges."""
        effects: list[Effect] = []
        for transfer, served in list(self._served.items()):
            if served.peer == peer:
                self._end_served(transfer, now)
                effects.append(CancelTransfer(transfer))
        for exchange in list(self._initiated.values()):
            left = tuple(p for p in exchange.wish.partners if p != peer)
            exchange.wish = replace(exchange.wish, partners=left)
            if exchange.peer == peer and exchange.phase is not Phase.WAITING:
                if exchange.phase is Phase.MOVING:
                    effects.append(CancelTransfer(exchange.transfer))
                self.outcomes.count("timed_out", "peer gone")
                effects += self._next_try(exchange, now)
        for fragment, wish in self._put_off.items():
            left = tuple(p for p in wish.partners if p != peer)
            self._put_off[fragment] = replace(wish, partners=left)
        self.outcomes.forget(peer)
        return effects

    def freeze(self, now: Instant) -> list[Effect]:
        """Stop everything: slow weights must not move from here on until `standing` says so."""
        effects: list[Effect] = []
        for exchange in self._initiated.values():
            if exchange.phase is Phase.MOVING:
                effects.append(CancelTransfer(exchange.transfer))
            if exchange.phase is not Phase.WAITING:
                effects.append(self._give_up(exchange))
        for transfer in list(self._served):
            peer = self._end_served(transfer, now).peer
            effects += [CancelTransfer(transfer), self._answer(peer, transfer, "busy", "frozen")]
        self._initiated.clear()
        self._put_off.clear()
        self._busy.clear()
        self.standing.frozen = True
        return effects

    def wake(self, now: Instant) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        if not (self._initiated or self._served or self._put_off):
            return effects
        for exchange in [e for e in self._initiated.values() if e.deadline <= now]:
            effects += self._overdue(exchange, now)
        for transfer in [t for t, s in self._served.items() if s.deadline <= now]:
            self._end_served(transfer, now)
            self.outcomes.note("served watchdog")
            effects.append(CancelTransfer(transfer))
        while self._put_off and not self._has_enough:
            fragment = next(iter(self._put_off))
            wish = self._put_off.pop(fragment)
            if fragment not in self._busy:  # being mixed by somebody else is as good
                effects += self._ask(wish, now)
        return effects

    def _overdue(self, exchange: Initiated, now: Instant) -> list[Effect]:
        match exchange.phase:
            case Phase.WAITING:
                del self._initiated[exchange.transfer]
                if exchange.fragment in self._busy or self.standing.frozen:
                    return []
                if self._has_enough:
                    self._put_off[exchange.fragment] = exchange.wish
                    return []
                return self._ask(exchange.wish, now)
            case Phase.ASKING:
                self.outcomes.failed(exchange.peer, "no answer", now)
                return [self._give_up(exchange), *self._next_try(exchange, now)]
            case Phase.MOVING:
                self.outcomes.count("timed_out", "watchdog")
                cancel = CancelTransfer(exchange.transfer)
                return [cancel, self._give_up(exchange), *self._next_try(exchange, now)]

    def deadline(self) -> Instant | None:
        """When to call `wake`; None for never."""
        if self._put_off and not self._has_enough:
            return OVERDUE
        if not self._initiated and not self._served:
            return None
        waiting = [e.deadline for e in self._initiated.values()]
        waiting += [s.deadline for s in self._served.values()]
        return min(waiting)

    def check(self) -> None:
        """Raise if a promise of ours is broken."""
        assert len(self._answered) <= REPLY_MEMORY, "more answers remembered than promised"
        self.outcomes.check()
        if not (self._busy or self._initiated or self._served):
            return
        for fragment, transfer in self._busy.items():
            exchange = self._initiated.get(transfer) or self._served.get(transfer)
            assert exchange is not None, f"fragment {fragment} locked by a forgotten exchange"
            assert exchange.fragment == fragment, (
                f"fragment {fragment} locked by another's exchange"
            )
        for transfer, initiated in self._initiated.items():
            holds = self._busy.get(initiated.fragment) == transfer
            assert holds != (initiated.phase is Phase.WAITING), (
                f"{initiated.phase} and lock {holds}"
            )
        for transfer, served in self._served.items():
            assert self._busy.get(served.fragment) == transfer, "served without the lock"

    def _release(self, transfer: TransferId, fragment: FragmentId) -> None:
        self._initiated.pop(transfer, None)
        if self._busy.get(fragment) == transfer:
            del self._busy[fragment]
