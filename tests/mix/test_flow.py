"""Exchanges conserve what they should, converge as theory says, and bound what a liar can do."""

import re

import numpy as np
import pytest

from peerlm.mix import codec
from peerlm.mix.flow import Flow, Refused, Request, Response, absorb, make_request, respond
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.robust import ClipTracker

NEVER_CLIP = 1e9


def swarm(nodes: int, size: int, spread: float, rng: np.random.Generator) -> list[SlowFragment]:
    """Nodes around a common point of norm √size, each `spread` away from it, relative."""
    centre = rng.standard_normal(size)
    return [
        SlowFragment((centre + spread * rng.standard_normal(size)).astype(np.float32))
        for _ in range(nodes)
    ]


def exchange(i, j, rng, codecs=("int8", "int4"), weight=0.5, clip_i=NEVER_CLIP, clip_j=NEVER_CLIP):
    """One whole exchange, initiated by i; returns what it did to each."""
    request = make_request(i, codecs[0], rng)
    response = respond(
        j,
        request.payload,
        codec_request=codecs[0],
        codec_reply=codecs[1],
        weight=weight,
        clip_norm=clip_j,
        rng=rng,
    )
    assert isinstance(response, Response)
    flow = absorb(i, response.payload, codec_reply=codecs[1], weight=weight, clip_norm=clip_i)
    assert isinstance(flow, Flow)
    return flow, response.flow


def total(fragments: list[SlowFragment]) -> np.ndarray:
    return np.sum([fragment.phi.astype(np.float64) for fragment in fragments], axis=0)


def relative_spread(fragments: list[SlowFragment]) -> float:
    phis = np.array([fragment.phi for fragment in fragments], np.float64)
    mean = phis.mean(axis=0)
    return float(np.sqrt(((phis - mean) ** 2).sum(axis=1).mean()) / np.linalg.norm(mean))


@pytest.mark.parametrize("codecs", [("int8", "int4"), ("fp16", "int8"), ("fp32", "fp32")])
def test_the_sum_is_conserved_whatever_the_codec_and_the_delay(codecs):
    """Replies come late and out of order, and nodes move meanwhile; the sum does not notice."""
    rng = np.random.default_rng(1)
    nodes = swarm(6, 5000, 0.3, rng)
    before, moved, late = total(nodes), np.zeros(5000), []
    for _ in range(100):
        i, j = rng.choice(6, 2, replace=False)
        request = make_request(nodes[i], codecs[0], rng)
        step = (0.01 * rng.standard_normal(5000)).astype(np.float32)
        nodes[j].add_flow(step)
        moved += step
        response = respond(
            nodes[j],
            request.payload,
            codec_request=codecs[0],
            codec_reply=codecs[1],
            weight=0.5,
            clip_norm=NEVER_CLIP,
            rng=rng,
        )
        late.append((i, response.payload))
        if len(late) > 3:
            k, payload = late.pop(int(rng.integers(4)))
            absorb(nodes[k], payload, codec_reply=codecs[1], weight=0.5, clip_norm=NEVER_CLIP)
    for k, payload in late:
        absorb(nodes[k], payload, codec_reply=codecs[1], weight=0.5, clip_norm=NEVER_CLIP)
    change = np.linalg.norm(total(nodes) - before - moved) / np.linalg.norm(before)
    assert change <= 1e-6


def test_what_clipping_bends_is_in_the_results():
    rng = np.random.default_rng(2)
    i, j = swarm(2, 1000, 0.5, rng)
    before = total([i, j])
    flow_i, flow_j = exchange(i, j, rng, clip_i=1.0, clip_j=3.0)
    assert flow_i.clipped
    assert flow_j.clipped
    assert flow_i.applied_norm == pytest.approx(0.5 * 1.0)
    assert flow_j.applied_norm == pytest.approx(0.5 * 3.0)
    bent = np.linalg.norm(total([i, j]) - before)
    assert bent == pytest.approx(0.5 * abs(3.0 - 1.0), rel=1e-4)
    assert bent == pytest.approx(flow_i.withheld_norm - flow_j.withheld_norm, rel=1e-4)


