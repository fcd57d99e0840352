"""What an inner optimizer remembers of past gradients, as a file: momentum, second moments, counts of steps.

    first.NAME    momentum of the parameter NAME, in its shape
    second.NAME   AdamW's second moment
    step.NAME     AdamW's count of steps, one number

A safetensors file of fp32, first moments before second ones before counts, each in the plan's order: so fragments' parts of
it follow each other as fragments of the model do. A node keeps one of what it holds, a checkpoint one of the whole model; which
parameters have what follows from the plan, without torch. What is read is believed of nobody: names, shapes and values are
checked, and a file that is not what the plan asks for is refused whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import numpy as np

from peerlm.config import Plan
from peerlm.errors import ConfigError, StateError
from peerlm.model.plan import FragmentSpec, Shape, parameter_shapes
from peerlm.model.tensors import Tensors, Values, stored_tensors, tensors_header
from peerlm.store import disk
from peerlm.store.disk import AtomicFile
from peerlm.types import printable

FILE = "optimizer.safetensors"
"""Its name in a checkpoint."""

FORMAT = "peerlm-optimizer-1"

STEPS_MAX = 1 << 24
"""More cannot be counted in fp32."""

SNAPSHOT_BYTES = 8
"""Of a parameter in a snapshot. For one of them room is left: it is worth more."""

_KINDS = ("first", "second", "step")


def remembered(plan: Plan) -> dict[str, int]:
    """Parameter → how many moments the plan's optimizer has of it: 0, 1 (Muon), 2 (AdamW, with a count of steps)."""
    shapes = parameter_shapes(plan.model, plan.data.vocab)
    match plan.train.optimizer:
        case "muon":
            return {
                name: 1 if name.startswith("blocks.") and len(shape) == 2 else 2
                for name, (_, shape) in shapes.items()
            }
        case "adamw":
            return dict.fromkeys(shapes, 2)
        case _:
            return dict.fromkeys(shapes, 0)


def moment_shapes(plan: Plan, held: Iterable[str] | None = None) -> dict[str, Shape]:
    """Every tensor of the file of these parameters (None: all), in order."""
    shapes, counts = parameter_shapes(plan.model, plan.data.vocab), remembered(plan)
    wanted = set(shapes if held is None else held)
    names = [name for name in shapes if counts[name] and name in wanted]
    found = {f"first.{name}": shapes[name][1] for name in names}
    twice = [name for name in names if counts[name] == 2]
    found |= {f"second.{name}": shapes[name][1] for name in twice}
    return found | {f"step.{name}": () for name in twice}


def moments_bytes(plan: Plan, held: Iterable[str] | None = None) -> int:
    """Of the file's values."""
    return sum(4 * prod(shape) for shape in moment_shapes(plan, held).values())


def moments_header(plan: Plan, held: Iterable[str] | None = None) -> bytes:
    """How the file begins."""
    about = {"format": FORMAT, "optimizer": plan.train.optimizer}
    return tensors_header(moment_shapes(plan, held), about)


# ------------------------------------------------------------------------------------- reading


def open_moments(path: Path, plan: Plan) -> Tensors:
    """The tensors of a file, each as the plan has it, of which no values are read yet; of some parameters it may have none.

    Raises:
        ConfigError: no such file, or it is damaged, or of another optimizer or model.
        StateError: it cannot be read.
    """
    tensors, about = stored_tensors(path)
    if about.get("format") != FORMAT:
        theirs = printable(str(about.get("format"))[:60])
        raise ConfigError(f"{path}: its format is {theirs}, this peerlm reads {FORMAT}")
    if (theirs := about.get("optimizer", "")) != plan.train.optimizer:
        raise ConfigError(
            f"{path}: is of the optimizer {printable(theirs[:60])}, the plan's is {plan.train.optimizer}"
        )
    shapes = moment_shapes(plan)
    for name, tensor in tensors.items():
        if tensor.dtype != "F32" or shapes.get(name) != tensor.shape:
            known = f"must be F32{list(shapes[name])}" if name in shapes else "the plan has none"
            saw = f"{tensor.dtype}{list(tensor.shape)}"
            raise ConfigError(f"{path}: {printable(name[:100])} is {saw}, {known}")
    for name, count in remembered(plan).items():
        if (parts := _parts_of(name, tensors)) not in (0, count if count == 1 else 3):
            raise ConfigError(f"{path}: has {parts} of the {count} moments and the steps of {name}")
    return tensors


def has_moments(tensors: Tensors, name: str) -> bool:
    """Whether there are any of this parameter."""
    return f"first.{name}" in tensors


def read_moments(tensors: Tensors, name: str) -> tuple[int, Values]:
    """The count of steps (0 where none is kept) of a parameter, and its moments, flat, one after the other.

    Raises:
        ConfigError: a value is none that an optimizer can have.
        StateError: it cannot be read.
    """
    parts = [
        tensors[key].values(0, prod(tensors[key].shape))
        for kind in _KINDS
        if (key := f"{kind}.{name}") in tensors
    ]
    where = tensors[f"first.{name}"].file.path
    if not all(np.isfinite(part).all() for part in parts):
        raise ConfigError(f"{where}: {name} has a moment that is not finite")
    if len(parts) == 1:
        return 0, parts[0]
    first, second, (step,) = parts
    if second.min(initial=0.0) < 0.0 or not 0 <= step <= STEPS_MAX or step != int(step):
        raise ConfigError(f"{where}: {name} has a second moment or a count of steps below 0")
    return int(step), np.concatenate((first, second))


