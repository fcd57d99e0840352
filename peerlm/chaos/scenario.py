"""What happens when, and to whom: a scenario file as a list of acts, the same for the same seed.

    name = "kills, stops and cuts"
    nodes = 5
    minutes = 30

    [[fault]]
    kind = "kill"          # one of KINDS
    every_s = 60           # at random times, so often on the average; or at_s = 120: once, then
    for_s = [10, 10]       # how long it lasts, between the two; a killed node is started again after it

    [[fault]]
    kind = "loss"
    at_s = 300
    for_s = 60
    rate = 0.1

Each kind begins with the first node, lest somebody think it were spared, and draws its victims after that, unless
`victims` say otherwise. Nothing begins in the last `calm_s` seconds, so that there is time to see the swarm well again. Only
decisions are made here; world.py carries them out.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peerlm.config import PRESETS
from peerlm.errors import ConfigError, PeerlmError
from peerlm.sim.network import read_wire

KINDS: dict[str, str] = {
    "kill": "SIGKILL to the daemon; started again when it is over",
    "everybody": "SIGKILL to every daemon at once; all are started again when it is over",
    "stop": "SIGSTOP to the daemon and its worker, as a machine that freezes",
    "worker": "SIGKILL to the worker, as the kernel does when memory is short",
    "crash": "SIGSEGV to the worker, as a fault of a driver does",
    "cut": "the machine's line carries nothing",
    "oneway": "the machine hears the others but is not heard",
    "split": "the machines of one half do not reach the others",
    "loss": "of all frames, `rate` get lost",
    "slow": "lines carry `rate` Mbit/s",
    "delay": "frames take `rate` ms more, one way",
    "corrupt": "of all frames, `rate` arrive with a bit of their load flipped and a checksum that fits",
    "full": "no room on the disk of the node's folder",
    "clock": "the wall clock of the machine is wrong by `rate` seconds, forward or, where negative, back",
    "guests": "clients on every port of the node, the page's too, that say nothing, nonsense, or a byte a second, again and again",
}
"""Kind of fault → what it is."""

OF_ALL = frozenset({"everybody", "split", "loss", "slow", "delay", "corrupt"})
"""Kinds that have no victim of their own."""

WITH_RATE = frozenset({"loss", "slow", "delay", "corrupt", "clock"})

INSTANT = frozenset({"worker", "crash"})
"""Kinds that are over at once."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble: at random times, `every_s` on the average, or once `at_s`."""

    kind: str
    every_s: float = 0.0
    at_s: float = 0.0
    for_s: tuple[float, float] = (0.0, 0.0)
    victims: tuple[int, ...] = ()
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """`pace`: tokens/s of each node's worker; `link`: of every machine, as `--link` of `peerlm bench`."""

    name: str
    nodes: int
    minutes: float
    seed: int = 1
    pace: float = 1000.0
    link: str = "1gbit,1ms"
    calm_s: float = 60.0
    preset: str = "tiny"
    plan: Mapping[str, Any] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)
    finish: bool = False
    """The run comes to its end: nodes train to a budget, settle, and their models are compared."""
    faults: tuple[Fault, ...] = ()

    @property
    def trouble_s(self) -> float:
        """From the beginning until nothing more happens."""
        return 60 * self.minutes - self.calm_s


def token_budget(scenario: Scenario) -> int:
    """Of the run. The learning rate follows it. It is not reached in the time: with `finish` all that the paces allow, of which
    faults cost some, so that what is left is learnt afterwards."""
    allowed = 60 * scenario.minutes * scenario.nodes * scenario.pace
    return int(allowed) if scenario.finish else int(1.5 * allowed) + 1


@dataclass(frozen=True, slots=True, order=True)
class Act:
    """From `at_s` to `until_s`. `nodes`: whom it befalls; of a split, one half."""

    at_s: float
    until_s: float
    kind: str
    nodes: tuple[int, ...]
    rate: float = 0.0


