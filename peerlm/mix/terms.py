"""On what terms a fragment is exchanged: which codecs, how much a difference weighs, how long it may take.

Both ends work out their own part of this from the same plan, and a request says what the responder cannot know; so what a
request may ask for is a question of terms too. Terms are those of the moment: an exchange that has begun keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from peerlm.config import Plan
from peerlm.mix import algorithms
from peerlm.mix.chunks import stream_bytes
from peerlm.mix.codec import CODECS, WEIGHT_CODECS, choose_codecs
from peerlm.mix.exchange_records import Standing
from peerlm.mix.outcomes import Outcomes
from peerlm.mix.rounds import exchanges_after
from peerlm.types import FragmentId
from peerlm.wire.message import ExchangeRequest

PROGRESS_TIMEOUT_S = 5.0
"""Longest time a transfer may go without a byte."""

FLOOR_BYTES_S = 50_000.0
"""Slowest link an exchange is still finished on: bytes ÷ this is its time in all."""


class Terms:
    """Of one node. `sizes`: elements of each fragment that it holds."""

    def __init__(
        self,
        plan: Plan,
        sizes: Mapping[FragmentId, int],
        standing: Standing,
        outcomes: Outcomes,
    ) -> None:
        self._sizes = dict(sizes)
        self._standing, self._outcomes = standing, outcomes
        self.use_plan(plan)

    def use_plan(self, plan: Plan) -> None:
        """A newer revision of the plan holds from now on."""
        self._mix = plan.mix
        self._algorithm = algorithms.get(plan.mix.algorithm)

    @property
    def mixes(self) -> bool:
        """Whether the plan's algorithm exchanges at all."""
        return self._algorithm.mixes

    def exchanges(self, fragment: FragmentId, partners: int) -> int:
        """How many to start after an outer step that `fragment` has just taken."""
        state = self._outcomes.fragments[fragment]
        waits = self._algorithm.through_momentum
        return exchanges_after(self._mix, state.version, state.distance, partners, waits=waits)

    def codecs(self, fragment: FragmentId) -> tuple[str, str]:
        """Of request and reply, for an exchange of our own."""
        mix, state = self._mix, self._outcomes.fragments[fragment]
        if self._standing.settling and state.last:  # mixed once already: what is left is rounding
            return "fp32", "fp32"
        distance = state.distance
        if distance is None:
            return mix.codec_request, mix.codec_reply
        return choose_codecs(mix.codec_request, mix.codec_reply, distance)

    def request_bytes(self, fragment: FragmentId, codec: str) -> int:
        return stream_bytes(codec, self._sizes[fragment])

    def objection(self, request: ExchangeRequest) -> str:
        """Why a request can never be accepted, whoever asks and when; empty if it can."""
        if request.plan_hash != self._standing.plan_hash:
            return "plan"
        if request.fragment not in self._sizes:
            return "no such fragment"
        if request.codec_request not in WEIGHT_CODECS or request.codec_reply not in CODECS:
            return "codec"
        fragment = FragmentId(request.fragment)
        if request.request_bytes != self.request_bytes(fragment, request.codec_request):
            return "size"
        return "" if self.mixes else "the plan mixes nothing"

    def weight(self, ramp: float) -> float:
        """What the partner's difference weighs here. `ramp`: share of the usual that it is to be given."""
        if self._standing.settling:
            return self._mix.weight * ramp
        return self._algorithm.coefficient(self._mix, ramp)

    @property
    def through_momentum(self) -> bool:
        """Not while settling: no outer step comes any more that would move φ."""
        return self._algorithm.through_momentum and not self._standing.settling

    def timeout_s(self, fragment: FragmentId, codecs: tuple[str, str]) -> float:
        """For all its bytes."""
        moved = sum(self.request_bytes(fragment, codec) for codec in codecs)
        return PROGRESS_TIMEOUT_S + moved / FLOOR_BYTES_S
