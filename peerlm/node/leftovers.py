"""What lies in this node's part of the store and is not its own to keep, and how long it may stay.

Three kinds. *Surplus* is others' to keep: it stays for `store.keep_s`, in case its owner was away for a moment only, unless
its room is needed. What is *loose* is in nothing that has a name: it was put a moment ago and has its name still to come, so it
stays for an hour at least, or its name was removed, and it may go at once. What is *borrowed* came because a process of
this machine read it, and is not due here: of that a little stays, for who reads it again, or else reading a
corpus once would take the room of all of it.

Pure. Nothing is dropped here: whether others have it is asked first, for all but what is loose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile
from math import inf

from peerlm.types import Instant, ObjectHash

NAMELESS_S = 3600.0
"""For what was put and is in no name, however full the node is."""

BORROWED_BYTES = 256 << 20
"""Of borrowed things; beyond, the oldest go until half of it is left."""


class Leftovers:
    """Args:
    keep_s: `store.keep_s`.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._surplus: dict[ObjectHash, Instant] = {}
        self._loose: dict[ObjectHash, Instant] = {}
        """Since when."""
        self._put: set[ObjectHash] = set()
        """Put while a removal was under way: of one to come, although it may be of the one that is going."""
        self._borrowed: dict[ObjectHash, int] = {}
        """Bytes of each, the oldest first."""
        self._borrowed_bytes = 0

    def nameless(self, hashes: Iterable[ObjectHash], *, is_all: bool = False) -> None:
        """Their name was removed. It is told of part by part; `is_all`: nothing is left to tell."""
        gone = (object_hash for object_hash in hashes if object_hash not in self._put)
        self._loose |= dict.fromkeys(gone, Instant(-inf))
        if is_all:
            self._put.clear()

    def put(self, object_hash: ObjectHash, *, is_amid_removal: bool) -> None:
        """A process of this machine has put it: it waits for a name, whichever it had before."""
        self.gone(object_hash)
        if is_amid_removal:
            self._put.add(object_hash)

    def borrow(self, object_hash: ObjectHash, size: int) -> None:
        """It was read here, and is not due."""
        if object_hash not in self._borrowed:
            self._borrowed[object_hash] = size
            self._borrowed_bytes += size

    def gone(self, object_hash: ObjectHash) -> None:
        """It is not here any more."""
        self._surplus.pop(object_hash, None)
        self._loose.pop(object_hash, None)
        self._borrowed_bytes -= self._borrowed.pop(object_hash, 0)

    def settle(self, is_due: Callable[[ObjectHash], bool]) -> None:
        """What has become due is borrowed no more."""
        for wanted in [wanted for wanted in self._borrowed if is_due(wanted)]:
            self._borrowed_bytes -= self._borrowed.pop(wanted)

    def is_borrowed(self, object_hash: ObjectHash) -> bool:
        return object_hash in self._borrowed

    @property
    def is_crowded(self) -> bool:
        """More is borrowed than should stay."""
        return self._borrowed_bytes > BORROWED_BYTES

    def surplus_to_go(
        self, surplus: Iterable[ObjectHash], now: Instant, *, is_full: bool
    ) -> list[ObjectHash]:
        """Of what is others' to keep, and of what is borrowed, what need not stay."""
        self._surplus = {wanted: self._surplus.get(wanted, now) for wanted in surplus}
        keep_s = 0.0 if is_full else self._keep_s
        old = [wanted for wanted, since in self._surplus.items() if now - since >= keep_s]
        return list(dict.fromkeys([*self._crowding(), *old]))

    def loose_to_go(self, loose: Iterable[ObjectHash], now: Instant) -> list[ObjectHash]:
        """Of what is in nothing that has a name, what need not stay."""
        self._loose = {wanted: self._loose.get(wanted, now) for wanted in loose}
        keep_s = max(NAMELESS_S, self._keep_s)
        return [wanted for wanted, since in self._loose.items() if now - since >= keep_s]

    def _crowding(self) -> list[ObjectHash]:
        if not self.is_crowded:
            return []
        over = self._borrowed_bytes - BORROWED_BYTES // 2
        passed = 0

        def is_over(item: tuple[ObjectHash, int]) -> bool:
            nonlocal passed
            passed += item[1]
            return passed - item[1] < over

        return [wanted for wanted, _ in takewhile(is_over, self._borrowed.items())]
