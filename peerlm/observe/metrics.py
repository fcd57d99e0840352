"""A node's figures as Prometheus reads them, from what it says of itself (`status --json`).

Names follow Prometheus' conventions: base units, `_total` for what only grows within one life of the
daemon. docs/metrics.md lists them; that page is made from `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

Status = Mapping[str, Any]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PARTNER_S = 300.0
"""Who was exchanged with in so many seconds counts as a partner."""

PHASES = (
    *("starting", "aside", "seeking", "fetching", "installing", "ready"),
    *("training", "draining", "settling", "done", "leaving"),
)
MEMBER_STATES = ("alive", "suspect", "dead", "left")


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric. `read`: its value or, with a label, a value for each of the label's; None: not known yet."""

    name: str
    help: str
    kind: str
    read: Callable[[Status], float | Mapping[str, float] | None]
    label: str = ""


def _members(s: Status) -> dict[str, float]:
    states = [m["state"] for m in s["members"]]
    return {state: states.count(state) for state in MEMBER_STATES}


def _partners(s: Status) -> float:
    times = [m["mixed_s_ago"] for m in s["members"]]
    return len([ago for ago in times if ago is not None and ago < PARTNER_S])


def _phases(s: Status) -> dict[str, float]:
    return {phase: s["state"] == phase for phase in PHASES}


