"""Stages: the modules of a plan in runs, which may lie on different nodes.

Stages form a ring (`model.part`): the first holds both ends of the model and the blocks after the embedding, the
last hands back to it. The cut balances two things at once, because either may be what a node runs out of: parameters
(memory) and FLOPs a token (time). The weight of a run is the larger of its share of all parameters and its share of
all FLOPs; the cut makes the heaviest stage as light as it can be, and among such cuts the one with the least sum of
squares. It is a pure function of the plan, in whole numbers, so every node cuts alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from peerlm.config import ModelSection, Plan
from peerlm.errors import ConfigError
from peerlm.model.plan import FragmentSpec, fragments, modules, parameter_shapes
from peerlm.types import FragmentId, Memory

FP32_BYTES = 4
"""Weights, gradients, optimizer state, φ and m are fp32 everywhere."""

STREAM_BYTES = 2
"""A number of the stream on its way between stages: fp16, or one of int8 with its scale and the word about it."""

WINDOW = 4
"""Microbatches that one node's text has under way at once: each stage keeps a pass of each."""

BACKWARD = 2
"""The backward pass costs this many forward passes."""

NOTHING = Memory(0, 0)

KINDS = ("embedding", "recurrent", "attention", "feedforward", "output")
"""Of modules. A device is not equally good at all of them."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of modules, and what holding it takes.

    blocks: which of the model's; may be none in a first stage.
    training: device: weights, gradient, inner optimizer state; host: φ and m. The stream is not in it: it depends on
        the batch, and whoever says what is free keeps room for it.
    inference: the weights alone, on the device.
    flops: of one token, forward. Training costs `1 + BACKWARD` times as much.
    boundary_bytes: of one token that leaves for the next stage. In training as many come back as a gradient.
    """

    index: int
    modules: tuple[str, ...]
    blocks: range
    fragments: tuple[FragmentId, ...]
    parameters: int
    flops: int
    training: Memory
    inference: Memory
    boundary_bytes: int
    kinds: tuple[int, ...] = ()
    """How many modules of each of `KINDS` it has."""


def stages(plan: Plan, count: int | None = None) -> tuple[Stage, ...]:
    """The plan's modules in `count` stages, `model.stages` where None, in order. Raises `ConfigError` if there are
    fewer modules."""
    runs, specs = _runs(plan, count), fragments(plan)
    kind_of = dict(zip(modules(plan.model), _kinds(plan.model), strict=True))
    return tuple(
        Stage(
            index=index,
            modules=run.modules,
            blocks=run.blocks,
            fragments=tuple(spec.id for spec in specs if spec.module in run.modules),
            parameters=run.parameters,
            flops=run.flops,
            training=run.training,
            inference=Memory(run.parameters * FP32_BYTES, 0),
            boundary_bytes=plan.model.dim * STREAM_BYTES if len(runs) > 1 else 0,
            kinds=tuple(sum(kind_of[m] == kind for m in run.modules) for kind in KINDS),
        )
        for index, run in enumerate(runs)
    )


def kind_flops(plan: Plan) -> tuple[int, ...]:
    """Of one token forward through one module of each of `KINDS`; 0 for a kind that the plan has not."""
    found = dict.fromkeys(KINDS, 0)
    for kind, flops in zip(_kinds(plan.model), _module_flops(plan), strict=True):
        found[kind] = flops
    return tuple(found.values())


