"""What a member says when somebody knocks who shows a certificate of its run: for who wants to enter, and for who only
wants to know."""

from __future__ import annotations

import asyncio

import uvloop

from peerlm.daemon.introduction import Introduction
from peerlm.errors import Unreachable
from peerlm.events import Event, IntroductionAnswered, IntroductionFailed
from peerlm.identity.chain import Chain
from peerlm.types import RunId
from peerlm.wire.message import Hello, Refusal, Welcome
from peerlm.wire.versions import PROTOCOL_VERSION

ANSWER_S = 15.0


def knock(address: str, run_id: RunId, chain: Chain) -> tuple[str, Welcome | Refusal]:
    """(address of the host that answered, what it said). Raises `Unreachable`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_knock(address, Hello(PROTOCOL_VERSION, run_id, chain)))


async def _knock(address: str, hello: Hello) -> tuple[str, Welcome | Refusal]:
    events: asyncio.Queue[Event] = asyncio.Queue()
    introduction = await Introduction.listen(events.put_nowait, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(ANSWER_S):
            return await answer_to(hello, address, introduction, events)
    except TimeoutError:
        detail = f"{address}: connect: no answer within {ANSWER_S:.0f} s"
        raise Unreachable("connect", detail) from None
    finally:
        await introduction.close()


async def answer_to(
    hello: Hello, address: str, introduction: Introduction, events: asyncio.Queue[Event]
) -> tuple[str, Welcome | Refusal]:
    """Dial and wait. `events`: what `introduction` reports. Raises `Unreachable` with address and step."""
    introduction.dial(address, hello)
    while True:
        match await events.get():
            case IntroductionFailed(step=step, detail=detail):
                raise Unreachable(step, f"{address}: {step}: {detail}")
            case IntroductionAnswered(host=host, answer=answer):
                return host, answer