def _parts_of(name: str, tensors: Tensors) -> int:
    return sum(f"{kind}.{name}" in tensors for kind in _KINDS)


# ------------------------------------------------------------------- as fragments have part of it


def part_of(spec: FragmentSpec, plan: Plan, tensors: Tensors) -> list[Values]:
    """What belongs to a fragment: first moments, second ones, counts of the parameters that begin in it.

    Raises:
        ConfigError: of one of its parameters there is nothing.
        StateError: they cannot be read.
    """
    counts = remembered(plan)
    for piece in spec.slices:
        if counts[piece.tensor] and not has_moments(tensors, piece.tensor):
            raise ConfigError(f"nothing is kept of {piece.tensor}")
    found: list[Values] = []
    for kind, slices in zip(_KINDS, _slices_of(spec, counts), strict=True):
        wanted = [(tensors[f"{kind}.{name}"], start, stop) for name, start, stop in slices]
        values = [tensor.values(start, stop) for tensor, start, stop in wanted]
        found.append(np.concatenate(values) if values else np.empty(0, np.float32))
    return found


def part_bytes(spec: FragmentSpec, plan: Plan) -> tuple[int, int, int]:
    """Of the values that `part_of` has."""
    first, second, step = (
        4 * sum(stop - start for _, start, stop in slices)
        for slices in _slices_of(spec, remembered(plan))
    )
    return first, second, step


def _slices_of(
    spec: FragmentSpec, counts: Mapping[str, int]
) -> tuple[list[tuple[str, int, int]], ...]:
    of_any = [(p.tensor, p.start, p.stop) for p in spec.slices if counts[p.tensor]]
    of_two = [(name, start, stop) for name, start, stop in of_any if counts[name] == 2]
    return of_any, of_two, [(name, 0, 1) for name, start, _ in of_two if not start]


# ------------------------------------------------------------------------------------- writing


class MomentsFile:
    """One in the making, parameter by parameter in any order; it is there after `commit`, or not at all. What writers that
    died have left is removed first.

    Raises: StateError: there is no room (`disk_limit_bytes` as in `store.disk.check_room`), or the disk refuses.
    """

    def __init__(
        self, path: Path, plan: Plan, held: Iterable[str], disk_limit_bytes: int = 0
    ) -> None:
        names = list(held)
        header, self._at = moments_header(plan, names), dict[str, int]()
        root = path.parent
        disk.sweep(root)
        shapes = parameter_shapes(plan.model, plan.data.vocab)
        needed = len(header) + moments_bytes(plan, names)
        needed += SNAPSHOT_BYTES * sum(prod(shapes[name][1]) for name in names)
        disk.check_room(root.parent, needed, disk_limit_bytes, "the optimizer's state")
        self._file = AtomicFile(path)
        self._file.write(header)
        at = len(header)
        for name, shape in moment_shapes(plan, names).items():
            self._at[name], at = at, at + 4 * prod(shape)

    def write(self, name: str, steps: int, values: Values) -> None:
        """`values`: its moments, flat, one after the other. Raises: StateError."""
        first, second = (self._at.get(f"{kind}.{name}") for kind in _KINDS[:2])
        assert first is not None, f"{name}: no moments are kept of it"
        each = len(values) if second is None else len(values) // 2
        self._file.write_at(first, values[:each].data.cast("B"))
        if second is not None:
            self._file.write_at(second, values[each:].data.cast("B"))
            count = np.array([min(steps, STEPS_MAX)], np.float32)
            self._file.write_at(self._at[f"step.{name}"], count.data.cast("B"))

    def commit(self) -> None:
        """Raises: StateError."""
        self._file.commit()

    def abort(self) -> None:
        """Forget it. May be called again, and after `commit`."""
        self._file.abort()


def adopted(folder: Path, path: Path, plan: Plan) -> str:
    """Keep at `path` what a checkpoint in `folder` has of the optimizer's state; what came of it, in a line."""
    source = folder / FILE
    if not source.exists():
        return f"{source}: there is none, so the optimizer begins empty"
    try:
        count = copy_moments(source, path, plan)
    except (ConfigError, StateError) as error:
        return f"the optimizer begins empty: {error}"
    return f"the optimizer begins with {source}: the state of {count} parameters"


def copy_moments(source: Path, path: Path, plan: Plan) -> int:
    """Check a file that lies elsewhere, and keep it at `path`; returns of how many parameters it has moments.

    Raises:
        ConfigError: it is not what the plan asks for.
        StateError: it cannot be read, or the disk refuses.
    """
    tensors = open_moments(source, plan)
    names = [name for name in remembered(plan) if has_moments(tensors, name)]
    if not names:
        raise ConfigError(f"{source}: holds nothing")
    file = MomentsFile(path, plan, names)
    try:
        for name in names:
            file.write(name, *read_moments(tensors, name))
        file.commit()
    finally:
        file.abort()
    return len(names)
