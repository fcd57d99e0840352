"""A worker of some stages among peers that lose, lie, flood and go: what it keeps, says and takes for done."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgpack
import numpy as np
import pytest
import torch

from peerlm.config import NodeSettings, Plan, with_changes
from peerlm.data.shards import prepare
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.model.stages import held_fragments
from peerlm.train import hop as hops
from peerlm.train import protocol, shared
from peerlm.train.batch_round import TRIES, WINDOW
from peerlm.train.channel import Channel
from peerlm.train.hop import Hop, Kind
from peerlm.train.learner import Learner
from peerlm.train.protocol import Message
from peerlm.train.routes import PATIENCE_S_MAX
from peerlm.train.shared import SharedMemory
from peerlm.train.stage_loop import WAITING_MAX, StageLoop
from peerlm.types import Instant, PeerId
from tests.net.tiny_run import plan, settings, shards

ENDS, ONE, TWO, ALSO = (PeerId(letter * 16) for letter in (b"e", b"1", b"2", b"a"))
RUNS = {ENDS: (0, 0), ONE: (1, 1), TWO: (2, 2), ALSO: (1, 1)}
PLAN = plan(
    **{
        "model.blocks": ["attention", "recurrent", "feedforward"],
        "model.stages": 3,
        "train.batch": 8,
        "train.accumulate": 4,
        "train.stream_forward": "fp32",
        "train.stream_back": "fp32",
    }
)
SHAPE = (2, PLAN.model.context, PLAN.model.dim)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("corpus"))


class Mouth:
    """In the place of the socket to the daemon."""

    def __init__(self) -> None:
        self.said: list[Message] = []

    def send(self, message: Message) -> None:
        self.said.append(message)


class Host:
    """One loop, a turn at a time, on a clock of ours. It is steered to train with all others."""

    def __init__(
        self,
        me: PeerId,
        corpus: list[Path],
        plan: Plan = PLAN,
        absent: tuple[int, ...] = (),
        runs: Mapping[PeerId, tuple[int, int]] = RUNS,
    ) -> None:
        self.runs = runs
        first, last = runs[me]
        held = range(first, last + 1)
        specs = held_fragments(plan, held)
        descriptor = shared.allocate(specs)
        memory = SharedMemory(descriptor, specs)
        os.close(descriptor)
        node: NodeSettings = settings()
        paths = tuple(map(str, corpus)) if first == 0 else ()
        packed = (protocol.packed(plan), protocol.packed(node))
        setup = protocol.Setup(1, True, me, *packed, paths, 1, b"", first, last, absent)
        self.me, self.plan, self.mouth = me, plan, Mouth()
        self.now = 0.0
        self.loop = StageLoop(setup, plan, node, specs, memory, cast("Channel", self.mouth), held)
        self.steer()

    def steer(self, *, training: bool = True, without: tuple[PeerId, ...] = ()) -> None:
        runs = {p: run for p, run in self.runs.items() if p != self.me and p not in without}
        first, last = zip(*runs.values(), strict=True)
        budget, every = self.plan.run.token_budget, 4
        self.loop._take(
            protocol.Steer(training, 0, budget, (ENDS,), every, tuple(runs), first, last)
        )

    def hear(self, peer: PeerId, hop: Hop, *, codec: str = "fp32") -> list[tuple[PeerId, Hop]]:
        """Take a hop, do what is to be done, and return the hops that it says."""
        return self.hear_bytes(peer, hops.pack(hop, codec))

    def hear_bytes(self, peer: PeerId, data: bytes) -> list[tuple[PeerId, Hop]]:
        self.loop._take(protocol.Hop(peer, data))
        return self.turn()

    def turn(self, seconds: float = 0.0) -> list[tuple[PeerId, Hop]]:
        self.now += seconds
        before = len(self.mouth.said)
        while True:
            self.loop._turn(Instant(self.now))
            if not any(self.loop._arrived.values()):
                break
        return self.hops(before)

    def hops(self, start: int = 0) -> list[tuple[PeerId, Hop]]:
        model = self.plan.model
        return [
            (m.peer, hops.unpack(m.data, model.stages, model.context, model.dim))
            for m in self.mouth.said[start:]
            if isinstance(m, protocol.Hop)
        ]

    def of(self, kind: type[Message]) -> list[Message]:
        return [m for m in self.mouth.said if isinstance(m, kind)]

    def under_way(self) -> tuple[int, int, int]:
        """Passes, upstreams, microbatches that are elsewhere."""
        loop = self.loop
        return len(loop._part.passes()), len(loop._upstream), len(loop._routes._sent)

    def break_theta(self) -> None:
        with torch.no_grad():
            next(self.loop._part.model.parameters()).fill_(math.nan)


def forward(number: int, stage: int = 1, origin: PeerId = ENDS, **changes: object) -> Hop:
    stream = np.random.default_rng(number).standard_normal(SHAPE).astype(np.float32)
    made = Hop(Kind.FORWARD, origin, number, stage, 0.5, (-1.0,) * 3, stream)
    return replace(made, **changes)  # type: ignore[arg-type]


def backward(number: int, origin: PeerId = ENDS, **changes: object) -> Hop:
    """As a node of before says it: without a stage."""
    return replace(forward(number, 0, origin), kind=Kind.BACKWARD, **changes)  # type: ignore[arg-type]


def lost(number: int, origin: PeerId = ENDS, stage: int = 1) -> Hop:
    return Hop(Kind.LOST, origin, number, stage)


@pytest.fixture
def middle(corpus: list[Path]) -> Host:
    return Host(ONE, corpus)


@pytest.fixture
def ends(corpus: list[Path]) -> Host:
    return Host(ENDS, corpus)


# --------------------------------------------------------------------------------- in the middle


def test_what_comes_goes_on_and_its_gradient_goes_back_and_nothing_stays(middle: Host) -> None:
    ((to, on),) = middle.hear(ENDS, forward(7))
    assert (to, on.kind, on.origin, on.number, on.stage) == (TWO, Kind.FORWARD, ENDS, 7, 2)
    assert middle.under_way() == (1, 1, 1)
    ((to, back),) = middle.hear(TWO, backward(7))
    assert (to, back.kind, back.number) == (ENDS, Kind.BACKWARD, 7)
    assert middle.under_way() == (0, 0, 0)


@pytest.mark.parametrize(
    ("source", "hop"),
    [
        (ENDS, forward(7)),  # the number is under way
        (TWO, forward(7)),
        (ENDS, forward(8, origin=ONE)),  # our own, which nobody has from us
        (ENDS, forward(8, stage=2)),  # not held here
        (ENDS, forward(8, stage=0)),
    ],
)
def test_what_cannot_be_is_lost_and_harms_nothing(middle: Host, source: PeerId, hop: Hop) -> None:
    middle.hear(ENDS, forward(7))
    assert middle.hear(source, hop) == [(source, lost(hop.number, hop.origin, hop.stage))]
    assert middle.under_way() == (1, 1, 1)
    ((to, back),) = middle.hear(TWO, backward(7))
    assert (to, back.kind) == (ENDS, Kind.BACKWARD)


@pytest.mark.parametrize(
    ("source", "hop"),
    [
        (TWO, backward(8)),  # of a pass that never was
        (ENDS, backward(7)),  # from one that has it not from us
        (ALSO, lost(7)),
        (TWO, lost(8)),
    ],
)
def test_who_did_not_get_it_can_neither_end_it_nor_lose_it(
    middle: Host, source: PeerId, hop: Hop
) -> None:
    middle.hear(ENDS, forward(7))
    assert middle.hear(source, hop) == []
    assert middle.under_way() == (1, 1, 1)


def test_what_is_done_is_done_once_and_lost_no_more(middle: Host) -> None:
    middle.hear(ENDS, forward(7))
    middle.hear(TWO, backward(7))
    assert middle.hear(TWO, backward(7)) == []
    assert middle.hear(TWO, lost(7)) == []
    assert middle.loop._part.sequences == SHAPE[0]


def test_a_gradient_of_another_shape_is_nonsense_and_the_microbatch_lost(middle: Host) -> None:
    middle.hear(ENDS, forward(7))
    short = backward(7).stream[:1]  # type: ignore[index]
    assert middle.hear(TWO, backward(7, stream=short)) == [(ENDS, lost(7))]
    (told,) = middle.of(protocol.Nonsense)
    assert told == protocol.Nonsense(TWO, told.why)  # type: ignore[attr-defined]
    assert middle.under_way() == (0, 0, 0)
    assert middle.loop._part.sequences == 0


@pytest.mark.parametrize("length", [1, 3, PLAN.model.context])
@pytest.mark.parametrize("me", [ONE, TWO])
def test_sequences_of_any_length_and_number_pass(
    corpus: list[Path], me: PeerId, length: int
) -> None:
    host = Host(me, corpus)
    stream = np.ones((5, length, PLAN.model.dim), np.float32)
    ((_, on),) = host.hear(ENDS, forward(7, RUNS[me][0], stream=stream))
    assert on.kind is Kind.FORWARD
    assert on.stream is not None
    assert on.stream.shape == stream.shape


def test_garbage_is_told_and_nothing_else(middle: Host) -> None:
    middle.loop._take(protocol.Hop(TWO, b"garbage"))
    assert middle.turn() == []
    assert [m.peer for m in middle.of(protocol.Nonsense)] == [TWO]  # type: ignore[attr-defined]


def test_what_is_past_a_stage_does_not_come_for_an_earlier_one(corpus: list[Path]) -> None:
    """It would take the place of the later pass, which is sent on to the same stage."""
    longer = Host(ALSO, corpus, FOUR, runs={ENDS: (0, 0), ALSO: (1, 2), TWO: (3, 3)})
    norms = (-1.0,) * 4
    ((to, _),) = longer.hear(ENDS, forward(1, stage=2, norms=norms))
    assert to == TWO
    assert longer.hear(ENDS, forward(1, stage=1, norms=norms)) == [(ENDS, lost(1, stage=1))]
    assert longer.under_way() == (1, 1, 1)


def test_what_does_not_come_back_is_forgotten_with_word_to_where_it_came_from(middle: Host) -> None:
    middle.hear(ENDS, forward(7))
    assert middle.turn(PATIENCE_S_MAX - 1) == []
    assert middle.turn(2.0) == [(ENDS, lost(7))]
    assert middle.under_way() == (0, 0, 0)


def test_hosts_that_go_take_with_them_what_they_had(middle: Host) -> None:
    middle.hear(ENDS, forward(7))
    middle.steer(without=(TWO,))
    assert middle.hops()[-1] == (ENDS, lost(7))
    assert middle.under_way() == (0, 0, 0)
    assert middle.hear(ENDS, forward(8)) == [(ENDS, lost(8))]
    middle.steer()
    middle.hear(ENDS, forward(9))
    middle.steer(without=(ENDS,))
    assert middle.under_way() == (0, 0, 0)


def test_what_has_come_around_to_nobody_that_is_known_is_lost_at_once(corpus: list[Path]) -> None:
    last = Host(TWO, corpus)
    assert last.hear(ONE, forward(7, stage=2, origin=ALSO))[0][0] == ALSO
    stranger = PeerId(b"s" * 16)
    assert last.hear(ONE, forward(7, stage=2, origin=stranger)) == [(ONE, lost(7, stranger, 2))]
    assert last.under_way() == (1, 1, 1)


def test_who_keeps_still_loses_what_comes_and_ends_what_it_has(middle: Host) -> None:
    middle.hear(ENDS, forward(7))
    middle.loop._take(protocol.Drain())
    assert middle.hear(ENDS, forward(8)) == [(ENDS, lost(8))]
    ((_, back),) = middle.hear(TWO, backward(7))
    assert back.kind is Kind.BACKWARD
    assert len(middle.of(protocol.Drained)) == 1
    assert middle.under_way() == (0, 0, 0)


def test_a_member_that_floods_fills_no_memory(middle: Host) -> None:
    for number in range(3 * WAITING_MAX):
        middle.loop._take(protocol.Hop(ENDS, hops.pack(forward(number), "fp32")))
    assert sum(map(len, middle.loop._arrived.values())) == WAITING_MAX
    middle.loop._take(protocol.Hop(TWO, hops.pack(lost(1), "fp32")))
    assert sum(map(len, middle.loop._arrived.values())) == WAITING_MAX + 1
    said = middle.turn()
    passed = [hop for to, hop in said if to == TWO]
    assert len(passed) == 2 * WINDOW
    assert middle.under_way() == (2 * WINDOW,) * 3
    assert [to for to, hop in said if hop.kind is Kind.LOST] == [ENDS] * (WAITING_MAX - 2 * WINDOW)
    middle.turn(PATIENCE_S_MAX + 1)
    assert middle.under_way() == (0, 0, 0)


def test_a_step_is_taken_before_the_next_pass_and_counts_no_loss(middle: Host) -> None:
    for number in range(PLAN.train.accumulate):
        middle.hear(ENDS, forward(number))
        middle.hear(TWO, backward(number))
    assert middle.loop._tally.steps == 0
    middle.hear(ENDS, forward(99))
    assert middle.loop._tally.steps == 1
    assert middle.loop._tally.loss() is None
    assert middle.loop._part.sequences == 0


def test_broken_weights_are_told_with_a_boundary_and_never_sent(middle: Host) -> None:
    middle.break_theta()
    assert middle.hear(ENDS, forward(0)) == [(ENDS, lost(0))]
    told = {boundary.fragment for boundary in middle.of(protocol.Boundary)}
    assert told == set(middle.loop._cadence._handed_in_at), "all of it, and at once"
    for number in range(1, 4):
        assert middle.hear(ENDS, forward(number)) == [(ENDS, lost(number))]
    assert middle.loop._tally.nonfinite_steps == 4
    assert middle.under_way() == (0, 0, 0)


def test_a_stream_that_bursts_in_sound_weights_is_lost_and_counts_as_no_step(middle: Host) -> None:
    with torch.no_grad():
        for parameter in middle.loop._part.model.parameters():
            parameter.fill_(3e38)
    assert middle.hear(ENDS, forward(1)) == [(ENDS, lost(1))]
    assert middle.loop._tally.nonfinite_steps == 0


def test_a_gradient_that_bursts_is_not_sent_on(middle: Host) -> None:
    middle.hear(ENDS, forward(7))
    with torch.no_grad():
        for parameter in middle.loop._part.model.parameters():
            parameter.fill_(3e38)
    assert middle.hear(TWO, backward(7)) == [(ENDS, lost(7))]
    assert middle.under_way() == (0, 0, 0)


def test_a_norm_is_taken_from_who_had_the_gradient_or_passed_it_on(middle: Host) -> None:
    """Who is behind tells of what is behind, who is before of what is before; of what is held here nobody does."""
    ((_, on),) = middle.hear(ENDS, forward(7, norms=(4.0, 5.0, 6.0)))
    assert on.norms == (4.0, -1.0, -1.0)
    ((_, back),) = middle.hear(TWO, backward(7, norms=(7.0, 8.0, 9.0)))
    assert back.norms == (4.0, -1.0, 9.0)


# ------------------------------------------------------------------------------------ at the ends


def entered(ends: Host) -> list[Hop]:
    """The microbatches of a window, as they left."""
    for _ in range(WINDOW):
        ends.turn()
    found = [hop for _, hop in ends.hops() if hop.kind is Kind.FORWARD]
    assert len(found) == WINDOW == PLAN.train.accumulate
    return found


def go_home(ends: Host, number: int) -> None:
    host = ends.loop._routes.host_of((ENDS, number, 1))
    assert host is not None
    assert ends.hear(TWO, forward(number, 0))[0][1].kind is Kind.BACKWARD
    assert ends.hear(host, backward(number)) == []


def test_a_batch_ends_in_a_step_when_all_is_home(ends: Host) -> None:
    for hop in entered(ends):
        assert ends.loop._tally.steps == 0
        go_home(ends, hop.number)
    tally = ends.loop._tally
    assert (tally.steps, tally.tokens) == (1, PLAN.train.batch * PLAN.model.context)
    assert tally.loss() == pytest.approx(math.log(PLAN.data.vocab), rel=0.5)


@pytest.mark.parametrize("norm", [math.nan, math.inf, 1e308])
def test_a_host_that_claims_an_impossible_norm_stops_no_step(ends: Host, norm: float) -> None:
    before = [p.detach().clone() for p in ends.loop._part.model.parameters()]
    for sent in entered(ends):
        host = ends.loop._routes.host_of((ENDS, sent.number, 1))
        assert host is not None
        ends.hear(TWO, forward(sent.number, 0))
        fields: list[object] = msgpack.unpackb(hops.pack(backward(sent.number), "fp32"))
        fields[5] = [-1.0, norm, norm]
        ends.hear_bytes(host, msgpack.packb(fields))
    tally = ends.loop._tally
    assert (tally.steps, tally.nonfinite_steps) == (1, 0)
    assert tally.tokens == PLAN.train.batch * PLAN.model.context
    after = list(ends.loop._part.model.parameters())
    assert not any(map(torch.equal, before, after))
    ends.turn()
    assert ends.hops()[-1][1].norms[1:] == (-1.0, -1.0), "it is not passed on"


def test_two_workers_of_a_node_use_no_number_twice(corpus: list[Path]) -> None:
    first, second = ({hop.number for hop in entered(Host(ENDS, corpus))} for _ in range(2))
    assert first.isdisjoint(second)


def test_a_batch_that_was_broken_off_leaves_its_numbers_behind(ends: Host) -> None:
    before = {hop.number for hop in entered(ends)}
    ends.steer(training=False)
    assert ends.under_way() == (0, 0, 0)
    number = min(before)
    assert ends.hear(TWO, forward(number, 0)) == [(TWO, lost(number, stage=0))]
    start = len(ends.mouth.said)
    ends.steer()
    ends.turn()
    assert before.isdisjoint(hop.number for _, hop in ends.hops(start))


def test_a_gradient_that_comes_before_its_loss_is_none(ends: Host) -> None:
    """Its host has sent it nowhere."""
    number = entered(ends)[0].number
    host = ends.loop._routes.host_of((ENDS, number, 1))
    assert host is not None
    assert ends.hear(host, backward(number)) == []
    ((_, again),) = ends.turn()
    assert (again.kind, again.number) == (Kind.FORWARD, number + WINDOW)
    assert ends.loop._part.sequences == 0
    assert ends.loop._lost == 1


def test_a_node_with_the_ends_is_no_host_of_its_own_text(ends: Host) -> None:
    number = entered(ends)[0].number
    assert ends.hear(ONE, forward(number, 1)) == [(ONE, lost(number))]
    go_home(ends, number)


def test_what_comes_around_twice_or_in_another_shape_is_lost(ends: Host) -> None:
    one, two, *_ = (hop.number for hop in entered(ends))
    ends.hear(TWO, forward(one, 0))
    assert ends.hear(TWO, forward(one, 0)) == [(TWO, lost(one, stage=0))]
    short = forward(two, 0).stream[:1]  # type: ignore[index]
    said = ends.hear(TWO, forward(two, 0, stream=short))
    assert (TWO, lost(two, stage=0)) in said
    assert len(ends.of(protocol.Nonsense)) == 1
    assert ends.under_way()[0] == WINDOW - 1
    ends.turn()
    assert ends.under_way()[0] == WINDOW


def test_a_batch_of_which_nothing_comes_home_is_given_up_and_the_next_waits(ends: Host) -> None:
    entered(ends)
    for _ in range(TRIES * WINDOW):
        for key in list(ends.loop._routes._sent):
            host = ends.loop._routes.host_of(key)
            assert host is not None
            ends.hear(host, lost(key[1]))
            ends.turn()
            if ends.loop._round is None:
                break
    assert ends.loop._round is None
    assert ends.under_way() == (0, 0, 0)
    assert ends.loop._lost == TRIES * WINDOW
    assert not ends.loop._may_enter()
    assert ends.loop._tally.steps == 0


def test_silence_ends_a_batch_too(ends: Host) -> None:
    entered(ends)
    for _ in range(TRIES * WINDOW):
        ends.turn(PATIENCE_S_MAX + 1)
    assert ends.loop._lost >= TRIES * WINDOW


def test_ends_without_hosts_keep_a_batch_for_when_they_are_back(ends: Host) -> None:
    entered(ends)
    ends.steer(without=(ONE, ALSO))
    assert ends.under_way() == (0, 0, 0)
    assert not ends.loop._may_enter()
    assert ends.turn(1.0) == []
    start = len(ends.mouth.said)
    ends.steer()
    for _ in range(WINDOW):
        ends.turn()
    for _, hop in ends.hops(start):
        go_home(ends, hop.number)
    assert ends.loop._tally.steps == 1
    assert ends.loop._tally.tokens == PLAN.train.batch * PLAN.model.context


def test_a_loss_that_is_not_finite_leaves_no_gradient(ends: Host) -> None:
    numbers = [hop.number for hop in entered(ends)]
    with torch.no_grad():
        ends.loop._part.model.output.norm.weight.fill_(3e38)
    assert (TWO, lost(numbers[0], stage=0)) in ends.hear(TWO, forward(numbers[0], 0))
    with torch.no_grad():
        ends.loop._part.model.output.norm.weight.fill_(1.0)
    for number in numbers[1:]:
        go_home(ends, number)
    assert ends.loop._tally.nonfinite_steps == 0
    assert ends.loop._tally.steps == 1


def test_ends_whose_weights_are_broken_say_so_with_a_boundary(ends: Host) -> None:
    ends.break_theta()
    for _ in range(3 * WINDOW):
        ends.turn()
    assert ends.hops() == []
    assert ends.of(protocol.Boundary)
    assert ends.loop._tally.nonfinite_steps
    assert ends.under_way() == (0, 0, 0)


# ---------------------------------------------------------------------------------- all together


LINE = {ENDS: (0, 0), ONE: (1, 1), TWO: (2, 2)}


class Ring:
    """All hosts, in one process; nothing gets lost."""

    def __init__(
        self, corpus: list[Path], plan: Plan, runs: Mapping[PeerId, tuple[int, int]] = LINE
    ) -> None:
        self.hosts = {peer: Host(peer, corpus, plan, runs=runs) for peer in runs}

    def train(self, steps: int) -> list[float]:
        """The loss of each."""
        tally, losses = self.hosts[ENDS].loop._tally, list[float]()
        while len(losses) < steps:
            for host in self.hosts.values():
                host.loop._turn(Instant(host.now))
                said, host.mouth.said = host.mouth.said, []
                for message in said:
                    if isinstance(message, protocol.Hop):
                        self.hosts[message.peer].loop._take(protocol.Hop(host.me, message.data))
                    elif isinstance(message, protocol.Boundary):
                        host.loop._take(protocol.BoundaryTaken(message.fragment))
            losses += tally._losses
            tally.begin_report(0.0)
        return losses

    def listen(self) -> list[tuple[np.ndarray, float]]:
        """Of each step to come: the batch that it reads, and its rate."""
        loop, told = self.hosts[ENDS].loop, list[tuple[np.ndarray, float]]()
        batches, (read, step) = list[np.ndarray](), (loop._text.next_batch, loop._part.step)

        def next_batch() -> np.ndarray:
            batches.append(read())
            return batches[-1]

        def noted(rate: float, norm: float) -> bool:
            told.append((batches[-1], rate))
            return step(rate, norm)

        loop._text.next_batch, loop._part.step = next_batch, noted  # type: ignore[method-assign]
        return told

    def parameters(self, peer: PeerId) -> dict[str, torch.Tensor]:
        model = self.hosts[peer].loop._part.model
        return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.timeout(60)
def test_narrow_codecs_learn_as_wide_ones_do(corpus: list[Path]) -> None:
    def loss(forward: str, back: str) -> float:
        changes = {
            "run.token_budget": 10**9,
            "train.batch": 4,
            "train.accumulate": 2,
            "train.stream_forward": forward,
            "train.stream_back": back,
        }
        losses = Ring(corpus, with_changes(PLAN, changes, "test")).train(40)
        return float(np.mean(losses[-10:]))

    exact = loss("fp32", "fp32")
    assert exact < 0.3 * math.log(PLAN.data.vocab)
    assert loss("fp16", "fp16") == pytest.approx(exact, rel=0.01)
    assert loss("int8", "fp16") == pytest.approx(exact, rel=0.03)
    assert loss("int8", "int8") == pytest.approx(exact, rel=0.03)


WHOLE = {
    "attention": ["attention", "feedforward"] * 2,
    "recurrent": ["recurrent"] * 4,
    "hybrid": ["recurrent", "feedforward", "attention", "feedforward"],
}
OFTEN = {("hybrid", 2), ("recurrent", 3), ("attention", 4)}
"""On every run: each kind and each number of stages once."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        pytest.param(kind, stages, marks=[] if (kind, stages) in OFTEN else pytest.mark.slow)
        for kind in WHOLE
        for stages in (2, 3, 4)
    ],
)
def test_a_ring_learns_what_one_process_learns(corpus: list[Path], kind: str, stages: int) -> None:
    """Everything goes through the bytes of hops: streams, gradients, rates, and the norms that steps are clipped by."""
    steps = 50
    changes = {
        "model.blocks": WHOLE[kind],
        "model.stages": stages,
        "model.dim": 16,
        "model.hidden": 24,
        "model.context": 8,
        "train.accumulate": 2,
        "train.clip": 0.5,
        "train.warmup": 0.1,
        "run.token_budget": steps * 8 * 8,
    }
    plan = with_changes(PLAN, changes, "test")
    runs = {peer: (stage, stage) for stage, peer in enumerate((ENDS, ONE, TWO, ALSO)[:stages])}
    ring, alone = Ring(corpus, plan, runs), Learner(plan, torch.device("cpu"))
    told = ring.listen()
    losses = ring.train(steps)
    found = ring.parameters(ENDS)
    ring.train(1)  # the others take a step when the next text comes by
    for peer in runs:
        if peer != ENDS:
            found |= ring.parameters(peer)
    expected, clipped = [], 0
    for batch, rate in told[:steps]:
        seen = alone.step(batch, rate)
        expected.append(seen.loss)
        clipped += seen.grad_norm > plan.train.clip
    assert len({rate for _, rate in told}) > steps / 2
    assert clipped > steps / 2
    assert losses == pytest.approx(expected, abs=1e-4)
    assert found.keys() == dict(alone.model.named_parameters()).keys()
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-4, atol=1e-4)


