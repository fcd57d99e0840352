"""What a worker does all day: inner steps, and between two of them whatever the daemon asked for.

The worker never waits for the network, and for the daemon only when it has nothing to do. Between
steps it applies corrections to θ, hands in fragments that are due (`cadence`), and now and then
evaluates a copy of φ. Each correction is acknowledged, and each fragment handed in says which
correction is the last in it: that is all the daemon needs to keep θ and φ in agreement.

The rate follows the swarm's tokens as last told, plus our own since. A step whose loss or gradient
is not finite moves nothing and is counted; if θ itself is broken the next boundary tells the daemon,
which resets it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from peerlm.config import NodeSettings, Plan
from peerlm.data import records
from peerlm.data.mixture import Batch, Mixture, loss_of
from peerlm.model import weights
from peerlm.model.model import LanguageModel
from peerlm.model.moments import remembered
from peerlm.model.plan import FragmentSpec
from peerlm.train import protocol, schedule
from peerlm.train.cadence import Cadence
from peerlm.train.channel import Channel
from peerlm.train.crossings import Crossings
from peerlm.train.evaluate import evaluate
from peerlm.train.group import Group
from peerlm.train.hands import Hands
from peerlm.train.learner import Begun, Learner, choose_device, device_may_fail
from peerlm.train.moments import Keepsake, begin_with
from peerlm.train.noise import NoiseScale
from peerlm.train.protocol import Message, Setup
from peerlm.train.shared import SharedMemory
from peerlm.types import FragmentId

REPORT_EVERY_S = 1.0
AHEAD = 1
"""Steps of a device that are asked for while one before is not known to be done."""

FLUSH_LOOK_S = 0.05
"""Between two looks whether the disk has taken what was written."""

FINISHED_MAX = 1 << 16
"""Ranges that one report tells of; what is more waits for the next."""


class InnerLoop:
    """One generation of a worker. Build it, `begin`, then `run`.

    Raises:
        DeviceLost: the device asked for is not there.
        ConfigError: the corpus cannot be used.
    """

    def __init__(
        self,
        setup: Setup,
        plan: Plan,
        settings: NodeSettings,
        fragments: Sequence[FragmentSpec],
        memory: SharedMemory,
        channel: Channel,
        group: Group | None = None,
    ) -> None:
        """`group`: of local workers, of which this process is rank 0."""
        self._setup, self._plan, self._fragments = setup, plan, fragments
        self._memory, self._channel = memory, channel
        device = choose_device(settings.train.device) if group is None else group.device
        self._settings, self._group = settings, group
        self._learner = self._make_learner(device)
        self._hands = Hands(self._learner, fragments, memory, group)
        self._ranks = 1 if group is None else group.size
        self._reader = self._make_mixture() if self._reads else None
        self._members: tuple[bytes, ...] = ()
        self._known = b""
        """What of the text is read, as last told."""
        self._cadence = Cadence([spec.id for spec in fragments], plan.mix.inner_steps)
        self._crossings = Crossings()
        self._pace = Pace(settings.train.pace_tokens_s, settings.train.pace_of_all_tokens_s)
        self._tally = Tally()
        self._begun: deque[tuple[int, Begun]] = deque()
        """Steps that are not counted yet, each with its tokens."""
        self._training = self._draining = self._stopped = False
        self._swarm_tokens, self._token_budget = 0, self._plan.run.token_budget
        self._tokens_when_steered = 0
        self._cold_since = 0
        self._evaluated: LanguageModel | None = None
        self._held_out: list[list[Batch]] | None = None
        """Of each text."""
        self._for_noise: list[Batch] = []
        self._noise = NoiseScale(plan.train.batch * plan.model.context)
        self._drawn = 1
        self._moments: Path | None = None
        """Where the optimizer's state is kept, if it has any."""
        if setup.moments and any(remembered(plan).values()):
            self._moments = Path(setup.moments)
        self._keepsake: Keepsake | None = None
        self._kept_at = 0
        """Inner steps when the optimizer's state was last kept."""

    _reads = True
    """It needs the text."""

    def _make_learner(self, device: torch.device) -> Learner:
        return Learner(self._plan, device, compiled=self._settings.train.compile, group=self._group)

    def _make_mixture(self) -> Mixture:
        setup, rows = self._setup, self._ranks * self._plan.train.batch
        paths = [Path(path) for path in setup.corpus]
        mixture = Mixture.open(paths, self._plan, setup.peer, rows, setup.absent)
        if setup.passes:
            mixture.go_on(*records.decode(setup.passes))
        return mixture

    @property
    def _text(self) -> Mixture:
        assert self._reader is not None, "who holds no ends reads nothing"
        return self._reader

    def begin(self) -> None:
        """θ := φ, or φ := θ if this is where the run begins; then `Ready`."""
        if self._setup.fresh:
            for spec in self._fragments:
                weights.copy_out(self._learner.model, spec, self._memory.boundary[spec.id])
            self._channel.send(protocol.Initialised())
        else:
            for spec in self._fragments:
                self._hands.load(spec.id, self._memory.slow[spec.id])
        device, optimizer = str(self._learner.device), self._begin_optimizer()
        if self._ranks > 1:
            device = f"{self._ranks} × {self._learner.device.type}"
        threads = self._ranks * torch.get_num_threads()
        self._channel.send(protocol.Ready(device, threads, optimizer, self._paces()))

    def _paces(self) -> tuple[float, ...]:
        """Of each kind of module, where somebody wants to know; see `train.paces`."""
        return ()

    def _begin_optimizer(self) -> str:
        """With what is kept of it, if it is to; what to say of that."""
        if self._moments is None or self._setup.fresh:
            return ""
        if self._setup.cold:
            return "begins empty: workers died soon after they had begun with what is kept"
        optimizer = self._learner.optimizer
        is_warm, line = begin_with(self._moments, self._plan, optimizer, self._hands)
        if is_warm:
            self._cold_since = -self._plan.train.rewarm_steps
        return line

    def run(self) -> None:
        """Until told to stop. Raises `DaemonGone`, `DeviceLost`."""
        while not self._stopped:
            for message in self._channel.receive(self._keep_on(self._patience_s())):
                self._take(message)
                self._tell_landed()
            if not self._training:
                continue
            if self._text.has_batch():
                if self._pace.is_due(time.monotonic()):
                    self._step()
            else:
                self._report_if_due()

    def _patience_s(self) -> float | None:
        """How long to wait for a message: not at all if a step is due, for ever if none will be."""
        patience_s = None
        if self._training:
            has_text = self._text.has_batch()
            patience_s = self._pace.wait_s(time.monotonic()) if has_text else REPORT_EVERY_S
        self._tell_landed(wait=patience_s != 0.0)
        return patience_s

    # ---------------------------------------------------------------------------- messages

    def _take(self, message: Message) -> None:
        match message:
            case protocol.Steer():
                self._steer(message)
            case protocol.Shards(absent):
                if self._reader is not None:
                    self._reader.absent_are(absent)
            case protocol.Correction(fragment, seq, kind):
                self._correct(fragment, seq, kind)
            case protocol.BoundaryTaken(fragment):
                self._cadence.taken(fragment)
                if self._draining:
                    self._go_on_draining()
            case protocol.Evaluate():
                losses = self._evaluate_slow()
                self._tell_losses(losses, self._measure_noise())
            case protocol.Keep():
                self._begin_keeping()
            case protocol.Drain():
                self._keep_still()
                self._draining = True
                self._cadence.drain()
                self._go_on_draining()
            case protocol.Stop():
                self._keep_still()
                self._stopped = True
            case _:
                raise AssertionError(f"the daemon sent {type(message).__name__}")

    def _steer(self, told: protocol.Steer) -> None:
        self._pace.shared_by(len(told.members))
        if (
            self._reader is not None and told.members != self._members
        ):  # sharing ranges out takes a while
            self._members = told.members
            self._text.set_members(told.members)
        if self._reader is not None and told.passes and told.passes != self._known:
            self._known = told.passes
            self._text.hear(records.decode(told.passes)[0])
        self._swarm_tokens, self._tokens_when_steered = told.swarm_tokens, self._tally.tokens
        self._token_budget = told.token_budget
        self._cadence.change(told.inner_steps)
        if not told.training:
            self._keep_still()
        elif not self._training:
            self._training, self._draining = True, False
            self._tally.begin_report(time.monotonic())

    def _keep_still(self) -> None:
        if self._training:
            self._training = False
            self._report(time.monotonic())

    def _correct(self, fragment: FragmentId, seq: int, kind: str) -> None:
        values = self._memory.correction[fragment]
        self._crossings.comes(fragment, seq)
        if kind == protocol.RESET:
            self._hands.load(fragment, values, forget=True)
            self._cold_since = self._tally.steps
            self._channel.send(self._crossings.applied(fragment))
        else:
            self._hands.bring_in(fragment, values)

    def _tell_landed(self, *, wait: bool = False) -> None:
        """What has crossed between device and memory is the daemon's again; `wait` until all has."""
        for landed in self._hands.landed(wait=wait):
            for message in self._crossings.landed(landed):
                self._channel.send(message)

    def _go_on_draining(self) -> None:
        self._hand_in()
        if self._cadence.is_idle():
            self._draining = False
            self._channel.send(protocol.Drained())
            if self._kept_at < self._tally.steps:
                self._begin_keeping()
                while self._keepsake is not None:
                    self._keepsake.finish()
                    self._keep_on(0.0)

    # ------------------------------------------------------------------ the optimizer's state

    def _begin_keeping(self) -> None:
        if self._moments is not None and self._keepsake is None:
            limit, optimizer = self._settings.limits.disk_bytes, self._learner.optimizer
            self._keepsake = Keepsake(optimizer, self._plan, self._moments, limit)
            self._kept_at = self._tally.steps

    def _keep_on(self, patience_s: float | None) -> float | None:
        """Keep some more of the optimizer's state, if any is to be kept; how long to wait for a message then."""
        kept = self._keepsake
        if kept is None:
            return patience_s
        with device_may_fail(str(self._learner.device)):
            kept.go_on()
        if kept.is_over:
            self._keepsake = None
            self._channel.send(protocol.Kept(kept.seconds, kept.error))
            return patience_s
        least_s = FLUSH_LOOK_S if kept.is_written else 0.0
        return least_s if patience_s is None else min(patience_s, least_s)

    # -------------------------------------------------------------------------- inner steps

    def _step(self) -> None:
        batch_BT1 = self._text.next_batch()
        tokens = batch_BT1[:, 1:].size
        self._pace.began(time.monotonic(), tokens)
        begun = self._hands.begin(batch_BT1, self._asked_rate() * self._rewarm())
        self._tally.began()
        self._begun.append((tokens, begun))
        self._count(AHEAD)
        self._cadence.stepped()
        self._hand_in()
        self._report_if_due()

    def _count(self, ahead: int = 0) -> None:
        """What has become of the steps that were begun, but for so many of the last that are still under way."""
        while self._begun and (len(self._begun) > ahead or self._begun[0][1].is_done):
            tokens, begun = self._begun.popleft()
            result = begun.result()
            self._tally.ended(tokens, result.loss, result.finite)

    def _asked_rate(self) -> float:
        """Share of the peak rate that the schedule has come to."""
        train = self._plan.train
        done = self._swarm_tokens + self._tally.tokens - self._tokens_when_steered
        return schedule.rate(done, self._token_budget, train.warmup, train.final_lr)

    def _rewarm(self) -> float:
        cold = self._tally.steps - self._cold_since
        return schedule.rewarm(cold, self._plan.train.rewarm_steps)

    def _hand_in(self) -> None:
        """Send every fragment that is due to shared memory, unless its last boundary is there."""
        for fragment in self._cadence.ready():
            self._crossings.read(fragment, self._tally.steps)
            self._hands.take_out(fragment, self._memory.boundary[fragment])
            self._cadence.handed_in(fragment)
        self._tell_landed()

    def _report_if_due(self) -> None:
        now = time.monotonic()
        if now - self._tally.report_began >= REPORT_EVERY_S:
            self._report(now)

    def _report(self, now: float) -> None:
        self._count()
        self._channel.send(self._progress(now))
        self._tally.begin_report(now)

    def _progress(self, now: float) -> protocol.Progress:
        tally, read = self._tally, self._text.told(FINISHED_MAX)
        return protocol.Progress(
            steps=tally.steps,
            tokens=tally.tokens,
            loss=tally.loss(),
            tokens_per_s=tally.tokens_per_s(now),
            nonfinite_steps=tally.nonfinite_steps,
            texts=read.texts,
            ranges=read.ranges,
            finished=read.finished,
            lanes=read.lanes,
            order=read.order,
            lacks_text=self._training and not self._text.has_batch(),
        )

    # ------------------------------------------------------------------------------- φ itself

    def _tell_losses(self, losses: Sequence[float], noise: float | None) -> None:
        """`losses`: of each text."""
        val_loss = loss_of(losses, self._text.shares)
        self._channel.send(protocol.Evaluated(val_loss, noise, tuple(losses)))

    def _evaluate_slow(self) -> list[float]:
        """Losses of the φ that lies in shared memory, on what is held out of each text. θ is not touched."""
        if self._evaluated is None:
            model = LanguageModel(self._plan.model, self._plan.data.vocab)
            self._evaluated = model.to(self._learner.device).requires_grad_(False)
        if not (
            self._held_out and all(self._held_out)
        ):  # or some of it was still to come when it was last looked for
            train = self._plan.train
            self._held_out = self._text.held_out(train.val_batches, train.batch)
            self._for_noise = self._text.mixed(self._held_out, train.batch)
        for spec in self._fragments:
            weights.copy_in(self._evaluated, spec, self._memory.slow[spec.id])
        return [evaluate(self._evaluated, batches) for batches in self._held_out]

    def _measure_noise(self) -> float | None:
        """The noise scale at θ. Held-out text is as noisy as any other, and is not used up by it."""
        batches = self._for_noise
        if self._ranks > 1 or len(batches) < 2:
            return None
        if self._noise.is_due():
            drawn = self._drawn
            self._drawn = (drawn + 2) % len(batches)
            one, two = self._learner.gradient_squares((batches[drawn], batches[drawn - 1]))
            self._noise.add(one, two)
        return self._noise.tokens()


