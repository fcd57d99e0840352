"""One text in the making: its token ids, the text they make, and its end.

Text is given out when it is sure not to change: a character may take several tokens, and the beginning of a stop
string may turn out to be one. The stop string itself is never given out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy.typing as npt

from peerlm.data.tokenizer import REPLACEMENT

UNFINISHED = REPLACEMENT
"""What a tokenizer makes of the first bytes of a character."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave nothing out. `logprobs`: how many of the
    likeliest are told beside each token's own; None: nothing is."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Pick:
    """A token that was drawn. `top`: likeliest tokens with their logprobs, in nats. `at`: the character of its text that it
    begins at, or ends what was begun there."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    at: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step has added to a session: text, and the tokens that begin in it. `finish`: `stop`, `length`, or nothing
    while it goes on."""

    text: str
    picks: tuple[Pick, ...]
    finish: str | None


class Decoder(Protocol):
    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""

    def decode(self, ids: npt.ArrayLike) -> str: ...


@dataclass(slots=True)
class Text:
    """Text of ids, piece by piece. Two windows are decoded and compared, since what a token looks like may
    depend on the one before it; their ends move on wherever a whole character ends."""

    decoder: Decoder
    ids: list[int] = field(default_factory=list)
    _from: int = 0
    _shown: int = 0

    def add(self, token: int) -> str:
        self.ids.append(token)
        return self._rest(final=False)

    def end(self) -> str:
        return self._rest(final=True)

    def _rest(self, *, final: bool) -> str:
        whole = self.decoder.decode(self.ids[self._from :])
        if whole.endswith(UNFINISHED) and not final:
            return ""
        before = self.decoder.decode(self.ids[self._from : self._shown])
        self._from, self._shown = self._shown, len(self.ids)
        return whole[len(before) :]


class Writing:
    """A session's answer: at most `tokens_max` tokens, ended by any of `stops`, and by a token that ends a text, which is
    not shown; `past_end`, it is like any other."""

    def __init__(
        self,
        decoder: Decoder,
        tokens_max: int,
        stops: Sequence[str] = (),
        *,
        past_end: bool = False,
    ) -> None:
        self._ends = frozenset() if past_end else decoder.ends
        self._text = Text(decoder)
        self._tokens_max = tokens_max
        self._stops = tuple(stops)
        self._given, self._held = 0, ""
        self._picks: list[Pick] = []

    @property
    def tokens(self) -> int:
        return len(self._text.ids)

    def add(self, pick: Pick) -> Piece:
        is_end = pick.token in self._ends
        if not is_end:
            self._picks.append(replace(pick, at=self._given + len(self._held)))
            self._held += self._text.add(pick.token)
        is_last = is_end or self.tokens >= self._tokens_max
        if is_last:
            self._held += self._text.end()
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            return self._give(min(ends), "stop")
        if is_last:
            return self._give(len(self._held), "stop" if is_end else "length")
        return self._give(len(self._held) - self._doubtful(), None)

    def _doubtful(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        lengths = (
            n
            for stop in self._stops
            for n in range(min(len(stop) - 1, len(self._held)), 0, -1)
            if stop.startswith(self._held[-n:])
        )
        return max(lengths, default=0)

    def _give(self, length: int, finish: str | None) -> Piece:
        text, self._held = self._held[:length], self._held[length:]
        self._given += length
        count = sum(pick.at < self._given for pick in self._picks)
        if finish and not self._held:  # nothing is cut off
            count = len(self._picks)
        picks, self._picks = tuple(self._picks[:count]), self._picks[count:]
        return Piece(text, picks, finish)