# ------------------------------------------------------------------------------------- reading


def read_scenario(text: str, where: str) -> Scenario:
    """Raises `ConfigError` with the field that is wrong."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    reader = _Reader(table, where)
    scenario = Scenario(
        name=reader.text("name", required=True),
        nodes=reader.whole("nodes", 2, 64, required=True),
        minutes=reader.number("minutes", 0.1, 10_000, required=True),
        seed=reader.whole("seed", 0, 2**62, 1),
        pace=reader.number("pace", 1, 1e9, 1000.0),
        link=reader.text("link", "1gbit,1ms"),
        calm_s=reader.number("calm_s", 0, 3600, 60.0),
        preset=reader.text("preset", "tiny"),
        plan=reader.table("plan"),
        node=reader.table("node"),
        finish=reader.flag("finish"),
        faults=tuple(
            _read_fault(entry, where, n) for n, entry in enumerate(reader.list("fault"), 1)
        ),
    )
    reader.done()
    if 60 * scenario.minutes <= scenario.calm_s:
        raise ConfigError(f"{where}: calm_s = {scenario.calm_s:g} leaves no time for faults")
    if scenario.preset not in PRESETS:
        raise ConfigError(
            f"{where}: preset = {scenario.preset!r}: must be one of {', '.join(PRESETS)}"
        )
    try:
        read_wire(scenario.link)
    except PeerlmError as error:
        raise ConfigError(f"{where}: link: {error}") from None
    for fault in scenario.faults:
        if beyond := [v for v in fault.victims if not 1 <= v <= scenario.nodes]:
            raise ConfigError(
                f"{where}: victims = {beyond[0]}: there are nodes 1 to {scenario.nodes}"
            )
    return scenario


def _read_fault(entry: object, where: str, number: int) -> Fault:
    where = f"{where}: fault {number}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: write [[fault]]")
    reader = _Reader(entry, where)
    kind = reader.text("kind", required=True)
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind = {kind!r}: must be one of {', '.join(KINDS)}")
    fault = Fault(
        kind=kind,
        every_s=reader.number("every_s", 0.1, 1e6, 0.0),
        at_s=reader.number("at_s", 0, 1e6, 0.0),
        for_s=reader.span("for_s"),
        victims=reader.numbers("victims"),
        rate=reader.number("rate", -1e9, 1e9, 0.0),
    )
    if ("every_s" in entry) == ("at_s" in entry):
        raise ConfigError(f"{where}: give every_s or at_s")
    if kind not in INSTANT and fault.for_s[1] <= 0:
        raise ConfigError(f"{where}: a {kind} lasts a while: for_s = [10, 20]")
    if kind in WITH_RATE and not fault.rate:
        raise ConfigError(f"{where}: a {kind} needs a rate")
    if kind != "clock" and fault.rate < 0:
        raise ConfigError(f"{where}: rate = {fault.rate:g}: must not be negative")
    if "victims" in entry and not fault.victims:
        raise ConfigError(
            f"{where}: victims = []: a {kind} that befalls nobody; leave it out for all"
        )
    if kind in OF_ALL and fault.victims:
        raise ConfigError(f"{where}: a {kind} befalls all and takes no victims")
    if kind in ("loss", "corrupt") and fault.rate >= 1:
        raise ConfigError(f"{where}: rate = {fault.rate:g}: must be a share below 1")
    reader.done()
    return fault


class _Reader:
    """Takes fields out of a table; what is left at the end nobody knows."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._rest = dict(table)
        self._where = where

    def _take(self, name: str, default: Any, *, required: bool) -> Any:
        if required and name not in self._rest:
            raise ConfigError(f"{self._where}: {name} is missing")
        return self._rest.pop(name, default)

    def text(self, name: str, default: str = "", *, required: bool = False) -> str:
        value = self._take(name, default, required=required)
        if not isinstance(value, str):
            raise ConfigError(f"{self._where}: {name} = {value!r}: must be text")
        return value

    def number(
        self, name: str, low: float, high: float, default: float = 0.0, *, required: bool = False
    ) -> float:
        is_given = name in self._rest
        value = self._take(name, default, required=required)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self._where}: {name} = {value!r}: must be a number")
        if is_given and not low <= value <= high:
            raise ConfigError(f"{self._where}: {name} = {value:g}: must be {low:g} to {high:g}")
        return float(value)

    def whole(
        self, name: str, low: int, high: int, default: int = 0, *, required: bool = False
    ) -> int:
        value = self.number(name, low, high, default, required=required)
        if value != int(value):
            raise ConfigError(f"{self._where}: {name} = {value:g}: must be a whole number")
        return int(value)

    def flag(self, name: str) -> bool:
        value = self._take(name, False, required=False)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where}: {name} = {value!r}: must be true or false")
        return value

    def numbers(self, name: str) -> tuple[int, ...]:
        values = self.list(name)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{self._where}: {name} = {value!r}: must be numbers of nodes")
        return tuple(values)

    def span(self, name: str) -> tuple[float, float]:
        value = self._take(name, 0.0, required=False)
        low, high = value if isinstance(value, list) and len(value) == 2 else (value, value)
        if not (_is_time(low) and _is_time(high) and low <= high):
            raise ConfigError(f"{self._where}: {name} = {value!r}: must be seconds, or two of them")
        return float(low), float(high)

    def list(self, name: str) -> list[Any]:
        value = self._take(name, [], required=False)
        if not isinstance(value, list):
            raise ConfigError(f"{self._where}: {name}: must be a list")
        return value

    def table(self, name: str) -> dict[str, Any]:
        value = self._take(name, {}, required=False)
        if not isinstance(value, dict):
            raise ConfigError(f"{self._where}: {name}: must be a table")
        return value

    def done(self) -> None:
        if self._rest:
            raise ConfigError(f"{self._where}: nobody knows {next(iter(self._rest))!r}")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