FOUR = with_changes(
    PLAN, {"model.blocks": ["attention", "recurrent"] * 2, "model.stages": 4}, "test"
)


@pytest.mark.parametrize(
    ("plan", "runs"),
    [
        (PLAN, {ENDS: (0, 1), ONE: (1, 1), TWO: (2, 2)}),
        (FOUR, {ENDS: (0, 2), ONE: (1, 1), TWO: (3, 3)}),  # the stream comes back to who began it
        (FOUR, {ENDS: (0, 0), ALSO: (1, 3), ONE: (2, 2), TWO: (3, 3)}),
    ],
)
def test_who_begins_within_anothers_run_gets_its_share_and_all_of_it_teaches(
    corpus: list[Path], plan: Plan, runs: dict[PeerId, tuple[int, int]]
) -> None:
    plain = with_changes(plan, {"train.clip": 0.0, "train.optimizer": "sgd"}, "test")
    shared = Ring(corpus, plain, runs)
    alone = Ring(corpus, plain, {peer: run for peer, run in runs.items() if peer != ONE})
    assert shared.train(1) == pytest.approx(alone.train(1), rel=1e-5)
    # Stage 0 has learnt the same, wherever the stream went behind it.
    ends, others = (
        dict(r.hosts[ENDS].loop._part.model.named_parameters()) for r in (shared, alone)
    )
    for name in ("embedding.weight", "output.norm.weight", "blocks.0.attention.norm.weight"):
        torch.testing.assert_close(ends[name], others[name], rtol=1e-4, atol=1e-6)
    shared.train(12)
    steps = {peer: host.loop._tally.steps for peer, host in shared.hosts.items()}
    assert 2 < steps[ONE] < steps[ENDS]
    assert shared.hosts[ENDS].loop._lost == 0
    for peer in runs:
        shared.hosts[peer].loop._report(time.monotonic() + 1.0)
        told = shared.hosts[peer].of(protocol.Progress)[-1]
        assert told.worked_tokens_s > 0  # type: ignore[attr-defined]


def test_who_has_read_what_is_here_says_so_once_nothing_is_under_way(tmp_path: Path) -> None:
    text = tmp_path / "plays.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 1000)
    made = prepare(str(text), ByteTokenizer(), tmp_path / "shards", shard_tokens=8192)
    sizes = [shard.tokens for shard in made]
    named = {"data.shards": [shard.hash for shard in made], "data.shard_tokens": sizes}
    plan = with_changes(PLAN, named, "test")
    ends = Host(ENDS, [shard.path for shard in made], plan, tuple(range(1, len(made))))

    def says() -> bool:
        ends.loop._report(time.monotonic())
        return ends.of(protocol.Progress)[-1].lacks_text  # type: ignore[attr-defined, no-any-return]

    assert not says()
    ends.turn()  # the first microbatch of a batch goes around
    while ends.loop._text.has_batch():
        ends.loop._text.next_batch()
    assert not says(), "its batch is under way"
    ends.loop._round = None
    assert says()
    ends.loop._take(protocol.Shards(()))
    assert not says(), "the rest has come"