class Tally:
    """What this generation has done, and what of it is not reported yet."""

    def __init__(self) -> None:
        self.steps = self.tokens = self.nonfinite_steps = 0
        self.begin_report(0.0)

    def begin_report(self, now: float) -> None:
        self.report_began = now
        self._tokens_then = self.tokens
        self._losses: list[float] = []

    def began(self) -> None:
        """A step was asked for."""
        self.steps += 1

    def add(self, tokens: int, loss: float | None, finite: bool) -> None:
        """A step was asked for, and is done."""
        self.began()
        self.ended(tokens, loss, finite)

    def ended(self, tokens: int, loss: float | None, finite: bool) -> None:
        """One that was not finite taught nothing, so its tokens do not count. `loss`: None if another node knows it."""
        if finite:
            self.tokens += tokens
            if loss is not None:
                self._losses.append(loss)
        else:
            self.nonfinite_steps += 1

    def loss(self) -> float | None:
        """Mean over the finite steps since the last report; None if there were none."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def tokens_per_s(self, now: float) -> float:
        return (self.tokens - self._tokens_then) / max(now - self.report_began, 1e-9)


class Pace:
    """Holds the mean rate to `tokens_s` and to a share of `all_tokens_s` (0: no limit); what is lost to waiting is not
    made up for, but for one step, lest wake-ups that come late add up."""

    def __init__(self, tokens_s: float, all_tokens_s: float = 0.0) -> None:
        self._own_tokens_s, self._all_tokens_s = tokens_s, all_tokens_s
        self._due = 0.0
        self.shared_by(1)

    def shared_by(self, readers: int) -> None:
        """So many nodes keep to `all_tokens_s` together, this one among them."""
        limits = (self._own_tokens_s, self._all_tokens_s / max(1, readers))
        self._tokens_s = min((limit for limit in limits if limit), default=0.0)

    def began(self, now: float, tokens: int) -> None:
        """A step over so many tokens begins."""
        if self._tokens_s:
            interval = tokens / self._tokens_s
            self._due = max(self._due, now - interval) + interval

    def is_due(self, now: float) -> bool:
        return now >= self._due

    def wait_s(self, now: float) -> float:
        return max(self._due - now, 0.0)