def microbatch_tokens(plan: Plan) -> int:
    """Of one microbatch, of those that the largest has."""
    rows = -(-plan.train.batch // plan.train.accumulate)
    return rows * plan.model.context


def stream_bytes(plan: Plan) -> int:
    """Of a microbatch between two stages, one way."""
    return microbatch_tokens(plan) * plan.model.dim * STREAM_BYTES


def window_tokens(plan: Plan) -> int:
    """Of one node's text, what is under way at once."""
    return min(WINDOW, plan.train.accumulate) * microbatch_tokens(plan)


def stage_count(plan: Plan, memories: Iterable[Memory]) -> int:
    """The fewest stages of which each fits, for training, into each of `memories` (bytes free).

    Raises `ConfigError` where even one module a stage is too much for somebody, naming both, and if there are
    no memories.
    """
    rooms = list(memories)
    if not rooms:
        raise ConfigError("how many stages a model is cut into needs one memory at least")
    runs: list[_Run] = []
    for count in range(1, len(plan.model.blocks) + 2):
        runs = _runs(plan, count)
        if all(room.holds(run.training) for run in runs for room in rooms):
            return count
    worst = max(runs, key=lambda run: run.training.total())
    least = min(rooms, key=Memory.total)
    raise ConfigError(
        f"a node with {least.total():,} bytes free cannot take part: {', '.join(worst.modules)} "
        f"alone takes {worst.training.total():,}"
    )


def memory_of(cut: Sequence[Stage], held: range, is_training: bool = True) -> Memory:
    """What one node needs for stages `held` of `cut`."""
    return _sum(cut[i].training if is_training else cut[i].inference for i in held)


AUTO = "auto"
"""The wish of a node that decides by itself which stages it holds."""


def held_stages(wish: str, plan: Plan, where: str = "host.stages") -> range | None:
    """Stages that a node is to hold: `all`, `none`, one number, or two with a dash. None: with `auto` it decides by
    itself; of a model in one piece it has no choice. Raises `ConfigError`."""
    count = plan.model.stages
    if wish == "none":
        return range(0)
    if wish == "all" or (wish == AUTO and count == 1):
        return range(count)
    if wish == AUTO:
        return None
    first, dash, last = wish.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isdecimal() and len(n) < 5 for n in numbers):
        raise ConfigError(
            f"{where} = {wish!r}: must be all, none, auto, one stage (1) or a run of them (1-2)"
        )
    low, high = map(int, numbers)
    if not low <= high < count:
        raise ConfigError(
            f"{where} = {wish!r}: this run's model has {count} stage{'s' if count > 1 else ''}, "
            f"0 to {count - 1}, and the first comes first"
        )
    return range(low, high + 1)


def first_held(plan: Plan, room: Memory, where: str) -> range:
    """What a node that begins a run by itself holds: stage 0, and on from there as far as its memory goes.
    Raises `ConfigError` where that is nothing."""
    cut = stages(plan)
    held = [run for run in map(range, range(1, len(cut) + 1)) if room.holds(memory_of(cut, run))]
    if not held:
        raise ConfigError(
            f"{where}: stage 0 takes {memory_of(cut, range(1)).total():,} bytes, and this node offers "
            f"{room.total():,}: raise host.memory_bytes, or cut the model into more model.stages"
        )
    return held[-1]


def held_fragments(plan: Plan, held: range) -> tuple[FragmentSpec, ...]:
    """Fragments of the stages held, in the plan's order."""
    wanted = {
        fragment for stage in stages(plan)[held.start : held.stop] for fragment in stage.fragments
    }
    return tuple(spec for spec in fragments(plan) if spec.id in wanted)


def held_parameters(plan: Plan, held: range) -> int:
    """Parameters of the stages held; for models too, whose fragments would not fit this machine."""
    return sum(run.parameters for run in _runs(plan)[held.start : held.stop])


# ------------------------------------------------------------------------------------- modules


@dataclass(frozen=True, slots=True)
class _Run:
    """Modules that are not parted: parameters, FLOPs of one token forward, memory for training."""

    modules: tuple[str, ...]
    blocks: range
    parameters: int
    flops: int
    training: Memory

    def __add__(self, other: _Run) -> _Run:
        """With those that follow. Both ends of the model come first."""
        end = self.modules[-1:] if self.modules[-1] == "output" else ()
        inner = self.modules[: len(self.modules) - len(end)]
        return _Run(
            (*inner, *other.modules, *end),
            range(self.blocks.start, other.blocks.stop),
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.training + other.training,
        )


def _runs(plan: Plan, count: int | None = None) -> list[_Run]:
    """The stages, without their fragments."""
    count = plan.model.stages if count is None else count
    parts = _parts(plan)
    if not 1 <= count <= len(parts):
        raise ConfigError(
            f"{count} stages: this model has {len(parts) - 1} blocks and its two ends, so 1 to {len(parts)}"
        )
    runs, start = [], 0
    for end in _cut(parts, _share(parts), count):
        run = parts[start]
        for part in parts[start + 1 : end]:
            run = run + part
        runs.append(run)
        start = end
    return runs


