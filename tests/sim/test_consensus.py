"""Mixing alone against its closed forms. Tolerances: rounding, or three standard errors of what is drawn.

Other people's baselines, which are not shipped (push-sum, CHOCO, gradient tracking, D²), are in
test_closed_forms.py.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.cli.sim_mixing import mixing
from peerlm.config import MixSection, Plan, with_changes
from peerlm.errors import ConfigError
from peerlm.mix import algorithms, flow
from peerlm.mix.fragment import SlowFragment
from peerlm.sim.consensus import (
    DIMENSION,
    Array,
    LockStep,
    Meetings,
    Outcome,
    Rounds,
    Setting,
    codecs_named,
    meetings,
    simulate,
)
from peerlm.sim.figures import quantiles
from peerlm.sim.world import World
from peerlm.swarm.samplers.base2 import base2_rounds

NO_CLIP = 1e30


def mix_of(**changes: Any) -> MixSection:
    return with_changes(Plan(), {f"mix.{k}": v for k, v in changes.items()}, "test").mix


def run(nodes: int, rounds: int = 60, runs: int = 100, **kwargs: Any) -> Outcome:
    settings_ = {k: kwargs.pop(k) for k in ("seed", "codecs", "drop_reply") if k in kwargs}
    return simulate(Setting(mix_of(**kwargs), nodes, rounds, runs, **settings_))


def paired(rounds: list[Rounds], number: int, seed: int = 0) -> Meetings:
    """Round `number` of several swarms, nothing lost."""
    return meetings([r.pairs(number) for r in rounds], 0.0, np.random.default_rng(seed))


def matrix(sampler: str, nodes: int, rounds: int) -> Array:
    """W of so many rounds, [nodes, nodes]: what becomes of the unit vectors."""
    swarm = LockStep(np.eye(nodes)[None], mix_of(sampler=sampler), None)
    schedule = Rounds(sampler, nodes, random.Random(0))
    for number in range(rounds):
        swarm.exchange(paired([schedule], number))
    return np.asarray(swarm.phi[0])


def left(w: Array) -> float:
    """ρ: the largest factor by which a difference between nodes is left."""
    return float(np.linalg.norm(w - 1 / len(w), 2))


def standard_error(values: Array) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


# ----------------------------------------------------------------------------------- random pairs


@pytest.mark.parametrize("sampler", ["matching", "uniform"])
@pytest.mark.parametrize(("nodes", "ratio"), [(4, 0.3333), (8, 0.4286), (16, 0.4667), (32, 0.4839)])
def test_random_pairs_leave_half_of_the_variance_and_a_little_less(
    sampler: str, nodes: int, ratio: float
) -> None:
    """E V'/V = ½(1 − 1/(n − 1)), whatever the vectors are."""
    ratios = run(nodes, runs=60, sampler=sampler).ratios.ravel()
    assert ratio == pytest.approx(0.5 * (1 - 1 / (nodes - 1)), abs=5e-5)
    assert abs(ratios.mean() - ratio) <= 3 * standard_error(ratios)


@pytest.mark.parametrize(("nodes", "ratio"), [(8, 0.857), (16, 0.933)])
def test_one_pair_at_a_time_leaves_all_but_one_part_in_n_minus_one(
    nodes: int, ratio: float
) -> None:
    runs, draws = 400, np.random.default_rng(1)
    swarm = LockStep(draws.standard_normal((runs, nodes, DIMENSION)), mix_of(), None)
    ratios = []
    for _ in range(10):
        before = swarm.variance()
        pairs = np.array([draws.choice(nodes, 2, replace=False) for _ in range(runs)]).T
        swarm.exchange(Meetings(np.arange(runs), *pairs, np.ones(runs), np.ones(runs, bool)))
        ratios.append(swarm.variance() / before)
    flat = np.concatenate(ratios)
    assert ratio == pytest.approx(1 - 1 / (nodes - 1), abs=5e-4)
    assert abs(flat.mean() - (1 - 1 / (nodes - 1))) <= 3 * standard_error(flat)


