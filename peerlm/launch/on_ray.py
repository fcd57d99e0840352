"""A node on each of N nodes of a Ray cluster: keepers as detached actors, one a machine, that Ray starts again.

Keeper 0 stays on the machine of the command, where the run was made, and signs the invite that the others get. Ray
spreads the others over machines of their own, and moves one to a spare machine when its own dies. All of that ends
with the daemons being up: they need neither keepers nor Ray, and what they learn goes through neither.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address, list_named_actors
from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from peerlm.daemon.resolve import parse_address
from peerlm.errors import ConfigError, PeerlmError, StateError, Unreachable
from peerlm.launch.keeper import Keeper

NAMESPACE = "peerlm"
GROUP = "peerlm"
KEEPER = "keeper-"

CONNECT_S = 5.0
ROOM_S = 30.0
"""For Ray to find room for all."""
UP_S = 180.0
"""For a node to enrol and answer, on a machine that is busy."""
ANSWER_S = 15.0
LEAVE_S = 240.0
"""A start under way, then a snapshot and goodbye."""
LOOK_S = 0.5
FAILURES = 2
"""So often a node may fail to start before the command says so and ends; its keeper tries on."""

MISSING = "Ray has no machine for it"
SILENT = "its daemon does not answer yet"
NOT_INSTALLED = "peerlm is not installed for the Python that Ray runs there"

Row = dict[str, Any]
"""What a keeper says of its node (`Keeper.look`), with `machine` and `ray_node`; `trouble` alone if it cannot be asked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """As asked for. `invite`: of a run made elsewhere, or empty; `gpus`: for each node, None for all that each has."""

    nodes: int
    invite: str
    state: str
    settings: tuple[str, ...]
    gpus: int | None
    enrol_until: str


class RayKeeper(Keeper):
    """A keeper as an actor."""

    def __init__(self, state: str, invite: str, settings: Sequence[str]) -> None:
        self._machine = str(get_node_ip_address())
        super().__init__(state, invite, settings, self._machine)

    def look(self) -> Row:
        place = {
            "machine": self._machine,
            "ray_node": str(ray.get_runtime_context().get_node_id()),
        }
        return place | super().look()

    def addresses(self) -> Sequence[str]:
        """Of all nodes that were placed: one that is moved must get in whoever has died since."""
        rows = ask(keepers(), "look", ANSWER_S).values()
        return [row["address"] for row in rows if row.get("state") and row["node_id"]]


# ------------------------------------------------------------------------------------- the cluster


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connected to the Ray cluster at `address`, or the one of this machine (`auto`). Raises `Unreachable`."""
    _require_listener(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # whatever Ray finds wrong
        where = "found" if address == "auto" else f"at {address}"
        raise Unreachable("connect", f"no Ray cluster {where}: {_plain(error)}") from None
    try:
        yield
    except RayError as error:
        raise Unreachable("connect", f"the Ray cluster failed: {_plain(error)}") from None
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself would knock for a quarter of an hour. Raises `Unreachable`."""
    if not address or address == "auto":
        return
    if "://" in address or ":" not in address:
        raise ConfigError(
            f"--address {address}: must be HOST:PORT of the cluster's head, or auto; run this on one of its machines"
        )
    host, port = parse_address(address)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        raise Unreachable(
            "connect", f"no Ray cluster at {address}: {error.strerror or error}"
        ) from None


def keepers() -> dict[int, Any]:
    """Number → actor, of those that Ray runs or means to run."""
    names = [name for name in list_named_actors() if name.startswith(KEEPER)]
    found = {}
    for name in names:
        try:
            found[int(name.removeprefix(KEEPER))] = ray.get_actor(name)
        except ValueError:  # gone meanwhile
            continue
    return dict(sorted(found.items()))


def ask(
    whom: Mapping[int, Any], method: str, timeout_s: float, *args: Any, late: str = MISSING
) -> dict[int, Row]:
    """The answers of all, asked at once; `late` is the `trouble` of those that have none in time."""
    asked = {getattr(keeper, method).remote(*args): number for number, keeper in whom.items()}
    if not asked:
        return {}
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    answers = {number: {"trouble": late} for number in whom}
    return answers | {asked[answer]: _answer(answer) for answer in done}


def _answer(reference: Any) -> Row:
    try:
        return dict(ray.get(reference))
    except RayError as error:
        text = str(error)
        if "No module named 'peerlm'" in text:
            return {"trouble": NOT_INSTALLED, "failures": FAILURES}
        return {"trouble": _plain(error)}


