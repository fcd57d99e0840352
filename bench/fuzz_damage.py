"""Ways to damage bytes that were well-formed: what a broken disk, a broken peer or an enemy would send.

One half knows nothing of the format: bits flipped, bytes cut out, put in, repeated, two samples
spliced, a length that lies. The other half takes the sample apart by its format (msgpack, JSON, TOML)
and puts it together with something of another type, size or depth in one place: what comes out is
well-formed and reaches the checks behind the parser. A few inputs are bombs: small in bytes, large in
what they claim.

Everything is drawn from the rng that is handed in, so a seed is an input.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import msgpack

Way = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


class Form(Enum):
    """What a sample is made of."""

    BYTES = "bytes"
    MSGPACK = "msgpack"
    JSON = "json"
    TOML = "toml"
    TEXT = "text"


DAMAGES = (1, 1, 1, 2, 4)
"""Damages done to one sample, one after the other."""

GARBAGE_SHARE = 0.02
"""Of inputs that have nothing of a sample in them."""

BOMB_SHARE = 0.002
"""Of inputs that are as large as the decoder takes: each costs as much as a thousand others."""

DEEP = (3, 30, 300, 990, 1010, 1023, 1100, 5000)
"""Nesting around the limits of msgpack (1024), of Python's recursion (1000), and far beyond."""


def damaged(rng: random.Random, form: Form, samples: Sequence[bytes], bytes_max: int) -> bytes:
    """An input of at most `bytes_max` + 64 bytes, so that the bound itself is tried too."""
    chance = rng.random()
    if chance < BOMB_SHARE:
        return _BOMBS[form](rng, bytes_max)[: bytes_max + 64]
    if chance < BOMB_SHARE + GARBAGE_SHARE:
        return rng.randbytes(rng.choice((0, 1, 2, 7, 40, 300)))
    data = rng.choice(samples)
    ways = _WAYS[form]
    for _ in range(rng.choice(DAMAGES)):
        data = rng.choice(ways)(rng, data, samples)
    return data[: bytes_max + 64]


# ------------------------------------------------------------------------------ knowing nothing


