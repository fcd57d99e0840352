"""What decides on the phase of a node's life, as it stands when it is asked.

A decision is taken at each look at the swarm, several times a second, and most of them depend on three
or four of these facts. So none is worked out before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peerlm.types import Instant

if TYPE_CHECKING:
    from peerlm.node.work import Work


class Facts:
    """Of one node's work at one moment."""

    __slots__ = ("_now", "_work")

    def __init__(self, work: Work, now: Instant) -> None:
        self._work, self._now = work, now

    # --------------------------------------------------------------------------------- the swarm

    @property
    def waited_s(self) -> float:
        """Time since the daemon started."""
        return self._now - self._work.started

    @property
    def addresses_known(self) -> bool:
        """Somebody could be out there: seeds or an address book."""
        return self._work.seen.addresses_known

    @property
    def donors(self) -> int:
        """Live members that have weights and can be dialled; none unless together they have what this node holds."""
        return self._work.donors()

    @property
    def keepers(self) -> int:
        """Live members that may have copies of what nobody holds, where this node needs them."""
        return self._work.keepers()

    @property
    def donors_done(self) -> bool:
        """Some of them say the run is done, and have what this node holds."""
        return self._work.donors_done()

    @property
    def tokens_per_round(self) -> float:
        """What the whole swarm trains on in one outer step of everybody."""
        return self._work.steering.tokens_per_round() * (1 + len(self._work.seen.trainers))

    @property
    def swarm_tokens(self) -> int:
        return self._work.seen.swarm_tokens

    @property
    def budget(self) -> int:
        return self._work.plan.run.token_budget

    @property
    def is_aside(self) -> bool:
        """It is to hold no stage."""
        return self._work.settings.host.is_aside

    @property
    def is_placed(self) -> bool:
        """It is known which stages it holds."""
        return not self._work.hosting.is_none

    # ----------------------------------------------------------------------------------- weights

    @property
    def snapshot_tokens(self) -> int | None:
        """Swarm tokens of our own newest snapshot; None: there is none."""
        restored = self._work.restored
        return restored.tokens if restored else None

    @property
    def origin(self) -> bool:
        """It may make the initial weights, now. Those of a stage are the same whoever makes them, so while nothing
        was learnt anybody may who is to hold it."""
        work = self._work
        is_drawn = work.plan.run.initial == "drawn" and not work.seen.swarm_tokens
        may = work.origin or (is_drawn and work.may_draw)
        return may and not work.worker.supervision.is_waiting(self._now)

    @property
    def state_arrived(self) -> bool:
        return self._work.acquisition.state_arrived

    @property
    def installed(self) -> bool:
        return self._work.installed

    @property
    def has_final(self) -> bool:
        """Its weights are the finished ones: fetched from a node that is done, or its own, with which it holds other stages now."""
        return self._work.has_final

    @property
    def is_stray(self) -> bool:
        """Its weights are to be kept to itself (straying.py)."""
        return self._work.straying.since is not None

    @property
    def is_outdone(self) -> bool:
        """It is done, and has seen another finished model that takes the place of its own."""
        return self._work.finals.outdone

    # -------------------------------------------------------------------------------------- work

    @property
    def corpus_ready(self) -> bool:
        """Some of the text at least can be read."""
        return self._work.reading.can_train

    @property
    def may_train(self) -> bool:
        """Role and settings allow it, and it is not paused."""
        return self._work.may_train and not self._work.paused

    @property
    def worker_drained(self) -> bool:
        return self._work.worker.drained

    @property
    def settled(self) -> bool:
        return self._work.settled

    @property
    def settled_everywhere(self) -> bool:
        return self._work.settled and self._work.seen.unsettled == 0

    @property
    def settle_overdue(self) -> bool:
        deadline_s = self._work.plan.mix.settle_deadline_s
        return self._work.settling.is_overdue(deadline_s, self._now)