METRICS: tuple[Figure, ...] = (
    Figure("peerlm_ready", "1 when the node takes part in its run.", "gauge", lambda s: s["ready"]),
    Figure(
        "peerlm_participating",
        "1 when it has finished an exchange lately.",
        "gauge",
        lambda s: s["participating"],
    ),
    Figure(
        "peerlm_phase",
        "1 for what the node is doing, 0 for all else that it could be.",
        "gauge",
        _phases,
        "phase",
    ),
    Figure("peerlm_tokens", "Tokens this node has trained on.", "gauge", lambda s: s["tokens"]),
    Figure(
        "peerlm_swarm_tokens",
        "Tokens the swarm has trained on, as this node knows it.",
        "gauge",
        lambda s: s["swarm_tokens"],
    ),
    Figure(
        "peerlm_token_budget",
        "Tokens after which the run ends.",
        "gauge",
        lambda s: s["token_budget"],
    ),
    Figure(
        "peerlm_worker_tokens_per_second",
        "Rate of this node's worker.",
        "gauge",
        lambda s: s["worker"]["tokens_per_s"],
    ),
    Figure(
        "peerlm_swarm_tokens_per_second",
        "Rate of the swarm, as this node knows it.",
        "gauge",
        lambda s: s["swarm_tokens_per_s"],
    ),
    Figure("peerlm_loss_nats", "Training loss a token, lately.", "gauge", lambda s: s["loss"]),
    Figure(
        "peerlm_validation_loss_nats",
        "Validation loss a token of the slow weights.",
        "gauge",
        lambda s: s["val_loss"],
    ),
    Figure(
        "peerlm_consensus_distance_ratio",
        "Distance of the weights from those of mixing partners, relative to their norm.",
        "gauge",
        lambda s: s["consensus_distance"],
    ),
    Figure("peerlm_members", "Members this node knows, by state.", "gauge", _members, "state"),
    Figure(
        "peerlm_partners",
        "Members it has exchanged with in the last five minutes.",
        "gauge",
        _partners,
    ),
    Figure(
        "peerlm_exchanges",
        "Exchanges, by how they ended.",
        "counter",
        lambda s: s["exchanges"],
        "outcome",
    ),
    Figure(
        "peerlm_inner_steps",
        "Inner steps between two outer steps.",
        "gauge",
        lambda s: s["tempo"]["inner_steps"],
    ),
    Figure("peerlm_bytes_sent", "Bytes of weights sent.", "counter", lambda s: s["bytes_sent"]),
    Figure(
        "peerlm_bytes_received",
        "Bytes of weights received.",
        "counter",
        lambda s: s["bytes_received"],
    ),
    Figure(
        "peerlm_allreduce_bytes",
        "Bytes that a ring all-reduce in every inner step would have sent.",
        "counter",
        lambda s: s["bytes_allreduce"],
    ),
    Figure(
        "peerlm_worker_restarts",
        "Times the worker was started again.",
        "counter",
        lambda s: s["worker"]["restarts"],
    ),
    Figure(
        "peerlm_gradient_noise_scale_tokens",
        "Tokens of a batch whose gradient would be half noise.",
        "gauge",
        lambda s: s["batch"]["noise_scale"],
    ),
    Figure(
        "peerlm_nonfinite_steps",
        "Inner steps that were not taken because they were not finite.",
        "counter",
        lambda s: s["worker"]["nonfinite_steps"],
    ),
    Figure(
        "peerlm_snapshot_tokens",
        "The swarm's tokens in the last snapshot.",
        "gauge",
        lambda s: s["snapshot"]["tokens"],
    ),
    Figure(
        "peerlm_snapshot_failing",
        "1 while snapshots cannot be written.",
        "gauge",
        lambda s: bool(s["snapshot"]["error"]),
    ),
    Figure(
        "peerlm_store_capacity_bytes",
        "Room this node offers to the swarm's store.",
        "gauge",
        lambda s: s["store"]["capacity_bytes"],
    ),
    Figure(
        "peerlm_store_used_bytes",
        "What it keeps for the store.",
        "gauge",
        lambda s: s["store"]["used_bytes"],
    ),
    Figure(
        "peerlm_store_names",
        "Names in the store, as this node knows them.",
        "gauge",
        lambda s: s["store"]["names"],
    ),
    Figure(
        "peerlm_store_lacking",
        "Chunks that should be on this node and are not.",
        "gauge",
        lambda s: s["store"]["lacking"],
    ),
    Figure(
        "peerlm_store_swarm_lacking",
        "The same, of all live nodes.",
        "gauge",
        lambda s: s["store"]["swarm_lacking"],
    ),
    Figure(
        "peerlm_store_full",
        "1 while something that should be here does not fit into what this node offers.",
        "gauge",
        lambda s: s["store"]["is_full"],
    ),
    Figure(
        "peerlm_store_urgent",
        "Chunks that should be on this node, are not, and may be on one live node alone.",
        "gauge",
        lambda s: s["store"]["urgent"],
    ),
    Figure(
        "peerlm_store_unfound",
        "Objects that this node looks for in vain: no live node has them.",
        "gauge",
        lambda s: s["store"]["unfound"],
    ),
    Figure(
        "peerlm_store_lost",
        "Objects that were found damaged or gone, by a scrub or when they were read.",
        "counter",
        lambda s: s["store"]["lost"],
    ),
    Figure(
        "peerlm_store_hedged_bytes",
        "Of all that this node has fetched, what came twice: a donor was slow, so another was asked too.",
        "counter",
        lambda s: s["store"]["hedged_bytes"],
    ),
    Figure(
        "peerlm_store_names_refused",
        "Records of names that were not believed: malformed, or not signed by who may write them.",
        "counter",
        lambda s: s["store"]["names_refused"],
    ),
    Figure(
        "peerlm_store_nodes",
        "Live nodes that offer room to the store, this one among them.",
        "gauge",
        lambda s: s["store"]["nodes"],
    ),
    Figure(
        "peerlm_store_replicas_wanted",
        "The most replicas that any name wants.",
        "gauge",
        lambda s: s["store"]["replicas_wanted"],
    ),
    Figure(
        "peerlm_loop_lag_seconds",
        "99th percentile of the daemon's loop lag in the last minute.",
        "gauge",
        lambda s: s["daemon"]["loop_lag_p99_ms"] / 1000,
    ),
    Figure(
        "peerlm_texts_sessions",
        "Texts of the swarm's members that its stage server remembers now.",
        "gauge",
        lambda s: s["daemon"]["counters"].get("texts_sessions", 0),
    ),
    Figure(
        "peerlm_texts_laps",
        "Laps of texts that came to its stage servers.",
        "counter",
        lambda s: s["daemon"]["counters"].get("texts_laps", 0),
    ),
    Figure(
        "peerlm_texts_laps_lost",
        "Of them, those that its stage servers could not advance: no room, a session not known, too much that waited.",
        "counter",
        lambda s: s["daemon"]["counters"].get("texts_lost", 0),
    ),
)


def exposition(status: Status, version: str) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(status, version))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, status: Status, version: str) -> None:
        self._status = status
        self._version = version

    def collect(self) -> Iterator[Metric]:
        labels = {
            "node": self._status["node_id"][:8],
            "run": self._status["run_name"],
            "version": self._version,
        }
        yield InfoMetricFamily("peerlm", "The node.", value=labels)
        for figure in METRICS:
            value = figure.read(self._status)
            if value is not None:
                yield _family(figure, value)


def _family(figure: Figure, value: float | Mapping[str, float]) -> Metric:
    kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    family = kind(figure.name, figure.help, labels=[figure.label] if figure.label else [])
    if isinstance(value, Mapping):
        for name, number in sorted(value.items()):
            family.add_metric([name], float(number))
    else:
        family.add_metric([], float(value))
    return family
