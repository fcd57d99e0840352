"""`peerlm doctor`: what is right with a node and its machine, and what is not, a line each with the cure.

Each check looks at one thing and says what it found; none changes anything. What cannot be looked at from here
is said to be so, rather than left out.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from peerlm.cli import doctor_machine, words
from peerlm.cli.finding import Finding
from peerlm.cli.settings_text import read_node_settings
from peerlm.cli.state import has_node, read_run, state_option
from peerlm.config import NodeSettings, Plan
from peerlm.daemon.control import NoDaemon, ask
from peerlm.errors import PeerlmError, Unreachable
from peerlm.store.layout import Layout
from peerlm.types import printable, short

SNAPSHOTS = 3
BYTES_A_PARAMETER = 8
"""Two snapshots are kept and a third is there while it is written: φ and m in fp32."""

SOON_S = 14 * 86_400
CONNECT_S = 5.0
REACH_S = 30.0
"""Longer than members have for their answers."""


@click.command(short_help="Check this node and its machine, and the way to a peer.")
@click.argument("peers", metavar="[PEER]...", nargs=-1)
@state_option
def doctor(layout: Layout, peers: tuple[str, ...]) -> None:
    """Check this node and its machine: certificate, daemon, clock, disk, ports, device, limits; and the way to
    each PEER. A line for each with the cure. Exit code 1 when something is bad.

    \b
    Examples:
      peerlm doctor
      peerlm doctor ada.example.org tcp://192.168.1.20:7700
    """
    bad = 0
    for finding in examine(layout, peers):
        click.echo(printable(str(finding)))
        bad += finding.ok is False
    if bad:
        raise PeerlmError(f"{bad} to be mended")


def examine(layout: Layout, peers: tuple[str, ...]) -> Iterator[Finding]:
    """All that can be said, in the order in which it matters."""
    settings = NodeSettings()
    status, found = _daemon(layout)
    try:
        yield _certificate(layout)
        settings = read_node_settings(layout)
    except PeerlmError as error:
        yield _unread(layout, status, error)
    yield found
    yield from _tried("plan", lambda: _plan_held(layout, status))
    yield doctor_machine.clock()
    yield from _tried("disk", lambda: _disk(layout))
    yield doctor_machine.files(status)
    yield doctor_machine.device(status, settings)
    yield doctor_machine.ports(status, settings)
    if status is not None:
        said = _reach(layout)
        yield _dialled(said.get("dialled", status["dialled"]), _ports_of(status, settings))
        yield from _store(status.get("store", {}))
        status["answers"] = said.get("answers", {})
    for address in peers:
        yield from _peer(layout, address, status)


def _tried(what: str, check: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield check()
    except (PeerlmError, OSError) as error:
        yield Finding(what, None, f"cannot be looked at: {error}")


# ------------------------------------------------------------------------------------- this node


def _certificate(layout: Layout) -> Finding:
    from peerlm.identity import files
    from peerlm.identity.chain import date, read_chain

    run = read_run(layout)
    links = files.read_chain_file(layout.root)
    assert links is not None, "read_run has read it"
    until = read_chain(links, run.root_public_key, run.run_id)
    text = (
        f"{short(run.node_id)} of run {short(run.run_id)}, certified until {date(until.not_after)}"
    )
    wall = time.time()
    if wall < until.not_before:
        cure = f"it holds from {date(until.not_before)}: set the clock"
        return Finding("node", False, text, cure)
    if wall > until.certs_until:
        return Finding(
            "node", False, text, "its invite has ended: peerlm rm, and join with a new token"
        )
    if wall > until.not_after:
        return Finding("node", None, text, "that is over: the daemon renews it once it runs")
    if wall > until.certs_until - SOON_S:
        return Finding(
            "node", True, text, f"its invite ends {date(until.certs_until)}: join anew by then"
        )
    return Finding("node", True, text)


def _unread(layout: Layout, status: dict[str, Any] | None, error: PeerlmError) -> Finding:
    """Of a service whose folder is hidden from who may only ask it, its own word is all that can be had."""
    if status is None or _may_look(layout):
        return Finding("node", False, str(error))
    said = f"{status['node_id'][:8]} of run {status['run_id'][:8]}, by the daemon's word"
    return Finding("node", None, f"{said}; its certificate is not looked at: {error}")


def _may_look(layout: Layout) -> bool:
    try:
        has_node(layout)
    except PeerlmError:
        return False
    return True


def _daemon(layout: Layout) -> tuple[dict[str, Any] | None, Finding]:
    try:
        status = ask(layout, "status")
    except NoDaemon as error:
        return None, Finding("daemon", False, str(error))
    except PeerlmError as error:
        return None, Finding("daemon", None, str(error))
    text = f"{status['state']} at {status['address']}: {status['why'][0]}"
    return status, Finding("daemon", bool(status["ready"]), text)


def _plan_held(layout: Layout, status: dict[str, Any] | None) -> Finding:
    """Whether others have the same plan: nodes mix only where they do."""
    if status is None:
        from peerlm.cli.plan import current_plan

        signed = current_plan(layout)
        text = f"revision {signed.revision}, hash {signed.plan_hash.hex()[:16]}"
        return Finding("plan", True, f"{text}; the same must stand in `peerlm plan show` elsewhere")
    text = f"revision {status['plan_revision']}, hash {status['plan_hash'][:16]}"
    others = [m for m in status["members"] if _has_other_plan(m)]
    if others:
        text += f"; {_name(others[0])} has {others[0]['reason']}"
        cure = "sign one more revision with `peerlm plan set`, and see that all get it"
        return Finding("plan", False, text, cure)
    linked = sum(m["linked"] and m["id"] != status["node_id"] for m in status["members"])
    said = f"; all {linked} nodes that it is connected with have it" if linked else ""
    return Finding("plan", True, text + said)


def _has_other_plan(member: dict[str, Any]) -> bool:
    """By what the daemon says; an older one says nothing of it."""
    from peerlm.node.reasons import OTHER_PLAN

    return str(member.get("reason", "")).startswith(OTHER_PLAN)


def _name(member: dict[str, Any]) -> str:
    return str(member["id"])[:8]


def _disk(layout: Layout) -> Finding:
    parameters = sum(spec.size for spec in _fragments(_plan(layout)))
    needed = SNAPSHOTS * BYTES_A_PARAMETER * parameters
    room = os.statvfs(layout.root)
    free = room.f_bavail * room.f_frsize
    text = f"{words.size(free)} free, snapshots of {words.count(parameters)} parameters take {words.size(needed)}"
    return Finding(
        "disk", free > needed, text, "" if free > needed else "free some, or use another --state"
    )


def _plan(layout: Layout) -> Plan:
    from peerlm.cli.plan import current_plan

    return current_plan(layout).plan


def _fragments(plan: Plan) -> Any:
    from peerlm.model.plan import fragments

    return fragments(plan)


def _reach(layout: Layout) -> dict[str, Any]:
    """What others find who try to dial this node now; nothing where an older daemon cannot ask them."""
    try:
        return ask(layout, "reach", timeout_s=REACH_S)
    except PeerlmError:
        return {}


def _ports_of(status: dict[str, Any], settings: NodeSettings) -> str:
    """Of the running daemon; an older one does not say."""
    first = settings.network.port
    as_set = [first, first + 1, first + 2] if first else []
    ports = status["daemon"].get("listening", {}).get("ports", as_set)
    return f"ports {doctor_machine.in_words(ports)}" if ports else "its three ports"


def _dialled(dialled: dict[str, Any], ports: str) -> Finding:
    """Whether others can dial this node, by what they have told it. `ports`: its own, in words."""
    if not dialled["not_by"]:
        by = dialled["by"]
        if not by:
            return Finding(
                "dialled", None, "nobody has dialled this node yet: not known whether they can"
            )
        return Finding("dialled", True, f"by {by} other{'s' if by > 1 else ''}")
    cure = f"let {ports} in, or have the router pass them on and set network.advertise"
    if not dialled["guarded"]:
        text = f"by some, not by {dialled['not_by']}: {dialled['failure']}"
        return Finding("dialled", None, text, cure)
    text = f"by nobody: {dialled['failure']}; it mixes by dialling out"
    return Finding("dialled", None, text, f"nothing need be done; for more partners {cure}")


def _store(store: dict[str, Any]) -> Iterator[Finding]:
    """An older daemon says little of it."""
    for line in store.get("wrong", ()):
        yield Finding("store", False, line)
    if not store.get("names") or "wrong" not in store:
        return
    wanted, nodes = store["replicas_wanted"], store["nodes"]
    if nodes < wanted:
        text = f"live nodes that offer room: {nodes}, and {wanted} replicas are wanted: what is there has {nodes}"
        yield Finding("store", None, text, "bring another node, or live with it")
    elif not store["wrong"]:
        kept = f"{words.size(store['used_bytes'])} of {words.size(store['capacity_bytes'])} used"
        yield Finding("store", True, f"{kept}; {_coming(store)}")


def _coming(store: dict[str, Any]) -> str:
    if not store["swarm_lacking"]:
        return "nothing lacks"
    return (
        f"{store['lacking']} replicas are on their way here, {store['swarm_lacking']} in the swarm"
    )


# --------------------------------------------------------------------------------------- a peer


def _peer(layout: Layout, address: str, status: dict[str, Any] | None) -> Iterator[Finding]:
    from peerlm.daemon.knock import knock
    from peerlm.identity import files
    from peerlm.wire.message import Refusal
    from peerlm.wire.versions import fits, misfit

    try:
        run, links = read_run(layout), files.read_chain_file(layout.root)
        assert links is not None, "read_run has read it"
        host, answer = knock(address, run.run_id, links)
    except Unreachable as error:
        yield Finding("peer", False, str(error), "check name, port, firewall, and that it runs")
        return
    except PeerlmError as error:
        yield Finding("peer", None, f"{address}: not asked: {error}")
        return
    if isinstance(answer, Refusal):
        yield Finding("peer", False, f"{address} refuses this node: {answer.detail}")
        return
    fitting = fits(answer.version)
    text = f"{address} lets this node in, speaks version {answer.version}, sees it as {answer.seen_host}"
    yield Finding("peer", fitting, text, "" if fitting else misfit(answer.version))
    for name, port in (("control", answer.control_port), ("bulk", answer.bulk_port)):
        yield _reached(name, host, port)
    if status is not None:
        yield _linked(status, address)
        yield from _back(status, address)


def _reached(name: str, host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(name, False, f"{host} port {port}: {reason}", "open it in the firewall")
    return Finding(name, True, f"{host} port {port} can be reached")


def _member_at(status: dict[str, Any], address: str) -> dict[str, Any] | None:
    bare = address.removeprefix("tcp://").rstrip("/")
    at = (m for m in status["members"] if m["address"].removeprefix("tcp://") == bare)
    return next(at, None)


def _linked(status: dict[str, Any], address: str) -> Finding:
    if (member := _member_at(status, address)) is not None:
        return _way_to(member)
    cure = f"whether it can dial this node: run `peerlm doctor {status['address']}` there"
    return Finding("link", None, "no member has just this address", cure)


def _back(status: dict[str, Any], address: str) -> Iterator[Finding]:
    """The way from the peer to this node, where it has just tried."""
    member = _member_at(status, address)
    failure = status["answers"].get(member["id"]) if member else None
    if failure is None:
        return
    if failure:
        text = f"it cannot dial this node: {failure}"
        yield Finding("back", None, text, "exchanges with it begin here; or open this node's ports")
    else:
        yield Finding("back", True, "it can dial this node")


def _way_to(member: dict[str, Any]) -> Finding:
    """What the daemon knows of a member at that address."""
    reason = member.get("reason", "")  # an older daemon gives none
    if not member["linked"]:
        return Finding("link", False, f"no connection now{reason and f': {reason}'}")
    if reason:
        return Finding("link", False, f"connected, and yet: {reason}")
    return Finding(
        "link", True, "the daemon has a working connection with it; it has the same plan"
    )
