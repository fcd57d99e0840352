"""The thread in which sessions advance, and what asyncio has to do with it.

The loop of the HTTP side hands over jobs and takes news; between the two there are only a queue of orders and
calls back into the loop, one a step. So a step of the model, however long, holds up no socket.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

from peerlm.serve.metrics import Metrics
from peerlm.serve.route import Version
from peerlm.serve.scheduler import QueueFull
from peerlm.serve.service import Job, Service, Told

Order = Callable[[], None]

STOPPING = "the server is stopping"


class Driver:
    """Runs from `start` to `close`; all else is for the loop that called `start`. `slot_bytes`: what is remembered of a
    session takes, for the metrics."""

    def __init__(self, service: Service, metrics: Metrics, slot_bytes: int = 0) -> None:
        self._service, self._metrics, self._slot_bytes = service, metrics, slot_bytes
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)
        self._is_closing = False
        self._again = 0
        self._inboxes: dict[Job, asyncio.Queue[Told]] = {}
        self.idle = asyncio.Event()
        """Nobody waits for news."""
        self.idle.set()
        self.versions: tuple[Version, ...] = (service.version,)
        """In memory now; the last is what new sessions get."""
        self._show()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def submit(self, job: Job) -> asyncio.Queue[Told]:
        """Where the job's news arrive, until `cancel`. Raises `QueueFull`."""
        taken: asyncio.Future[None] = self._loop.create_future()
        inbox = self._inboxes[job] = asyncio.Queue()
        self.idle.clear()

        def order() -> None:
            error = None
            try:
                self._service.submit(job)
            except QueueFull as full:
                error = full
            self._call(_settle, taken, error)

        self._orders.put(order)
        await taken
        return inbox

    def cancel(self, job: Job) -> None:
        """The job is over, if it is not yet. Needed for every job."""
        self._inboxes.pop(job, None)
        if not self._inboxes:
            self.idle.set()
        self._orders.put(lambda: self._service.cancel(job))

    def cut(self) -> None:
        """All jobs are over; each is told why."""

        def order() -> None:
            told = [
                Told(job, index, None, error=STOPPING)
                for job in self._service.cancel_all()
                for index in range(len(job.prompts))
            ]
            self._call(self._deliver, told)

        self._orders.put(order)

    def renew(self, version: Version) -> None:
        """From now on new sessions get this one."""

        def order() -> None:
            self._service.version = version

        self._orders.put(order)

    async def close(self) -> None:
        """Ends the thread after the step it is in."""
        self._is_closing = True
        self._orders.put(lambda: None)
        await asyncio.to_thread(self._thread.join, 10.0)

    # ----------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._obey(wait=self._service.is_idle)
                told = self._service.step()
            except Exception:  # a fault of ours: these sessions end, the next ones may do better
                sys.stderr.write(f"peerlm: {traceback.format_exc()}")
                told = [
                    Told(job, index, None, error="internal error")
                    for job in self._service.cancel_all()
                    for index in range(len(job.prompts))
                ]
            self._show()
            if told:
                self._call(self._deliver, told)

    def _obey(self, *, wait: bool) -> None:
        """All orders that are there; with `wait` at least one."""
        try:
            while True:
                self._orders.get(block=wait)()
                wait = False
        except queue.Empty:
            return

    def _show(self) -> None:
        scheduler, metrics = self._service.scheduler, self._metrics
        self.versions = tuple(self._service.versions())
        self.waiting, self.active = scheduler.waiting, scheduler.active
        metrics.queue.set(self.waiting)
        metrics.active.set(self.active)
        again = self._service.version.route.again
        metrics.again.inc(max(0, again - self._again))
        self._again = again
        metrics.cache.set(self.active * self._slot_bytes)
        metrics.versions.set(len(self.versions))
        if self.versions[-1].tokens is not None:
            metrics.version_tokens.set(self.versions[-1].tokens)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is gone: nobody listens any more
            self._is_closing = True

    # ------------------------------------------------------------------------------- in the loop

    def _deliver(self, told: list[Told]) -> None:
        for news in told:
            if (inbox := self._inboxes.get(news.job)) is not None:
                inbox.put_nowait(news)


def _settle(taken: asyncio.Future[None], error: Exception | None) -> None:
    if taken.cancelled():
        return
    if error is None:
        taken.set_result(None)
    else:
        taken.set_exception(error)


async def repeat(do: Callable[[], None], *, every_s: float, say: Callable[[str], None]) -> None:
    """For ever, in a thread. What cannot be done is said once, and tried again."""
    before = ""
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(do)
            before = ""
        except Exception as error:  # what there is goes on serving
            if str(error) != before:
                before = str(error)
                say(before)


async def keep_new(
    driver: Driver,
    newer: Callable[[], Version | None],
    *,
    every_s: float,
    versions_max: int,
    say: Callable[[str], None],
) -> None:
    """For ever: ask for newer weights and hand them on. While sessions hold on to older versions, and there are
    `versions_max`, none is loaded."""

    def look() -> None:
        if len(driver.versions) >= versions_max:
            return
        began = time.monotonic()
        version = newer()
        if version is not None:
            driver.renew(version)
            say(f"new requests get {version.name}, loaded in {time.monotonic() - began:.1f} s")

    await repeat(look, every_s=every_s, say=say)
