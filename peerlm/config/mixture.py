"""`data.source = swarm:…`: corpora of the swarm's store, and how much of each the swarm trains on.

    swarm:plays                 one corpus
    swarm:plays*3+news          three windows of plays for one of news
    swarm:plays*0.7+news*0.3    the same kind of thing, said in shares
    swarm:plays*0.7+local*0.3   three rows of ten from each node's own text, which never leaves it

`local` is no corpus of the store but what each node has for itself (`data.local` in its node.toml); a node that has none draws
its rows from the others, by their weights.

A weight is a decimal number, 1 where none is given; only how weights relate counts, so they need no sum. It is read as the
fraction that it is, not as a float: every node draws the same order from it, however long the run.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from peerlm.errors import ConfigError

STORED = "swarm:"
"""What `data.source` begins with where the text is in the swarm's store."""

CORPORA_MAX = 16
"""In one mixture. Nodes tell each other what is read of each, and keep that in memory."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
"""As the store has them (`store.manifest`): none has `*` or `+` in it."""

_WEIGHT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")

OWN = "local"
"""Each node's own text: alone, or one of several."""

_SHIPPED = "shipped"
"""Text that is not in the store."""

_SHOWN_CHARS_MAX = 100


def shown(text: str) -> str:
    """What somebody wrote, for a line to a person: in quotes, and not all of it when it is long."""
    quoted = repr(text[: _SHOWN_CHARS_MAX + 1])
    return quoted if len(quoted) <= _SHOWN_CHARS_MAX else quoted[:_SHOWN_CHARS_MAX] + "…"


class Weighted(NamedTuple):
    """A corpus of a mixture."""

    name: str
    weight: int
    """As whole numbers that have no common divisor: 3 and 1, 7 and 3."""


def parse(source: str, where: str) -> tuple[Weighted, ...]:
    """The corpora that `source`, which begins with `STORED`, names; one or several, in the order given.

    Raises:
        ConfigError: it is no such list; with what to write instead.
    """
    assert source.startswith(STORED), source
    listed = source.removeprefix(STORED).split("+")
    if len(listed) > CORPORA_MAX:
        raise ConfigError(
            f"{where}: {len(listed)} corpora; at most {CORPORA_MAX} can be mixed, so add some of them as one: put their "
            "texts into one folder, and peerlm data add FOLDER --name NAME"
        )
    found: dict[str, Fraction] = {}
    for part in listed:
        name, star, weight = part.partition("*")
        if not name:
            raise ConfigError(
                f"{where}: a corpus has no name; write {STORED}NAME, or {STORED}NAME*3+NAME*1"
            )
        if part.startswith(STORED):
            raise ConfigError(f"{where}: {shown(part)}: leave out {STORED} but at the beginning")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: {shown(name)} is no name in the store; see `peerlm data ls`"
            )
        if name == _SHIPPED and len(listed) > 1:
            raise ConfigError(
                f"{where}: {name} is no corpus that can be mixed with others; put the text into the store, "
                "peerlm data add URL --name NAME, and name it"
            )
        if name in found:
            raise ConfigError(f"{where}: {name} is named twice; give it one weight")
        if star and not (_WEIGHT.fullmatch(weight) and float(weight) > 0):
            raise ConfigError(
                f"{where}: the weight of {name} is {shown(weight)}; it must be a number above 0 such as 3 or 0.25, of at most "
                "six digits before the point and six behind it; to leave a corpus out, do not name it"
            )
        found[name] = Fraction(weight) if star else Fraction(1)
    return _whole(found)


def has_own(source: str) -> bool:
    """Each node reads its own text, alone or with others. (A corpus of the store that is called `local`, and read alone, is the
    store's.) Raises as `parse`."""
    if not source.startswith(STORED):
        return source == OWN
    named = parse(source, "data.source")
    return len(named) > 1 and any(corpus.name == OWN for corpus in named)


def _whole(weights: dict[str, Fraction]) -> tuple[Weighted, ...]:
    scale = math.lcm(*(weight.denominator for weight in weights.values()))
    numbers = [int(weight * scale) for weight in weights.values()]
    common = math.gcd(*numbers)
    return tuple(Weighted(name, n // common) for name, n in zip(weights, numbers, strict=True))


def check_parts(source: str, shards: int, parts: tuple[int, ...], where: str) -> None:
    """`data.parts` cuts `shards` shards as `data.source` has it.

    Raises:
        ConfigError: it does not.
    """
    named = (
        parse(source, f"{where}: data.source = {shown(source)}")
        if source.startswith(STORED)
        else ()
    )
    if not parts and len(named) < 2:
        return
    owed = [0 if corpus.name == OWN and len(named) > 1 else 1 for corpus in named]
    if [min(count, 1) for count in parts] != owed or sum(parts) != shards:
        raise ConfigError(
            f"{where}: data.parts = {shown(str(list(parts)))} does not cut {shards} shards into those of data.source = {shown(source)}; "
            "`peerlm plan set data.source=…` sets both"
        )
