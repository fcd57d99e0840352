"""Faults by a script: what goes wrong when, as a person writes it in a file.

    [[fault]]
    at_s = 60
    do = "kill"          # restart, freeze, slow, split, heal, link, power_cut, join, leave, pause, resume
    nodes = [2, 3]
    for_s = 20           # where it ends by itself: kill, freeze, slow, split, link, pause

`kill` with `for_s` restarts them after; `split` sets the named nodes against all others; `link`
(with `link = "10mbit,200ms,2%"`) makes all lines of the named nodes like that. Random faults are
menus.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peerlm.errors import ConfigError
from peerlm.events import Leave, Pause, Resume
from peerlm.sim.network import read_wire
from peerlm.sim.world import World

ENDS_WITH = {
    "kill": "restart",
    "power_cut": "restart",
    "freeze": "",
    "slow": "hurry",
    "split": "",
    "link": "unlink",
    "pause": "resume",
}
"""What a fault with `for_s` is followed by; a freeze ends by itself, and a split mends what it cut."""

NEEDS_NODES = {"kill", "power_cut", "restart", "freeze", "slow", "split", "link"}
NAMES_NOBODY = {"heal", "join"}
KINDS = {*NEEDS_NODES, *NAMES_NOBODY, "leave", "pause", "resume"}
KEYS = {"at_s", "do", "nodes", "for_s", "link"}

SLOW_S = (1.0, 3.0)
"""What each message waits at a slow node."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    do: str
    nodes: tuple[int, ...] = ()
    for_s: float | None = None
    link: str = ""


def read_faults(document: Mapping[str, Any], where: str, nodes: int) -> tuple[Fault, ...]:
    """The faults of a parsed file, by time. `nodes`: how many the swarm begins with.

    Raises:
        ConfigError: a line that says where, what and what there is.
    """
    unknown = sorted(set(document) - {"fault"})
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r} is not known here; faults are [[fault]] tables")
    tables = document.get("fault", [])
    if not isinstance(tables, list) or not all(isinstance(raw, Mapping) for raw in tables):
        raise ConfigError(f"{where}: fault must be [[fault]] tables, not {str(tables)[:40]}")
    faults = [_read(raw, f"{where}: fault {i + 1}", nodes) for i, raw in enumerate(tables)]
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _read(raw: Mapping[str, Any], where: str, nodes: int) -> Fault:
    for key in sorted(set(raw) - KEYS):
        raise ConfigError(f"{where}: {key!r} is not known; there are {', '.join(sorted(KEYS))}")
    do = raw.get("do", "")
    if not isinstance(do, str) or do not in KINDS:
        raise ConfigError(f"{where}: do = {do!r}: must be one of {', '.join(sorted(KINDS))}")
    at_s, for_s = _seconds(raw, "at_s", where), None
    if "for_s" in raw:
        if do not in ENDS_WITH:
            raise ConfigError(f"{where}: for_s means nothing for {do!r}")
        for_s = _seconds(raw, "for_s", where)
    elif do == "freeze":
        raise ConfigError(f"{where}: a freeze needs for_s, how long it lasts")
    named = raw.get("nodes", [])
    if not isinstance(named, list) or not all(type(n) is int and 0 <= n < 4096 for n in named):
        raise ConfigError(f"{where}: nodes = {named!r}: must be a list of node numbers from 0")
    if named and do in NAMES_NOBODY:
        raise ConfigError(f"{where}: nodes means nothing for {do!r}")
    if not named and do in NEEDS_NODES:
        raise ConfigError(f"{where}: {do!r} needs nodes = [...], the numbers of the nodes it hits")
    if strange := [n for n in named if n >= nodes]:
        raise ConfigError(
            f"{where}: there is no node {strange[0]}; the swarm begins with 0 to {nodes - 1}"
        )
    return Fault(at_s, do, tuple(named), for_s, _link(raw, do, where))


def _link(raw: Mapping[str, Any], do: str, where: str) -> str:
    link = raw.get("link", "")
    if do != "link":
        if "link" in raw:
            raise ConfigError(f"{where}: link means nothing for {do!r}")
        return ""
    if not isinstance(link, str) or not link.strip(" ,"):
        raise ConfigError(f'{where}: link = {link!r}: must be like "10mbit,200ms,2%"')
    try:
        read_wire(link, "link =")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return link


def _seconds(raw: Mapping[str, Any], key: str, where: str) -> float:
    value: Any = raw.get(key)
    if type(value) not in (int, float) or not (0 <= value < math.inf):
        raise ConfigError(f"{where}: {key} = {value!r}: must be a number of seconds, 0 or more")
    return float(value)


def plan_faults(world: World, faults: Iterable[Fault]) -> None:
    """Let them come true on the world's clock."""
    for fault in faults:
        world.clock.at(fault.at_s, befall, world, fault)


def befall(world: World, fault: Fault) -> None:
    """Now."""
    match fault.do:
        case "split":
            side = set(fault.nodes)
            apart = world.split(sorted(side), [n for n in world.machines if n not in side])
            if fault.for_s is not None:
                world.clock.at(fault.for_s, world.end_split, apart)
        case "heal":
            world.heal()
        case "join":
            known = [m.number for m in world.up()] or list(world.machines)
            world.add(len(world.machines), *known[:3])
        case _:
            for number in fault.nodes or list(world.machines):
                _befall_one(world, fault, number)
                if fault.for_s is not None and ENDS_WITH[fault.do]:
                    until = world.now + fault.for_s
                    lasts = world.faults_until.get((fault.do, number), 0.0)
                    world.faults_until[fault.do, number] = max(until, lasts)
                    world.clock.at(fault.for_s, _end, world, fault, number)


def _end(world: World, fault: Fault, number: int) -> None:
    """A fault's time is over for one machine, unless another of its kind lasts longer."""
    if world.faults_until[fault.do, number] <= world.now:
        _befall_one(world, Fault(0.0, ENDS_WITH[fault.do]), number)


def _befall_one(world: World, fault: Fault, number: int) -> None:
    machine = world.machines[number]
    match fault.do:
        case "kill":
            world.kill(number)
        case "power_cut":
            world.power_cut(number)
        case "restart":
            if not machine.is_up:
                world.restart(number)
        case "freeze":
            if machine.is_up and not machine.is_frozen:
                assert fault.for_s is not None
                world.freeze(number, fault.for_s)
        case "slow":
            machine.slowness = SLOW_S
        case "hurry":
            machine.slowness = None
        case "link":
            world.set_wires(number, read_wire(fault.link))
        case "unlink":
            world.set_wires(number, None)
        case "leave":
            machine.post(Leave())
        case "pause":
            machine.post(Pause())
        case "resume":
            machine.post(Resume())