@pytest.mark.parametrize(("nodes", "spread"), [(8, 0.65625), (16, 0.8203)])
def test_noise_of_every_step_comes_to_rest_at_a_spread(nodes: int, spread: float) -> None:
    """Noise σ = 1 at each node, then a matching: V* = (1 − 1/n)·r/(1 − r)."""
    runs, draws = 40, np.random.default_rng(2)
    swarm = LockStep(np.zeros((runs, nodes, DIMENSION)), mix_of(algorithm="dgd"), None)
    rounds = [Rounds("matching", nodes, random.Random(r)) for r in range(runs)]
    seen = []
    for number in range(80):
        swarm.outer(draws.standard_normal(swarm.phi.shape))
        swarm.exchange(paired(rounds, number))
        if number >= 20:
            seen.append(swarm.variance())
    per_run = np.mean(seen, axis=0)
    ratio = 0.5 * (1 - 1 / (nodes - 1))
    assert spread == pytest.approx((1 - 1 / nodes) * ratio / (1 - ratio), abs=2e-4)
    assert abs(per_run.mean() - spread) <= 3 * standard_error(per_run)


# -------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("nodes", [2, 4, 8, 16, 32, 64])
def test_one_peer_exponential_is_exact_at_powers_of_two(nodes: int) -> None:
    rounds = nodes.bit_length() - 1
    assert np.abs(matrix("onepeer_exp", nodes, rounds) - 1 / nodes).max() < 1e-12
    if rounds > 1:
        assert left(matrix("onepeer_exp", nodes, rounds - 1)) > 0.1


def test_one_peer_exponential_leaves_something_of_twelve() -> None:
    """A one-way average with whom each names, as the graph is defined, leaves .2091 in four rounds; moving
    both ends, as exchanges do, the square of it."""
    one_way, schedule = np.eye(12), Rounds("onepeer_exp", 12, random.Random(0))
    for number in range(4):
        named = np.zeros((12, 12))
        for asks, answers, _ in schedule.pairs(number):
            named[asks, answers] = 1
        one_way = (np.eye(12) + named) / 2 @ one_way
    assert left(one_way) == pytest.approx(0.2091, abs=5e-5)
    assert left(matrix("onepeer_exp", 12, 4)) == pytest.approx(left(one_way) ** 2, abs=1e-12)


@pytest.mark.parametrize("nodes", range(1, 100))
def test_base2_is_exact_for_any_number_of_nodes(nodes: int) -> None:
    rounds = len(base2_rounds(nodes))
    assert rounds <= 2 * math.log2(nodes) + 2
    assert np.abs(matrix("base2", nodes, rounds) - 1 / nodes).max() < 1e-12


@pytest.mark.parametrize(("nodes", "rho"), [(8, 0.8047), (16, 0.9493), (32, 0.9872)])
def test_a_ring_mixes_as_its_circulant_matrix_does(nodes: int, rho: float) -> None:
    w = matrix("ring", nodes, 1)
    thirds = sum(np.roll(np.eye(nodes), shift, axis=1) for shift in (-1, 0, 1)) / 3
    assert np.allclose(w, thirds, atol=1e-15)
    assert left(w) == pytest.approx((1 + 2 * math.cos(2 * math.pi / nodes)) / 3, abs=1e-9)
    assert left(w) == pytest.approx(rho, abs=5e-5)


