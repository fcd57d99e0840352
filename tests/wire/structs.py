"""Every struct of the catalogue: any value that it may hold, and one plain one."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from peerlm.wire import message
from peerlm.wire.bounds import Exactly, Least, Made, Most
from peerlm.wire.message import Message, Struct

STRUCTS = [
    kind
    for kind in vars(message).values()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind.code
]
MESSAGES = [kind for kind in STRUCTS if issubclass(kind, Message)]


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Anything a field with this annotation may hold."""
    bounds: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds += more
    most = min((b.value for b in bounds if isinstance(b, Most)), default=math.inf)
    least = max((b.value for b in bounds if isinstance(b, Least)), default=0)
    exactly = next((b.length for b in bounds if isinstance(b, Exactly)), None)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(least), int(min(most, 2**63)))
    if hint is float:
        low = least if any(isinstance(b, Least) for b in bounds) else None
        high = most if math.isfinite(most) else None
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if hint is bytes:
        size = (exactly, exactly) if exactly is not None else (0, min(most, 40))
        return st.binary(min_size=size[0], max_size=size[1])
    if hint is str:
        made = next((b.letters for b in bounds if isinstance(b, Made)), None)
        letters = sorted(made) if made else st.characters(exclude_categories=["Cs"])
        return st.text(letters, max_size=int(min(most, 20)))
    if get_origin(hint) is tuple:
        item = values_of(get_args(hint)[0])
        return st.lists(item, max_size=int(min(most, 3))).map(tuple)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*(st.none() if h is type(None) else values_of(h) for h in get_args(hint)))
    return structs_of(hint)


def structs_of(kind: type[Struct]) -> st.SearchStrategy[Struct]:
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind)})


def sample(kind: type[Struct]) -> Struct:
    """One plain value, with something in every tuple."""
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{f.name: plain(hints[f.name]) for f in dataclasses.fields(kind)})


def plain(hint: Any) -> Any:
    bounds: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds += more
    exactly = next((b.length for b in bounds if isinstance(b, Exactly)), 3)
    if hint in (int, float, bool):
        return hint(1)
    if hint in (bytes, str):
        return b"x" * exactly if hint is bytes else "abc"
    if get_origin(hint) is tuple:
        return (plain(get_args(hint)[0]),) * 2
    if get_origin(hint) in (Union, types.UnionType):
        return plain(next(h for h in get_args(hint) if h is not type(None)))
    return sample(hint)
