"""Who keeps what: every live node of the store is asked for a list of objects, page by page.

One page at a time is under way with each node; who does not answer in time is left out. Nothing of the answers is
remembered beyond the survey: what a node keeps changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import inf

from peerlm.effects import Effect, Send
from peerlm.types import Instant, ObjectHash, PeerId, after
from peerlm.wire.message import HaveAsk, HaveGive

PAGE = 1024
ANSWER_S = 5.0

SURVEYS = 3
"""So often in a row something is found nowhere before who does not answer counts as one that has nothing."""


Claimed = Callable[[PeerId, Sequence[ObjectHash]], None]
"""Who says that it keeps which objects."""


class Survey:
    """`counts` is right once `is_done`: nodes that keep each object, those left out aside.

    Args:
        number: the page with index i is asked for as `number` + i; no other survey of this node uses these.
        here: objects that this node keeps itself, and counts.
        is_due: count only what is a node's own to keep. Two nodes that both keep what is a third's would else each
            drop it because the other has it.
    """

    def __init__(
        self,
        number: int,
        hashes: Sequence[ObjectHash],
        here: Iterable[ObjectHash],
        peers: Sequence[PeerId],
        *,
        is_due: bool = False,
    ) -> None:
        mine = set(here)
        self.hashes = tuple(hashes)
        self.counts = [int(wanted in mine) for wanted in self.hashes]
        self.here = sum(self.counts)
        self._is_due = is_due
        self.number, self.silent = number, list[PeerId]()
        self.claimed: Claimed = lambda peer, hashes: None
        """Told of each answer."""
        self.kept = Counter[PeerId]()
        """By each of the others, of these."""
        self.keepers: dict[ObjectHash, list[PeerId]] = {}
        """Where only what is a node's own counts: who of the others says so."""
        self._at = dict.fromkeys(peers, 0)
        """The page that each is at."""
        self._until: dict[PeerId, Instant] = {}

    @property
    def pages(self) -> int:
        return -(-len(self.hashes) // PAGE)

    @property
    def is_done(self) -> bool:
        return not self._at

    @property
    def least(self) -> int:
        """Replicas of what has the fewest."""
        return min(self.counts, default=0)

    def start(self, now: Instant) -> list[Effect]:
        return [effect for peer in list(self._at) for effect in self._ask(peer, now)]

    def heard(self, peer: PeerId, give: HaveGive, now: Instant) -> list[Effect]:
        page = give.number - self.number
        if self._at.get(peer) != page:
            return []
        claimed = []
        for i, wanted in enumerate(self._page(page)):
            byte = give.bits[i // 8] if i // 8 < len(give.bits) else 0
            if byte >> (7 - i % 8) & 1:
                self.counts[page * PAGE + i] += 1
                claimed.append(wanted)
                if self._is_due:
                    self.keepers.setdefault(wanted, []).append(peer)
        self.kept[peer] += len(claimed)
        self.claimed(peer, claimed)
        self._at[peer] = page + 1
        return self._ask(peer, now)

    def is_about(self, hashes: Iterable[ObjectHash]) -> bool:
        """Whether it asks for one of these."""
        return not set(self.hashes).isdisjoint(hashes)

    def gone(self, peer: PeerId) -> None:
        if self._at.pop(peer, None) is not None:
            self._until.pop(peer, None)
            self.silent.append(peer)

    def wake(self, now: Instant) -> None:
        for peer in [peer for peer, until in self._until.items() if until <= now]:
            self.gone(peer)

    def deadline(self) -> Instant | None:
        return min(self._until.values(), default=None)

    def _page(self, page: int) -> tuple[ObjectHash, ...]:
        return self.hashes[page * PAGE : (page + 1) * PAGE]

    def _ask(self, peer: PeerId, now: Instant) -> list[Effect]:
        page = self._at[peer]
        if page >= self.pages:
            del self._at[peer]
            self._until.pop(peer, None)
            return []
        self._until[peer] = after(now, ANSWER_S)
        return [Send(peer, HaveAsk(self.number + page, self._page(page), self._is_due))]


class Surveys:
    """Those of one node that are under way."""

    def __init__(self) -> None:
        self._open: list[Survey] = []
        self.claimed: Claimed = lambda peer, hashes: None
        self._next_number = 0

    def begin(
        self,
        hashes: Sequence[ObjectHash],
        here: Iterable[ObjectHash],
        peers: Sequence[PeerId],
        now: Instant,
        *,
        is_due: bool = False,
    ) -> tuple[Survey, list[Effect]]:
        """As `Survey`."""
        survey = Survey(self._next_number, hashes, here, peers, is_due=is_due)
        survey.claimed = self.claimed
        self._next_number += max(1, survey.pages)
        self._open.append(survey)
        return survey, survey.start(now)

    @property
    def are_open(self) -> bool:
        return bool(self._open)

    def heard(self, peer: PeerId, give: HaveGive, now: Instant) -> list[Effect]:
        return [effect for survey in self._open for effect in survey.heard(peer, give, now)]

    def gone(self, peer: PeerId) -> None:
        for survey in self._open:
            survey.gone(peer)

    def wake(self, now: Instant) -> None:
        for survey in self._open:
            survey.wake(now)

    def give_up(self, survey: Survey) -> None:
        self._open = [one for one in self._open if one is not survey]

    def take_done(self) -> list[Survey]:
        done = [survey for survey in self._open if survey.is_done]
        self._open = [survey for survey in self._open if not survey.is_done]
        return done

    def deadline(self) -> Instant:
        due = (survey.deadline() for survey in self._open)
        return min((at for at in due if at is not None), default=Instant(inf))


def bits_of(hashes: Sequence[bytes], kept: Iterable[bytes]) -> bytes:
    """The answer to `HaveAsk`."""
    mine = set(kept)
    out = bytearray(-(-len(hashes) // 8))
    for i, wanted in enumerate(hashes):
        if wanted in mine:
            out[i // 8] |= 128 >> i % 8
    return bytes(out)
