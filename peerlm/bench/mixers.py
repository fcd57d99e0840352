"""Swarms without workers: members that hold prepared weights and mix on command.

Each node starts from a snapshot of its own that is written before its daemon runs: a common vector
plus noise of its own, about as far from the others as nodes that have trained apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peerlm.bench.child import ask_all
from peerlm.bench.founding import LOCAL, Loopback, Place, Values, enrol, found, invitation
from peerlm.bench.member import Member
from peerlm.bench.weights import prepare
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.plan import current_plan
from peerlm.cli.state import read_run
from peerlm.daemon.control import ask
from peerlm.mix.sketch import sketch
from peerlm.model.plan import FragmentSpec, fragments
from peerlm.store import snapshot
from peerlm.store.layout import Layout, StateDirectory
from peerlm.types import WallTime

Weights = list[NDArray[np.float32]]

SNAPSHOT_S = 120.0


@contextmanager
def mixers(
    folder: Path,
    size: int,
    plan: Values,
    rng_seed: int,
    local: Values | None = None,
    place: Place | None = None,
) -> Iterator[list[Member]]:
    """`size` members that all see each other, with different weights.

    Args:
        plan: changes to the plan of `tiny`.
        local: changes to what nodes of figures have in their node.toml.
        place: where the nodes are.
    """
    place = Loopback() if place is None else place
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**LOCAL, "train.enabled": "false", **(local or {})}
    first, *others = [DemoNode(number, folder) for number in range(1, size + 1)]
    members: list[Member] = []
    try:
        found(first, plan, {**settings, **place.local(first.number)})
        specs = fragments(current_plan(first.layout).plan)
        give_weights(first.layout, specs, rng_seed, first.number)
        members.append(Member(first, place=place))
        members[0].ask("wait", 0)
        address, token = invitation(first)
        for node in others:
            with place.at(node.number):
                enrol(node, address, token, {**settings, **place.local(node.number)})
            give_weights(node.layout, specs, rng_seed, node.number)
            members.append(Member(node, address, place=place))
        ask_all(members, "wait", size - 1)
        yield members
    finally:
        for member in members:
            member.close()


def give_weights(layout: Layout, specs: Sequence[FragmentSpec], rng_seed: int, number: int) -> None:
    """Write the snapshot that node `number` starts from."""
    signed = current_plan(layout)
    contents = snapshot.Contents(
        run_id=read_run(layout).run_id,
        plan_hash=signed.plan_hash,
        plan_revision=signed.revision,
        tokens={},
        own_tokens=0,
        epoch=0,
        wall=WallTime(0.0),
    )

    def states() -> Iterator[snapshot.FragmentState]:
        for spec in specs:
            phi = np.empty(spec.size, np.float32)
            prepare(phi, spec.id, rng_seed, number)
            shown = sketch(phi, signed.plan.run.rng_seed, spec.id)
            yield snapshot.FragmentState(
                spec.id, 0, phi, np.zeros_like(phi), tuple(float(x) for x in shown)
            )

    with StateDirectory(layout.root) as state:
        snapshot.write(state, contents, specs, states())


def snapshot_now(member: Member) -> Weights:
    """φ as the daemon has it now, by way of a snapshot."""
    ask(member.node.layout, "snapshot", timeout_s=SNAPSHOT_S)
    return read_weights(member.node.layout)


def read_weights(layout: Layout) -> Weights:
    """φ of every fragment in the newest snapshot."""
    newest = snapshot.load(layout).snapshot
    assert newest is not None, f"{layout.root} has no snapshot"
    values = []
    for record in newest.manifest.fragments:
        values.append(np.empty(record.phi.size // 4, np.float32))
        snapshot.read_array(newest.open(), record.phi, values[-1])
    return values