@pytest.mark.parametrize(("lr", "bias"), [(0.1, 0.77012), (0.5, 1.92360)])
def test_dgd_on_a_ring_of_eight_has_its_bias(lr: float, bias: float) -> None:
    """f_i = ½(x − i + 3.5)²; the worst node's distance from 0, the optimum of all."""
    optima = (np.arange(8) - 3.5)[None, :, None]
    swarm = LockStep(np.zeros((1, 8, 1)), mix_of(algorithm="dgd", sampler="ring"), None)
    ring = Rounds("ring", 8, random.Random(0))
    for number in range(400):
        swarm.outer(-lr * (swarm.phi - optima))
        swarm.exchange(paired([ring], number))
    w = matrix("ring", 8, 1)
    exact = np.linalg.solve(np.eye(8) - (1 - lr) * w, lr * w @ optima[0])
    assert np.allclose(swarm.phi[0], exact, atol=1e-12)
    assert np.abs(swarm.phi).max() == pytest.approx(bias, abs=5e-6)


def test_latency_bias_costs_rounds_between_two_sites() -> None:
    biased, uniform = (run(16, 30, 40, sampler=s).ratios for s in ("latency_biased", "uniform"))
    assert uniform.mean() + 0.1 < biased.mean() < 0.9


# ------------------------------------------------------------------------------- what bends the sum


@pytest.mark.parametrize(("lost", "rms"), [(0.05, 0.0386), (0.1, 0.0547), (0.3, 0.0998)])
def test_lost_replies_make_the_mean_drift_and_not_lean(lost: float, rms: float) -> None:
    """A round moves the mean by p·V/(4(n − 1)) in the square and leaves r of V; 60 rounds of 16."""
    n, runs = 16, 250
    r = 1 - n / (n - 1) * (0.5 - lost / 4) - lost / (4 * (n - 1))
    exact = lost / (4 * (n - 1)) * (1 - 1 / n) * (1 - r**60) / (1 - r)
    assert math.sqrt(exact) == pytest.approx(rms, rel=0.015), "the figure was measured, to ±5 %"
    outcome = run(n, runs=runs, drop_reply=lost)
    squares, means = (outcome.drift**2).mean(axis=1), outcome.drift.mean(axis=1)
    assert abs(squares.mean() - exact) <= 3 * standard_error(squares)
    assert abs(means.mean()) <= 3 * standard_error(means)
    assert abs(outcome.drift_rms() - math.sqrt(exact)) <= 3 * outcome.drift_se()


@pytest.mark.parametrize("codec", [None, "fp32", "fp16", "int8:int4"])
@pytest.mark.parametrize("algorithm", ["outer_mix", "noloco", "adpsgd", "dgd"])
def test_no_codec_moves_the_mean(codec: str | None, algorithm: str) -> None:
    codecs = codec and codecs_named(codec)
    outcome = run(8, 40, 10, algorithm=algorithm, codecs=codecs)
    assert outcome.drift_rms() < 1e-14
    sent = {None: 800, "fp32": 800, "fp16": 400, "int8:int4": 158}[codec]
    assert outcome.bytes_per_node() == 40 / 2 * sent, "one exchange for two nodes"


NEVER = ("p50", "p90", "p99", "max")


def test_a_codec_holds_the_spread_at_its_floor() -> None:
    coarse = run(16, 60, 10, codecs=("int8", "int4"))
    assert coarse.rounds_to_close.tolist() == [0] * 10
    assert coarse.figures()["rounds_to_1e-3"] == {**dict.fromkeys(NEVER), "n": 10}
    assert coarse.ratios[:, 40:].mean() == pytest.approx(1, abs=0.05)


CODECS = st.tuples(
    st.sampled_from(["fp32", "fp16", "int8"]), st.sampled_from(["fp32", "fp16", "int8", "int4"])
)


