"""Which host others are told to dial, and whether they see the page there."""

from __future__ import annotations

import pytest

from peerlm.config import NetworkSection
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
