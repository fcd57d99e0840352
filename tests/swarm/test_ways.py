"""What a hop takes, by what is known before it was tried."""

from __future__ import annotations

from peerlm.swarm.ways import HOP_S_MAX, UNKNOWN, Way


def test_what_is_not_known_does_not_count() -> None:
    assert (UNKNOWN.hop_s(1e9), UNKNOWN.onward_s(1e9)) == (0.0, 0.0)


def test_a_hop_is_a_way_and_what_the_line_takes() -> None:
    way = Way(0.02, 0.05, 1e6)
    assert way.hop_s(1e5) == 0.02 + 0.1
    assert way.onward_s(1e5) == 0.05 + 0.1
    assert Way(usual_s=0.05).hop_s(1e5) == 0.05, "its own word where we have not measured"


def test_no_claim_makes_a_hop_endless() -> None:
    for way in (Way(1e300, 1e300, 1.0), Way(0.0, 0.0, 5e-324)):
        assert way.hop_s(1e6) <= HOP_S_MAX
        assert way.onward_s(1e6) <= HOP_S_MAX
