"""What a person can know of a node: one frozen summary, its JSON form, and "why am I not mixing?".

`Summary` is gathered by summary.py from the cores; nothing in it is live. `as_json` is the object
that `peerlm status --json` prints: its names are stable and described in docs/status.md, and
peerlm/observe/status.schema.json is what tests hold it to. `why` turns the same summary into at
most a few lines, the most important first, each saying what is so and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peerlm.node.dial_back import Reached
from peerlm.types import PeerId, RunId


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """One member as this node sees it; `phase` and figures are by its own word."""

    peer: PeerId
    address: str
    state: str
    phase: str
    participating: bool
    active: bool
    tokens: int
    tokens_per_s: float
    loss: float | None
    val_loss: float | None
    distance: float | None
    linked: bool
    mixed_s_ago: float | None = None
    """Since this node's last exchange with it."""
    stages: tuple[int, int] = (0, 0)
    """First and last stage of the model that it holds."""
    software: str = ""
    """The release of peerlm that it runs, by its own word; empty where it has not said."""
    is_auto: bool = False
    """It decides by itself which stages it holds; only then what follows is said but for speed and line."""
    target: tuple[int, int] = (0, 0)
    memory_host: int = 0
    memory_device: int | None = None
    flops_s: float = 0.0
    line_bytes_s: float = 0.0
    is_draining: bool = False
    weights_tokens: int | None = None
    """The swarm's, when what it answers texts with was written."""
    is_behind: bool = False
    """That is old beside what another host of a stage of its has: no text is begun with it while that one is there."""
    preprocess: str = "no"
    """Whether it makes token shards for all: no, able, or at work."""
    state_s: float = 0.0
    """It has been in this state for so long, as this node knows."""
    reason: str = ""
    """Why it is, or why this node does not mix with it: a line for a person, or empty."""
    delay_s: float = 0.0
    """One way between it and its neighbours, the middle one; 0: not known."""
    away_s: float | None = None
    """One way from this node; None: not known."""
    mixed_with: tuple[tuple[PeerId, float], ...] = ()
    """Whom it exchanged with lately, and how many seconds ago, the latest first: by its own word, as far as that can be so."""
    paces: Mapping[str, int] = field(default_factory=dict)
    """Tokens a second with one module of each kind; empty: not known."""
    page: str = ""
    """URL of its page, where it lets others see that."""
    busy: float | None = None
    """Share of the time in which its worker works, in tenths; None: it does not train, or does not say."""
    texts: int = 0
    """No more than so many go through it now."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What training a stage takes: bytes on host and device; FLOPs of a token."""

    host_bytes: int
    device_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class PlacementSummary:
    """This node's part of the placement. `why`: of its last decision. `copies`: stages of others that it keeps a copy of."""

    is_auto: bool = False
    target: tuple[int, int] = (0, 0)
    why: str = ""
    copies: tuple[int, ...] = ()
    loaded_bytes: int = 0
    load_total_bytes: int = 0
    stages: tuple[StageSummary, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """This node's part in the swarm's store. `lacking`, `swarm_lacking`: what should be here, and on all live nodes, and is not.
    `wrong`: lines of `node.shortage`."""

    capacity: int = 0
    used: int = 0
    names: int = 0
    lacking: int = 0
    swarm_lacking: int = 0
    is_full: bool = False
    lacking_s: float = 0.0
    """So long something has lacked here without a break."""
    urgent: int = 0
    """Of what lacks, what may be on one live node alone."""
    pulling: int = 0
    unfound: int = 0
    """Objects that are being fetched or looked for, and of these those that no live node has."""
    lost: int = 0
    """Objects that were found damaged or gone since the start."""
    hedged_bytes: int = 0
    """Of all that this node has fetched since the start, what came twice."""
    names_refused: int = 0
    """Records of names that were not believed since the start: malformed, or not signed by who may write them."""
    refused: str = ""
    """Of `Refusals.line`."""
    trouble: str = ""
    """Why the disk did not take what came last."""
    nodes: int = 0
    """Live ones that offer room, this one among them."""
    replicas_wanted: int = 0
    """The most that any name wants."""
    jobs_stuck: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextSummary:
    """One of the texts that the run reads. `share`: of all windows; `val_loss`: None while it is not known."""

    name: str
    share: float
    number: int
    position: float
    val_loss: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything `status` shows. Times in seconds, losses in nats per token."""

    peer: PeerId
    run_id: RunId
    run_name: str
    phase: str
    phase_reason: str
    """Why the node is in this phase, when that is not plain: a line for a person, or empty."""
    address: str
    reached: Reached
    epoch: int
    plan_revision: int
    plan_hash: bytes
    continues: str
    """Manifest of the checkpoint that the run goes on from, in hex; empty: none."""
    token_budget: int
    tokens: int
    swarm_tokens: int
    swarm_tokens_per_s: float
    loss: float | None
    val_loss: float | None
    consensus_distance: float | None
    participating: bool
    members: tuple[MemberSummary, ...]
    exchanges: Mapping[str, int]
    exchange_reasons: Mapping[str, int]
    clip_booked: float
    bytes_sent: int
    bytes_received: int
    bytes_allreduce: int
    """What fp32 ring all-reduce each inner step would have made this node send by now."""
    stages: tuple[int, int, int]
    """First and last that this node holds, of how many."""
    lacking: tuple[int, ...]
    """Stages that nobody trains."""
    stream_lost: int
    """Microbatches of its worker's that came to nothing."""
    stream_bytes: tuple[int, int]
    """Sent and received by its worker, of the stream between stages."""
    inner_steps: int
    """Between two outer steps of a fragment, as it is now."""
    line_use: float | None
    """Share of what the line would have carried, or of the time while that is not known, lately."""
    line_bytes_s: float | None
    """What the line carries of ours, as measured."""
    worker_state: str
    worker_device: str
    worker_device_wanted: str
    """As this node's settings have it."""
    worker_threads: int
    worker_restarts: int
    worker_last_error: str
    worker_silent_s: float
    """How long it has told nothing, where that is unusual; else 0."""
    tokens_per_s: float
    nonfinite_steps: int
    batch_tokens: int
    """Of an inner step."""
    noise_scale: float | None
    """Tokens of a batch that would be half noise."""
    data_pass: int
    data_position: float
    """Of the text that is least far."""
    texts: tuple[TextSummary, ...]
    shards: tuple[int, int]
    """Of its text how many are here, of how many."""
    arriving: str
    """What it trains on while not all of its text is here; empty once it is."""
    fetched_bytes: int
    fetch_total_bytes: int
    snapshot_number: int
    snapshot_tokens: int
    snapshot_error: str
    model_dir: str
    dial_errors: Mapping[str, str]
    refused_plans: Mapping[str, str]
    shut_out: str
    """Why nobody will have this node, and what to do; empty while that is not so."""
    notes: tuple[str, ...]
    placement: PlacementSummary = PlacementSummary()
    store: StoreSummary = StoreSummary()


def as_json(s: Summary) -> dict[str, Any]:
    """The object of `peerlm status --json`."""
    return {
        "node_id": s.peer.hex(),
        "run_id": s.run_id.hex(),
        "run_name": s.run_name,
        "state": s.phase,
        "state_reason": s.phase_reason,
        "address": s.address,
        "dialled": {
            "guarded": s.reached.guarded,
            "by": s.reached.by,
            "not_by": s.reached.not_by,
            "failure": s.reached.failure,
        },
        "epoch": s.epoch,
        "plan_revision": s.plan_revision,
        "plan_hash": s.plan_hash.hex(),
        "continues": s.continues,
        "token_budget": s.token_budget,
        "tokens": s.tokens,
        "swarm_tokens": s.swarm_tokens,
        "swarm_tokens_per_s": round(s.swarm_tokens_per_s, 1),
        "loss": s.loss,
        "val_loss": s.val_loss,
        "ready": is_ready(s),
        "participating": s.participating,
        "consensus_distance": s.consensus_distance,
        "members": [
            {
                "id": m.peer.hex(),
                "address": m.address,
                "state": m.state,
                "phase": m.phase,
                "participating": m.participating,
                "tokens": m.tokens,
                "tokens_per_s": round(m.tokens_per_s, 1),
                "loss": m.loss,
                "val_loss": m.val_loss,
                "consensus_distance": m.distance,
                "linked": m.linked,
                "mixed_s_ago": None if m.mixed_s_ago is None else round(m.mixed_s_ago, 1),
                "mixed_with": [
                    {"id": peer.hex(), "s_ago": round(ago, 1)} for peer, ago in m.mixed_with
                ],
                "stages": list(m.stages),
                "software": m.software,
                "auto": m.is_auto,
                "target": list(m.target),
                "offers": {"host_bytes": m.memory_host, "device_bytes": m.memory_device},
                "flops_s": m.flops_s,
                "line_bytes_s": m.line_bytes_s,
                "draining": m.is_draining,
                "weights_tokens": m.weights_tokens,
                "behind": m.is_behind,
                "preprocess": m.preprocess,
                "state_s": round(m.state_s, 1),
                "reason": m.reason,
                "delay_s": m.delay_s,
                "away_s": m.away_s,
                "paces": dict(m.paces),
                "page": m.page,
                "busy": m.busy,
                "texts": m.texts,
            }
            for m in s.members
        ],
        "exchanges": dict(s.exchanges),
        "exchange_reasons": dict(s.exchange_reasons),
        "clip_booked": s.clip_booked,
        "bytes_sent": s.bytes_sent,
        "bytes_received": s.bytes_received,
        "bytes_allreduce": s.bytes_allreduce,
        "stages": {
            "first": s.stages[0],
            "last": s.stages[1],
            "count": s.stages[2],
            "lacking": list(s.lacking),
            "lost": s.stream_lost,
            "bytes_sent": s.stream_bytes[0],
            "bytes_received": s.stream_bytes[1],
        },
        "placement": _placement(s.placement),
        "tempo": {
            "inner_steps": s.inner_steps,
            "line_use": _rounded(s.line_use),
            "line_bytes_s": _rounded(s.line_bytes_s),
        },
        "worker": {
            "state": s.worker_state,
            "tokens_per_s": round(s.tokens_per_s, 1),
            "device": s.worker_device,
            "device_wanted": s.worker_device_wanted,
            "threads": s.worker_threads,
            "restarts": s.worker_restarts,
            "last_error": s.worker_last_error,
            "nonfinite_steps": s.nonfinite_steps,
        },
        "batch": {"tokens": s.batch_tokens, "noise_scale": _rounded(s.noise_scale, 1)},
        "data": {
            "pass": s.data_pass,
            "position": round(s.data_position, 4),
            "shards_here": s.shards[0],
            "shards": s.shards[1],
            "texts": [
                {
                    "name": text.name,
                    "share": round(text.share, 6),
                    "pass": text.number,
                    "position": round(text.position, 4),
                    "val_loss": text.val_loss,
                }
                for text in s.texts
            ],
        },
        "fetch": {"bytes": s.fetched_bytes, "total_bytes": s.fetch_total_bytes},
        "snapshot": {
            "number": s.snapshot_number,
            "tokens": s.snapshot_tokens,
            "error": s.snapshot_error,
        },
        "store": {
            "capacity_bytes": s.store.capacity,
            "used_bytes": s.store.used,
            "names": s.store.names,
            "lacking": s.store.lacking,
            "swarm_lacking": s.store.swarm_lacking,
            "is_full": s.store.is_full,
            "lacking_s": round(s.store.lacking_s, 1),
            "urgent": s.store.urgent,
            "unfound": s.store.unfound,
            "lost": s.store.lost,
            "hedged_bytes": s.store.hedged_bytes,
            "names_refused": s.store.names_refused,
            "nodes": s.store.nodes,
            "replicas_wanted": s.store.replicas_wanted,
            "wrong": list(s.store.wrong),
        },
        "model_dir": s.model_dir,
        "why": why(s),
    }


def _placement(p: PlacementSummary) -> dict[str, Any]:
    return {
        "auto": p.is_auto,
        "target": list(p.target),
        "why": p.why,
        "copies": list(p.copies),
        "bytes": p.loaded_bytes,
        "total_bytes": p.load_total_bytes,
        "stages": [
            {"host_bytes": n.host_bytes, "device_bytes": n.device_bytes, "flops": n.flops}
            for n in p.stages
        ],
    }


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def is_whole(s: Summary) -> bool:
    """Whether the node holds the whole model."""
    first, last, count = s.stages
    return last - first + 1 == count


def is_ready(s: Summary) -> bool:
    """Whether the node takes part in its run: it has weights, or somebody to get them from."""
    others = [m for m in s.members if m.peer != s.peer and m.state == "alive"]
    return s.phase not in ("starting", "seeking") or bool(others)


def headline(s: Summary) -> str:
    """The node in one line, for a service manager: what it does, how far, with whom; and what is wrong."""
    alive = sum(m.state == "alive" for m in s.members if m.peer != s.peer)
    others = [m for m in s.members if m.peer != s.peer and m.state != "left"]
    done = f" ({s.swarm_tokens / s.token_budget:.1%})" if s.token_budget else ""
    line = f"{s.run_name}: {s.phase}, {s.swarm_tokens:,} tokens{done}, {alive} of {len(others)} others alive"
    if s.val_loss is not None:
        line += f", validation loss {s.val_loss:.3f}"
    if s.participating:
        return "; ".join([line, *_arriving(s)])
    return f"{line}; {why(s)[0]}"


def why(s: Summary) -> list[str]:
    """Why this node is not mixing (or that it is), most important first. Never empty."""
    if s.shut_out and not s.participating:
        return [s.shut_out, *_own_state(s)]
    lines = [*_own_state(s), *_company(s), *_arriving(s), *s.notes]
    if s.participating and not lines:
        distance = "" if s.consensus_distance is None else f", distance {s.consensus_distance:.2%}"
        lines = [f"mixing: {s.exchanges.get('ok', 0)} exchanges done{distance}"]
        if not is_whole(s) and not s.exchanges.get("ok"):
            lines = ["training its part; nobody else holds it, so there is nobody to mix with"]
    lines = lines or ["no exchange has finished lately; `peerlm peers` shows who is there"]
    return [*lines, *_reached(s.reached), *(f"the store: {line}" for line in s.store.wrong)]


def _arriving(s: Summary) -> list[str]:
    return [s.arriving] if s.arriving and s.phase == "training" else []


def _reached(reached: Reached) -> list[str]:
    """What it means that others cannot dial this node; nothing where they can."""
    if reached.guarded:
        means = "it mixes by dialling out, though not with others that nobody can dial"
        return [f"nobody can dial this node ({reached.failure}): {means}"]
    if reached.not_by:
        who = "member" if reached.not_by == 1 else "members"
        means = "others can; exchanges with those begin here"
        return [f"{reached.not_by} {who} cannot dial this node ({reached.failure}): {means}"]
    return []


def _own_state(s: Summary) -> list[str]:
    lines = []
    if s.phase == "done":
        where = f"the model is in {s.model_dir}"
        if not is_whole(s):
            where = "this node keeps its part; one that joins with host.stages = all gets the model"
        lines.append(f"the run is done: {s.swarm_tokens:,} tokens; {where}")
    elif s.phase_reason:
        lines.append(f"{s.phase}: {s.phase_reason}")
    elif s.phase not in ("training", "settling"):
        lines.append(f"this node is {s.phase}")
    if s.worker_state == "backing_off":
        lines.append(f"the worker died and will be started again: {s.worker_last_error}")
    elif s.worker_silent_s:
        lines.append(
            f"the worker has told nothing for {s.worker_silent_s:.0f} s; it is replaced if that goes on"
        )
    elif s.nonfinite_steps:
        lines.append(f"{s.nonfinite_steps} inner steps were not finite (NaN), and were not taken")
    if s.snapshot_error:
        lines.append(f"snapshots fail, nothing new is kept: {s.snapshot_error}")
    return lines


def _company(s: Summary) -> list[str]:
    lines = [f"peer {peer} has another plan: {line}" for peer, line in s.refused_plans.items()]
    others = [m for m in s.members if m.peer != s.peer]
    alive = [m for m in others if m.state == "alive"]
    if s.phase in ("training", "seeking", "settling") and not s.participating:
        if not others:
            lines.append("this node is alone: no other member is known; `peerlm invite` brings one")
        elif not alive:
            lines.append(f"no other member is alive ({len(others)} known)")
        elif not any(m.active for m in alive):
            lines.append(f"{len(alive)} members are alive, but none has weights to mix yet")
        else:
            lines += [f"exchanges end as {what} ({n} times)" for what, n in _worst(s)]
    if not alive:
        lines += [f"{address}: {error}" for address, error in s.dial_errors.items()]
    return lines


def _worst(s: Summary) -> list[tuple[str, int]]:
    return sorted(s.exchange_reasons.items(), key=lambda item: (-item[1], item[0]))[:2]
