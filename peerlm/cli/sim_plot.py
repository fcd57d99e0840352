"""The picture of a simulated run: loss and spread against tokens and time, and what was sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from peerlm.sim.faults import Fault
from peerlm.sim.training import Trained

INK, SOFT, MARK = "#1f4e79", "#9bb8d3", "#c0504d"


def draw(path: Path, title: str, trained: Trained, faults: Sequence[Fault]) -> None:
    """Four panels into `path`; faults are marked where time is the axis."""
    points = trained.points
    tokens = [p.tokens / 1e6 for p in points]
    seconds = [p.seconds for p in points]
    sent = [p.bytes_per_node / 1e6 for p in points]
    figure, ((by_tokens, by_time), (spread, traffic)) = plt.subplots(2, 2, figsize=(10, 6.5))
    for axis, x, label in (
        (by_tokens, tokens, "tokens of the swarm, millions"),
        (by_time, seconds, "seconds"),
    ):
        axis.plot(x, _drawn(p.loss_worst for p in points), color=SOFT, label="worst node")
        axis.plot(x, _drawn(p.loss_mean for p in points), color=INK, label="mean of all")
        axis.set(xlabel=label, ylabel="loss, nats/byte")
        axis.legend(frameon=False)
    spread.semilogy(seconds, _drawn(p.spread or None for p in points), color=INK)
    spread.set(xlabel="seconds", ylabel="relative spread")
    traffic.plot(seconds, sent, color=INK)
    traffic.set(xlabel="seconds", ylabel="sent by a node, MB")
    nodes = traffic.twinx()
    nodes.step(seconds, [p.training for p in points], color=SOFT, where="post")
    nodes.set_ylabel("nodes training", color=SOFT)
    nodes.set_ylim(bottom=0)
    for axis in (by_time, spread, traffic):
        for fault in faults:
            axis.axvline(fault.at_s, color=MARK, linewidth=0.8, alpha=0.6)
    for axis in (by_tokens, by_time, spread, traffic):
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130, format=path.suffix[1:].lower())
    plt.close(figure)


def _drawn(values: Iterable[float | None]) -> list[float]:
    """What is not known leaves a gap."""
    return [math.nan if value is None else value for value in values]
