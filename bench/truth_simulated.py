"""The same crashes and the same partition in the simulator, for bench.truth to hold against reality."""

from __future__ import annotations

from dataclasses import dataclass

from bench.truth_told import Samples
from peerlm.sim.network import Wire
from peerlm.sim.scenarios import play, read_params


@dataclass(frozen=True, slots=True)
class Reality:
    """What was done to the real swarm, and what the machine it ran on is like. In seconds."""

    nodes: int
    profile: str
    apart_s: float
    """How long the halves were apart."""
    round_trip_s: float
    """Of a probe and its answer, both event loops included; the median."""


CRASHES, PARTITIONS = 100, 30


def simulated(reality: Reality, seed: int) -> Samples:
    """Samples by figure, as `truth_told.FIGURES` names them. Of reality only delays are taken; that a
    connection without a sign of life ends after `world.SILENCE_S` was fitted to it once."""
    wire = Wire(delay_s=(0.25 * reality.round_trip_s, 0.75 * reality.round_trip_s))

    def runs(scenario: str, count: int, given: dict[str, str]) -> dict[str, list[float]]:
        params, found = read_params(scenario, given), dict[str, list[float]]()
        for number in range(count):
            played = play(
                scenario,
                reality.nodes,
                seed + number,
                params=params,
                profile=reality.profile,
                wire=wire,
            )
            for name, values in played.samples.items():
                found.setdefault(name, []).extend(values)
        return found

    samples: Samples = {}
    for scene, reset in (("silent crash", "0"), ("crash with resets", "1")):
        crashed = runs("crash", CRASHES, {"reset": reset})
        samples[f"{scene}: first suspicion"] = crashed["first_suspect_s"]
        samples[f"{scene}: first verdict"] = crashed["first_dead_s"]
        samples[f"{scene}: all others know"] = crashed["all_know_dead_s"]
    parted = runs("partition", PARTITIONS, {"minutes": str(reality.apart_s / 60)})
    samples["partition: first verdict of a half"] = parted["first_dead_of_a_half_s"]
    samples["partition: a half holds all of the other dead"] = parted["half_knows_all_dead_s"]
    samples["partition: one swarm after it ends"] = parted["heal_s"]
    return samples
