"""Many independent runs over all processors, with progress on a terminal and results in order."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from peerlm.cli.leash import die_with_parent
from peerlm.data.processes import no_interrupt
from peerlm.errors import PeerlmError

Result = TypeVar("Result")

AHEAD = 4
"""Calls given to each process before the first of them is done."""


def all_runs(
    call: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], jobs: int, what: str
) -> Iterator[Result]:
    """`call(*each)` for each of `arguments`, in their order. `call` must be a module's function."""
    # Each process is one simulation; libraries with threads of their own would fight over cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with _progress(len(arguments), what) as advance:
        if jobs == 1 or len(arguments) == 1:
            for each in arguments:
                result = call(*each)
                advance()
                yield result
            return
        context = multiprocessing.get_context("spawn")
        many = min(jobs, len(arguments))
        with _term_is_an_end(), ProcessPoolExecutor(many, context, initializer=_begin) as pool:
            try:
                yield from _in_order(pool, call, arguments, jobs * AHEAD, advance)
            except BaseException as error:
                for process in list((pool._processes or {}).values()):  # none after shutdown
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, BrokenProcessPool):
                    raise PeerlmError(
                        "a process of the simulation was killed; if memory ran out, use fewer --jobs"
                    ) from error
                raise


def _begin() -> None:
    """What each process does first. A simulation makes little garbage in circles and many small
    things that stay: collecting as often as Python does by itself costs a tenth of the time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    die_with_parent()
    gc.set_threshold(100_000, 20, 50)


@contextmanager
def _term_is_an_end() -> Iterator[None]:
    """SIGTERM raises, so that processes and semaphores are put away; else the latter are told as leaks."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_order(
    pool: ProcessPoolExecutor,
    call: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    ahead: int,
    advance: Callable[[], None],
) -> Iterator[Result]:
    given, told = 0, 0
    running: dict[Future[Result], int] = {}
    done: dict[int, Result] = {}
    while told < len(arguments):
        while given < len(arguments) and len(running) < ahead:
            with no_interrupt():
                running[pool.submit(call, *arguments[given])] = given
            given += 1
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            done[running.pop(future)] = future.result()
            advance()
        while told in done:
            yield done.pop(told)
            told += 1


class _progress:
    """A bar on stderr if that is a terminal; else nothing."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._bar: Any = None

    def __enter__(self) -> Callable[[], None]:
        if not sys.stderr.isatty() or self._total < 2:
            return lambda: None
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._bar.start()
        task = self._bar.add_task(self._what, total=self._total)
        return lambda: self._bar.advance(task)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
