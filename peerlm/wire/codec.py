"""Messages to bytes and back: msgpack arrays, checked field by field.

A struct is the array [code, field, field, …]. Decoding trusts nothing: the frame's size, the
nesting, the number of fields, every type and every bound are checked before a message exists, and
each failure is a `WireError` that names the message and the field. Each struct's checker is built
once from its annotations, so the catalogue in `wire.message` is the only description there is.

A sender may be a version older or newer (`wire.versions`): fields that are missing at the end take
their defaults, additional ones are not read, and rumors of an unknown kind are passed over.

Encoding is deterministic (same value, same bytes), so encoded structs can be signed.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from peerlm.errors import UnknownMessage, WireError
from peerlm.wire import message as catalogue
from peerlm.wire.bounds import Exactly, Least, Made, Most
from peerlm.wire.message import Message, Struct

FRAME_BYTES_MAX = 1 << 20
"""Largest control frame; the sockets enforce the same."""

INTRODUCTION_BYTES_MAX = 16 * 1024
"""Largest introduction frame: a hello or welcome with the longest chain fits."""

ARRAY_LEN_MAX = 4096
"""Longest tuple of the catalogue."""

LISTS_MAX = 3 * ARRAY_LEN_MAX
"""Lists in one frame: a donor's offer of `ARRAY_LEN_MAX` fragments holds twice as many. A frame of a
million of the smallest would take half a second to read."""

S = TypeVar("S", bound=Struct)
Checker = Callable[[Any, str], Any]


def encode(struct: Struct) -> bytes:
    """The bytes of a struct. Asserts that our own message fits a frame."""
    packed: bytes = msgpack.packb(struct, default=_parts, use_bin_type=True)
    assert len(packed) <= FRAME_BYTES_MAX, f"{type(struct).__name__} of {len(packed)} bytes"
    return packed


def decode(data: bytes | memoryview, *, bytes_max: int = FRAME_BYTES_MAX) -> Message:
    """A message from a peer's bytes. Raises `WireError` for anything but a well-formed message:
    `UnknownMessage` for one that a newer node may know."""
    return decode_as(Message, data, bytes_max=bytes_max)


def decode_as(kind: type[S], data: bytes | memoryview, *, bytes_max: int = FRAME_BYTES_MAX) -> S:
    """A struct of the given class (or a subclass) from bytes. Raises `WireError`."""
    if len(data) > bytes_max:
        raise WireError(f"frame of {len(data)} bytes, at most {bytes_max} allowed")
    try:
        raw = msgpack.unpackb(
            data,
            raw=False,
            list_hook=_counted(),
            strict_map_key=True,
            max_array_len=ARRAY_LEN_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {type(error).__name__} {error}"[:200]) from None
    if kind is Message and _is_of_another_version(raw):
        raise UnknownMessage(f"Message: unknown type {raw[0]}")
    return _struct((kind,), raw, kind.__name__)  # type: ignore[return-value]


def _counted() -> Callable[[list[Any]], list[Any]]:
    """Sees every list of a frame when it is complete; raises `ValueError` when there are too many."""
    left = LISTS_MAX

    def count(found: list[Any]) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {LISTS_MAX} lists")
        return found

    return count


def _parts(struct: Any) -> tuple[Any, ...]:
    """(code, field, …) of a struct; msgpack asks for it wherever it meets one."""
    return _PARTS[type(struct)](struct)


def _struct(kinds: tuple[type[Struct], ...], raw: Any, where: str) -> Struct:
    if not isinstance(raw, list) or not raw or type(raw[0]) is not int:
        raise WireError(f"{where}: not a struct")
    kind = _STRUCTS.get(raw[0])
    if kind is None or not issubclass(kind, kinds):
        raise WireError(f"{where}: unknown type {raw[0]}")
    checkers, least = _CHECKERS[kind], _FIELDS_LEAST[kind]
    if len(raw) - 1 < least:
        raise WireError(f"{kind.__name__}: {len(raw) - 1} fields, must be at least {least}")
    return kind(
        *(
            check(value, f"{kind.__name__}.{name}")
            for (name, check), value in zip(checkers, raw[1:], strict=False)
        )
    )


def _is_of_another_version(raw: Any) -> bool:
    """A struct with a number that this catalogue has not."""
    numbered = isinstance(raw, list) and bool(raw) and type(raw[0]) is int
    return numbered and raw[0] > 0 and raw[0] not in _STRUCTS


def _index() -> dict[int, type[Struct]]:
    kinds = [
        k
        for k in vars(catalogue).values()
        if isinstance(k, type) and issubclass(k, Struct) and k.code
    ]
    codes = {kind.code: kind for kind in kinds}
    assert len(codes) == len(kinds), "two messages share a number"
    return codes


def _checkers(kind: type[Struct]) -> tuple[tuple[str, Checker], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((f.name, _checker(hints[f.name])) for f in dataclasses.fields(kind))


def _checker(hint: Any) -> Checker:
    bounds: tuple[Any, ...] = ()
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds = (*bounds, *more)
    if hint is float:
        return lambda raw, where: _number(raw, where, bounds)
    if hint is int:
        return lambda raw, where: _integer(raw, where, bounds)
    if hint is bool:
        return _boolean
    if hint in (bytes, str):
        return lambda raw, where: _sized(hint, raw, where, bounds)
    if get_origin(hint) is tuple:
        (entry_hint, _) = get_args(hint)
        item = _checker(entry_hint)
        passes = _is_of_another_version if _is_choice(entry_hint) else lambda raw: False
        return lambda raw, where: tuple(
            item(entry, where) for entry in _sized(list, raw, where, bounds) if not passes(entry)
        )
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        inner = _checker(get_args(hint)[0])
        return lambda raw, where: None if raw is None else inner(raw, where)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    assert all(isinstance(k, type) and issubclass(k, Struct) for k in kinds), hint
    return lambda raw, where: _struct(kinds, raw, where)


def _is_choice(hint: Any) -> bool:
    """Whether it is one of several structs: a later version may know more of them."""
    return get_origin(hint) in (Union, types.UnionType) and type(None) not in get_args(hint)


def _integer(raw: Any, where: str, bounds: tuple[Any, ...]) -> int:
    if type(raw) is not int:
        raise WireError(f"{where}: {type(raw).__name__}, must be int")
    if raw < 0:
        raise WireError(f"{where}: {raw}, must not be negative")
    _check_value(raw, where, bounds)
    return raw


def _number(raw: Any, where: str, bounds: tuple[Any, ...]) -> float:
    if type(raw) not in (float, int) or not math.isfinite(raw):
        raise WireError(f"{where}: must be a finite number")
    _check_value(raw, where, bounds)
    return float(raw)


def _boolean(raw: Any, where: str) -> bool:
    if type(raw) is not bool:
        raise WireError(f"{where}: {type(raw).__name__}, must be bool")
    return raw


def _check_value(raw: float, where: str, bounds: tuple[Any, ...]) -> None:
    for bound in bounds:
        if isinstance(bound, Most) and raw > bound.value:
            raise WireError(f"{where}: {raw}, at most {bound.value:g}")
        if isinstance(bound, Least) and raw < bound.value:
            raise WireError(f"{where}: {raw}, at least {bound.value:g}")


def _sized(kind: type[Any], raw: Any, where: str, bounds: tuple[Any, ...]) -> Any:
    if type(raw) is not kind:
        raise WireError(f"{where}: {type(raw).__name__}, must be {kind.__name__}")
    assert bounds, f"{where}: a field without a bound"
    for bound in bounds:
        if isinstance(bound, Exactly) and len(raw) != bound.length:
            raise WireError(f"{where}: length {len(raw)}, must be {bound.length}")
        if isinstance(bound, Most) and len(raw) > bound.value:
            raise WireError(f"{where}: length {len(raw)}, at most {bound.value:g}")
        if isinstance(bound, Made) and not bound.letters.issuperset(raw):
            raise WireError(f"{where}: {raw[:64]!r} has letters that none of its kind has")
    return raw


_STRUCTS = _index()
_CHECKERS = {kind: _checkers(kind) for kind in _STRUCTS.values()}
_FIELDS_LEAST = {
    kind: sum(f.default is dataclasses.MISSING for f in dataclasses.fields(kind))
    for kind in _STRUCTS.values()
}
_PARTS: dict[type[Struct], Callable[[Any], tuple[Any, ...]]] = {
    kind: attrgetter("code", *(f.name for f in dataclasses.fields(kind)))
    if dataclasses.fields(kind)
    else lambda struct: (struct.code,)
    for kind in _STRUCTS.values()
}