@pytest.mark.parametrize("name", ["outer_mix", "noloco"])
@settings(max_examples=40, deadline=None)
@given(codecs=CODECS, seed=st.integers(0, 2**32), share=st.floats(0.05, 1.0))
def test_real_exchanges_conserve_the_sum_in_any_order(
    name: str, codecs: tuple[str, str], seed: int, share: float
) -> None:
    """Requests grow old, replies come late, outer steps fall in between, pairs have shares of their own;
    what is conserved is Σφ, and with the momentum that is under way Σ(φ + q/(1 − α))."""
    mix, algorithm = mix_of(algorithm=name), algorithms.get(name)
    rng, order = np.random.default_rng(seed), random.Random(seed)
    # Far from zero, so that no norm comes near a gate: overlapping exchanges overshoot.
    nodes = [SlowFragment((10 + rng.standard_normal(300)).astype(np.float32)) for _ in range(5)]
    c = algorithm.coefficient(mix, share)
    through = algorithm.through_momentum
    before = conserved(nodes, mix, through)
    asked: list[tuple[int, Any]] = []
    answered: list[tuple[int, Any]] = []
    for _ in range(40):
        match order.choice(["ask", "ask", "answer", "answer", "absorb", "absorb", "step"]):
            case "ask":
                i = order.randrange(5)
                asked.append((i, flow.make_request(nodes[i], codecs[0], rng).payload))
            case "answer" if asked:
                i, request = asked.pop(order.randrange(len(asked)))
                j = order.choice([k for k in range(5) if k != i])
                response = answer(nodes[j], request, codecs, c, through, rng)
                answered.append((i, response.payload))
            case "absorb" if answered:
                absorb(nodes, answered.pop(order.randrange(len(answered))), codecs, c, through)
            case "step":
                step(order.choice(nodes), algorithm, mix)
    for late in answered:
        absorb(nodes, late, codecs, c, through)
    after = conserved(nodes, mix, through)
    assert np.linalg.norm(after - before) <= 1e-6 * sum(node.phi_norm() for node in nodes)


def conserved(nodes: list[SlowFragment], mix: MixSection, through_momentum: bool) -> Array:
    under_way = 1 / (1 - mix.outer_momentum) if through_momentum else 0.0
    return np.asarray(
        sum(node.phi.astype(float) + under_way * node.momentum.astype(float) for node in nodes)
    )


def answer(
    node: SlowFragment, request: Any, codecs: tuple[str, str], c: float, through: bool, rng: Any
) -> flow.Response:
    response = flow.respond(
        node,
        request,
        codec_request=codecs[0],
        codec_reply=codecs[1],
        weight=c,
        clip_norm=NO_CLIP,
        rng=rng,
        through_momentum=through,
    )
    assert isinstance(response, flow.Response)
    return response


def absorb(
    nodes: list[SlowFragment],
    late: tuple[int, Any],
    codecs: tuple[str, str],
    c: float,
    through: bool,
) -> None:
    i, reply = late
    done = flow.absorb(
        nodes[i],
        reply,
        codec_reply=codecs[1],
        weight=c,
        clip_norm=NO_CLIP,
        through_momentum=through,
    )
    assert isinstance(done, flow.Flow)


def step(node: SlowFragment, algorithm: algorithms.Algorithm, mix: MixSection) -> None:
    """An outer step without progress: a worker that starts, and hands in what it was given."""
    theta = node.new_generation(node.generation + 1)
    node.boundary(theta, 0, node.generation, algorithm, mix)


# ----------------------------------------------------------------------------------------- NoLoCo


def second_moments(nodes: int, alpha: float, gamma: float) -> Array:
    """One round on (V, C, M): the variance of φ, its product with m, and the variance of m."""
    s = nodes / (nodes - 1)
    m = np.array([0.5 * gamma**2 * s, -alpha * gamma * s, alpha**2])
    c = np.array([-0.5 * gamma * s, alpha, 0]) + m
    v = np.array([1 - gamma * s, 2 * alpha, 0]) + m
    return np.array([v, c, m])


def radius(a: Array) -> float:
    return float(np.abs(np.linalg.eigvals(a)).max())


@pytest.mark.parametrize(("nodes", "rho"), [(8, 0.668), (16, 0.685)])
def test_noloco_contracts_by_its_radius(nodes: int, rho: float) -> None:
    """The operator on second moments is measured by regression, for it is linear in expectation."""
    assert radius(second_moments(nodes, 0.5, 0.7)) == pytest.approx(rho, abs=5e-4)
    radii = np.array([radius(measured_moments(nodes, seed)) for seed in range(10)])
    assert standard_error(radii) < 0.01
    assert abs(radii.mean() - rho) <= 3 * standard_error(radii)


