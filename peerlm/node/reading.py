"""The text that this node's worker reads: what of the plan's is here, and what the worker is told of that.

A worker need not wait for all of it. Where the plan says how many tokens each shard has, the worker starts as soon as one shard
is here with text to train on, reads what lies in those that are here, and is told of each that comes. Held-out text may come
later: until it is here nothing is evaluated. A node whose plan names other text than its worker reads has it go on with the
old until then. So has one whose plan begins to name text of the node's own, until that has been looked at.

Shards are fetched in an order that each node draws by lot, those that are only held out last. What this node is to read next
would not tell one shard from another: the order of ranges in a pass is drawn from all of the text, so each shard has as many of them.
And joiners that ask for different shards can give them to each other.
"""

from __future__ import annotations

from dataclasses import replace

from peerlm.config import Plan
from peerlm.config.mixture import has_own
from peerlm.data.extents import Extents
from peerlm.effects import Effect, Log, PrepareCorpus, TellShards
from peerlm.events import CorpusMissing, CorpusReady, CorpusUnusable
from peerlm.node.acquire import Acquisition
from peerlm.node.coverage import Coverage
from peerlm.node.snapshots import Snapshots
from peerlm.node.worker import Worker
from peerlm.swarm.hosting import Hosting
from peerlm.types import Instant, ObjectHash


