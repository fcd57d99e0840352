"""Corpora that several nodes make together: who does which task, what is done, and who names the result.

A *job* is a name of its kind in the swarm's store, whose manifest says what is to be made of what (`data.jobs`). Every node
that hears of it may take part. Nobody leads: tasks are dealt by hashing (`node.dealing`), each node tells all others
what it has made, and comparing bitmaps brings what got lost. What a node has made it says itself, if it can; others' word for it is asked
for where there is no link with it, and by the node itself where it cannot read what it had written down of it (`made`): else a peer could have it
stand for what it never made. When all tasks are done, and every chunk of them was
found at some node, the first of an order that all draw writes the corpus' name and removes the job's; the next does
if it does not. It is the same manifest whoever writes it.

What has to be known of all of the source before tokens are made of it is found in *sweeps* before (`data.findings`): a job of one
ends in the job of the next, which takes over its name. Until somebody has begun with that, its findings stay, and whoever has
them all may conclude it again, and so bring back a next job that went with the node that wrote it.

Shards lie with their makers until then, and each maker remembers on its disk what it has made (`made`). A result whose maker is gone is made again, and so is one whose chunks nobody
has when it comes to naming the corpus, whoever said that they are there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peerlm.effects import Effect, Log, MakeShards, Send
from peerlm.events import ManifestRead
from peerlm.node.dealing import PAGE_TASKS, Deal
from peerlm.node.finishing import CHECKING, ENDED, OPEN, READY, Finishing, SurveyOf
from peerlm.node.made import Made
from peerlm.node.register import Write, Writing
from peerlm.store.manifest import JOB_PREFIX, TASKS_MAX, Kind
from peerlm.store.names import Entry
from peerlm.types import Instant, ObjectHash, PeerId, WallTime, after, printable, short
from peerlm.wire.message import JobAsk, JobNews, JobResult, NameRecord

JOBS_MAX = 16
"""Followed at once, the oldest first; the others wait. Those that are over are not counted, or the next sweeps would wait for them, and
they for the next sweeps; of these too no more are kept, the last ones."""

TELL_S = 0.25
"""What is new is told no more often."""

RESULTS_TOLD, SHARDS_TOLD = 64, 4096
"""In one message; a single result may have more shards."""

TAKEN_TOLD = 1024
"""Tasks that a node is at."""

UNHEARD_ASKED = 4
"""Makers, for a message, that are asked for results which another told of them."""

COMPARE_S = 30.0
ANSWER_S = 2.0
"""The same page of results is not given to the same node more often."""

GONE_S = 5.0
"""A node that was away for so long is taken for gone, and what it made for lost."""

HELLO_S = 0.75
"""Between saying that it takes part and the first task: others have heard of it by then, and it of them."""

RETRY_S = 300.0
"""A node that could not take part tries again."""

HINT_S = 1800.0
"""Makers are asked first for a corpus' chunks so long after it was made."""

COUNTED_MAX = 1 << 62
"""Sums of what peers say are shown up to here."""

EVER, FAR = Instant(0.0), Instant(float("inf"))


@dataclass(slots=True)
class _Job:
    name: str
    deal: Deal
    finishing: Finishing
    replaces: bool
    sweep: str = ""
    others: dict[PeerId, tuple[bool, str]] = field(default_factory=dict)
    """What each has said last: it takes part; why not."""
    is_making: bool = False
    trouble: str = ""
    again_at: Instant | None = None
    """Set when this node cannot take part."""
    begins_at: Instant = EVER
    untold: list[JobResult] = field(default_factory=list)
    is_news: bool = False
    told: tuple[bool, str, tuple[int, ...]] = (False, "", ())
    is_finishing: bool = False
    """This node's process concludes its sweep, which may take long."""
    is_over: bool = False
    """The job of the next sweep has its name, and nobody has begun with that."""
    mine: set[ObjectHash] = field(default_factory=set)
    """Chunks that must not go although nothing has a name for them yet."""

    @property
    def target(self) -> str:
        return self.name.removeprefix(JOB_PREFIX)


