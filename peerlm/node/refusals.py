"""Names of the store that were not believed: how many and why, and of the last whose it claims to be and what does not hold.

What was refused did no harm, and whoever told it need not have made it up. So it is counted for good, said in the log once
a minute at most, and to people for an hour: somebody may be trying something, or a name of who was revoked is to be
published again. Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from peerlm.effects import Effect, Log
from peerlm.types import Instant, PeerId, after, printable, short

COMPLAIN_S = 60.0
"""That names are refused is logged no more often."""

TOLD_S = 3600.0
"""So long after the last one people are told."""

WHY_MAX = 200
"""Characters."""

MALFORMED, REVOKED = "malformed", "revoked"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Of one record. Without a name and a writer where it is not even to be read."""

    code: str
    """Of `AuthError`, or `MALFORMED`."""
    why: str
    """What does not hold, and of whom: words of ours, in which there may be some of a peer's."""
    name: str = ""
    writer: PeerId | None = None
    """Who has written it, by its own word."""

    def line(self, teller: PeerId | None) -> str:
        """Which record, by whom, told by whom, and why not."""
        told = f", told by node {short(teller)}" if teller else ""
        if self.writer is None:
            return f"a record that is none{told}: {self.shown}"
        return f"{self.name}, by its word of node {short(self.writer)}{told}: {self.shown}"

    @property
    def shown(self) -> str:
        """`why`, in one line."""
        return printable(self.why)[:WHY_MAX]

    @property
    def remedy(self) -> str:
        if self.code == REVOKED:
            return f"publish it from another node (the command that made it, with --replace), or peerlm data rm {self.name}"
        return "nothing was taken from it; if it goes on, ask who runs the node that told it, or peerlm revoke that node"


class Refusals:
    """Of one node's life."""

    def __init__(self, now: Instant) -> None:
        self.counts: Counter[str] = Counter()
        """By `Refusal.code`."""
        self._last: tuple[Refusal, PeerId | None, Instant] | None = None
        self._complained, self._complain_at = 0, now

    def total(self) -> int:
        return self.counts.total()

    def add(self, refusal: Refusal, teller: PeerId | None, now: Instant) -> None:
        self.counts[refusal.code] += 1
        self._last = (refusal, teller, now)

    def line(self, now: Instant) -> str:
        """For people; empty: there was none lately."""
        if self._last is None or now - self._last[2] > TOLD_S:
            return ""
        refusal, teller, at = self._last
        count = self.total()
        which = "a name was" if count == 1 else f"{count} names were"
        ago = f"{(now - at) / 60:.0f} min ago"
        return f"{which} not believed, the last {ago}: {refusal.line(teller)}; {refusal.remedy}"

    def wake(self, now: Instant) -> list[Effect]:
        """Say so now and then. Whose the last is stands for all of them: it is for a person to look further."""
        count = self.total() - self._complained
        if not count or now < self._complain_at or self._last is None:
            return []
        self._complained, self._complain_at = self.total(), after(now, COMPLAIN_S)
        refusal, teller, _ = self._last
        counts = ", ".join(f"{code} ({times})" for code, times in sorted(self.counts.items()))
        fields = (
            ("count", count),
            ("last", refusal.name),
            ("writer", short(refusal.writer) if refusal.writer else ""),
            ("told_by", short(teller) if teller else ""),
            ("why", refusal.shown),
            ("since_start", counts),
        )
        return [Log("warning", "names_refused", fields)]