def measured_moments(nodes: int, seed: int) -> Array:
    """The matrix that fits best what 100 swarms do in 15 rounds."""
    runs, draws = 100, np.random.default_rng(seed)
    mix = mix_of(algorithm="noloco", outer_momentum=0.5, gamma=0.7)
    swarm = LockStep(draws.standard_normal((runs, nodes, DIMENSION)), mix, None)
    rounds = [Rounds("matching", nodes, random.Random(f"{seed} {r}")) for r in range(runs)]
    before, after = [], []
    for number in range(15):
        state = moments(swarm)
        swarm.exchange(paired(rounds, number))
        swarm.outer()
        weight = 1 / state[:, :1]
        before.append(state * weight)
        after.append(moments(swarm) * weight)
    fit, *_ = np.linalg.lstsq(np.concatenate(before), np.concatenate(after), rcond=None)
    return np.asarray(fit.T)


def moments(swarm: LockStep) -> Array:
    """(V, C, M) of every run, [runs, 3]; what is kept is q = α m."""
    phi, m = swarm.phi - swarm.phi.mean(axis=1, keepdims=True), swarm.momentum / 0.5
    return np.stack([(a * b).mean(axis=(1, 2)) for a, b in ((phi, phi), (phi, m), (m, m))], axis=1)


@pytest.mark.parametrize(
    ("alpha", "gamma", "holds"), [(0.5, 0.7, True), (0.9, 0.7, False), (0.9, 0.3, True)]
)
def test_noloco_diverges_where_plans_refuse_it(alpha: float, gamma: float, holds: bool) -> None:
    assert (radius(second_moments(16, alpha, gamma)) < 1) == holds
    mix = MixSection(algorithm="noloco", sampler="matching", outer_momentum=alpha, gamma=gamma)
    ratios = simulate(Setting(mix, 16, 150, 4)).ratios
    rate = np.exp(np.log(ratios).mean())
    assert (rate < 1) == holds
    if not holds:
        with pytest.raises(ConfigError, match="noloco diverge"):
            mix_of(algorithm="noloco", outer_momentum=alpha, gamma=gamma)


# ------------------------------------------------------------------------------ the same code, or as good


@pytest.mark.parametrize("algorithm", ["outer_mix", "noloco", "adpsgd", "dgd"])
@pytest.mark.parametrize("sampler", ["matching", "base2"])
def test_lock_step_does_what_fragments_and_flows_do(algorithm: str, sampler: str) -> None:
    nodes, mix = 6, mix_of(algorithm=algorithm, exchanges=0)
    rng = np.random.default_rng(3)
    swarm = LockStep(rng.standard_normal((1, nodes, DIMENSION)), mix, ("fp32", "fp32"))
    rule = algorithms.get(algorithm)
    real = [SlowFragment(phi.astype(np.float32)) for phi in swarm.phi[0]]
    rounds = Rounds(sampler, nodes, random.Random(0))
    for number in range(8):
        met = paired([rounds], number)
        for asks, answers, share in zip(met.asks, met.answers, met.share, strict=True):
            c = rule.coefficient(mix, share, 1.0)
            request = flow.make_request(real[asks], "fp32", rng).payload
            through = rule.through_momentum
            response = answer(real[answers], request, ("fp32", "fp32"), c, through, rng)
            absorb(real, (asks, response.payload), ("fp32", "fp32"), c, through)
        swarm.exchange(met)
        swarm.outer()
        for fragment in real:
            step(fragment, rule, mix)
        assert np.allclose(swarm.phi[0], [fragment.phi for fragment in real], atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "sampler"),
    [("noloco", "uniform"), ("adpsgd", "latency_biased"), ("outer_mix", "base2")],
)
def test_real_nodes_settle_with_any_of_them(algorithm: str, sampler: str) -> None:
    """On clocks and views of their own, where a schedule is only a habit."""
    changes = {"mix.algorithm": algorithm, "mix.sampler": sampler, "run.token_budget": 300_000}
    plan = with_changes(World(0).plan.plan, changes, "test")
    world = World(1, plan=plan).swarm(4)

    def done() -> bool:
        return all(world.summary(machine.number).phase == "done" for machine in world.up())

    world.run(60, done)
    assert done()
    assert world.spread() < 1e-3