def _parts(plan: Plan) -> list[_Run]:
    """Both ends of the model as one, then its blocks."""
    model, vocab = plan.model, plan.data.vocab
    names, of, found = modules(model), _shapes(plan), []
    for index, (module, kind) in enumerate(zip(names, _kinds(model), strict=True)):
        size, matrices = sum(map(prod, of[module])), _matrices(of[module])
        state = _state_numbers(plan.train.optimizer, kind, matrices, size)
        blocks = range(index - 1, index) if 0 < index < len(names) - 1 else range(0)
        flops = _flops(kind, model, vocab, matrices)
        training = Memory((2 * size + state) * FP32_BYTES, 2 * size * FP32_BYTES)
        found.append(_Run((module,), blocks, size, flops, training))
    entrance, *inner, end = found
    both = replace(
        entrance,
        modules=(*entrance.modules, *end.modules),
        parameters=entrance.parameters + end.parameters,
        flops=entrance.flops + end.flops,
        training=entrance.training + end.training,
    )
    return [both, *inner]


def _kinds(model: ModelSection) -> tuple[str, ...]:
    """Of every module, in order."""
    return ("embedding", *model.blocks, "output")


def _shapes(plan: Plan) -> dict[str, list[tuple[int, ...]]]:
    """Of the parameters of each module."""
    of: dict[str, list[tuple[int, ...]]] = {name: [] for name in modules(plan.model)}
    for owner, shape in parameter_shapes(plan.model, plan.data.vocab).values():
        of[owner].append(shape)
    return of


def _matrices(shapes: list[tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in shapes if len(shape) == 2)


def _module_flops(plan: Plan) -> list[int]:
    model, of = plan.model, _shapes(plan)
    return [
        _flops(kind, model, plan.data.vocab, _matrices(of[module]))
        for module, kind in zip(modules(model), _kinds(model), strict=True)
    ]


def _state_numbers(optimizer: str, kind: str, matrices: int, size: int) -> int:
    """Numbers the inner optimizer keeps: AdamW two moments, Muon one for each matrix of a block."""
    match optimizer:
        case "sgd":
            return 0
        case "muon" if kind not in ("embedding", "output"):
            return matrices + 2 * (size - matrices)
        case _:
            return 2 * size


def _flops(kind: str, model: ModelSection, vocab: int, matrices: int) -> int:
    """Of one token, forward: two for each weight of a matrix; attention looks back at half a context."""
    match kind:
        case "embedding":
            return 0
        case "attention":
            return 2 * matrices + 2 * model.context * model.dim
        case "output":
            return 2 * vocab * model.dim
        case _:
            return 2 * matrices


def _sum(memories: Iterable[Memory]) -> Memory:
    total = NOTHING
    for memory in memories:
        total += memory
    return total


# ----------------------------------------------------------------------------------------- cut


def _share(parts: list[_Run]) -> list[list[int]]:
    """`[start][end]`: the larger of a run's shares of all parameters and of all FLOPs, in a unit in which
    everything is the product of the two totals."""
    parameters = sum(part.parameters for part in parts)
    flops = sum(part.flops for part in parts)
    table = [[0] * (len(parts) + 1) for _ in parts]
    for start in range(len(parts)):
        held, cost = 0, 0
        for end in range(start + 1, len(parts) + 1):
            held += parts[end - 1].parameters
            cost += parts[end - 1].flops
            table[start][end] = max(held * flops, cost * parameters)
    return table


def _cut(parts: list[_Run], share: list[list[int]], count: int) -> tuple[int, ...]:
    """Where each stage ends: least heaviest stage, then least sum of squares, then earliest ends."""
    heaviest = _best(share, len(parts), count, most=None)[0]
    return _best(share, len(parts), count, most=heaviest)[1]


def _best(
    share: list[list[int]], size: int, count: int, most: int | None
) -> tuple[int, tuple[int, ...]]:
    """Least maximum of the stages' shares (`most` None), or least sum of squares with none above `most`."""
    best: list[tuple[int, tuple[int, ...]] | None] = [None] * (size + 1)
    best[0] = (0, ())
    for stage in range(1, count + 1):
        after: list[tuple[int, tuple[int, ...]] | None] = [None] * (size + 1)
        for end in range(stage, size - (count - stage) + 1):
            for start in range(stage - 1, end):
                before, here = best[start], share[start][end]
                if before is None or (most is not None and here > most):
                    continue
                worth = max(before[0], here) if most is None else before[0] + here * here
                found = (worth, (*before[1], end))
                if after[end] is None or found < after[end]:  # type: ignore[operator]
                    after[end] = found
        best = after
    answer = best[size]
    assert answer is not None, "there is a cut for every count up to the number of modules"
    return answer
