"""When to start the worker again: the daemon stays a member whatever becomes of its worker.

A worker may die of anything: a CUDA error, the OOM killer, a bad batch. It is started again from
the slow weights after a back-off that doubles with each death in a row, up to a minute, and is
forgotten once a worker has made progress for a while. A worker that runs but whose every step is
not finite is no use either, nor is one that gives no sign of life: it is condemned, and replaced
like a dead one. A worker that stops because it was asked to, for a new plan, is started at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerlm.types import Instant, after

NEVER = Instant(0.0)

BACKOFF_S = 1.0
BACKOFF_S_MAX = 60.0

HEALTHY_S = 60.0
"""Progress this long after a start wipes the slate clean."""

HUNG_S = 900.0
"""A worker that should be training and has told nothing for this long hangs. A step of a large model
on a slow machine takes minutes."""

HUNG_S_MIN, HUNG_GAPS = 90.0, 20.0
"""Sooner, once it has told so often that its usual silence is known: after so many times the longest that it
has been silent in this generation, but not before the former."""

SILENT_S_MIN, SILENT_GAPS = 15.0, 5.0
"""From so much silence on people are told."""

GAPS_MIN = 5
LOOK_S = 5.0
"""Of the time between two looks at most this counts as silence: a machine that slept has heard nobody."""

BARREN_REPORTS = 10
"""Reports in a row with steps but no finite loss, after which the worker is replaced."""


@dataclass(slots=True)
class Supervision:
    """The worker's life as the node sees it. `state`: off, starting, running, backing_off."""

    state: str = "off"
    generation: int = 0
    restarts: int = 0
    last_error: str = ""
    failures: int = 0
    """Deaths in a row: none of them made progress for long."""
    device: str = ""
    threads: int = 0
    _barren: int = 0
    _nonfinite_seen: int = 0
    _started: Instant = NEVER
    _retry_at: Instant | None = None
    _heard: Instant = NEVER
    _condemned: str = ""
    _looked: Instant = NEVER
    _gaps: int = 0
    _gap_max: float = 0.0
    _evaluating: bool = False

    def start(self, now: Instant) -> int:
        """A worker is being started; returns its generation."""
        self.generation += 1
        self.state = "starting"
        self._started = self._heard = self._looked = now
        self._gaps, self._gap_max = 0, 0.0
        self._retry_at = None
        self._condemned = ""
        self._barren = self._nonfinite_seen = 0
        return self.generation

    def ready(self, device: str, threads: int) -> None:
        self.state, self.device, self.threads = "running", device, threads

    def progressed(self, loss: float | None, nonfinite_steps: int, now: Instant) -> None:
        """A report came."""
        self._look(now)
        self._gaps, self._gap_max = self._gaps + 1, max(self._gap_max, now - self._heard)
        self._heard = now
        grew, self._nonfinite_seen = nonfinite_steps > self._nonfinite_seen, nonfinite_steps
        self._barren = self._barren + 1 if grew and loss is None else 0
        if now - self._started > HEALTHY_S and not self._barren:
            self.failures = 0

    def condemn(self, now: Instant, *, evaluating: bool = False) -> bool:
        """Whether the worker should be stopped because it is of no use. True once a generation. `evaluating`: it has
        been asked to evaluate, which may take longer than any step."""
        self._evaluating = evaluating
        self._look(now)
        if self.state not in ("starting", "running") or self._condemned:
            return False
        if self._barren >= BARREN_REPORTS:
            self._condemned = "every inner step is not finite (loss or gradient NaN)"
        elif now - self._heard > self._patience_s(HUNG_S_MIN, HUNG_GAPS):
            self._condemned = f"no sign of progress for {now - self._heard:.0f} s"
        return bool(self._condemned)

    def silent_s(self, now: Instant) -> float:
        """How long it has told nothing, where that is unusual; else 0."""
        silence = now - self._heard
        is_unusual = silence > self._patience_s(SILENT_S_MIN, SILENT_GAPS)
        return silence if self.state == "running" and is_unusual else 0.0

    def _patience_s(self, least_s: float, gaps: float) -> float:
        if self._gaps < GAPS_MIN or self._evaluating:
            return HUNG_S
        return min(max(least_s, gaps * self._gap_max), HUNG_S)

    def _look(self, now: Instant) -> None:
        if (slept_s := now - self._looked - LOOK_S) > 0:
            self._heard = min(after(self._heard, slept_s), now)
        self._looked = now

    def exited(self, error: str, wanted: bool, now: Instant) -> None:
        """It is gone. `wanted`: a worker should be running, so plan the next start."""
        self.state = "off"
        error = error or self._condemned
        if error:
            self.last_error = error
        if not wanted:
            return
        delay_s = 0.0
        if error:
            delay_s = min(BACKOFF_S * 2.0 ** min(self.failures, 10), BACKOFF_S_MAX)
            self.failures += 1
            self.restarts += 1
        self.state, self._retry_at = "backing_off", after(now, delay_s)

    def heard(self, now: Instant) -> None:
        """It is not expected to make progress, so its silence means nothing."""
        self._heard = self._looked = now

    def hold(self) -> None:
        """No worker is wanted any more."""
        self._retry_at = None
        if self.state == "backing_off":
            self.state = "off"

    def due(self, now: Instant) -> bool:
        return self._retry_at is not None and self._retry_at <= now

    def is_waiting(self, now: Instant) -> bool:
        """A worker died, and it is too early to start the next."""
        return self._retry_at is not None and now < self._retry_at

    def deadline(self) -> Instant | None:
        return self._retry_at
