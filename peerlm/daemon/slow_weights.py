"""All slow weights of this node, with a turn for each fragment.

The worker's boundaries, exchanges with peers and snapshots all want the same fragments at the same
time. A fragment takes one call at a time, in the order in which they were asked for, on the compute
pool, so the loop never waits for arithmetic. Different fragments run side by side.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import TypeVar

from peerlm.mix.fragment import SlowFragment
from peerlm.types import FragmentId

R = TypeVar("R")


class SlowWeights:
    """`fragments` are those that this node holds, in the plan's order; `compute` runs what is asked of them."""

    def __init__(self, fragments: Mapping[FragmentId, SlowFragment], compute: Executor) -> None:
        self._fragments, self._compute = dict(fragments), compute
        self._turns = {fragment: asyncio.Lock() for fragment in fragments}
        self._locks = {fragment: threading.Lock() for fragment in fragments}

    def __len__(self) -> int:
        return len(self._fragments)

    def __iter__(self) -> Iterator[FragmentId]:
        return iter(self._fragments)

    async def on(self, fragment: FragmentId, call: Callable[[SlowFragment], R]) -> R:
        """The result of `call(fragment)`, made on the pool when everything asked before is done.

        Nothing else touches the fragment meanwhile. If the caller is cancelled, a call that has begun
        still runs to its end.
        """
        async with self._turns[fragment]:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._compute, self._alone, fragment, call)

    def now(self, fragment: FragmentId, call: Callable[[SlowFragment], R]) -> R:
        """The same for a caller that is on a thread of its own, and may wait."""
        return self._alone(fragment, call)

    def size(self, fragment: FragmentId) -> int:
        """Elements of the fragment."""
        return self._fragments[fragment].size

    def fragment(self, fragment: FragmentId) -> SlowFragment:
        """The fragment itself, for reading its φ out of turn (mix/flow.py says why that is sound)."""
        return self._fragments[fragment]

    def before_work(self, fragment: FragmentId) -> SlowFragment:
        """The fragment itself, to be filled while nothing else can know of it: before this node
        is active and before its first worker."""
        return self._fragments[fragment]

    def _alone(self, fragment: FragmentId, call: Callable[[SlowFragment], R]) -> R:
        """The lock matters only after a cancelled caller has given its turn away too early."""
        with self._locks[fragment]:
            return call(self._fragments[fragment])
