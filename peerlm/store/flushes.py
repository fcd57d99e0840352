"""Flushes of one directory, as few as do.

A flush makes durable all names that came before it began. So whoever has given a name while one was under way needs the
next, and one next is enough for all of them: the more there is to do, the fewer flushes it takes for each (a group
commit, as databases do it for their logs; DeWitt et al., 1984).
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition


class Flushes:
    """Args:
    flush: makes durable what is there when it is called; it may raise.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._turn = Condition()
        self._begun = self._done = 0
        """Flushes; done are those that succeeded and all that began before them."""
        self._is_under_way = False

    def flush(self) -> None:
        """On return all that was there when this was called is durable. From any thread. Raises what `flush` raises."""
        with self._turn:
            wanted = self._begun + 1
            while self._done < wanted:
                if self._is_under_way:
                    self._turn.wait()
                    continue
                self._begun += 1
                number, self._is_under_way = self._begun, True
                self._turn.release()
                is_good = False
                try:
                    self._flush()
                    is_good = True
                finally:
                    self._turn.acquire()
                    self._is_under_way = False
                    if is_good:
                        self._done = number
                    self._turn.notify_all()
