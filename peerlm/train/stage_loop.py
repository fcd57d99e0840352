"""What a worker does that holds some stages of the model: microbatches forward and back, and inner steps of its own.

It does what comes: gradients first, then what came around the ring, then what goes forward, and if it holds the ends
of the model it sends a microbatch of its own text around whenever few are under way. Nothing is waited for: what is
late is taken for lost, sent again or given up, and counted. At each boundary between two stages that it holds it goes on by itself,
or hands over to a host that begins there (`routes`). Corrections, boundaries and draining are the inner
loop's, since each stage mixes as a whole model does.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from peerlm.config import NodeSettings, Plan
from peerlm.errors import ConfigError, WireError
from peerlm.model.plan import FragmentSpec
from peerlm.model.stages import AUTO, stages
from peerlm.train import hop as hops
from peerlm.train import paces, protocol
from peerlm.train.batch_round import WINDOW, BatchRound
from peerlm.train.channel import Channel
from peerlm.train.hop import Hop, Kind, Stream
from peerlm.train.inner_loop import REPORT_EVERY_S, InnerLoop
from peerlm.train.learner import Learner
from peerlm.train.protocol import Message, Setup
from peerlm.train.routes import Key, Routes, is_past
from peerlm.train.shared import SharedMemory
from peerlm.train.stage_learner import StageLearner
from peerlm.train.trial import Piece, Trial
from peerlm.types import Instant, PeerId

LOOK_S = 0.25
"""How often what is late is looked for at least."""

WAITING_MAX = 32
"""Hops of one peer that wait for their turn. What comes beyond is dropped, and missed by whoever sent it."""


class StageLoop(InnerLoop):
    """`held`: the stages of this node, all of which are trained here."""

    def __init__(
        self,
        setup: Setup,
        plan: Plan,
        settings: NodeSettings,
        fragments: Sequence[FragmentSpec],
        memory: SharedMemory,
        channel: Channel,
        held: range,
    ) -> None:
        self._held, self._cut = held, stages(plan)
        super().__init__(setup, plan, settings, fragments, memory, channel)
        self._me = setup.peer
        self._routes = Routes(random.Random(setup.peer))
        self._arrived: dict[Kind, deque[tuple[PeerId, Hop]]] = {kind: deque() for kind in Kind}
        self._upstream: dict[Key, tuple[PeerId, int]] = {}
        """Of each pass of what others sent: from whom, and for which stage."""
        self._norms = [hops.UNKNOWN] * len(self._cut)
        """Squared, of each stage's gradient, as far as is known."""
        self._next_rate = 0.0
        self._round: BatchRound | None = None
        self._parts: list[NDArray[np.int64]] = []
        self._losses: dict[int, float] = {}
        self._number = secrets.randbelow(hops.NUMBER_MAX // 2)
        """Of the next microbatch. No number is used twice, also by the workers of this node before and after this."""
        self._not_before = 0.0
        """No batch begins earlier."""
        self._readers = 1
        self._passed_tokens, self._passed_then = 0, 0
        self._worked_tokens = 0.0
        self._looked_at = 0.0
        self._trial: Trial | None = None
        self._pieces: list[Piece] = []
        self._lost = 0
        self._bytes, self._busy_s = [0, 0], 0.0
        size = plan.train.batch // plan.train.accumulate * plan.model.context * plan.model.dim * 4
        if size > hops.STREAM_BYTES_MAX:
            raise ConfigError(
                f"a microbatch of {plan.train.batch // plan.train.accumulate} sequences is a stream of {size:,} "
                f"bytes, at most {hops.STREAM_BYTES_MAX:,}: raise train.accumulate"
            )

    def _make_learner(self, device: torch.device) -> Learner:
        held = [module for stage in self._held for module in self._cut[stage].modules]
        blocks = [stage.blocks for stage in self._cut]
        self._part = StageLearner(self._plan, device, held, blocks)
        return cast("Learner", self._part)  # model and optimizer are all that corrections need

    def _paces(self) -> tuple[float, ...]:
        """Only who decides by itself may come to hold other stages."""
        is_auto = self._settings.host.stages == AUTO
        return paces.tried(self._plan, self._part.device) if is_auto else ()

    @property
    def _has_ends(self) -> bool:
        return self._held.start == 0

    @property
    def _reads(self) -> bool:  # type: ignore[override]
        return self._has_ends

    # ------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until told to stop. Raises `DaemonGone`, `DeviceLost`."""
        while not self._stopped:
            for message in self._channel.receive(self._keep_on(self._patience_s())):
                self._take(message)
                self._tell_landed()
            self._turn(Instant(time.monotonic()))

    def _patience_s(self) -> float | None:
        self._tell_landed(wait=not self._has_work())
        return 0.0 if self._has_work() else LOOK_S

    def _has_work(self) -> bool:
        return any(self._arrived.values()) or self._may_enter() or self._may_try()

    def _may_try(self) -> bool:
        is_open = self._training and self._routes.has(self._next_stage)
        return is_open and self._trial is not None and self._trial.may_send

    def _may_enter(self) -> bool:
        if not (self._has_ends and self._training and self._routes.has(self._next_stage)):
            return False
        if self._round is not None:
            return self._round.may_enter
        now = time.monotonic()
        is_due = now >= self._not_before and self._pace.is_due(now)
        return is_due and self._text.has_batch()

    @property
    def _next_stage(self) -> int:
        """Behind the last that is held here."""
        return self._held.stop % len(self._cut)

    def _turn(self, now: Instant) -> None:
        """One piece of work, whatever is most urgent."""
        began = time.monotonic()
        if self._work_at_hand(now):
            self._busy_s += time.monotonic() - began
        if now - self._looked_at > LOOK_S:
            self._looked_at = now
            for key in self._routes.overdue(now):
                self._lose(key)
            if self._trial is not None:
                self._trial.look(now, self._routes.patience_s)
                self._end_trial()
        if now - self._tally.report_began >= REPORT_EVERY_S:
            self._report(now)

    def _work_at_hand(self, now: Instant) -> bool:
        """Do it; False if there is none."""
        for kind in (Kind.LOST, Kind.BACKWARD, Kind.FORWARD, Kind.TRIAL):
            if self._arrived[kind]:
                self._do(*self._arrived[kind].popleft(), now)
                return True
        if self._may_enter():
            self._enter(now)
        elif self._may_try():
            self._try(now)
        else:
            return False
        return True

    # ------------------------------------------------------------------------------------ messages

    def _take(self, message: Message) -> None:
        match message:
            case protocol.Hop(peer, data):
                self._hear(peer, data)
            case protocol.Steer():
                super()._take(message)
                self._see_hosts(message)
            case protocol.Evaluate():
                self._begin_trial()
            case _:
                super()._take(message)

    def _hear(self, peer: PeerId, data: bytes) -> None:
        model = self._plan.model
        self._bytes[1] += len(data)
        waiting = (source for arrived in self._arrived.values() for source, _ in arrived)
        if sum(source == peer for source in waiting) >= WAITING_MAX:
            return
        try:
            hop = hops.unpack(data, len(self._cut), model.context, model.dim)
        except WireError as error:
            self._channel.send(protocol.Nonsense(peer, str(error)))
            return
        self._arrived[hop.kind].append((peer, hop))

    def _see_hosts(self, told: protocol.Steer) -> None:
        self._readers = max(1, len(told.members))
        runs = dict(
            zip(told.hosts, zip(told.first_stages, told.last_stages, strict=True), strict=True)
        )
        ways_s = dict(zip(told.hosts, told.ways_s, strict=False))
        for key in self._routes.hosts_are(runs, ways_s):
            self._lose(key)
        for key in [key for key, (peer, _) in self._upstream.items() if peer not in runs]:
            self._drop(key)

    def _keep_still(self) -> None:
        """A batch under way comes to nothing: nobody would step by it."""
        if self._round is not None:
            for key in [key for key in self._part.passes() if self._is_entry(key)]:
                self._routes.forget(key)
                self._part.forget(key)
            self._number = self._round.next_number
            self._round = None
        if self._trial is not None:
            self._tell_trial(self._trial)
        super()._keep_still()

    def _do(self, peer: PeerId, hop: Hop, now: Instant) -> None:
        match hop.kind:
            case Kind.LOST:
                if (key := self._sent_to(peer, hop)) is not None:
                    self._lose(key)
            case Kind.BACKWARD:
                if (key := self._sent_to(peer, hop)) is not None:
                    self._back(peer, key, hop, now)
            case Kind.TRIAL:
                self._pass_by(hop)
            case Kind.FORWARD if hop.stage == 0:
                self._come_around(peer, hop)
            case Kind.FORWARD:
                self._forward(peer, hop, now)

    def _sent_to(self, peer: PeerId, hop: Hop) -> Key | None:
        return self._routes.sent_to(peer, (hop.origin, hop.number, hop.stage))

    # ------------------------------------------------------------------------- between the two ends

    def _forward(self, peer: PeerId, hop: Hop, now: Instant) -> None:
        """The stream through the stages from the one named to where it is handed over, and on."""
        if hop.stage not in self._held or self._is_known(hop) or not self._has_room(peer):
            self._say(peer, _lost(hop))
            return
        self._next_rate = hop.rate
        self._learn_of(hop, range(hop.stage))
        if self._part.is_due:
            self._tally.add(0, None, self._step_on(self._next_rate))
        assert hop.stream is not None
        last, host = self._way_from(hop.stage)
        key = (hop.origin, hop.number, self._behind(last))
        self._upstream[key] = (peer, hop.stage)
        stream = self._part.forward(key, hop.stream, hop.stage, last)
        self._passed_tokens += stream.shape[0] * stream.shape[1]
        self._worked(stream, range(hop.stage, last + 1))
        self._send_on(key, stream, host, now)

    def _way_from(self, first: int) -> tuple[int, PeerId | None]:
        """The last of the held stages from `first` on that are done here, and who takes over if it is not the last of all."""
        for stage in range(first + 1, self._held.stop):
            host = self._routes.hand_over(stage, len(self._part.passes()))
            if host is not None:
                return stage - 1, host
        return self._held[-1], None

    def _worked(self, stream: Stream, passed: range) -> None:
        flops, held = (sum(self._cut[s].flops for s in run) for run in (passed, self._held))
        tokens = stream.shape[0] * stream.shape[1]
        self._worked_tokens += tokens * (flops / held if held else 1.0)

    def _behind(self, stage: int) -> int:
        return (stage + 1) % len(self._cut)

    def _is_entry(self, key: Key) -> bool:
        """A pass of our own text, from the entrance on."""
        return key[0] == self._me and key not in self._upstream

    def _is_known(self, hop: Hop) -> bool:
        """The microbatch is past this stage here, or is one of ours that is not under way."""
        if hop.origin == self._me and (
            self._round is None or self._round.part_of(hop.number) is None
        ):
            return True
        return is_past(hop.stage, hop.origin, hop.number, self._part.passes(), len(self._cut))

    def _first_of(self, key: Key) -> int:
        return self._upstream[key][1] if key in self._upstream else 0

    def _has_room(self, peer: PeerId) -> bool:
        """It keeps a pass for whatever `peer` may have sent: a window of each node that reads, and as much again of what
        they have lost by now."""
        passes = sum(source == peer for source, _ in self._upstream.values())
        return self._training and passes < 2 * WINDOW * self._readers

    def _send_on(self, key: Key, stream: Stream, host: PeerId | None, now: Instant) -> None:
        """To whom it is handed over, or a host of the next stage; behind the last stage, to where it came from."""
        stage = key[2]
        is_finite = self._is_finite(stream)
        if host is None:
            host = self._routes.choose(stage) if stage else key[0]
        if host is None or not self._routes.knows(host) or not is_finite:
            self._lose(key)
            return
        self._routes.sent(key, host, now)
        self._say(host, self._hop(Kind.FORWARD, key, stream, stage))

    def _back(self, peer: PeerId, key: Key, hop: Hop, now: Instant) -> None:
        """The gradient of what was sent on: through our stages, and to where that came from."""
        assert hop.stream is not None
        is_entry, began = self._is_entry(key), time.monotonic()
        if is_entry and not (self._round and self._round.is_around(key[1])):
            self._lose(key)
            return
        try:
            gradient = self._part.backward(key, hop.stream)
        except WireError as error:
            self._channel.send(protocol.Nonsense(peer, str(error)))
            self._lose(key)
            return
        took_s = self._routes.came_back(key, now)
        if self._behind(self._first_of(key)) != key[2]:  # through several stages
            self._routes.went_on(took_s + time.monotonic() - began)
        self._learn_of(hop, range(key[2] or len(self._cut), len(self._cut)))
        if self._part.is_due:
            self._note_norms()
        if gradient is not None:
            if not np.isfinite(gradient).all():
                self._drop(key)
                return
            upstream, stage = self._upstream.pop(key)
            self._say(upstream, self._hop(Kind.BACKWARD, key, gradient, stage))
        elif self._round is not None:
            self._round.came_home(key[1])
            self._end_round()

    def _step_on(self, rate: float) -> bool:
        """An inner step of the held stages, clipped by the norm of the whole model's gradient."""
        self._note_norms()
        known = [norm for norm in self._norms if norm >= 0.0 or math.isnan(norm)]
        finite = self._part.step(rate * self._rewarm(), math.sqrt(sum(known)))
        self._cadence.stepped()
        self._hand_in()
        return finite

    def _note_norms(self) -> None:
        for stage, norm in self._part.squared_norms(self._held).items():
            self._norms[stage] = norm

    def _learn_of(self, hop: Hop, passed: range) -> None:
        """Norms of the stages that are elsewhere, and that it has passed on its way here: of others its sender has no say."""
        for stage in passed:
            if stage not in self._held and hop.norms[stage] >= 0.0:
                self._norms[stage] = hop.norms[stage]

    # --------------------------------------------------------------------------------- at the ends

    def _enter(self, now: Instant) -> None:
        if self._round is None:
            batch_BT1 = self._text.next_batch()
            self._pace.began(now, batch_BT1[:, 1:].size)
            self._parts = np.array_split(batch_BT1, self._plan.train.accumulate)
            self._round, self._losses = BatchRound(len(self._parts), self._number), {}
        part, number = self._round.enter()
        last, host = self._way_from(0)
        key = (self._me, number, self._behind(last))
        stream = self._part.enter(key, self._parts[part][:, :-1], last)
        self._worked(stream, range(last + 1))
        self._send_on(key, stream, host, now)

    def _come_around(self, peer: PeerId, hop: Hop) -> None:
        key = next((key for key in self._part.passes() if self._is_entry_of(key, hop)), None)
        part = self._round.part_of(hop.number) if self._round and key else None
        if key is None or part is None or hop.stream is None or self._round is None:
            self._say(peer, _lost(hop))
            return
        tokens_BT1 = self._parts[part]
        if hop.stream.shape[:2] != tokens_BT1[:, 1:].shape:
            self._channel.send(protocol.Nonsense(peer, "hop: came around with another shape"))
            self._lose(key)
            self._say(peer, _lost(hop))
            return
        share = len(tokens_BT1) / self._plan.train.batch
        loss, gradient = self._part.loss(hop.stream, tokens_BT1[:, 1:], share)
        self._losses[part] = loss
        self._round.came_around(key[1])
        if math.isfinite(loss) and self._is_finite(gradient):
            self._say(peer, self._hop(Kind.BACKWARD, key, gradient))
        else:
            self._lose(key)
            self._say(peer, _lost(hop))

    def _is_entry_of(self, key: Key, hop: Hop) -> bool:
        return key[:2] == (hop.origin, hop.number) and self._is_entry(key)

    def _end_round(self) -> None:
        """Once nothing is under way: an inner step on what came home."""
        batch = self._round
        if batch is None or not batch.is_over:
            return
        self._round, self._number = None, batch.next_number
        if not batch.done:
            self._not_before = time.monotonic() + LOOK_S
            return
        tokens = sum(self._parts[part][:, 1:].size for part in batch.done)
        losses = [self._losses[part] for part in batch.done]
        self._next_rate = self._asked_rate()
        finite = self._step_on(self._next_rate)
        self._tally.add(tokens, sum(losses) / len(losses), finite)

    # ------------------------------------------------------------------------------- held-out text

    def _begin_trial(self) -> None:
        train = self._plan.train
        if {piece.text for piece in self._pieces} != set(range(len(self._text.shares))):
            # Of some text there was nothing when it was last looked for: it may have been still to come.
            rows = max(1, train.batch // train.accumulate)
            self._pieces = [
                Piece(text, batch[at : at + rows])
                for text, batches in enumerate(self._text.held_out(train.val_batches, train.batch))
                for batch in batches
                for at in range(0, len(batch), rows)
            ]
        self._trial = Trial(self._pieces, len(self._text.shares))
        self._end_trial()

    def _try(self, now: Instant) -> None:
        """Send the next piece around."""
        assert self._trial is not None
        number = secrets.randbelow(hops.NUMBER_MAX)
        tokens_BT1 = self._trial.send(number, now)
        stream = self._part.pass_by(tokens_BT1[:, :-1], 0, self._held[-1])
        self._send_trial(self._me, number, stream)

    def _send_trial(self, origin: PeerId, number: int, stream: Stream) -> None:
        stage = self._next_stage
        host = self._routes.choose(stage) if stage else origin
        if host is not None and self._routes.knows(host) and np.isfinite(stream).all():
            self._say(host, self._hop(Kind.TRIAL, (origin, number, stage), stream, stage))

    def _pass_by(self, hop: Hop) -> None:
        assert hop.stream is not None
        if hop.stage:
            if hop.stage in self._held:
                stream = self._part.pass_by(hop.stream, hop.stage, self._held[-1])
                self._send_trial(hop.origin, hop.number, stream)
            return
        piece = self._trial.piece(hop.number) if self._trial and hop.origin == self._me else None
        if self._trial is None or piece is None or hop.stream.shape[:2] != piece[:, 1:].shape:
            return
        self._trial.came_around(self._part.loss_by(hop.stream, piece[:, 1:]))
        self._end_trial()

    def _end_trial(self) -> None:
        if self._trial is not None and self._trial.is_over:
            self._tell_trial(self._trial)

    def _tell_trial(self, trial: Trial) -> None:
        self._tell_losses(trial.losses(), None)
        self._trial = None

    # --------------------------------------------------------------------------------- what is lost

    def _lose(self, key: Key) -> None:
        """What was sent on comes to nothing: it is sent again, or word to where it came from."""
        self._routes.lost(key)
        if self._is_entry(key):
            self._part.forget(key)
            if self._round is not None:
                self._lost += 1
                self._round.lost(key[1])
                self._end_round()
            return
        self._drop(key)

    def _drop(self, key: Key) -> None:
        self._routes.forget(key)
        self._part.forget(key)
        if key in self._upstream:
            upstream, stage = self._upstream.pop(key)
            self._say(upstream, Hop(Kind.LOST, *key[:2], stage))

    # ------------------------------------------------------------------------------------- inside

    def _is_finite(self, stream: Stream) -> bool:
        """What is not is never sent. If θ is broken, that is told as a step that moves nothing, and all of it is handed in at
        once, since the daemon sets it back then: who loses what it is sent is sent too little for the usual boundary to come soon."""
        if np.isfinite(stream).all():
            return True
        if not self._part.is_finite():
            self._tally.add(0, None, finite=False)
            self._cadence.stepped()
            self._cadence.drain()
            self._hand_in()
        return False

    def _hop(self, kind: Kind, key: Key, stream: Stream, stage: int = 0) -> Hop:
        return Hop(kind, *key[:2], stage, self._next_rate, tuple(self._norms), stream)

    def _say(self, peer: PeerId, hop: Hop) -> None:
        train = self._plan.train
        codec = train.stream_back if hop.kind is Kind.BACKWARD else train.stream_forward
        data = hops.pack(hop, codec)
        self._bytes[0] += len(data)
        self._channel.send(protocol.Hop(peer, data))

    def _progress(self, now: float) -> protocol.Progress:
        tally = self._tally
        elapsed_s = max(now - tally.report_began, 1e-9)
        busy, self._busy_s = min(1.0, self._busy_s / elapsed_s), 0.0
        worked, self._worked_tokens = self._worked_tokens, 0.0
        stream: dict[str, Any] = {
            "stream_lost": self._lost,
            "stream_sent": self._bytes[0],
            "stream_received": self._bytes[1],
            "worked_tokens_s": worked / elapsed_s,
        }
        if self._has_ends:
            told = super()._progress(now)
            is_waiting = told.lacks_text and self._round is None
            return replace(told, busy=busy, lacks_text=is_waiting, **stream)
        passed, self._passed_then = self._passed_tokens - self._passed_then, self._passed_tokens
        return protocol.Progress(
            steps=tally.steps,
            tokens=0,  # its text is another node's, and counted there
            loss=None,
            tokens_per_s=passed / elapsed_s,
            nonfinite_steps=tally.nonfinite_steps,
            busy=busy,
            **stream,
        )


def _lost(hop: Hop) -> Hop:
    """What to say of one that cannot be gone on with."""
    return Hop(Kind.LOST, hop.origin, hop.number, hop.stage)