# ----------------------------------------------------------------------------------------- command


def command(*args: str) -> dict[str, Any]:
    done = CliRunner().invoke(mixing, [*args, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_command_gives_one_object() -> None:
    told = command("--nodes", "8", "--rounds", "20", "--runs", "30", "--codec", "int8:int4")
    assert told["scenario"] == "mixing"
    assert (told["nodes"], told["runs"], told["seed"]) == (8, 30, 1)
    assert 0 < told["variance_ratio_per_round"] < 1
    assert set(told["rounds_to_1e-3"]) == {"p50", "p90", "p99", "max", "n"}
    assert told["mean_drift_rms"] < 1e-15
    assert told["bytes_per_node"] == 20 / 2 * 158


def test_the_same_seed_gives_the_same_run_in_another_process() -> None:
    args = [
        "sim",
        "mixing",
        "--nodes",
        "6",
        "--rounds",
        "9",
        "--runs",
        "5",
        "--sampler",
        "matching",
    ]
    args += ["--drop-reply", "0.2", "--codec", "int8:int4"]
    code = "import sys; from peerlm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code, *args, "--json", "--seed", seed],
            env={"PYTHONHASHSEED": hashed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, hashed in [("7", "1"), ("7", "2"), ("8", "1")]
    ]
    assert told[0] == told[1]
    assert json.loads(told[0])["digest"] != json.loads(told[2])["digest"]


def test_eyes_get_a_table() -> None:
    done = CliRunner().invoke(mixing, ["--nodes", "4", "--rounds", "5", "--runs", "3"])
    assert done.exit_code == 0
    assert "4 nodes, outer_mix, uniform, no codec" in done.stdout
    assert "variance left by a round" in done.stdout


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--algorithm", "noloco", "--set", "mix.outer_momentum=0.9"], "noloco diverge"),
        (["--algorithm", "allreduce"], "mix.algorithm = 'allreduce': must be one of outer_mix"),
        (["--algorithm", "local"], "its nodes mix with nobody"),
        (["--sampler", "torus"], "mix.sampler = 'torus': must be one of uniform"),
        (["--codec", "int4"], "codec = 'int4': must be REQUEST:REPLY"),
        (["--codec", "int8:int2"], "codec = 'int8:int2': must be"),
        (["--nodes", "1"], "nodes = 1: must be 2 to 1,000"),
        (["--rounds", "0"], "rounds = 0: must be 1"),
        (["--runs", "0"], "runs = 0: must be 1"),
        (["--seed", "-1"], "seed = -1: must be 0"),
        (["--drop-reply", "1.5"], "drop-reply = 1.5: must be 0 to 1"),
        (["--drop-reply", "nan"], "drop-reply = nan: must be 0 to 1"),
        (["--set", "mix.colour=1"], "no field 'mix.colour'"),
    ],
)
def test_a_wrong_argument_is_one_line(args: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        CliRunner().invoke(mixing, args, catch_exceptions=False)
    assert line in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantiles(range(1, 101)) == {"p50": 50, "p90": 90, "p99": 99, "max": 100, "n": 100}
    assert quantiles([7.5]) == {"p50": 7.5, "p90": 7.5, "p99": 7.5, "max": 7.5, "n": 1}
    assert quantiles([]) == {"p50": None, "p90": None, "p99": None, "max": None, "n": 0}
