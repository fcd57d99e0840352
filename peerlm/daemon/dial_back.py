"""To find out whether a peer can be dialled: at its introduction port it must say who it is, the two others must be
open. Nothing is kept of it."""

from __future__ import annotations

import asyncio

from peerlm.daemon.introduction import say_hello
from peerlm.daemon.resolve import reach
from peerlm.effects import TryDial
from peerlm.errors import Unreachable
from peerlm.events import DialTried
from peerlm.membership.address_book import address_of
from peerlm.wire.message import Hello


async def try_dial(effect: TryDial, hello: Hello) -> DialTried:
    """In 11 s at most."""
    try:
        ip, answer = await say_hello(address_of(effect.host, effect.intro_port), hello)
        await asyncio.gather(reach((ip,), effect.control_port), reach((ip,), effect.bulk_port))
    except Unreachable as error:
        return DialTried(effect.peer, str(error))
    return DialTried(effect.peer, answer=answer)
