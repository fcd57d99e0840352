"""Sessions, scheduler, route and sampler put together: what happens in one step.

The versions of the weights share the slots. A request is answered by the version that is newest when its first
session is admitted, to its end; an older one is dropped with the last session that began with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peerlm.serve.route import Sampler, Turn, Version
from peerlm.serve.scheduler import Advance, Scheduler
from peerlm.serve.session import Decoder, Piece, Sampling, Writing


@dataclass(eq=False, slots=True)
class Job:
    """One request: a session for each of its prompts. `version` is None until the first is admitted."""

    prompts: Sequence[tuple[int, ...]]
    rng_seeds: Sequence[int]
    sampling: Sampling
    tokens_max: int
    stops: tuple[str, ...] = ()
    past_end: bool = False
    """Tokens that end a text do not."""
    version: Version | None = None
    version_name: str = ""
    """Of the first session's weights, all that had part in it so far; empty until they are known."""


@dataclass(frozen=True, slots=True)
class Told:
    """News of one of a job's sessions, by its `index`. With `error` it is over, for that reason."""

    job: Job
    index: int
    piece: Piece | None
    drawn: int = 0
    error: str = ""
    may_pass: bool = False
    """Another try may do better a little later."""
    is_full: bool = False
    """Others were in its way."""


@dataclass(slots=True)
class _Session:
    job: Job
    index: int
    writing: Writing
    generator: Any
    ids: list[int] = field(default_factory=list)
    """The prompt, then the tokens drawn."""


class Service:
    """Not safe to use from two threads."""

    def __init__(
        self, scheduler: Scheduler, sampler: Sampler, decoder: Decoder, version: Version
    ) -> None:
        self.scheduler, self.version = scheduler, version
        self._sampler, self._decoder = sampler, decoder
        self._sessions: dict[int, _Session] = {}
        self._next = 0

    def versions(self) -> list[Version]:
        """Those somebody is answered with, and the newest, which is the last."""
        used = {id(v): v for s in self._sessions.values() if (v := s.job.version) is not None}
        used.pop(id(self.version), None)
        return [*used.values(), self.version]

    def submit(self, job: Job) -> None:
        """Raises `QueueFull`."""
        numbers = range(self._next, self._next + len(job.prompts))
        self.scheduler.offer([(n, len(p)) for n, p in zip(numbers, job.prompts, strict=True)])
        self._next = numbers.stop
        for index, number in enumerate(numbers):
            self._sessions[number] = _Session(
                job,
                index,
                Writing(self._decoder, job.tokens_max, job.stops, past_end=job.past_end),
                self._sampler.generator(job.rng_seeds[index]),
                list(job.prompts[index]),
            )

    def cancel(self, job: Job) -> None:
        """Its sessions are over, wherever they are. May be called again."""
        for number in [n for n, s in self._sessions.items() if s.job is job]:
            self._end(number)

    def cancel_all(self) -> list[Job]:
        jobs = list(dict.fromkeys(s.job for s in self._sessions.values()))
        for job in jobs:
            self.cancel(job)
        return jobs

    @property
    def is_idle(self) -> bool:
        return not self._sessions

    def step(self) -> list[Told]:
        """Admit, advance everybody by one step, and say what has been written."""
        for number in self.scheduler.admit():
            job = self._sessions[number].job
            job.version = job.version or self.version
        together: dict[int, tuple[Version, list[Advance]]] = {}
        for advance in self.scheduler.step():
            version = self._sessions[advance.session].job.version
            assert version is not None
            together.setdefault(id(version), (version, []))[1].append(advance)
        return [told for group in together.values() for told in self._advance(*group)]

    def _advance(self, version: Version, advances: list[Advance]) -> list[Told]:
        turns = [
            Turn(a.slot, a.start, tuple(self._sessions[a.session].ids[a.start : a.stop]))
            for a in advances
        ]
        try:
            logits = version.route.advance(turns)
        except Exception as error:  # whatever it is, it is the end of these sessions alone
            why = f"{type(error).__name__}: {error}"
            return [self._fail(a.session, version, a.slot, why) for a in advances]
        last = [row for row, a in enumerate(advances) if a.is_last]
        told = [
            self._fail(a.session, version, a.slot)
            for row, a in enumerate(advances)
            if not a.is_last and not np.isfinite(logits[row]).all()
        ]
        if not last:
            return told
        sessions = [self._sessions[advances[row].session] for row in last]
        asked = [(s.job.sampling, s.generator) for s in sessions]
        for row, session, pick in zip(
            last, sessions, self._sampler.draw(logits[last], asked), strict=True
        ):
            number = advances[row].session
            slot = advances[row].slot
            if pick is None:
                told.append(self._fail(number, version, slot))
                continue
            job = session.job
            if session.index == 0 or not job.version_name:
                job.version_name = version.route.version_of(slot) or version.name
            session.ids.append(pick.token)
            piece = session.writing.add(pick)
            told.append(Told(session.job, session.index, piece, drawn=1))
            if piece.finish:
                self._end(number)
            else:
                self.scheduler.drawn(number)
        return told

    def _fail(self, number: int, version: Version, slot: int, why: str = "") -> Told:
        """`why`: if not what the route says."""
        session, route = self._sessions[number], version.route
        why, is_full = why or route.why(slot), not why and route.is_full(slot)
        self._end(number)
        route.clear(slot)
        return Told(
            session.job,
            session.index,
            None,
            error=why,
            may_pass=route.faults_pass,
            is_full=is_full,
        )

    def _end(self, number: int) -> int | None:
        session = self._sessions.pop(number)
        slot = self.scheduler.end(number)
        if slot is not None and session.job.version is not None:
            session.job.version.route.release(slot)
        return slot