def _plain(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# ------------------------------------------------------------------------------------------- up


def up(wanted: Wanted) -> dict[int, Row]:
    """Start the nodes; how each is. Raises `ConfigError`, `StateError`, or `PeerlmError` with each that failed."""
    if keepers():
        raise StateError(
            "this Ray cluster has peerlm nodes already: `peerlm ray status` shows them, `peerlm ray down` ends them"
        )
    bundles = _bundles(wanted)
    _take_away({})  # what a command that was cut off has left
    group = placement_group(bundles, strategy="STRICT_SPREAD", name=GROUP, lifetime="detached")
    try:
        if not group.wait(timeout_seconds=ROOM_S):
            raise PeerlmError(
                f"Ray has no room for {wanted.nodes} nodes, one a machine, with {_shown(bundles[-1])} each"
            )
        invite = wanted.invite or _found(group, bundles, wanted)
    except BaseException:
        _take_away(keepers())
        raise
    for number in range(0 if wanted.invite else 1, wanted.nodes):
        _place(group, bundles, number, invite, wanted)
    rows = _await(keepers())
    if failed := {number: row for number, row in rows.items() if not row.get("state")}:
        told = "; ".join(
            f"{row.get('machine', number)}: {row['trouble'] or SILENT}"
            for number, row in failed.items()
        )
        raise PeerlmError(f"{len(failed)} of {wanted.nodes} nodes did not start: {told}")
    return rows


def _bundles(wanted: Wanted) -> list[dict[str, float]]:
    """What Ray is to keep free for each node. Raises `ConfigError`."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if wanted.nodes > len(nodes):
        raise ConfigError(f"--nodes {wanted.nodes}: the Ray cluster has {len(nodes)}")
    if wanted.invite:
        return shares([node["Resources"] for node in nodes], None, wanted.nodes, wanted.gpus)
    me = ray.get_runtime_context().get_node_id()
    here = next(node["Resources"] for node in nodes if node["NodeID"] == me)
    others = [node["Resources"] for node in nodes if node["NodeID"] != me]
    return shares(others, here, wanted.nodes, wanted.gpus)


def shares(
    others: Sequence[Mapping[str, float]],
    here: Mapping[str, float] | None,
    count: int,
    gpus: int | None,
) -> list[dict[str, float]]:
    """A bundle for each of `count` nodes: a processor and GPUs, as many as that many of the machines have.

    `here`: what the machine has on which node 0 must stay, by its address; it need not have a processor to spare."""
    bundles: list[dict[str, float]] = []
    if here is not None:
        address = next(name for name in here if name.startswith("node:") and "__" not in name)
        bundles.append({address: 0.001} | _gpus(here.get("GPU", 0.0) if gpus is None else gpus))
    left = count - len(bundles)
    most = sorted((other.get("GPU", 0.0) for other in others), reverse=True)[:left]
    share = {"CPU": 1.0} | _gpus(min(most, default=0.0) if gpus is None else gpus)
    return bundles + [share] * left


def _gpus(count: float) -> dict[str, float]:
    return {"GPU": float(int(count))} if count >= 1 else {}


def _shown(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())


def _place(
    group: Any, bundles: Sequence[Mapping[str, float]], number: int, invite: str, wanted: Wanted
) -> None:
    """Start one keeper. The processor in its bundle is for the node, which is no process of Ray's."""
    gpus = int(bundles[number].get("GPU", 0))
    workers = (f"train.local_workers={gpus}",) if gpus > 1 else ()
    actor = ray.remote(RayKeeper).options(
        name=f"{KEEPER}{number}",
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        num_gpus=gpus,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=number
        ),
    )
    actor.remote(wanted.state, invite, (*workers, *wanted.settings))


def _found(group: Any, bundles: Sequence[Mapping[str, float]], wanted: Wanted) -> str:
    """Start the run's own node, on this machine; the invite that it signs. Raises `PeerlmError`."""
    _place(group, bundles, 0, "", wanted)
    (row,) = _await(keepers()).values()
    if not row.get("state"):
        raise PeerlmError(row["trouble"] or SILENT)
    (answer,) = ask(keepers(), "invite", ANSWER_S * 2, wanted.enrol_until).values()
    if "invite" not in answer:
        raise PeerlmError(
            f"{answer['trouble']}; the node in {row['folder']} goes on: "
            f"`peerlm stop --state {row['folder']}` ends it"
        )
    return str(answer["invite"])


def _await(whom: Mapping[int, Any]) -> dict[int, Row]:
    """Until each node answers, or has failed again and again."""
    end = time.monotonic() + UP_S
    while True:
        rows = ask(whom, "look", ANSWER_S)
        undecided = [
            row
            for row in rows.values()
            if not row.get("state") and row.get("failures", 0) < FAILURES
        ]
        if not undecided or time.monotonic() > end:
            return rows
        time.sleep(LOOK_S)


# --------------------------------------------------------------------------------- status, down


def status() -> dict[int, Row]:
    """Raises `StateError` where there is none."""
    if not (found := keepers()):
        raise StateError(
            "no peerlm nodes on this Ray cluster: `peerlm ray up --nodes N` starts some"
        )
    return ask(found, "look", ANSWER_S)


def down() -> dict[int, Row]:
    """Have all nodes leave and take the keepers away; what went wrong, by number. Raises `StateError`."""
    if not (found := keepers()):
        raise StateError("no peerlm nodes on this Ray cluster")
    here = ask(found, "look", ANSWER_S)
    reached = {number: found[number] for number, row in here.items() if "folder" in row}
    left = ask(reached, "leave", LEAVE_S, late=f"it has not left within {LEAVE_S:.0f} s")
    _take_away(found)
    return {number: here[number] | left.get(number, {}) for number in found}


def _take_away(found: Mapping[int, Any]) -> None:
    """Keepers and the room that Ray kept for them. Daemons that have not left go on."""
    for keeper in found.values():
        ray.kill(keeper, no_restart=True)
    try:
        remove_placement_group(get_placement_group(GROUP))
    except ValueError:  # somebody else did
        pass
