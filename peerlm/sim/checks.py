"""What must hold in every run, whatever happens.

Node-local promises are asserted by the node itself after every event (`Node.check`), those of a
transfer by transfers.py, those of admission by the world. Here is what only somebody sees who looks
at all machines at once: *safety*, which holds at any instant, and *liveness*, which must come true
once nothing is broken any more.
"""

from __future__ import annotations

from peerlm.sim.machine import Machine
from peerlm.sim.world import World

CLOSELY = 64
"""Machines whose whole state is looked at in one look: each holds as much as the swarm is large."""

SPREAD_MAX = 0.1
"""Nodes that train and mix stay this near each other, relative to |φ|."""


class Safety:
    """Looks at all machines from time to time; remembers what may never go back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._own: dict[int, tuple[int, int]] = {}
        self.looks = 0
        self._turn = 0

    def look(self) -> None:
        """At everybody's incarnation, and at all else of `CLOSELY` machines, which are all but in a
        large swarm. Raises `AssertionError` if the swarm breaks a promise."""
        self.looks += 1
        world = self._world
        if world.stage_of:
            world.ring.look()
        for machine in world.up():
            assert machine.node is not None
            self._incarnation(machine.number, machine.node.company.membership.incarnation)
        trained = sum(machine.tokens_trained for machine in world.machines.values())
        for machine in self._in_turn():
            node = machine.node
            assert node is not None
            node.audit()
            self._memory(machine)
            for peer, key in machine.admitted.items():
                world.check_admission(machine, peer, key)
            counted = node.company.ledger.total()
            assert counted <= trained, (
                f"machine {machine.number} counts {counted} tokens, {trained} were trained"
            )
            for peer, member in node.company.membership.members().items():
                owner = world.of(peer).number
                if not world.machines[owner].is_up:
                    continue  # what it minted since the last look died with it
                minted = self._own[owner]
                assert member.incarnation <= minted, (
                    f"machine {machine.number} holds incarnation {member.incarnation} of machine "
                    f"{owner}, which has minted {minted}"
                )

    def _memory(self, machine: Machine) -> None:
        """No node remembers more of others than there are others."""
        node, world = machine.node, self._world
        assert node is not None
        addresses = sum(m.addresses for m in world.machines.values())
        dialled, known = (
            node.company.contacts.attempts,
            len(world.machines) * (1 + len(world.sizes)),
        )
        assert dialled <= addresses, (
            f"machine {machine.number} dials {dialled} addresses of {addresses} there ever were"
        )
        scores = len(node.work.exchanges.outcomes.scores)
        assert scores <= known, (
            f"machine {machine.number} keeps {scores} scores of {known} possible"
        )

    def _in_turn(self) -> list[Machine]:
        """The next ones."""
        up = self._world.up()
        begin = self._turn if self._turn < len(up) else 0
        self._turn = begin + CLOSELY
        return up[begin : begin + CLOSELY]

    def _incarnation(self, number: int, now: tuple[int, int]) -> None:
        """The latest a machine has minted; a disk that lied may take it back until it is where it
        was."""
        before, machine = self._own.get(number, now), self._world.machines[number]
        if now >= before:
            machine.disk_lied = False
        assert now >= before or machine.disk_lied, (
            f"machine {number} fell from incarnation {before} to {now}"
        )
        self._own[number] = max(before, now)


def is_well(world: World) -> bool:
    """One swarm, everyone takes part, and all are near each other."""
    return world.all_mixing() and world.spread() < SPREAD_MAX
