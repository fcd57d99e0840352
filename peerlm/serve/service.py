"""Sessions, scheduler, route and sampler put together: what happens in one step.

A step begins what can be, and takes what has ended: of a model in this process the same; through hosts elsewhere what
was begun some steps ago, so that nobody waits for who goes another way.
The versions of the weights share the slots. A request is answered by the version that is newest when its first
session is admitted, to its end; an older one is dropped with the last session that began with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peerlm.serve.route import Sampler, Turn, Version, name_of_all
from peerlm.serve.scheduler import Advance, Scheduler
from peerlm.serve.session import Decoder, Pick, Piece, Sampling, Writing


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
    version_names: dict[int, str] = field(default_factory=dict)
    """By index, of each session that is written: of the weights that had part in it so far."""

    @property
    def version_name(self) -> str:
        """Of all of them; empty until they are known."""
        names = [name for _, name in sorted(self.version_names.items())]
        return name_of_all(names) if names else ""


@dataclass(frozen=True, slots=True)
class Told:
    """News of one of a job's sessions, by its `index`. With `error` it is over, for that reason."""

    job: Job
    index: int
    piece: Piece | None
    drawn: int = 0
    version: str = ""
    """All weights that had part in the job so far."""
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
        self._under_way: dict[int, Advance] = {}
        """By slot: begun, and not ended yet."""
        self._leaving: set[int] = set()
        """Sessions under way that are cancelled."""
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
        """Its sessions are over: at once, or when they come back, so that nobody whom they are on the way with is disturbed. May
        be called again."""
        under_way = {a.session for a in self._under_way.values()}
        for number in [n for n, s in self._sessions.items() if s.job is job]:
            if number in under_way:
                self._leaving.add(number)
            else:
                self._end(number)

    def cancel_all(self) -> list[Job]:
        """All sessions are over at once, wherever they are."""
        jobs = list(dict.fromkeys(s.job for s in self._sessions.values()))
        self._under_way.clear()
        self._leaving.clear()
        for number in list(self._sessions):
            self._end(number)
        return jobs

    @property
    def is_idle(self) -> bool:
        return not self._sessions

    def step(self) -> list[Told]:
        """Admit, advance everybody who is not on the way, and say what has been written by those who came back."""
        for number in self.scheduler.admit():
            job = self._sessions[number].job
            job.version = job.version or self.version
        together: dict[int, tuple[Version, list[Advance]]] = {}
        for advance in self.scheduler.step({a.session for a in self._under_way.values()}):
            version = self._version_of(advance)
            together.setdefault(id(version), (version, []))[1].append(advance)
        told = [news for group in together.values() for news in self._begin(*group)]
        for version in {id(v): v for v in map(self._version_of, self._under_way.values())}.values():
            told += self._hear(version)
        return told

    def _version_of(self, advance: Advance) -> Version:
        version = self._sessions[advance.session].job.version
        assert version is not None
        return version

    def _begin(self, version: Version, advances: list[Advance]) -> list[Told]:
        turns = [
            Turn(a.slot, a.start, tuple(self._sessions[a.session].ids[a.start : a.stop]))
            for a in advances
        ]
        self._under_way.update({a.slot: a for a in advances})
        try:
            version.route.begin(turns)
        except Exception as error:
            return self._break(version, error)
        return []

    def _break(self, version: Version, error: Exception) -> list[Told]:
        """Whatever it is, it is the end of these sessions alone: all that are on the way with this version."""
        why = f"{type(error).__name__}: {error}"
        broken = [a for a in self._under_way.values() if self._version_of(a) is version]
        for advance in broken:
            del self._under_way[advance.slot]
        return [
            self._fail(a.session, version, a.slot, why) for a in broken if not self._is_leaving(a)
        ]

    def _is_leaving(self, advance: Advance) -> bool:
        """Its session was cancelled on the way. It is over then."""
        if advance.session not in self._leaving:
            return False
        self._leaving.remove(advance.session)
        self._end(advance.session)
        return True

    def _hear(self, version: Version) -> list[Told]:
        try:
            slots, logits = version.route.ended()
        except Exception as error:
            return self._break(version, error)
        back = [(row, self._under_way.pop(slot)) for row, slot in enumerate(slots)]
        back = [(row, advance) for row, advance in back if not self._is_leaving(advance)]
        told = [
            self._fail(a.session, version, a.slot)
            for row, a in back
            if not a.is_last and not np.isfinite(logits[row]).all()
        ]
        last = [(row, a) for row, a in back if a.is_last]
        if not last:
            return told
        sessions = [self._sessions[a.session] for _, a in last]
        picks = self._sampler.draw(
            logits[[row for row, _ in last]], [(s.job.sampling, s.generator) for s in sessions]
        )
        for (_, advance), pick in zip(last, picks, strict=True):
            told.append(self._drawn(version, advance, pick))
        return told

    def _drawn(self, version: Version, advance: Advance, pick: Pick | None) -> Told:
        number, slot = advance.session, advance.slot
        if pick is None:
            return self._fail(number, version, slot)
        session = self._sessions[number]
        job = session.job
        job.version_names[session.index] = version.route.version_of(slot) or version.name
        session.ids.append(pick.token)
        piece = session.writing.add(pick)
        if piece.finish:
            self._end(number)
        else:
            self.scheduler.drawn(number)
        return Told(job, session.index, piece, drawn=1, version=job.version_name)

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
