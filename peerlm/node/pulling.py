"""From a fetch's wishes to transfers: a donor is asked for an object with two new keys, says how large it is, and is dialled.

What is wanted, of whom, and which sizes are believed is up to those who pull (`node.acquire`, `node.pulls`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from peerlm.effects import CancelTransfer, Effect, RunPull, Send
from peerlm.store.fetch import CancelPull, Fault, Fetch, PullEffect, StartPull
from peerlm.types import Instant, ObjectHash, PeerId, TransferId
from peerlm.wire.message import PullAnswer, PullRequest

PROGRESS_TIMEOUT_S = 5.0

FAULTS = {
    "lost": Fault.LOST,
    "corrupt": Fault.CORRUPT,
    "failed": Fault.OURS,
    "cancelled": Fault.LOST,
}
"""By the outcome of a transfer."""

Endpoint = Callable[[PeerId], tuple[str, int] | None]
"""Where a peer's bulk port can be dialled, or None."""


@dataclass(slots=True)
class Pull:
    """One object from one donor, asked for or under way."""

    fetch: Fetch
    start: StartPull
    keys: tuple[bytes, bytes]
    size: int | None = None
    """Bytes, as the donor says; None: it has not answered."""

    @property
    def object_hash(self) -> ObjectHash:
        return ObjectHash(self.start.object_hash)


class Pulling:
    """Pulls of one part of a node, of any number of fetches."""

    def __init__(self, endpoint: Endpoint, rng: random.Random, *, of_chunks: bool) -> None:
        self._endpoint, self._rng, self._of_chunks = endpoint, rng, of_chunks
        self._pulls: dict[TransferId, Pull] = {}

    def __contains__(self, transfer: TransferId) -> bool:
        return transfer in self._pulls

    def carry(self, fetch: Fetch, wishes: Iterable[PullEffect]) -> list[Effect]:
        """The fetch's wishes as effects of the node."""
        effects: list[Effect] = []
        for wish in wishes:
            match wish:
                case StartPull():
                    keys = (self._rng.randbytes(32), self._rng.randbytes(32))
                    self._pulls[wish.transfer] = Pull(fetch, wish, keys)
                    request = PullRequest(wish.transfer, wish.object_hash, *keys)
                    effects.append(Send(wish.peer, request))
                case CancelPull():
                    self._pulls.pop(wish.transfer, None)
                    effects.append(CancelTransfer(wish.transfer))
        return effects

    def of(self, transfer: TransferId) -> Pull | None:
        return self._pulls.get(transfer)

    def over(self, pull: Pull) -> None:
        del self._pulls[pull.start.transfer]

    def asked(self, peer: PeerId, answer: PullAnswer) -> Pull | None:
        """What this answers; None: nothing that was asked of that peer and is open."""
        pull = self._pulls.get(TransferId(answer.transfer))
        is_open = pull is not None and pull.start.peer == peer and pull.size is None
        return pull if is_open else None

    def accepted(self, pull: Pull, answer: PullAnswer, now: Instant) -> list[Effect]:
        """Dial the donor; nothing if it does not give the object, or cannot be dialled."""
        endpoint = self._endpoint(pull.start.peer)
        if answer.verdict != "accept" or endpoint is None:
            return []
        pull.size = answer.size
        run = RunPull(
            transfer=pull.start.transfer,
            peer=pull.start.peer,
            host=endpoint[0],
            bulk_port=endpoint[1],
            object_hash=pull.start.object_hash,
            size=answer.size,
            key_up=pull.keys[0],
            key_down=pull.keys[1],
            progress_timeout_s=PROGRESS_TIMEOUT_S,
            is_chunk=self._of_chunks,
        )
        sized = pull.fetch.sized(pull.start.transfer, answer.size, now)
        return [run, *self.carry(pull.fetch, sized)]

    def cancel(self, fetch: Fetch | None) -> list[Effect]:
        """All pulls of a fetch."""
        doomed = [t for t, pull in self._pulls.items() if pull.fetch is fetch]
        for transfer in doomed:
            del self._pulls[transfer]
        return [CancelTransfer(transfer) for transfer in doomed]


def refusal(answer: PullAnswer) -> Fault:
    """What an answer that brings nothing means for the fetch."""
    return Fault.BUSY if answer.verdict == "busy" else Fault.MISSING
