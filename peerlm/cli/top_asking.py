"""Asks a daemon again and again, in a thread of its own, so that a slow answer holds up no key.

What the node says of itself is asked for each second and whole. Of its history only what is new is; but now and
then all of it, since a node thins out its points, and clocks are set back. A daemon that goes away is asked on:
that it is back shows by its answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from peerlm.daemon import control
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout

ASK_S = 1.0
WHOLE_S = 60.0
"""Between two times that all of the history is asked for."""


class Ask(Protocol):
    """Raises `PeerlmError` with a line for a person."""

    def __call__(self, layout: Layout, command: str, **args: Any) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Story:
    """Points and events so far, oldest first; and in a line why there are no more."""

    points: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    def followed_by(self, more: dict[str, Any]) -> Story:
        return Story(self.points + more["points"], self.events + more["events"])

    @property
    def newest(self) -> float:
        """Wall time of the last that is known."""
        return max((item["at"] for item in self.points[-1:] + self.events[-1:]), default=0.0)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one round of asking. `status`: None when nobody answered, and `trouble` says why."""

    status: dict[str, Any] | None
    story: Story
    at: float
    """Wall time."""
    trouble: str = ""


class Asking:
    """`start` it with what is to be done with each `Heard`, in the thread that asks; `stop` it at the end."""

    def __init__(self, layout: Layout, ask: Ask = control.ask, pause_s: float = ASK_S) -> None:
        self._layout = layout
        self._ask = ask
        self._pause_s = pause_s
        self._story = Story()
        self._whole_at = 0.0
        self._over = threading.Event()

    def first(self) -> Heard:
        """Raises `PeerlmError` where there is nothing to be shown."""
        status = self._ask(self._layout, "status")
        self._story = self._grown()
        return Heard(status, self._story, time.time())

    def start(self, tell: Callable[[Heard], object]) -> None:
        def go_on() -> None:
            while not self._over.wait(self._pause_s):
                heard = self._round()
                with contextlib.suppress(RuntimeError):  # the screen has gone meanwhile
                    tell(heard)

        # Nobody waits for its end: at that moment it may itself be waiting for a daemon.
        threading.Thread(target=go_on, name="peerlm-asking", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _round(self) -> Heard:
        try:
            status = self._ask(self._layout, "status")
        except PeerlmError as error:
            self._whole_at = 0.0  # whoever answers next may be another life of the node
            return Heard(None, self._story, time.time(), str(error))
        self._story = self._grown()
        return Heard(status, self._story, time.time())

    def _grown(self) -> Story:
        is_whole = time.monotonic() >= self._whole_at
        since = 0.0 if is_whole else self._story.newest
        try:
            more = self._ask(self._layout, "history", since=since)
        except PeerlmError as error:
            self._whole_at = 0.0
            return replace(self._story, trouble=str(error))
        if not is_whole:
            return self._story.followed_by(more)
        self._whole_at = time.monotonic() + WHOLE_S
        return Story().followed_by(more)