def test_both_sides_report_the_same_difference():
    rng = np.random.default_rng(3)
    i, j = swarm(2, 1000, 0.2, rng)
    distance = np.linalg.norm(i.phi - j.phi)
    norms = i.phi_norm(), j.phi_norm()
    flow_i, flow_j = exchange(i, j, rng, codecs=("fp32", "fp32"))
    assert flow_i.raw_norm == flow_j.raw_norm == pytest.approx(distance)
    assert (flow_i.phi_norm, flow_j.phi_norm) == pytest.approx(norms)
    assert not flow_i.clipped
    assert np.allclose(i.phi, j.phi, atol=1e-5)


@pytest.mark.parametrize("nodes", [4, 8, 16])
def test_a_random_matching_contracts_as_theory_says(nodes):
    """E V'/V = ½ (1 − 1/(n−1)), within three standard errors."""
    rng = np.random.default_rng(nodes)
    ratios = []
    for _ in range(60):
        fragments = swarm(nodes, 64, 1.0, rng)
        before = np.var([f.phi for f in fragments], axis=0).sum()
        order = rng.permutation(nodes)
        for i, j in zip(order[::2], order[1::2], strict=True):
            exchange(fragments[i], fragments[j], rng, codecs=("fp32", "fp32"))
        ratios.append(np.var([f.phi for f in fragments], axis=0).sum() / before)
    expected = 0.5 * (1 - 1 / (nodes - 1))
    standard_error = np.std(ratios) / np.sqrt(len(ratios))
    assert abs(np.mean(ratios) - expected) < 3 * standard_error


def mix_for(rounds: int, fragments, codecs, rng) -> None:
    for _ in range(rounds):
        order = rng.permutation(len(fragments))
        for i, j in zip(order[::2], order[1::2], strict=True):
            exchange(fragments[i], fragments[j], rng, codecs=codecs)


def test_swarms_stall_at_the_noise_floor_and_notice():
    rng = np.random.default_rng(4)
    fragments = swarm(8, 4096, 0.2, rng)
    mix_for(14, fragments, ("int8", "int4"), rng)
    floor = relative_spread(fragments)
    assert 0.5 * codec.noise_floor("int8") < floor < 1.5 * codec.noise_floor("int8")
    flow, _ = exchange(fragments[0], fragments[1], rng)
    codecs = codec.choose_codecs("int8", "int4", flow.raw_norm / flow.phi_norm)
    assert codecs == ("fp16", "int4")
    mix_for(14, fragments, codecs, rng)
    floor = relative_spread(fragments)
    assert 0.5 * codec.noise_floor("fp16") < floor < 1.5 * codec.noise_floor("fp16")


def serve(
    fragment: SlowFragment, payload: bytes, codec_request: str = "fp32"
) -> Response | Refused:
    return respond(
        fragment,
        payload,
        codec_request=codec_request,
        codec_reply="fp32",
        weight=0.5,
        clip_norm=None,
        rng=np.random.default_rng(0),
    )


def fp32(values: np.ndarray) -> bytearray:
    """fp32 bytes of any values, those `encode` would refuse too."""
    payload = codec.encode(np.zeros(values.size, np.float32), "fp32", np.random.default_rng(0))
    payload[:] = values.astype("<f4").tobytes()
    return payload


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1e30, "impossible"),
        (101.0, "impossible"),
        (99.0, "norm"),
        (2.1, "norm"),
        (0.4, "norm"),
        (np.nan, "not finite"),
        (np.inf, "not finite"),
    ],
)
def test_weights_that_fail_a_gate_change_nothing(factor, said):
    fragment = SlowFragment(np.ones(100, np.float32))
    fragment.new_generation(1)
    verdict = serve(fragment, fp32(np.full(100, factor)))
    assert isinstance(verdict, Refused)
    assert re.match(f"(malformed: .*)?{said}", verdict.reason)
    for reply in (fp32(np.full(100, np.nan)), fp32(np.full(100, 1e30)), fp32(np.full(100, 4.0))):
        refused = absorb(fragment, reply, codec_reply="fp32", weight=0.5, clip_norm=None)
        assert isinstance(refused, Refused)
    assert np.array_equal(fragment.phi, np.ones(100))
    assert fragment.take_batch() is None