class Jobs:
    """Of one node.

    Args:
        may_make: it has room and may store, and its settings let it take part.
        names: those that stand for something.
        has: whether a chunk is here.
        survey: `Storing.survey`.
        write: `Storing.write`.
        kept: what `Save("made")` kept; None: it cannot be read, so others are believed that say what this node made.
    """

    def __init__(
        self,
        me: PeerId,
        *,
        may_make: bool,
        names: Callable[[], Sequence[Entry]],
        has: Callable[[ObjectHash], bool],
        survey: SurveyOf,
        write: Write,
        rng: random.Random,
        now: Instant,
        kept: bytes | None = b"",
    ) -> None:
        self._me, self.may_make, self._names, self._has = me, may_make, names, has
        self._survey, self._write, self._rng = survey, write, rng
        self._jobs: dict[ObjectHash, _Job] = {}
        self._facts: dict[ObjectHash, tuple[int, bool, str]] = {}
        self._live: frozenset[PeerId] = frozenset()
        self._gone: dict[PeerId, Instant] = {}
        """Nodes that were there, and since when they are not."""
        self._hints: dict[ObjectHash, tuple[Instant, Mapping[ObjectHash, PeerId]]] = {}
        self._answered: dict[tuple[PeerId, ObjectHash, int, bool], Instant] = {}
        self._made, self._is_told = Made(me, kept or b"", now), kept is None
        self._compare_at, self._wake_at = after(now, COMPARE_S), now
        self._is_wanted = False
        self.is_connected = False
        """The process that makes shards is there."""

    # --------------------------------------------------------------------------- which there are

    def read(self, event: ManifestRead, now: Instant) -> list[Effect]:
        """The manifest of a name, perhaps of a job."""
        if not 0 < event.tasks <= TASKS_MAX:
            return []
        self._facts[event.manifest] = (event.tasks, event.replaces, event.sweep)
        return self.follow(now)

    def follow(self, now: Instant) -> list[Effect]:
        """Names have changed."""
        records = {ObjectHash(r.manifest): r for r in self._records()}
        self._facts = {job: facts for job, facts in self._facts.items() if job in records}
        self._made.named_are(records, now)
        self._end_those_over({record.name: job for job, record in records.items()}, now)
        effects: list[Effect] = []
        for job, record in records.items():
            if job in self._facts and job not in self._jobs and self._has_place():
                tasks, replaces, sweep = self._facts[job]
                deal = Deal(job, tasks, self._me)
                finishing = Finishing(deal, is_sweep=bool(sweep))
                self._jobs[job] = _Job(record.name, deal, finishing, replaces, sweep)
                for result in self._made.before(job):
                    self._made_before(job, result, self._me, now)
                for peer in sorted(self._live):
                    effects += self._ask(peer, job)
        return [*effects, *self._want(now)]

    def _end_those_over(self, named: Mapping[str, ObjectHash], now: Instant) -> None:
        """`named`: what each name of a job stands for."""
        for job_hash, job in list(self._jobs.items()):
            after = named.get(job.name)
            job.is_over = after != job_hash
            if after is None or (job.is_over and self._is_begun(after)):
                self._end(job_hash, now)

        over = [job_hash for job_hash, job in self._jobs.items() if job.is_over]
        for job_hash in over[:-JOBS_MAX]:
            self._end(job_hash, now)

    def _has_place(self) -> bool:
        return sum(not job.is_over for job in self._jobs.values()) < JOBS_MAX

    def _is_begun(self, job_hash: ObjectHash) -> bool:
        return job_hash in self._jobs and bool(self._makers(self._jobs[job_hash]))

    def _records(self) -> list[NameRecord]:
        found = [
            entry.record
            for entry in self._names()
            if entry.record.kind == Kind.JOB and entry.record.name.startswith(JOB_PREFIX)
        ]
        return sorted(found, key=lambda record: (record.wall, record.name))

    def _end(self, job: ObjectHash, now: Instant) -> None:
        """It has no name any more: it is done, or was not wanted."""
        done = self._jobs.pop(job).deal.done
        self._made.forget(job)
        makers = {s.hash: PeerId(r.maker) for r in done.values() for s in r.shards}
        self._hints = {j: hint for j, hint in self._hints.items() if now - hint[0] < HINT_S}
        self._hints[job] = (now, {ObjectHash(h): peer for h, peer in makers.items()})
        self._answered = {key: at for key, at in self._answered.items() if key[1] != job}

    def makers_of(self, chunk: ObjectHash) -> tuple[PeerId, ...]:
        """Whom to ask first for a chunk of a corpus that was made lately, or of findings."""
        known = [job.finishing.made_of for job in self._jobs.values() if job.finishing.made_of]
        found = (makers.get(chunk) for makers in [*known, *(m for _, m in self._hints.values())])
        return tuple(peer for peer in found if peer is not None and peer != self._me)

    def holds(self, chunk: ObjectHash) -> bool:
        """It was made here for a job, and waits for its name."""
        return any(chunk in job.mine for job in self._jobs.values())

    # -------------------------------------------------------------------------------- who is there

    def nodes_are(self, live: frozenset[PeerId], now: Instant) -> list[Effect]:
        live = live - {self._me}
        if live == self._live:
            return []
        came = live - self._live
        self._gone |= dict.fromkeys(self._live - live, now)
        for peer in came:
            self._gone.pop(peer, None)
        self._live = live
        for job in self._jobs.values():
            for peer in job.others.keys() - live:
                del job.others[peer]
                job.finishing.others.discard(peer)
                job.deal.claim(peer, (), now)
            job.deal.recount(self._counts(now))
            job.finishing.look(now)
        return [
            effect for peer in sorted(came) for job in self._jobs for effect in self._ask(peer, job)
        ]

    def _counts(self, now: Instant) -> Callable[[JobResult], bool]:
        gone, live = self._gone, self._live

        def counts(result: JobResult) -> bool:
            maker = PeerId(result.maker)
            if maker == self._me or maker in live:
                return True
            if maker in gone and now - gone[maker] < GONE_S:
                return True
            return bool(result.shards) and all(self._has(ObjectHash(s.hash)) for s in result.shards)

        return counts

    def _makers(self, job: _Job) -> list[PeerId]:
        """Who takes part, sorted."""
        others = [peer for peer, (is_making, _) in job.others.items() if is_making]
        return sorted([*others, self._me] if job.is_making else others)

    # ------------------------------------------------------------------- the process that makes shards

    def connected(self, now: Instant, *, is_there: bool) -> list[Effect]:
        self.is_connected = is_there
        for job in self._jobs.values():
            if job.is_making and not is_there:
                job.is_making, job.is_finishing, job.is_news = False, False, True
                job.deal.claim(self._me, (), now)
        return []

    def choose(self, now: Instant) -> ObjectHash | None:
        """The job to work on: the oldest for which there is something to do, or that may have something later."""
        able = [h for h, job in self._jobs.items() if self._is_able(job, now)]
        able.sort(key=lambda h: self._jobs[h].is_over)
        busy = (
            h
            for h in able
            if self._jobs[h].finishing.stage != CHECKING and self._has_work(self._jobs[h])
        )
        return next(busy, able[0] if able else None)

    def name_of(self, job_hash: ObjectHash) -> str:
        return self._jobs[job_hash].name

    def _has_work(self, job: _Job) -> bool:
        return bool(job.deal.open) or job.finishing.stage == READY

    def _is_able(self, job: _Job, now: Instant) -> bool:
        return self.may_make and (job.again_at is None or now >= job.again_at)

    def next(self, job_hash: ObjectHash, now: Instant) -> int | str:
        """A task to begin, or a word: `wait`, `finish` (build the manifest, or conclude the sweep: `rows`), `over`."""
        job = self._jobs.get(job_hash)
        if job is None or not self.may_make:
            return "over"
        if not job.is_making:
            job.is_making, job.trouble, job.again_at, job.is_news = True, "", None, True
            job.begins_at = after(now, HELLO_S) if self._live else now
        if now < job.begins_at:
            return "wait"
        is_finishing = job.finishing.stage == READY and bool(job.sweep)  # naming takes moments
        if job.is_finishing != is_finishing:
            job.is_finishing, job.is_news = is_finishing, True
        if job.finishing.stage == READY:
            return "finish"
        if (task := job.deal.next(self._makers(job), now)) is None:
            return "wait"
        job.is_news = True
        return task

    def made(
        self, job_hash: ObjectHash, task: int, documents: int, shards: tuple[Any, ...], now: Instant
    ) -> bool:
        """This node has made a task, and its chunks are here. False: the job is over."""
        job = self._jobs.get(job_hash)
        if job is None or not 0 <= task < job.deal.tasks or documents < 0:
            return False
        result = JobResult(task, self._me, documents, shards)
        job.deal.made(result)
        job.mine.update(ObjectHash(shard.hash) for shard in shards)
        job.untold.append(result)
        self._made.add(job_hash, result)
        job.finishing.look(now)
        return True

    def _made_before(
        self, job_hash: ObjectHash, result: JobResult, by: PeerId, now: Instant
    ) -> None:
        """This node made it before this daemon's start: so it says itself, or others do."""
        job = self._jobs[job_hash]
        is_here = all(self._has(ObjectHash(shard.hash)) for shard in result.shards)
        if is_here and job.deal.add(result, self._counts(now), by):
            job.mine.update(ObjectHash(shard.hash) for shard in result.shards)
            self._made.add(job_hash, result)
            job.finishing.look(now)

    def failed(self, job_hash: ObjectHash, why: str, now: Instant) -> list[Effect]:
        """This node cannot do it, and says so once."""
        job = self._jobs.get(job_hash)
        if job is None:
            return []
        job.is_making, job.trouble, job.again_at = False, why[:400], after(now, RETRY_S)
        job.is_finishing, job.is_news = False, True
        job.finishing.give_up()
        job.deal.claim(self._me, (), now)
        log = Log("warning", "job_refused", (("name", job.name), ("why", why)))
        return [log, *self._want(now)]

    def look_again(self, job_hash: ObjectHash, now: Instant) -> None:
        """Chunks of it that were found cannot be had: it is asked anew who has them."""
        job = self._jobs.get(job_hash)
        if job is not None and job.finishing.stage == READY:
            job.finishing.look_again(now)

    def false(self, job_hash: ObjectHash, task: int, why: str, now: Instant) -> list[Effect]:
        """What was found in a task is damaged, as this node has read: all that its maker found is made again, and nothing more of
        it believed."""
        job = self._jobs.get(job_hash)
        if job is None or job.finishing.stage != READY or task not in job.deal.done:
            return []
        maker = PeerId(job.deal.done[task].maker)
        if not job.deal.distrust(maker):
            return self.failed(job_hash, why, now)
        job.deal.recount(self._counts(now))
        job.finishing.look_again(now)
        fields = (("name", job.name), ("task", task), ("maker", short(maker)), ("why", why))
        return [Log("warning", "findings_false", fields)]

    def rows(self, job_hash: ObjectHash) -> list[JobResult]:
        """All results in order, once it is time to `finish`."""
        done = self._jobs[job_hash].deal.done if job_hash in self._jobs else {}
        return [done[task] for task in sorted(done)]

    def publish(
        self, job_hash: ObjectHash, manifest: ObjectHash, size: int, wall: WallTime, now: Instant
    ) -> list[Effect]:
        """Write the corpus' name, and remove the job's. Raises `StateError`, as `Storing.write`."""
        job = self._jobs.get(job_hash)
        record = next((r for r in self._records() if r.manifest == job_hash), None)
        if job is None or record is None or job.finishing.stage != READY:
            return []
        known = [e.record for e in self._names() if e.record.name == job.target]
        corpus = Writing(
            job.target,
            Kind.CORPUS,
            manifest,
            size,
            replicas=record.replicas,
            is_pinned=any(r.is_pinned for r in known),
            about=record.about,
            replaces=job.replaces,
        )
        written = self._write(corpus, wall, now)
        fields = (("name", job.target), ("manifest", short(manifest)))
        return [
            Log("info", "corpus_made", fields),
            *written,
            *self._write(Writing(job.name, Kind.JOB, replaces=True), wall, now),
            *self.follow(now),
        ]

    def go_on(
        self, job_hash: ObjectHash, manifest: ObjectHash, size: int, now: Instant
    ) -> list[Effect]:
        """Have the job's name stand for that of the next sweep, of which all is here. Raises `StateError`, as `Storing.write`."""
        job = self._jobs.get(job_hash)
        record = next((r for r in self._records() if job is not None and r.name == job.name), None)
        if job is None or record is None or job.finishing.stage != READY:
            return []
        job.finishing.stage, job.is_finishing, job.is_news = ENDED, False, True
        if record.manifest not in (job_hash, manifest):
            return []  # somebody has begun something else
        if (known := self._jobs.get(manifest)) is not None:
            known.again_at, known.trouble = None, ""  # it could not be read, and now it can
        follower = Writing(
            job.name,
            Kind.JOB,
            manifest,
            size,
            replicas=record.replicas,
            about=record.about,
            replaces=True,
        )
        log = Log("info", "sweep_done", (("name", job.name), ("sweep", job.sweep)))
        written = self._write(follower, WallTime(record.wall), now)  # it keeps its place
        return [log, *written, *self.follow(now)]

    # ------------------------------------------------------------------------------------- talking

    def received(self, peer: PeerId, message: JobNews | JobAsk, now: Instant) -> list[Effect]:
        job = self._jobs.get(ObjectHash(message.job))
        if job is None or peer not in self._live:
            return []
        if isinstance(message, JobNews):
            return self._heard(peer, job, message, now)
        return self._asked(peer, job, message, now)

    def _heard(self, peer: PeerId, job: _Job, news: JobNews, now: Instant) -> list[Effect]:
        job.others[peer] = (news.is_making, printable(news.trouble))
        job.deal.claim(peer, news.taken, now)
        if job.deal.tasks in news.taken:
            job.finishing.others.add(peer)
        else:
            job.finishing.others.discard(peer)
        counts = self._counts(now)
        unheard: dict[PeerId, int] = {}
        for result in news.results:
            maker = PeerId(result.maker)
            if maker in self._live and maker != peer:  # or anybody could say what it has made
                if result.task in job.deal.open:
                    unheard.setdefault(maker, result.task // PAGE_TASKS * PAGE_TASKS)
            elif maker != self._me:
                job.deal.add(result, counts, peer)
            elif (
                self._is_told and result.shards
            ):  # that there is no text where there is some, anybody could say
                self._made_before(job.deal.job, result, peer, now)
        job.finishing.look(now)
        asked = list(unheard.items())[:UNHEARD_ASKED]
        return [Send(maker, self._page(job, low, reply=True)) for maker, low in asked]

    def _asked(self, peer: PeerId, job: _Job, ask: JobAsk, now: Instant) -> list[Effect]:
        key = (peer, job.deal.job, ask.low, ask.reply)
        if key in self._answered and now - self._answered[key] < ANSWER_S:
            return []
        if ask.low % PAGE_TASKS or ask.low >= job.deal.tasks:
            return []
        self._answered[key] = now
        lacking, is_behind = job.deal.compared(ask.low, ask.bits)
        effects: list[Effect] = [Send(peer, news) for news in self._news(job, lacking)]
        if is_behind and not ask.reply:
            effects.append(Send(peer, self._page(job, ask.low, reply=True)))
        return effects

    def _ask(self, peer: PeerId, job_hash: ObjectHash) -> list[Effect]:
        job = self._jobs[job_hash]
        pages = range(0, job.deal.tasks, PAGE_TASKS)
        return [Send(peer, self._page(job, low, reply=False)) for low in pages]

    def _page(self, job: _Job, low: int, *, reply: bool) -> JobAsk:
        return JobAsk(job.deal.job, low, job.deal.bitmap(low), reply)

    def _news(self, job: _Job, results: Sequence[JobResult]) -> list[JobNews]:
        """At least one message."""
        groups: list[list[JobResult]] = [[]]
        shards = 0
        for result in results:
            shards += len(result.shards)
            if groups[-1] and (len(groups[-1]) == RESULTS_TOLD or shards > SHARDS_TOLD):
                groups.append([])
                shards = len(result.shards)
            groups[-1].append(result)
        is_making, trouble, taken = self._says(job)
        return [JobNews(job.deal.job, is_making, trouble, taken, tuple(g)) for g in groups]

    def _says(self, job: _Job) -> tuple[bool, str, tuple[int, ...]]:
        taken = [job.deal.tasks] * job.is_finishing + job.deal.claimed()
        return job.is_making, job.trouble, tuple(taken[:TAKEN_TOLD])

    # ------------------------------------------------------------------------------- being driven

    def link_up(self, peer: PeerId) -> list[Effect]:
        return [effect for job in self._jobs for effect in self._ask(peer, job)]

    def wake(self, now: Instant) -> list[Effect]:
        if self._jobs and now < self._wake_at:
            return []
        self._wake_at = after(now, TELL_S)
        gone = [peer for peer, since in self._gone.items() if now - since >= GONE_S]
        is_over = any(job.is_over for job in self._jobs.values())
        effects = self.follow(now) if is_over else []
        for job in self._jobs.values():
            if gone:
                job.deal.recount(self._counts(now))
                job.finishing.look(now)
            job.finishing.hear(self._counts(now), now)
            effects += job.finishing.survey(self._me, self._makers(job), self._survey, now)
        for peer in gone:
            del self._gone[peer]
        effects += self._tell()
        if self._compare_at <= now:
            self._compare_at = after(now, COMPARE_S)
            asked = [self._rng.choice(sorted(self._live))] if self._live else []
            effects += [e for peer in asked for job in self._jobs for e in self._ask(peer, job)]
        return [*effects, *self._made.save(now), *self._want(now)]

    def _tell(self) -> list[Effect]:
        effects: list[Effect] = []
        for job in self._jobs.values():
            if not job.untold and (not job.is_news or self._says(job) == job.told):
                continue
            told, job.untold, job.is_news = self._news(job, job.untold), [], False
            job.told = self._says(job)
            effects += [Send(peer, news) for news in told for peer in sorted(self._live)]
        return effects

    def _want(self, now: Instant) -> list[Effect]:
        """Have the process that makes shards, or let it go."""
        is_wanted = any(self._is_able(job, now) for job in self._jobs.values())
        if is_wanted == self._is_wanted:
            return []
        self._is_wanted = is_wanted
        return [MakeShards(is_wanted)]

    @property
    def due(self) -> Instant:
        """When to wake it."""
        return self._wake_at if self._jobs else FAR

    # --------------------------------------------------------------------------------- for people

    def standing(self, name: str = "") -> list[dict[str, Any]]:
        """Of each job, or of one: how far it is."""
        return [
            {
                "name": job.name,
                "manifest": job_hash.hex(),
                "sweep": job.sweep,
                "tasks": job.deal.tasks,
                "done": len(job.deal.done),
                "tokens": min(job.deal.tokens, COUNTED_MAX),
                "documents": min(job.deal.documents, COUNTED_MAX),
                "made_by": {p.hex(): n for p, n in sorted(job.deal.made_by.items()) if n},
                "makers": [peer.hex() for peer in self._makers(job)],
                "troubles": {p.hex(): why for p, why in self._troubles(job).items()},
            }
            for job_hash, job in self._jobs.items()
            if name in ("", job.name) and self._is_newest(job)
        ]

    def done_of(self, name: str) -> list[bytes]:
        """Pages of bits of a job's tasks."""
        return [
            job.deal.bitmap(low)
            for job in self._jobs.values()
            if job.name == name and self._is_newest(job)
            for low in range(0, job.deal.tasks, PAGE_TASKS)
        ]

    def _is_newest(self, job: _Job) -> bool:
        """There is none of its name yet that follows it."""
        return not job.is_over or all(o.is_over for o in self._jobs.values() if o.name == job.name)

    def _troubles(self, job: _Job) -> dict[PeerId, str]:
        others = {peer: why for peer, (_, why) in sorted(job.others.items()) if why}
        return {self._me: job.trouble, **others} if job.trouble else others

    def check(self) -> None:
        """Raises: AssertionError when an invariant is broken."""
        for job in self._jobs.values():
            job.deal.check()
            assert job.finishing.stage == OPEN or job.deal.is_complete, "an open job is being named"
