"""Figures of what is answered, as Prometheus reads them. docs/metrics.md lists them; that page is made from here."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "peerlm_serve_requests",
            "Requests, by how they were answered (HTTP's status; 499: the client went away).",
            ["status"],
            registry=registry,
        )
        self.refusals = Counter(
            "peerlm_serve_refusals",
            "Requests that were refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "peerlm_serve_prompt_tokens", "Tokens of prompts that were taken on.", registry=registry
        )
        self.tokens = Counter(
            "peerlm_serve_generated_tokens", "Tokens that were written.", registry=registry
        )
        self.first_token = Histogram(
            "peerlm_serve_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.token = Histogram(
            "peerlm_serve_token_seconds",
            "Mean time a token of each finished text, after its first.",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.queue = Gauge(
            "peerlm_serve_queue_length", "Sessions that wait for a slot.", registry=registry
        )
        self.active = Gauge(
            "peerlm_serve_active_sessions", "Sessions that hold a slot.", registry=registry
        )
        self.cache = Gauge(
            "peerlm_serve_cache_bytes",
            "Memory in use for what the model remembers of the sessions that hold a slot; with --swarm that of the hosts.",
            registry=registry,
        )
        self.again = Counter(
            "peerlm_serve_rereads",
            "With --swarm: how often a session began again from its first token, at other hosts or the same.",
            registry=registry,
        )
        self.versions = Gauge(
            "peerlm_serve_versions", "Versions of the weights in memory.", registry=registry
        )
        self.version_tokens = Gauge(
            "peerlm_serve_version_swarm_tokens",
            "The swarm's tokens in the weights that new sessions get.",
            registry=registry,
        )

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def described(self) -> list[tuple[str, str, str, str]]:
        """(name, label or nothing, kind, meaning) of each metric of ours."""
        rows = []
        for metric in (value for value in vars(self).values() if hasattr(value, "describe")):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append((name, "".join(metric._labelnames), family.type, family.documentation))
        return rows