def _flip(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    length = rng.choice((1, 1, 2, 4, 8, 32))
    filling = rng.choice((b"\x00" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:at] + filling + data[at + length :]


def _cut(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _remove(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.choice((1, 2, 5, 40)) :]


def _insert(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 60))) + data[at:]


def _repeat(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    at, length = rng.randint(0, len(data)), rng.choice((1, 3, 20, 200))
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]


def _splice(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    other = rng.choice(samples)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _lie(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    """A number of 1, 2, 4 or 8 bytes somewhere becomes one that matters to somebody."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randint(0, max(0, len(data) - width))
    bits = 8 * width
    number = rng.choice((0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, 2**bits - 2))
    order = rng.choice(("big", "little"))
    return data[:at] + number.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]


_BLIND: tuple[Way, ...] = (_flip, _flip, _overwrite, _cut, _remove, _insert, _repeat, _splice, _lie)


# --------------------------------------------------------------------------- well-formed but wrong


def _odd(rng: random.Random) -> Any:
    """A value that some field does not expect."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        edges = (0, 1, 127, 2**31, 2**32, 2**53, 2**62 - 1, 2**62, 2**62 + 1, 2**63 - 1)
        return rng.choice((1, -1)) * rng.choice(edges)
    if kind == 2:
        return rng.choice((0.0, -0.0, 0.5, -1.5, 1e-308, 5e-324, 1e308, -1e308, 2.0**62))
    if kind == 3:
        return rng.choice((float("nan"), float("inf"), float("-inf")))
    if kind == 4:
        text = rng.choice(("", "x", "\0", "é", "\n", "\u202e", "ab ", "::", "9" * 30))
        return text * rng.choice((1, 1, 9, 300, 5000))
    if kind == 5:
        few = [_odd(rng) for _ in range(rng.choice((0, 1, 2, 3)))]
        return few * (500 if rng.random() < 0.02 else 1)
    if kind == 6:
        return {str(key): _odd(rng) for key in range(rng.choice((0, 1, 2)))}
    return _nested(rng.choice(DEEP[:6]))


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _changed(rng: random.Random, tree: Any, odd: Callable[[random.Random], Any]) -> Any:
    """`tree` with one place changed: replaced, removed, doubled or moved."""
    path: list[tuple[Any, Any]] = []
    place = tree
    while isinstance(place, list | dict) and place and (not path or rng.random() < 0.75):
        key = rng.randrange(len(place)) if isinstance(place, list) else rng.choice(list(place))
        path.append((place, key))
        place = place[key]
    if not path:
        return odd(rng)
    parent, key = path[-1]
    act = rng.randrange(6)
    if act == 0:
        del parent[key]
    elif act == 1 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif act == 2 and isinstance(parent, list):
        other = rng.randrange(len(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif act == 3:
        parent[key] = _nearby(rng, parent[key])
    else:
        parent[key] = odd(rng)
    return tree


def _nearby(rng: random.Random, value: Any) -> Any:
    """The same type, and hardly the same value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 2**32, 2**61))
    if isinstance(value, float):
        return value * rng.choice((-1.0, 1e300, 1e-300))
    if isinstance(value, bytes):
        return _BLIND[rng.randrange(len(_BLIND))](rng, value, (value,))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + value, value.upper(), value + "\0", value[::-1]))
    if isinstance(value, list):
        return value * rng.choice((0, 2, 2, 40))
    return [value]


def _msgpack_odd(rng: random.Random) -> Any:
    chance = rng.random()
    if chance < 0.06:
        return msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.choice((0, 1, 4, 8, 16))))
    if chance < 0.1:
        return msgpack.Timestamp(rng.choice((0, 2**33, 2**62)), rng.choice((0, 999_999_999)))
    if chance < 0.25:
        return rng.randbytes(rng.choice((0, 1, 15, 16, 17, 31, 32, 33, 64, 500, 3000)))
    if chance < 0.3:
        return rng.choice((2**64 - 1, -(2**63)))
    return _odd(rng)


def _msgpack(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    try:
        tree = _unpacked(data)
        return _packed(_changed(rng, tree, _msgpack_odd))
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return _flip(rng, data, samples)


def _msgpack_splice(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    """The fields of one sample under the name of another."""
    try:
        ours, theirs = _unpacked(data), _unpacked(rng.choice(samples))
        at = rng.randint(0, len(ours))
        return _packed(ours[:at] + theirs[rng.randint(0, len(theirs)) :])
    except (ValueError, TypeError, OverflowError, KeyError, msgpack.UnpackException):
        return _splice(rng, data, samples)


def _unpacked(data: bytes) -> Any:
    """The harness must not fall for its own bombs."""
    return msgpack.unpackb(data, strict_map_key=False, max_array_len=min(len(data), 10_000))


def _packed(tree: Any) -> bytes:
    packed: bytes = msgpack.packb(tree, use_bin_type=True, unicode_errors="surrogatepass")
    return packed


def _json_odd(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return rng.choice(("\ud800", "zz" * 16, 10 ** rng.choice((20, 400)), 1e400, "AAAA", "A"))
    return _odd(rng)


def _json(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    """One line of it, if it has several."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = json.dumps(_changed(rng, json.loads(lines[at]), _json_odd)).encode()
    except (ValueError, TypeError, OverflowError, RecursionError):
        return _flip(rng, data, samples)
    return b"\n".join(lines)


def _lines(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Lines swapped, doubled, dropped, or taken from another sample."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    act = rng.randrange(4)
    if act == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif act == 1:
        lines.insert(at, lines[other])
    elif act == 2:
        del lines[at]
    else:
        lines.insert(at, rng.choice(rng.choice(samples).split(b"\n")))
    return b"\n".join(lines)


_TOML_VALUES = (
    *("", "=", "[", "]]", '"', "'''", "0x", "1_", "1e", "--1", "nan", "-inf", "true", "1.0", "-1"),
    *('""', "[]", "{}", "{a = 1}", "[1, 'a']", '["a", ["b"]]', "1979-05-27T07:32:00Z", "25:61:61"),
    *("9999-99-99", "9223372036854775807", "1e400", "0o7", "0b2", '"\\uD800"', '"\\U0011FFFF"'),
    *(
        "9" * 5000,
        "-" + "9" * 4400,
        "0x" + "f" * 4000,
        "[0x" + "f" * 4000 + "]",
        "é",
        "\x00",
        "\x7f",
    ),
    *("0b" + "1" * 70, "4611686018427387904", "1" + "0" * 400, "00", "+0", "1__0", "[" * 40),
)


def _toml(rng: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Another value behind a name, or another name before a value."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    name, equals, value = lines[at].partition(b"=")
    act = rng.randrange(5)
    if act == 0:
        depth = rng.choice(DEEP)
        lines[at] = name + b"=" + b"[" * depth + b"]" * depth
    elif act == 1:
        lines[at] = b".".join([name.strip()] * rng.choice((2, 3, 80, 500))) + equals + value
    elif act == 2:
        lines[at] = b"[" + name.strip() + b"]"
    else:
        lines[at] = name + b"= " + rng.choice(_TOML_VALUES).encode()
    return b"\n".join(lines)


_WAYS: dict[Form, tuple[Way, ...]] = {
    Form.BYTES: _BLIND,
    Form.MSGPACK: (*_BLIND, *[_msgpack] * 8, *[_msgpack_splice] * 2),
    Form.JSON: (*_BLIND, *[_json] * 8, _lines),
    Form.TOML: (*_BLIND, *[_toml] * 8, *[_lines] * 3),
    Form.TEXT: (*_BLIND, _lines, _lines),
}


# ------------------------------------------------------------------------------------------ bombs


def _bytes_bomb(rng: random.Random, size: int) -> bytes:
    return rng.choice((b"\x00", b"\xff", b"A", rng.randbytes(1))) * size


def _msgpack_bomb(rng: random.Random, size: int) -> bytes:
    claim = rng.choice((size, size // 2, 4000, 4096, 70_000, 2**32 - 1))
    kind = rng.randrange(6)
    if kind == 0:  # arrays in arrays, each as long as there are bytes
        head = b"\xdd" + claim.to_bytes(4, "big")
        return (head * 1022).ljust(size, b"\xc0")
    if kind == 1:  # many of the smallest there is
        filling = rng.choice((b"\xc0", b"\x90", b"\x80", b"\x00", b"\xa0"))
        return b"\xdd" + max(0, size - 5).to_bytes(4, "big") + filling * max(0, size - 5)
    if kind == 2:
        return rng.choice((b"\x91", b"\x81\xa1a", b"\x9f", b"\xdc\x00\x01")) * size
    if kind == 3:
        head = rng.choice((b"\xc6", b"\xdb", b"\xdd", b"\xdf", b"\xc9"))
        return head + claim.to_bytes(4, "big") + bytes(size)
    if kind == 4:
        return _packed([rng.randrange(64), "x" * max(0, size - 10)])
    pairs = max(1, size // 9)
    return (
        b"\xdf"
        + pairs.to_bytes(4, "big")
        + b"".join(b"\xa7%07d\xc0" % (key % 10**7) for key in range(pairs))
    )


def _json_bomb(rng: random.Random, size: int) -> bytes:
    return rng.choice(
        (b"[" * size, b'{"a":' * (size // 5), b"[0," * (size // 3), b"9" * size, b'"' + b"x" * size)
    )


def _toml_bomb(rng: random.Random, size: int) -> bytes:
    return rng.choice(
        (
            b"a = " + b"[" * size,
            b"a" + b".a" * (size // 2) + b" = 1",
            b"a = {" + b"b = {" * (size // 5),
            b"[" + b"a." * (size // 2) + b"a]",
            b"# " + b"." * size,
            b"a = " + b"9" * size,
            b"\n".join(b"k%d = 1" % number for number in range(size // 9)),
            b'a = """' + b'"" ' * (size // 3),
        )
    )


_BOMBS: dict[Form, Callable[[random.Random, int], bytes]] = {
    Form.BYTES: _bytes_bomb,
    Form.MSGPACK: _msgpack_bomb,
    Form.JSON: _json_bomb,
    Form.TOML: _toml_bomb,
    Form.TEXT: _bytes_bomb,
}
