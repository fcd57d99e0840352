"""Workers that hold one stage each, as processes: together they learn what one learns that holds all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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

BUDGET = 13_000
"""Some fifty inner steps."""
PEERS = (ME, PeerId(b"n" * 16), PeerId(b"o" * 16))


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
        self.tokens = self.steps = 0
        self.is_ready, self.drained = threading.Event(), threading.Event()
        self.enough = threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with suppress(DaemonGone, WireError, OSError, ValueError):  # closed under it
            while True:
                self._heed(self.daemon.channel.receive_one())

    def _heed(self, message: protocol.Message) -> None:
        match message:
            case protocol.Ready():
                self.is_ready.set()
            case protocol.Hop(peer, data):
                self.ring.carry(self.daemon.me, peer, data)
            case protocol.Boundary(fragment):
                self.daemon.channel.send(protocol.BoundaryTaken(fragment))
            case protocol.Progress(steps, tokens):
                self.steps, self.tokens = steps, tokens
                if tokens > BUDGET:
                    self.enough.set()
            case protocol.Drained():
                self.drained.set()


class Ring:
    """Carries hops. `cut`: peers to whom nothing comes."""

    def __init__(self) -> None:
        self.hosts: dict[PeerId, Host] = {}
        self.cut: set[PeerId] = set()
        self.carried = 0

    def carry(self, source: PeerId, to: PeerId, data: bytes) -> None:
        self.carried += 1
        if to in self.hosts and to not in self.cut:
            with suppress(DaemonGone):
                self.hosts[to].daemon.channel.send(protocol.Hop(source, data))

    def steer(self, plan: Plan, *, but_for: frozenset[PeerId] = frozenset()) -> None:
        for peer, host in self.hosts.items():
            others = [
                (p, h.daemon.held) for p, h in self.hosts.items() if p not in {peer, *but_for}
            ]
            host.daemon.channel.send(
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
            stack.enter_context(worker(corpus, plan, daemon))
            ring.hosts[peer] = Host(daemon, ring)
        for host in ring.hosts.values():
            assert host.is_ready.wait(60)
        yield ring


def theta_of(ring: Ring) -> dict[FragmentId, np.ndarray]:
    """All of θ, once everybody has handed it in."""
    for host in ring.hosts.values():
        host.daemon.channel.send(protocol.Drain())
        assert host.drained.wait(30)
    return {
        f: slot.copy() for h in ring.hosts.values() for f, slot in h.daemon.memory.boundary.items()
    }


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
    with ring_of(corpus, cut, [range(s, s + 1) for s in range(count)]) as ring:
        ring.steer(cut)
        assert ring.hosts[ME].enough.wait(90)
        together = theta_of(ring)
    assert set(together) == set(alone)
    start = {spec.id: spec.size for spec in held_fragments(cut, range(count))}
    assert {f: values.size for f, values in together.items()} == start
    for fragment, values in together.items():
        np.testing.assert_allclose(values, alone[fragment], atol=2e-3)
    assert len(stages(cut)) == count
