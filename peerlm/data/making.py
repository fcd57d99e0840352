"""All tasks of a job on all cores: processes that make them, and what happens when one of these dies.

A process is started afresh, not forked from one that may have threads, and gets one task at a time; so whoever hands out
tasks can decide late which are next. What it has made it hands over at once and waits while nobody takes it: memory
stays at a few shards a process. One that is killed is replaced, and its task made again, once: what it had handed over
is the same the second time and is passed over. Processes end with the one that started them, since their pipe does.

What cannot be reached from another process (`memory://`), and a single task, is made in this one. Which documents are
duplicates a process is told with the task: they may be many.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from peerlm.data import findings, prepared
from peerlm.data.findings import Kept
from peerlm.data.prepared import Done, Job, Made, Sweep
from peerlm.data.processes import no_interrupt, processors
from peerlm.data.sources import Pause, kind_of
from peerlm.errors import ConfigError

T = TypeVar("T")

Step = Callable[[Job, int, Pause], Iterator[T]]
"""Makes one task: `prepared.shards` or `findings.findings`."""

Progress = Callable[[int, int], object]
"""Told the bytes of the source that are done and the tokens made, from the beginning, whenever there are more."""

LIVES = 2
"""How often a task is begun before its maker's deaths are blamed on it."""


def shards(
    job: Job,
    numbers: Iterable[int] | None = None,
    processes: int | None = None,
    progress: Progress = lambda size_bytes, tokens: None,
) -> Iterator[Made | Done]:
    """The shards of tasks, those of one task in order, tasks in any order; behind a task's last one, that it is done. Of an
    earlier sweep than that of tokens what is found, in the same way.

    Args:
        numbers: Which tasks; the next one is asked for when a process is free. None: all.
        processes: None: as many as cores; 0: in this process.

    Raises:
        ConfigError: the source cannot be used; or a task's processes were killed, twice.
    """
    size_bytes = tokens = 0
    step = prepared.shards if job.sweep is Sweep.TOKENS else findings.findings
    for part in _all_of(step, job, numbers, processes):
        match part:
            case Made():
                tokens += part.tokens
            case Done():
                size_bytes += part.size_bytes
        progress(size_bytes, tokens)
        yield part


def concluded(
    job: Job,
    processes: int | None = None,
    progress: Progress = lambda size_bytes, tokens: None,
    kept: Kept = lambda _: None,
) -> Job:
    """The job of the next sweep, all of this one made here; as `findings.concluded`. Holds all findings: half a kilobyte of a
    document where near duplicates are looked for; so `kept` is told of these too."""
    found: list[list[bytes]] = [[] for _ in range(job.count)]
    documents = 0
    for part in shards(job, None, processes, progress):
        match part:
            case Made():
                found[part.task].append(part.data)
            case Done():
                documents += part.documents
                kept(documents)
    return findings.concluded(job, found, kept)


def settled(job: Job, processes: int | None = None) -> Job:
    """The job in the sweep of tokens, all before made here."""
    while job.sweep is not Sweep.TOKENS:
        job = concluded(job, processes)
    return job


def _all_of(
    step: Step[T], job: Job, numbers: Iterable[int] | None, processes: int | None
) -> Iterator[T]:
    count = processors() if processes is None else processes
    if numbers is None:
        numbers = range(job.count)
        count = min(count, job.count) if processes or job.count > 1 else 0
    if count == 0 or kind_of(job.source.url) == "memory":
        for number in numbers:
            yield from step(job, number, lambda _: None)
        return
    with _Makers(step, job) as makers:
        yield from makers.make(iter(numbers), count)


class _Maker(Generic[T]):
    """A process, and what it is at."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.task = -1
        """That it makes; -1: none."""


class _Makers(Generic[T]):
    """The processes of one job. As a context it ends them."""

    def __init__(self, step: Step[T], job: Job) -> None:
        self._step, self._job = step, replace(job, left_out={})
        self._left_out = job.left_out
        self._makers: list[_Maker[T]] = []
        self._handed: dict[int, int] = {}
        """Task → parts of it that have been handed on."""
        self._lives: dict[int, int] = {}
        """Task → how often it was begun."""

    def __enter__(self) -> _Makers[T]:
        return self

    def __exit__(self, *_: object) -> None:
        for maker in self._makers:
            maker.process.kill()
        for maker in self._makers:
            self._end(maker)

    def make(self, numbers: Iterator[int], count: int) -> Iterator[T]:
        """Raises as `shards` does."""
        for _ in range(count):
            if (number := next(numbers, None)) is None:
                break
            self._begin(self._started(), number)
        while busy := [maker for maker in self._makers if maker.task >= 0]:
            for ready in wait([maker.pipe for maker in busy]):
                maker = next(m for m in busy if m.pipe is ready)
                yield from self._heard(maker, numbers)

    def _heard(self, maker: _Maker[T], numbers: Iterator[int]) -> Iterator[T]:
        """One message of a process, or its end."""
        try:
            kind, body = maker.pipe.recv()
        except (EOFError, OSError):
            self._replace(maker)
            return
        match kind:
            case "part":
                place, part = body
                if place == self._handed[maker.task]:
                    self._handed[maker.task] += 1
                    yield part
            case "done":
                del self._handed[maker.task], self._lives[maker.task]
                maker.task = -1
                if (number := next(numbers, None)) is not None:
                    self._begin(maker, number)
            case "unusable":
                raise ConfigError(body)
            case _:
                raise AssertionError(body)

    def _started(self) -> _Maker[T]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._step, self._job), name="peerlm tokens", daemon=True
        )
        resource_tracker.ensure_running()  # by itself it would let signals through again
        with no_interrupt():
            process.start()
        theirs.close()
        maker = _Maker[T](process, ours)
        self._makers.append(maker)
        return maker

    def _begin(self, maker: _Maker[T], number: int) -> None:
        maker.task = number
        self._lives[number] = self._lives.get(number, 0) + 1
        self._handed.setdefault(number, 0)
        with suppress(OSError):  # it is dead: its pipe will say so
            maker.pipe.send((number, self._left_out.get(number, frozenset())))

    def _replace(self, maker: _Maker[T]) -> None:
        number = maker.task
        self._makers.remove(maker)
        self._end(maker)
        if self._lives[number] == LIVES:
            path = self._job.path_of(number)
            raise ConfigError(
                f"{self._job.source.where}: {path}: the process that made tokens of it was "
                f"ended {LIVES} times ({_ending(maker.process.exitcode)}); is there too little memory?"
            )
        self._begin(self._started(), number)

    def _end(self, maker: _Maker[T]) -> None:
        maker.pipe.close()
        maker.process.join()


def _ending(code: int | None) -> str:
    """How a process ended."""
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def _serve(pipe: Connection, step: Step[Any], job: Job) -> None:
    """The process: makes what it is told until its pipe ends."""
    left_out: dict[int, frozenset[int]] = {}
    job = replace(job, left_out=left_out)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, places = pipe.recv()
            left_out.clear()
            left_out[number] = places
            try:
                for place, part in enumerate(step(job, number, pipe.poll)):
                    pipe.send(("part", (place, part)))
            except ConfigError as error:
                pipe.send(("unusable", str(error)))
            except MemoryError:
                return  # another process may find more
            except Exception:
                pipe.send(("broken", traceback.format_exc()))
            else:
                pipe.send(("done", None))
