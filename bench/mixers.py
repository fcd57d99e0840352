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

from bench.member import Member
from bench.nodes import Swarm, Values, options
from peerlm.cli.demo_nodes import peerlm
from peerlm.cli.plan import current_plan
from peerlm.daemon.control import ask
from peerlm.mix.sketch import sketch
from peerlm.model.plan import FragmentSpec, fragments
from peerlm.store import snapshot
from peerlm.store.disk import Layout, StateDirectory
from peerlm.types import RunId, WallTime

Weights = list[NDArray[np.float32]]

SCALE = 0.05
"""Root mean square of the common weights."""

APART = 0.1
"""Norm of a node's own noise ÷ norm of the common weights: below where clipping begins."""

SNAPSHOT_S = 120.0


@contextmanager
def mixers(folder: Path, size: int, plan: Values, rng_seed: int) -> Iterator[list[Member]]:
    """`size` members that all see each other, with different weights."""
    swarm = Swarm(folder, size, plan, {"train.enabled": "false"})
    members: list[Member] = []
    try:
        swarm.found()
        first, *others = swarm.nodes
        specs = fragments(current_plan(first.layout).plan)
        give_weights(first.layout, specs, rng_seed, first.number)
        members.append(Member(first))
        members[0].tell("wait", 0)
        members[0].hear()
        address, token = swarm.invitation()
        settings = options("--set-node", swarm.local)
        for node in others:
            state = ("--state", str(node.layout.root))
            peerlm("join", address, "--token", token, "--enrol-only", *settings, *state)
            give_weights(node.layout, specs, rng_seed, node.number)
            members.append(Member(node, address))
        for member in members:
            member.tell("wait", size - 1)
        for member in members:
            member.hear()
        yield members
    finally:
        for member in members:
            member.close()


def give_weights(layout: Layout, specs: Sequence[FragmentSpec], rng_seed: int, number: int) -> None:
    """Write the snapshot that node `number` starts from."""
    signed = current_plan(layout)
    contents = snapshot.Contents(
        run_id=RunId(signed_run(layout)),
        plan_hash=signed.plan_hash,
        plan_revision=signed.revision,
        tokens={},
        own_tokens=0,
        epoch=0,
        wall=WallTime(0.0),
    )

    def states() -> Iterator[snapshot.FragmentState]:
        for spec in specs:
            phi = weights_of(spec, rng_seed, number)
            shown = sketch(phi, signed.plan.run.rng_seed, spec.id)
            yield snapshot.FragmentState(
                spec.id, 0, phi, np.zeros_like(phi), tuple(float(x) for x in shown)
            )

    with StateDirectory(layout.root) as state:
        snapshot.write(state, contents, specs, states())


def weights_of(spec: FragmentSpec, rng_seed: int, number: int) -> NDArray[np.float32]:
    common = np.random.default_rng((rng_seed, spec.id, 0))
    own = np.random.default_rng((rng_seed, spec.id, number))
    phi = common.standard_normal(spec.size, np.float32)
    phi += np.float32(APART) * own.standard_normal(spec.size, np.float32)
    phi *= np.float32(SCALE)
    return phi


def signed_run(layout: Layout) -> bytes:
    from peerlm.cli.state import read_run

    return read_run(layout).run_id


def snapshot_now(member: Member) -> Weights:
    """φ as the daemon has it now, by way of a snapshot."""
    ask(member.node.layout, "snapshot", timeout_s=SNAPSHOT_S)
    return read_weights(member.node.layout)


def read_weights(layout: Layout) -> Weights:
    """φ of every fragment in the newest snapshot."""
    found = snapshot.load(layout).snapshot
    assert found is not None, f"{layout.root} has no snapshot"
    values = []
    for record in found.manifest.fragments:
        values.append(np.empty(record.phi.size // 4, np.float32))
        snapshot.read_array(found.open(), record.phi, values[-1])
    return values
