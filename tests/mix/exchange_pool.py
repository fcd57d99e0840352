"""Nodes that are nothing but `Exchanges`, with a pool of messages that a test delivers or loses."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from peerlm.config import Plan, with_changes
from peerlm.effects import CancelTransfer, Effect, RunExchange, Send, ServeExchange
from peerlm.events import ExchangeEnded, ExchangeServed
from peerlm.mix.exchange import Exchanges
from peerlm.swarm.sampler import sampler_named
from peerlm.types import FragmentId, Instant, PeerId, TransferId
from peerlm.wire.message import ExchangeAnswer, ExchangeDone, ExchangeRequest, Message

SIZES = (1000, 300, 200)
PLAN_HASH = b"h" * 32


def peer_id(number: int) -> PeerId:
    return PeerId(bytes([number]) * 16)


@dataclass
class Site:
    """One node: its machine, and the transfers its driver is at."""

    me: PeerId
    machine: Exchanges
    running: dict[TransferId, RunExchange | ServeExchange] = field(default_factory=dict)
    since: dict[TransferId, float] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)


class Pool:
    """`n` sites. Messages lie in `mail` as (from, to, message) until `deliver`ed or dropped."""

    def __init__(self, n: int, seed: int = 0, **changes: object) -> None:
        self.now = 0.0
        self.plan = with_changes(Plan(), changes, "test")
        self.mail: list[tuple[PeerId, PeerId, Message]] = []
        self.peers = tuple(peer_id(i) for i in range(1, n + 1))
        self.unreachable: set[PeerId] = set()
        self.sites: dict[PeerId, Site] = {}
        for number, me in enumerate(self.peers):
            machine = Exchanges(
                me,
                self.plan,
                dict(enumerate(SIZES)),
                sampler_named(self.plan.mix.sampler, 1),
                lambda peer: None if peer in self.unreachable else (peer.hex(), 7702),
                random.Random(f"{seed} {number}"),
            )
            machine.standing.active, machine.standing.frozen = True, False
            machine.standing.plan_hash = PLAN_HASH
            self.sites[me] = Site(me, machine)

    def site(self, number: int) -> Site:
        return self.sites[peer_id(number)]

    def start(self, number: int, fragment: int = 0, count: int = 1) -> None:
        me = peer_id(number)
        others = tuple(p for p in self.peers if p != me)
        machine = self.sites[me].machine
        self.carry(me, machine.start(FragmentId(fragment), others, Instant(self.now), count))

    def carry(self, me: PeerId, effects: list[Effect]) -> list[Effect]:
        site = self.sites[me]
        for effect in effects:
            site.effects.append(effect)
            match effect:
                case Send(peer, message):
                    self.mail.append((me, peer, message))
                case RunExchange() | ServeExchange():
                    assert effect.transfer not in site.running, "carried out twice"
                    running = [e.fragment for e in site.running.values()]
                    assert effect.fragment not in running, "two exchanges on one fragment"
                    site.running[effect.transfer] = effect
                    site.since[effect.transfer] = self.now
                case CancelTransfer(transfer):
                    site.running.pop(transfer, None)
        site.machine.check()
        return effects

    def deliver(self, index: int = 0, *, keep: bool = False) -> list[Effect]:
        """Hand over one message; `keep`: it will come once more."""
        sender, to, message = self.mail[index] if keep else self.mail.pop(index)
        machine, now = self.sites[to].machine, Instant(self.now)
        match message:
            case ExchangeRequest():
                return self.carry(to, machine.on_request(sender, message, now))
            case ExchangeAnswer():
                return self.carry(to, machine.on_answer(sender, message, now))
            case ExchangeDone():
                return self.carry(to, machine.on_done(sender, message, now))
        raise AssertionError(message)

    def deliver_all(self) -> None:
        while self.mail:
            self.deliver()

    def complete(self, transfer: TransferId, *, reply_lost: bool = False) -> None:
        """The drivers of both ends move the tensors, the responder's first."""
        ends = [s for s in self.sites.values() if transfer in s.running]
        for site in sorted(ends, key=lambda s: isinstance(s.running[transfer], RunExchange)):
            initiated = isinstance(site.running[transfer], RunExchange)
            lost = initiated and (reply_lost or len(ends) < 2)
            self.finish(site.me, transfer, "lost" if lost else "ok")

    def finish(
        self,
        me: PeerId,
        transfer: TransferId,
        outcome: str,
        reason: str = "",
        raw_norm: float = 0.1,
    ) -> list[Effect]:
        """One driver reports."""
        site, now = self.sites[me], Instant(self.now)
        running = site.running.pop(transfer)
        kind = ExchangeEnded if isinstance(running, RunExchange) else ExchangeServed
        event = kind(transfer, outcome, reason, raw_norm=raw_norm, phi_norm=2.0, bytes_sent=10)
        if isinstance(event, ExchangeEnded):
            return self.carry(me, site.machine.ended(event, now))
        return self.carry(me, site.machine.served(event, now))

    def complete_all(self) -> None:
        """Deliver and move tensors until nothing is left to do."""
        while self.mail or any(site.running for site in self.sites.values()):
            self.deliver_all()
            for site in list(self.sites.values()):
                for transfer in list(site.running):
                    if transfer in site.running:
                        self.complete(transfer)

    def pass_time(self, seconds: float) -> None:
        """Wake whoever is due at its time; drivers keep to their own time limits."""
        end = self.now + seconds
        while True:
            due = [s.machine.deadline() for s in self.sites.values()]
            limits = [
                (site.since[t] + effect.progress_timeout_s, site.me, t)
                for site in self.sites.values()
                for t, effect in site.running.items()
            ]
            times = [t for t in due if t is not None] + [limit[0] for limit in limits]
            at = min(times, default=end)
            if at >= end:
                break
            self.now = max(self.now, at)
            for limit, me, transfer in limits:
                if limit <= self.now and transfer in self.sites[me].running:
                    self.finish(me, transfer, "lost", "no progress")
            for me, site in self.sites.items():
                self.carry(me, site.machine.wake(Instant(self.now)))
        self.now = end

    def locked(self) -> list[PeerId]:
        return [
            s.me
            for s in self.sites.values()
            if any(s.machine.is_busy(FragmentId(f)) for f in range(len(SIZES)))
        ]


def the_request(pool: Pool) -> ExchangeRequest:
    (found,) = [m for _, _, m in pool.mail if isinstance(m, ExchangeRequest)]
    return found


def answers(effects: list[Effect]) -> list[tuple[str, str]]:
    return [
        (e.message.verdict, e.message.reason)
        for e in effects
        if isinstance(e, Send) and isinstance(e.message, ExchangeAnswer)
    ]
