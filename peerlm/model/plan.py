"""The model as arithmetic sees it: an ordered list of modules, cut into fragments.

A *module* is the embedding, one residual block, or the output (final norm and, when untied, the
head). It is the unit of hosting. A *fragment* is a flat slice of one module's parameters and the
unit of mixing: fragments never span modules, and a module larger than `mix.fragment_max` is split
evenly (Streaming DiLoCo, arXiv 2501.18512, mixes in the same pieces).

Everything here is a pure function of the plan, so every node derives the same names, sizes and
order without asking anybody. This file states the shapes of the torch modules beside it without
importing torch, because the daemon, which owns the slow weights, never does; a test holds the two
descriptions equal. Nothing here touches values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from peerlm.config import ModelSection, Plan
from peerlm.errors import ConfigError
from peerlm.types import FragmentId

Shape = tuple[int, ...]

GATES = {"gru": 3, "lstm": 4}
"""Gates torch stacks in the first dimension of a recurrent cell's weights."""


FRAGMENTS_MAX = 2500
"""Of a model: who offers all of them does so in one message of less than a MiB."""


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Elements `start` to `stop` of one parameter, flattened in row-major order."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FragmentSpec:
    """One fragment: where its `size` elements lie, in order, in the parameters of `module`."""

    id: FragmentId
    name: str
    module: str
    slices: tuple[TensorSlice, ...]
    size: int


def modules(model: ModelSection) -> tuple[str, ...]:
    """Names of the modules in the order activations pass through them."""
    blocks = (f"blocks.{index}.{kind}" for index, kind in enumerate(model.blocks))
    return ("embedding", *blocks, "output")


def parameter_shapes(model: ModelSection, vocab: int) -> dict[str, tuple[str, Shape]]:
    """Every parameter's full name with (its module, its shape), as `named_parameters()` lists them."""
    kinds = ("embedding", *model.blocks, "output")
    return {
        f"{module}.{name}": (module, shape)
        for module, kind in zip(modules(model), kinds, strict=True)
        for name, shape in _shapes_of(kind, model, vocab)
    }


def parameter_count(model: ModelSection, vocab: int) -> int:
    """Parameters in all; a tied head counts once."""
    return sum(prod(shape) for _, shape in parameter_shapes(model, vocab).values())


def fragments(plan: Plan) -> tuple[FragmentSpec, ...]:
    """The plan's fragments in order: together they cover every parameter exactly once.

    Raises `ConfigError`: they are more than `FRAGMENTS_MAX`.
    """
    shapes = parameter_shapes(plan.model, plan.data.vocab)
    largest = plan.mix.fragment_max
    sizes_of: dict[str, dict[str, int]] = {module: {} for module in modules(plan.model)}
    for name, (module, shape) in shapes.items():
        sizes_of[module][name] = prod(shape)
    count = sum(-(-sum(sizes.values()) // largest) for sizes in sizes_of.values())
    if count > FRAGMENTS_MAX:
        raise ConfigError(
            f"mix.fragment_max = {largest} cuts the model into {count} fragments, and a node can offer {FRAGMENTS_MAX} to "
            f"another: make it {-(-2 * count * largest // FRAGMENTS_MAX)}"
        )
    specs: list[FragmentSpec] = []
    for module, sizes in sizes_of.items():
        total = sum(sizes.values())
        parts = -(-total // largest)
        for part in range(parts):
            start, stop = part * total // parts, (part + 1) * total // parts
            specs.append(
                FragmentSpec(
                    id=FragmentId(len(specs)),
                    name=module if parts == 1 else f"{module}:{part}",
                    module=module,
                    slices=tuple(_cut(sizes, start, stop)),
                    size=stop - start,
                )
            )
    return tuple(specs)


def _cut(sizes: dict[str, int], start: int, stop: int) -> Iterator[TensorSlice]:
    """The slices that elements `start` to `stop` of the concatenated tensors fall into."""
    offset = 0
    for name, size in sizes.items():
        low, high = max(start - offset, 0), min(stop - offset, size)
        if low < high:
            yield TensorSlice(name, low, high)
        offset += size


def _shapes_of(kind: str, model: ModelSection, vocab: int) -> list[tuple[str, Shape]]:
    dim, hidden = model.dim, model.hidden
    norm = ("norm.weight", (dim,))
    match kind:
        case "embedding":
            return [("weight", (vocab, dim))]
        case "attention":
            kv_dim = model.kv_heads * (dim // model.heads)
            return [
                norm,
                ("query.weight", (dim, dim)),
                ("key.weight", (kv_dim, dim)),
                ("value.weight", (kv_dim, dim)),
                ("output.weight", (dim, dim)),
            ]
        case "feedforward":
            return [
                norm,
                ("gate.weight", (hidden, dim)),
                ("up.weight", (hidden, dim)),
                ("down.weight", (dim, hidden)),
            ]
        case "recurrent":
            rows = GATES[model.cell] * dim
            return [
                norm,
                ("cell.weight_ih_l0", (rows, dim)),
                ("cell.weight_hh_l0", (rows, dim)),
                ("cell.bias_ih_l0", (rows,)),
                ("cell.bias_hh_l0", (rows,)),
                ("output.weight", (dim, dim)),
            ]
        case "output":
            return [norm] if model.tied else [norm, ("head.weight", (vocab, dim))]
        case _:
            raise AssertionError(f"no module of kind {kind!r}")
