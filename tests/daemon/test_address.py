"""Which host others are told to dial, and whether they see the page there."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from peerlm.config import NetworkSection
from peerlm.daemon import address
from peerlm.daemon.address import advertised_host, page_port_for_others

LOOPBACK, OURS, OTHER = "127.0.0.1", "192.168.1.20", "10.0.0.5"


def test_what_was_said_is_told_before_what_is_listened_on() -> None:
    assert advertised_host(NetworkSection(host=OURS, advertise="ada.example.org"), ()) == (
        "ada.example.org"
    )
    assert advertised_host(NetworkSection(host=OURS), ()) == OURS
    seed = f"tcp://{LOOPBACK}:7700"
    for everywhere in ("", "0.0.0.0", "::"):
        assert advertised_host(NetworkSection(host=everywhere), (seed,)) == LOOPBACK


@pytest.mark.parametrize(
    ("interfaces", "told"),
    [
        ({"lo": ["127.0.0.1", "::1"]}, LOOPBACK),
        ({"lo": ["127.0.0.1"], "eth0": ["fe80::1%eth0", "fd00::5", OURS]}, OURS),
        ({"down": [OTHER], "eth0": [OURS]}, OURS),
        ({"eth0": ["169.254.3.4"], "eth1": [OURS]}, OURS),
        ({"eth0": ["fe80::1%eth0", "fd00::5"]}, "fd00::5"),
    ],
)
def test_where_no_way_leads_to_the_world_the_machine_is_asked_for_its_own(
    interfaces: dict[str, list[str]], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def family(ip: str) -> int:
        return socket.AF_INET6 if ":" in ip else socket.AF_INET

    addresses = {
        name: [SimpleNamespace(family=family(ip), address=ip) for ip in ips]
        for name, ips in interfaces.items()
    }
    stats = {name: SimpleNamespace(isup=name != "down") for name in interfaces}
    monkeypatch.setattr(address, "_source_towards", lambda ip: "")
    monkeypatch.setattr(address.psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(address.psutil, "net_if_stats", lambda: stats)
    assert advertised_host(NetworkSection(), ()) == told


@pytest.mark.parametrize(
    ("page", "network", "told", "is_seen"),
    [
        (LOOPBACK, "", OURS, False),  # as it is by default
        (LOOPBACK, OURS, OURS, False),
        (OTHER, "", OURS, False),
        (LOOPBACK, "", LOOPBACK, False),  # no address was found
        ("", "", OURS, True),
        ("0.0.0.0", OURS, "ada.example.org", True),
        (OURS, "", OURS, True),
        (LOOPBACK, LOOPBACK, LOOPBACK, True),  # a swarm on one machine
    ],
)
def test_members_hear_of_a_page_only_where_they_can_see_it(
    page: str, network: str, told: str, is_seen: bool
) -> None:
    assert page_port_for_others(page, network, told, 7703) == (7703 if is_seen else 0)