# ------------------------------------------------------------------------------------- deciding


def acts_of(scenario: Scenario) -> list[Act]:
    """All that will happen, in order of time."""
    last_s = scenario.trouble_s
    due: list[tuple[float, Fault, random.Random]] = []
    for number, fault in enumerate(scenario.faults):
        rng = random.Random(f"{scenario.seed} {number} {fault.kind}")
        due += [(at_s, fault, rng) for at_s in _times(fault, last_s, rng)]
    acts: list[Act] = []
    begun: set[str] = set()
    for at_s, fault, rng in sorted(due, key=lambda entry: entry[0]):
        until_s = min(at_s + rng.uniform(*fault.for_s), last_s)
        nodes = _victims(fault, scenario.nodes, rng, is_first=fault.kind not in begun)
        begun |= {fault.kind} if 1 in nodes else set()
        acts.append(Act(round(at_s, 3), round(until_s, 3), fault.kind, nodes, fault.rate))
    return sorted(acts)


def _times(fault: Fault, last_s: float, rng: random.Random) -> list[float]:
    if not fault.every_s:
        return [fault.at_s] if fault.at_s < last_s else []
    times, at_s = [], rng.expovariate(1 / fault.every_s)
    while at_s < last_s:
        times.append(at_s)
        at_s += rng.expovariate(1 / fault.every_s)
    return times


def _victims(fault: Fault, nodes: int, rng: random.Random, *, is_first: bool) -> tuple[int, ...]:
    everybody = tuple(range(1, nodes + 1))
    if fault.kind == "split":
        return tuple(sorted({1, *rng.sample(everybody, nodes // 2)}))[: max(1, nodes // 2)]
    if fault.kind in OF_ALL:
        return everybody
    candidates = fault.victims or everybody
    return (1 if is_first and 1 in candidates else rng.choice(candidates),)
