"""When to start the worker again: the daemon stays a member whatever becomes of its worker.

A worker may die of anything: a CUDA error, the OOM killer, a bad batch. It is started again from
the slow weights after a back-off that doubles with each death in a row, up to a minute, and is
forgotten once a worker has made progress for a while. A worker that runs but whose every step is
not finite is no use either: it is replaced like a dead one.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerlm.types import Instant, after

NEVER = Instant(0.0)

BACKOFF_S = 1.0
BACKOFF_S_MAX = 60.0

HEALTHY_S = 60.0
"""Progress this long after a start wipes the slate clean."""

BARREN_REPORTS = 10
"""Reports in a row with steps but no finite loss, after which the worker is replaced."""


@dataclass(slots=True)
class Supervision:
    """The worker's life as the node sees it. `state`: off, starting, running, backing_off."""

    state: str = "off"
    generation: int = 0
    restarts: int = 0
    last_error: str = ""
    device: str = ""
    threads: int = 0
    _failures: int = 0
    _barren: int = 0
    _nonfinite_seen: int = 0
    _started: Instant = NEVER
    _retry_at: Instant | None = None

    def start(self, now: Instant) -> int:
        """A worker is being started; returns its generation."""
        self.generation += 1
        self.state = "starting"
        self._started = now
        self._retry_at = None
        self._barren = self._nonfinite_seen = 0
        return self.generation

    def ready(self, device: str, threads: int) -> None:
        self.state, self.device, self.threads = "running", device, threads

    def progressed(self, loss: float | None, nonfinite_steps: int, now: Instant) -> bool:
        """A report came. False: the worker does nothing useful and should be replaced."""
        grew, self._nonfinite_seen = nonfinite_steps > self._nonfinite_seen, nonfinite_steps
        self._barren = self._barren + 1 if grew and loss is None else 0
        if now - self._started > HEALTHY_S and not self._barren:
            self._failures = 0
        return self._barren < BARREN_REPORTS

    def exited(self, error: str, wanted: bool, now: Instant) -> None:
        """It is gone. `wanted`: a worker should be running, so plan the next start."""
        self.state = "off"
        if error:
            self.last_error = error
        if wanted:
            delay_s = min(BACKOFF_S * 2**self._failures, BACKOFF_S_MAX)
            self._failures += 1
            self.restarts += 1
            self.state, self._retry_at = "backing_off", after(now, delay_s)

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
