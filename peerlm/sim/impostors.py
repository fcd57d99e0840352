"""Who introduces itself and may not: chains that look right and on which no gate may open.

    other_root   of this run's id, but signed by another root's key
    expired      of this run's root, as old as the run, and over since a day
    stolen       a member's own chain with the last signature by somebody else

An impostor is no machine. It knocks, shows what it has, and whatever it is answered goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from peerlm.events import HelloCame
from peerlm.identity.chain import Chain
from peerlm.identity.invite import Inviter, enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import create_run
from peerlm.types import Role, WallTime
from peerlm.wire.message import Hello
from peerlm.wire.versions import PROTOCOL_VERSION

if TYPE_CHECKING:
    from peerlm.sim.world import World

KINDS = ("other_root", "expired", "stolen")
DAY = 86_400.0
HOST = "nowhere"


def knock(world: World, number: int, kind: str, entropy: Callable[[int], bytes]) -> None:
    """An impostor introduces itself to this machine."""
    hello = Hello(PROTOCOL_VERSION, world.root.run_id, chain_of(world, kind, entropy))
    route = f"{number} -1 {HOST}".encode()  # of no life there ever was
    world.machines[number].post(HelloCame(route, hello, HOST))


def chain_of(world: World, kind: str, entropy: Callable[[int], bytes]) -> Chain:
    """One that no gate of this world may admit."""
    keys, root = NodeKeys.generate(entropy), world.root
    match kind:
        case "other_root":
            other = create_run("toy", entropy)
            liar = Inviter(root.run_id, other.public_key, (), other.key)
            return _enrolled(liar, keys, world.wall, world.wall + DAY, entropy)
        case "expired":
            return _enrolled(
                root_inviter(root), keys, world.wall - 9 * DAY, world.wall - DAY, entropy
            )
        case "stolen":
            members = [m.disk.chain for m in world.machines.values()]
            soon = world.wall + 1.0  # newer than the member's own, so that it would count
            mine = _enrolled(root_inviter(root), keys, soon, soon + DAY, entropy)
            return (*members[-1][:-1], mine[-1])
    raise AssertionError(f"no such impostor: {kind}")


def _enrolled(
    inviter: Inviter, keys: NodeKeys, wall: float, until: float, entropy: Callable[[int], bytes]
) -> Chain:
    token = make_invite(inviter, [Role.TRAIN], WallTime(until), WallTime(until), (), entropy)
    return enrol(token.inviter, keys, WallTime(wall))
