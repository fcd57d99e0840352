"""Stages: the modules of a plan in runs, which may lie on different nodes.

Stages form a ring (`model.part`): the first holds both ends of the model and the blocks after the embedding, the
last hands back to it. The cut makes the largest stage as small as it can be, in parameters. It is a pure
function of the plan, so every node cuts alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from peerlm.config import Plan
from peerlm.errors import ConfigError
from peerlm.model.plan import FragmentSpec, fragments, modules, parameter_shapes
from peerlm.types import FragmentId


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of modules. `blocks`: which of the model's; may be none in a first stage."""

    index: int
    modules: tuple[str, ...]
    blocks: range
    fragments: tuple[FragmentId, ...]
    parameters: int


def stages(plan: Plan) -> tuple[Stage, ...]:
    """The plan's `model.stages` stages, in order. Every module is in exactly one."""
    specs = fragments(plan)
    return tuple(
        Stage(
            index=index,
            modules=held,
            blocks=blocks,
            fragments=tuple(spec.id for spec in specs if spec.module in held),
            parameters=parameters,
        )
        for index, (held, blocks, parameters) in enumerate(_runs(plan))
    )


def held_parameters(plan: Plan, held: range) -> int:
    """Parameters of the stages held; for models too, whose fragments would not fit this machine."""
    return sum(parameters for _, _, parameters in _runs(plan)[held.start : held.stop])


def _runs(plan: Plan) -> list[tuple[tuple[str, ...], range, int]]:
    """Modules, blocks and parameters of each stage."""
    names = modules(plan.model)
    sizes = dict.fromkeys(names, 0)
    for module, shape in parameter_shapes(plan.model, plan.data.vocab).values():
        sizes[module] += prod(shape)
    ends, blocks = (names[0], names[-1]), names[1:-1]
    both = sum(sizes[end] for end in ends)
    starts = _cut(both, [sizes[block] for block in blocks], plan.model.stages)
    runs: list[tuple[tuple[str, ...], range, int]] = []
    for start, stop in zip(starts, (*starts[1:], len(blocks)), strict=True):
        held = blocks[start:stop] if runs else (ends[0], *blocks[start:stop], ends[1])
        runs.append((held, range(start, stop), sum(sizes[module] for module in held)))
    return runs


def held_stages(wish: str, plan: Plan, where: str = "host.stages") -> range:
    """Stages that a node is to hold: `all`, one number, or two with a dash. Raises `ConfigError`."""
    count = plan.model.stages
    if wish == "all":
        return range(count)
    first, dash, last = wish.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isdecimal() and len(n) < 5 for n in numbers):
        raise ConfigError(f"{where} = {wish!r}: must be all, one stage (1) or a run of them (1-2)")
    low, high = map(int, numbers)
    if not low <= high < count:
        raise ConfigError(
            f"{where} = {wish!r}: this run's model has {count} stage{'s' if count > 1 else ''}, "
            f"0 to {count - 1}, and the first comes first"
        )
    return range(low, high + 1)


def held_fragments(plan: Plan, held: range) -> tuple[FragmentSpec, ...]:
    """Fragments of the stages held, in the plan's order."""
    wanted = {
        fragment for stage in stages(plan)[held.start : held.stop] for fragment in stage.fragments
    }
    return tuple(spec for spec in fragments(plan) if spec.id in wanted)


def _cut(ends: int, blocks: list[int], count: int) -> list[int]:
    """Where each stage's blocks start: least largest stage, found by trying every size that a stage can have."""
    sums = [0]
    for size in blocks:
        sums.append(sums[-1] + size)
    sizes = sorted({sums[j] - sums[i] for i in range(len(sums)) for j in range(i + 1, len(sums))})
    for most in sorted({*sizes, *(ends + size for size in (0, *sizes))}):
        starts = _packed(ends, sums, count, most)
        if starts is not None:
            return starts
    raise AssertionError("one stage holds everything")


def _packed(ends: int, sums: list[int], count: int, most: int) -> list[int] | None:
    """Starts of stages of at most `most`, each as full as it can be while one block is left for each that
    follows; None if that is too little."""
    starts, at, room = [0], 0, most - ends
    if room < 0:
        return None
    for stage in range(count):
        stop = at
        while stop < len(sums) - count + stage and sums[stop + 1] - sums[at] <= room:
            stop += 1
        if stage and stop == at:
            return None
        starts.append(stop)
        at, room = stop, most
    return starts[:-1] if at == len(sums) - 1 else None
