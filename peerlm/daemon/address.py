"""Which address of this machine others should dial, when nobody has said.

The kernel is asked which interface it would send from, towards a seed peer if one is known, else
towards the world. Connecting a UDP socket sends nothing. A network that is closed may have no way to the world: then it is the first
address of the machine that is not its own alone. Behind NAT this is the inside address; `network.advertise` in node.toml is for that.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from itertools import chain

import psutil

from peerlm.config import NetworkSection

EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that stand for all addresses of the machine."""

NOWHERE = "127.0.0.1"
"""What stands for an address that is not found: this machine's alone."""

ANYWHERE = "192.0.2.1"
"""An address reserved for documentation: routed like the world, owned by nobody (RFC 5737)."""


def advertised_host(network: NetworkSection, seeds: Sequence[str]) -> str:
    """The host to put into our record: as set, as listened on, or as the kernel would send from."""
    if network.advertise:
        return network.advertise
    if network.host not in EVERYWHERE:
        return network.host.partition("%")[0]
    targets = [host for host in map(_ip_of, seeds) if host]
    found = chain(map(_source_towards, [*targets, ANYWHERE]), _of_interfaces())
    return next(filter(None, found), NOWHERE)


def page_port_for_others(page_host: str, network_host: str, advertised: str, port: int) -> int:
    """`port`, if members see the page at the host at which they dial this node; else 0. By default they do not:
    the page is this machine's alone. On a machine on which the swarm is, too, they do."""
    is_at_address = page_host == network_host or page_host == advertised != NOWHERE
    return port if is_at_address or page_host in EVERYWHERE else 0


def _ip_of(address: str) -> str:
    """The IP in `tcp://ip:port`; empty for a name, which is not worth a lookup here."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def _of_interfaces() -> Iterator[str]:
    """Addresses of interfaces that are up, IPv4 first; those that mean nothing elsewhere are left out."""
    stats = psutil.net_if_stats()
    listed = [
        (each.family, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        if name in stats and stats[name].isup
        for each in addresses
    ]
    for family in (socket.AF_INET, socket.AF_INET6):
        for of_family, address in listed:
            if of_family == family and not _is_of_no_use(address):
                yield address


def _is_of_no_use(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified


def _source_towards(ip: str) -> str:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((ip, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""
