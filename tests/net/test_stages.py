"""Workers that hold one stage each, as processes: together they learn what one learns that holds all."""

from __future__ import annotations

import math
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from peerlm.config import Plan
from peerlm.errors import WireError
from peerlm.model.stages import held_fragments, stages
from peerlm.train import protocol
from peerlm.train.channel import DaemonGone
from peerlm.types import FragmentId, PeerId
from tests.net.tiny_run import ME, plan, shards
from tests.net.worker_scene import Daemon, worker

BUDGET = 6_500
"""Some twenty-five inner steps."""
PEERS = (ME, PeerId(b"n" * 16), PeerId(b"o" * 16))
ENDS, ONE, OTHER = PEERS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("corpus"))


def in_stages(count: int, **changes: object) -> Plan:
    return plan(
        **{
            "run.token_budget": BUDGET,
            "model.blocks": ["attention", "recurrent", "feedforward"],
            "model.stages": count,
            "train.batch": 8,
            "train.accumulate": 4,
            "train.stream_forward": "fp32",
            "train.stream_back": "fp32",
            **changes,
        }
    )


class Host:
    """One worker and what it has told; its hops go to the others'."""

    def __init__(self, daemon: Daemon, ring: Ring) -> None:
        self.daemon, self.ring = daemon, ring
        self.last = protocol.Progress(0, 0, None, 0.0, 0, 0, 0.0)
        self.still = 0
        """Reports in a row that tell of no more tokens."""
        self.nonsense: list[protocol.Nonsense] = []
        self.is_ready, self.drained = threading.Event(), threading.Event()
        self.evaluated, self.val_loss = threading.Event(), math.nan
        self.heard, self._mouth = threading.Condition(), threading.Lock()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with suppress(DaemonGone, WireError, OSError, ValueError):  # closed under it
            while True:
                message = self.daemon.channel.receive_one()
                with self.heard:
                    self._heed(message)
                    self.heard.notify_all()

    def say(self, message: protocol.Message) -> None:
        with self._mouth, suppress(DaemonGone):
            self.daemon.channel.send(message)

    def until(self, holds: Callable[[Host], bool], what: str) -> None:
        """Wait for what it tells to come to that."""
        with self.heard:
            assert self.heard.wait_for(lambda: holds(self), 60), f"{what}: {self.last}"

    def until_tokens(self, tokens: int) -> None:
        self.until(lambda host: host.last.tokens > tokens, f"it trains on {tokens} tokens")

    def _heed(self, message: protocol.Message) -> None:
        match message:
            case protocol.Ready():
                self.is_ready.set()
            case protocol.Hop(peer, data):
                self.ring.carry(self.daemon.me, peer, data)
            case protocol.Boundary(fragment):
                self.say(protocol.BoundaryTaken(fragment))
            case protocol.Progress():
                self.still = self.still + 1 if message.tokens == self.last.tokens else 0
                self.last = message
            case protocol.Nonsense():
                self.nonsense.append(message)
            case protocol.Evaluated(val_loss):
                self.val_loss = val_loss
                self.evaluated.set()
            case protocol.Drained():
                self.drained.set()


class Ring:
    """Carries hops."""

    def __init__(self) -> None:
        self.hosts: dict[PeerId, Host] = {}
        self.processes: dict[PeerId, subprocess.Popen[bytes]] = {}

    def carry(self, source: PeerId, to: PeerId, data: bytes) -> None:
        self.hosts[to].say(protocol.Hop(source, data))

    def steer(self, plan: Plan, *but_for: PeerId) -> None:
        """Train, with one another but for these."""
        for peer, host in self.hosts.items():
            others = [
                (p, h.daemon.held) for p, h in self.hosts.items() if p not in {peer, *but_for}
            ]
            host.say(
                protocol.Steer(
                    True,
                    0,
                    BUDGET,
                    (ME,),
                    plan.mix.inner_steps,
                    tuple(p for p, _ in others),
                    tuple(held[0] for _, held in others),
                    tuple(held[-1] for _, held in others),
                )
            )