def test_bytes_that_are_no_weights_are_refused():
    fragment = SlowFragment(np.ones(100, np.float32))
    rng = np.random.default_rng(0)
    request: Request = make_request(fragment, "int8", rng)
    assert isinstance(serve(fragment, request.payload, "int8"), Response)
    for payload, name in [
        (request.payload, "fp32"),
        (request.payload[:-1], "int8"),
        (b"", "int8"),
        (codec.encode(np.ones(99, np.float32), "int8", rng), "int8"),
        (codec.encode(np.ones(100, np.float32), "int4", rng), "int8"),
    ]:
        verdict = serve(fragment, payload, name)
        assert isinstance(verdict, Refused)
        assert verdict.reason.startswith("malformed")
    with pytest.raises(AssertionError, match="differences only"):
        make_request(fragment, "int4", rng)


def test_fragments_that_start_at_zero_mix():
    rng = np.random.default_rng(0)
    i, j = SlowFragment(np.zeros(1000)), SlowFragment(np.full(1000, 1e-4))
    for _ in range(3):
        exchange(i, j, rng, clip_i=None, clip_j=None)
    assert i.phi.mean() > 0.4e-4


def test_an_attacker_moves_an_honest_node_by_no_more_than_c_tau():
    """It claims to stand at −1 × ours in every exchange, and nothing honest ever pulls back."""
    rng, weight = np.random.default_rng(5), 0.5
    honest = SlowFragment(rng.standard_normal(500).astype(np.float32))
    tracker = ClipTracker(1.5)
    for _ in range(10):  # honest history: small differences
        tracker.update(b"friend", 1.0, False)
    for _ in range(5):
        tau = tracker.tau(honest.phi_norm())
        before = honest.phi.copy()
        result = respond(
            honest,
            fp32(-honest.phi),
            codec_request="fp32",
            codec_reply="int4",
            weight=weight,
            clip_norm=tau,
            rng=rng,
        )
        assert result.flow.clipped
        tracker.update(b"attacker", result.flow.raw_norm, result.flow.clipped)
        assert tau == 1.5, "one attacker alone does not raise τ"
        assert np.linalg.norm(honest.phi - before) <= weight * tau * 1.0001


def test_two_halves_of_a_swarm_find_together_after_a_partition():
    """Far apart, every exchange across is clipped, by many partners: τ grows until it is enough."""
    rng = np.random.default_rng(6)
    left, right = rng.standard_normal((2, 400)).astype(np.float32)
    phis = [left + 0.01 * rng.standard_normal(400).astype(np.float32) for _ in range(4)]
    phis += [right + 0.01 * rng.standard_normal(400).astype(np.float32) for _ in range(4)]
    nodes = [SlowFragment(phi) for phi in phis]
    trackers = [ClipTracker(1.5) for _ in nodes]
    for tracker in trackers:
        for k in range(20):
            tracker.update(b"%d" % k, 0.3, False)
    apart = relative_spread(nodes)
    for _ in range(160):
        i, j = (int(k) for k in rng.choice(8, 2, replace=False))
        taus = [trackers[k].tau(nodes[k].phi_norm()) for k in (i, j)]
        flows = exchange(nodes[i], nodes[j], rng, clip_i=taus[0], clip_j=taus[1])
        for k, partner, flow in [(i, j, flows[0]), (j, i, flows[1])]:
            trackers[k].update(b"%d" % partner, flow.raw_norm, flow.clipped)
    assert relative_spread(nodes) < apart / 20