class Reading:
    """Of one node. `state`: unknown, missing, partial, ready or unusable.

    Who holds no ends of the model reads none. It may keep text for others all the same, and is always ready.
    """

    def __init__(
        self,
        plan: Plan,
        hosting: Hosting,
        worker: Worker,
        acquisition: Acquisition,
        snapshots: Snapshots,
        coverage: Coverage,
    ) -> None:
        self._reads = hosting.has_ends
        self._worker, self._acquisition = worker, acquisition
        self._snapshots, self._coverage = snapshots, coverage
        self.state, self._reason = "unknown", ""
        self._is_other = False
        """The plan names other text than the worker reads."""
        self._awaits_own = has_own(plan.data.source)
        """The plan names text of this node's own, which was not looked at yet: that takes the tokenizer."""
        self._others: frozenset[ObjectHash] = frozenset()
        """Of which this is then."""
        self.objects: frozenset[ObjectHash] = frozenset()
        """What a worker needs, the one that runs or the next, and what is kept for others' workers."""
        self._of_plan = self.objects
        self.asked = self._answered = 0
        """The last check of the text that was asked for, and that was answered."""
        self._since: tuple[tuple[ObjectHash, int], ...] = ()
        """What has come since it was asked for."""
        self._reader = 0
        """The generation of workers that was started on the plan's text."""
        self._told: tuple[int, ...] = ()
        """The shards that it takes for absent."""
        self._names: tuple[ObjectHash, ...] = ()
        self._missing: frozenset[ObjectHash] = frozenset()
        self._extents: Extents | None = None
        self.absent: tuple[int, ...] = ()
        """Places of the shards that a worker is to wait for."""
        self.shards = (0, 0)
        """How many are here, of how many that this node reads."""
        self._has_held_out = self._had_held_out = True
        """Of the plan's text; of other text that the worker goes on with."""
        self._may_begin = False
        """There is something to train on, and what else there will be is known."""
        self._follow_plan(plan)

    # -------------------------------------------------------------------------------- what is here

    @property
    def can_train(self) -> bool:
        return self.state in ("ready", "partial")

    @property
    def has_held_out(self) -> bool:
        """What there is of held-out text, in the text that the worker reads, is here."""
        return self._had_held_out if self._is_other else self._has_held_out

    @property
    def line(self) -> str:
        """Why nothing can be read; empty if something can."""
        if self.state == "unknown":
            return "checking the corpus"
        return "" if self.can_train else self._reason

    @property
    def arriving(self) -> str:
        """What is trained on while not all of the plan's text is here, for people; empty once it is."""
        here, total = self.shards
        if here == total or not self.can_train:
            return ""
        if self._is_other:
            return f"training on the text of before: {here} of {total} shards of the new are here"
        if not here:
            return f"waiting for the first shard of {total}"
        if self._worker.lacks_text:
            left = "1 shard" if total - here == 1 else f"{total - here} shards"
            return f"has read what is here; waiting for {left}"
        line = f"training on {here} of {total} shards, the rest is being fetched"
        return line if self.has_held_out else f"{line}; validation waits for its text"

    # ------------------------------------------------------------------------------------- events

    def use_plan(self, old: Plan, new: Plan) -> list[Effect]:
        begins_own = has_own(new.data.source) and not has_own(old.data.source)
        is_other = begins_own or old.data.shards != new.data.shards
        is_changed = old.train != new.train
        self._awaits_own = has_own(new.data.source) and (self._awaits_own or begins_own)
        if is_other and self._reads and not self._is_other:
            self._is_other, self._others = True, self.objects
            self._had_held_out = self._has_held_out
        self._follow_plan(new)
        # The worker reads the plan when it starts; the budget and H it is told as it goes.
        if not self._reads:
            restarted = self._worker.restart() if is_changed else []
            return [*restarted, PrepareCorpus()] if is_other else restarted
        if is_other:
            self._reader = 0
            return [PrepareCorpus()]
        effects: list[Effect] = []
        is_changed |= old.data != new.data  # other weights of the same corpora, say
        if is_changed and not self._is_other:  # else a new worker comes anyway
            effects += self._worker.restart()
        if self._may_begin and self.state == "missing" and not self._awaits_own:
            effects += self._begin()
        if is_changed and (self.state == "unusable" or self._is_checking):
            effects.append(PrepareCorpus())
        return effects

    def number(self, check: PrepareCorpus) -> PrepareCorpus:
        """It is about to be asked for: what earlier ones find is void."""
        self.asked, self._since = self.asked + 1, ()
        return replace(check, number=self.asked)

    def check_again(self) -> list[Effect]:
        """The worker died, maybe because a shard is not here any more, which a look at the files tells. (Text of its own is
        nobody's to drop.) That one has rotted tells only reading all: for the second death in a row, the fourth, the eighth."""
        is_of_use = self._reads and self._names and not self._is_checking
        deaths = self._worker.supervision.failures
        is_suspect = deaths > 1 and not deaths & (deaths - 1)
        return [PrepareCorpus(anew=is_suspect)] if is_of_use else []

    def ready(self, event: CorpusReady) -> list[Effect]:
        """All of it is here."""
        if not self._is_answer(event):
            return []
        self._snapshots.corpus = event.objects
        self._awaits_own = False
        self._lack(frozenset())
        effects = self._leave_other()
        self.state = "ready"
        return [*effects, *self._tell()]

    def missing(self, event: CorpusMissing, now: Instant) -> list[Effect]:
        """Fetch it, and begin with what is here if that will do."""
        if not self._is_answer(event):
            return []
        came = dict((*self._since, *self._acquisition.take_corpus()))
        lacking = tuple(name for name in event.missing if name not in came)
        if not lacking:
            return [PrepareCorpus()]
        late = tuple((name, came[name]) for name in event.missing if name in came)
        self._snapshots.corpus = (*event.here, *late)
        self._awaits_own &= not self._tokenizer.isdisjoint(event.missing)
        self._lack(frozenset(lacking))
        effects = self._acquisition.want_corpus(lacking, self._only_held_out(), now)
        self._reason = f"fetching {len(lacking)} corpus objects"
        if not self._reads:
            self.state = "ready"
        elif self._may_begin and not self._awaits_own:
            effects += self._begin()
        elif self._is_other and self.can_train:
            effects.append(Log("info", "fetching_other_text", (("objects", len(lacking)),)))
        else:
            self.state = "missing"
        return effects

    def unusable(self, event: CorpusUnusable) -> list[Effect]:
        """A person must act."""
        if not self._is_answer(event):
            return []
        self.state, self._reason = "unusable" if self._reads else "ready", event.reason
        return [Log("error", "corpus_unusable", (("why", event.reason),))]

    def look(self) -> list[Effect]:
        """Take what has been fetched since the last look."""
        effects, is_asking = list[Effect](), False
        if came := self._acquisition.take_corpus():
            self._snapshots.corpus += came
            self._since += came
            self._lack(self._missing - {name for name, _ in came})
            if self._may_begin and self._awaits_own:
                is_asking = not self._is_checking and self._tokenizer.isdisjoint(self._missing)
            elif self._may_begin and self.state != "unusable":
                effects += self._begin()
        if self._acquisition.corpus_arrived or is_asking:
            self._acquisition.corpus_arrived = False
            effects.append(PrepareCorpus())
        return effects

    def start_worker(self, now: Instant, *, fresh: bool) -> list[Effect]:
        """On the plan's text, or what of it is here."""
        passes, absent = self._coverage.for_start(), self.absent
        effects = self._worker.start(passes, absent, now, fresh=fresh)
        self._reader, self._told = self._worker.supervision.generation, absent
        if self._extents is not None and not self._awaits_own:
            self._forget_other()
        return effects

    # ------------------------------------------------------------------------------------ private

    @property
    def _is_checking(self) -> bool:
        return self._answered != self.asked

    def _is_answer(self, event: CorpusReady | CorpusMissing | CorpusUnusable) -> bool:
        """To the last question: what an earlier check has found may be of another plan's text."""
        if event.number != self.asked:
            return False
        self._answered = event.number
        return True

    def _follow_plan(self, plan: Plan) -> None:
        data, names = plan.data, tuple(ObjectHash(bytes.fromhex(n)) for n in plan.data.shards)
        self._extents = None
        if data.shard_tokens:
            self._extents = Extents(data.shard_tokens, data.val_fraction, data.parts)
        missing = self._missing if names == self._names else frozenset(names)
        self._names = names
        tokenizer = () if data.tokenizer == "bytes" else (bytes.fromhex(data.tokenizer),)
        self._tokenizer = frozenset(map(ObjectHash, tokenizer))
        self._of_plan = self._tokenizer.union(names)
        self.objects = self._of_plan | self._others
        self._lack(missing)

    def _lack(self, missing: frozenset[ObjectHash]) -> None:
        """These are not here, and all others are."""
        self._missing = missing
        if not self._reads:
            return
        total, extents = len(self._names), self._extents
        absent = tuple(place for place, name in enumerate(self._names) if name in missing)
        self.shards = (total - len(absent), total)
        self.absent, self._has_held_out, self._may_begin = (), True, False
        if extents is not None:
            gone = frozenset(absent)
            self.absent = absent
            self._has_held_out = not any(map(extents.validates, absent))
            self._may_begin = any(extents.trains(n) for n in range(total) if n not in gone)

    def _begin(self) -> list[Effect]:
        """Some of it can be read: by a new worker if the present one reads other text."""
        effects = self._leave_other()
        if self.state != "partial":
            self.state = "partial"
            here, total = self.shards
            effects.append(Log("info", "reading_shards", (("here", here), ("of", total))))
        return [*effects, *self._tell()]

    def _leave_other(self) -> list[Effect]:
        was_other = self._is_other
        self._forget_other()
        return self._worker.restart() if was_other else []

    def _forget_other(self) -> None:
        self._is_other, self._others = False, frozenset()
        self.objects = self._of_plan

    def _tell(self) -> list[Effect]:
        absent, supervision = self.absent, self._worker.supervision
        is_there = supervision.state in ("starting", "running")
        if not is_there or self._reader != supervision.generation or absent == self._told:
            return []
        self._told = absent
        return [TellShards(supervision.generation, absent)]

    def _only_held_out(self) -> tuple[ObjectHash, ...]:
        extents = self._extents
        if extents is None:
            return ()
        return tuple(n for place, n in enumerate(self._names) if not extents.trains(place))