@contextmanager
def ring_of(corpus: list[Path], plan: Plan, holdings: list[range]) -> Iterator[Ring]:
    ring = Ring()
    with ExitStack() as stack:
        for peer, held in zip(PEERS, holdings, strict=False):
            daemon = Daemon(held_fragments(plan, held), peer, held)
            _, ring.processes[peer] = stack.enter_context(worker(corpus, plan, daemon))
            ring.hosts[peer] = Host(daemon, ring)
        for host in ring.hosts.values():
            assert host.is_ready.wait(60)
        yield ring


def theta_of(ring: Ring, *, but_for: PeerId | None = None) -> dict[FragmentId, np.ndarray]:
    """All of θ, once everybody (but for one) has handed it in."""
    hosts = [host for peer, host in ring.hosts.items() if peer != but_for]
    for host in hosts:
        host.say(protocol.Drain())
        assert host.drained.wait(30)
    return {f: slot.copy() for h in hosts for f, slot in h.daemon.memory.boundary.items()}


@pytest.mark.timeout(120)
def test_stages_learn_what_one_process_learns(corpus: list[Path]) -> None:
    count = 3
    whole, cut = in_stages(1), in_stages(count)
    with worker(corpus, whole, Daemon(held_fragments(whole, range(1)))) as (daemon, _):
        daemon.hear(protocol.Ready)
        daemon.train(BUDGET)
        daemon.hear(protocol.Progress, lambda m: m.tokens > BUDGET)
        daemon.channel.send(protocol.Drain())
        daemon.hear(protocol.Drained)
        alone = {f: slot.copy() for f, slot in daemon.memory.boundary.items()}
        for fragment, values in alone.items():
            daemon.memory.slow[fragment][:] = values
        daemon.channel.send(protocol.Evaluate())
        val_loss = daemon.hear(protocol.Evaluated).val_loss
    with ring_of(corpus, cut, [range(s, s + 1) for s in range(count)]) as ring:
        ring.steer(cut)
        ring.hosts[ENDS].until_tokens(BUDGET)
        assert ring.hosts[ENDS].last.stream_lost == 0
        ring.hosts[ENDS].say(protocol.Evaluate())  # steps go on, but move nothing
        assert ring.hosts[ENDS].evaluated.wait(30)
        together = theta_of(ring)
    assert set(together) == set(alone)
    start = {spec.id: spec.size for spec in held_fragments(cut, range(count))}
    assert {f: values.size for f, values in together.items()} == start
    for fragment, values in together.items():
        np.testing.assert_allclose(values, alone[fragment], atol=2e-3)
    assert len(stages(cut)) == count
    assert ring.hosts[ENDS].val_loss == pytest.approx(val_loss, abs=1e-3)


@pytest.mark.timeout(120)
def test_hosts_of_a_stage_share_its_work_one_goes_on_without_the_other_and_ends_wait_for_any(
    corpus: list[Path],
) -> None:
    cut = in_stages(2)
    with ring_of(corpus, cut, [range(1), range(1, 2), range(1, 2)]) as ring:
        ends, one, other = (ring.hosts[peer] for peer in PEERS)
        ring.steer(cut)
        for host in (one, other):
            host.until(lambda host: host.last.steps > 2, "it takes steps")
        assert one.last.tokens == other.last.tokens == 0, "text is counted by whose it is"

        for host, peer in ((ends, OTHER), (one, ENDS)):
            host.say(protocol.Hop(peer, b"garbage"))
            host.until(lambda host: bool(host.nonsense), "garbage is told")
            assert [told.peer for told in host.nonsense] == [peer]
        ends.until_tokens(ends.last.tokens)

        ring.processes[ONE].kill()
        ring.processes[ONE].wait()
        ring.steer(cut, ONE)
        steps = other.last.steps
        ends.until_tokens(ends.last.tokens + cut.train.batch * cut.model.context)
        other.until(lambda host: host.last.steps > steps, "the other goes on")

        ring.steer(cut, ONE, OTHER)
        ends.until(lambda host: host.still > 1, "without a host of the stage it keeps still")
        tokens = ends.last.tokens
        ring.steer(cut, ONE)
        ends.until_tokens(tokens)
        theta_of(ring, but_for=ONE)
