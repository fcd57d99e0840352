"""The sample text of a node's newest weights: what is kept of it, when another is due, and why there is none.

A text costs a process and some seconds of processor time, so it is written rarely: of a snapshot with newer weights, after a pause
that its cost is a small share of, and at once when the run is done. Of a model in stages whoever holds a part writes
through the others', which all of them pay for; so each waits for its turn, and the longer the more there are.

All is decided by what the node says of itself (`status --json`). Pure: times are handed in, wall time for what
outlives the daemon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

FIRST_S = 60.0
"""A node that has just started has better things to do."""

COST_SHARE = 200.0
"""The pause after a text is at least so many times the processor time that it took: half a percent of one core."""

SWARM_RARER = 4.0
"""Through the swarm a text is written so much rarer: it has every host keep a second copy of its weights for minutes."""

CPU_S = 20.0
"""Processor time after which a text ends where it is."""

ASKED_AGAIN_S = 60.0
"""What has failed is tried again for who asks after so long."""

TEXT_MAX = 2000
"""Characters that are kept of one."""

WHY_MAX = 300

MEMORY_SHARE = 1 / 3
"""Of the memory that is free, that one may take for its few seconds."""

PROCESS_BYTES = 400 << 20
"""What the process takes besides the weights."""

Status = Mapping[str, Any]
"""What `peerlm status --json` prints; what is said here of samples is not read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The last text, and the last try. Times are wall times in seconds."""

    text: str = ""
    snapshot: int = 0
    """The one it was written with; through the swarm, this node's newest then. 0: there is no text."""
    tokens: int = 0
    """Of the swarm, that its weights had learnt from."""
    at: float | None = None
    through_swarm: bool = False
    cpu_s: float = 0.0
    """Processor time that the last try has taken here; of one that failed, at most."""
    tried_at: float | None = None
    error: str = ""
    """Why the last try came to nothing; empty if it did not."""


def encode(sample: Sample) -> bytes:
    return json.dumps(asdict(sample)).encode()


NUMBER, TIME = float | int, float | int | None
KINDS = (str, int, int, TIME, bool, NUMBER, TIME, str)
"""Of the fields, in their order."""


def read_sample(data: bytes) -> Sample:
    """What `encode` wrote; damaged, it is none."""
    try:
        sample = Sample(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return Sample()
    values = [getattr(sample, f.name) for f in fields(Sample)]
    is_sound = all(isinstance(v, kind) for v, kind in zip(values, KINDS, strict=True))
    return sample if is_sound else Sample()


def as_json(sample: Sample, why: str, *, is_writing: bool) -> dict[str, Any]:
    """`sample` of `status --json`."""
    return {
        "text": sample.text,
        "snapshot": sample.snapshot,
        "tokens": sample.tokens,
        "at": sample.at,
        "through_swarm": sample.through_swarm,
        "cpu_s": round(sample.cpu_s, 2),
        "writing": is_writing,
        "why": why,
    }


# ------------------------------------------------------------------------------------ decisions


def is_through_swarm(status: Status) -> bool:
    """This node alone cannot write one: it has not all of the model."""
    stages = status["stages"]
    return bool(stages["last"] - stages["first"] + 1 < stages["count"])


def is_due(last: Sample, status: Status, every_s: float, at: float, up_s: float) -> bool:
    """Whether to write one now. `every_s`: the setting; 0: none by itself. `up_s`: since the daemon's start."""
    if not every_s or hindrance(status) or up_s < _first_s(status, every_s):
        return False
    if not (last.error or _is_newer(last, status)):
        return False
    if last.tried_at is None or last.tried_at > at:  # never, or the clock was set back
        return True
    is_last = status["state"] == "done" and not last.error
    turn_s = 0.0 if is_last else max(every_s * _turns(status), COST_SHARE * last.cpu_s)
    return at - last.tried_at >= turn_s


def is_to_be_had(last: Sample, status: Status, at: float) -> bool:
    """Whether to write one now for who asks: once for each snapshot; what has failed once more, after a while."""
    if not last.error:
        return bool(status["snapshot"]["number"] != last.snapshot)
    return last.tried_at is None or not 0 <= at - last.tried_at < ASKED_AGAIN_S


def hindrance(status: Status) -> str:
    """Why this node can write none now, for a person; empty where it can."""
    stages, snapshot = status["stages"], status["snapshot"]
    if stages["first"] > stages["last"]:
        return "this node keeps no weights, so it writes none by itself"
    if not snapshot["number"]:
        return f"there is no snapshot yet{': ' * bool(snapshot['error'])}{snapshot['error']}"
    if not snapshot["tokens"]:
        return "nothing is learnt yet"
    if missing := _unhosted(status):
        return f"nobody is there with weights of stage {', '.join(map(str, missing))}"
    return ""


def why_none(last: Sample, status: Status, every_s: float) -> str:
    """Why there is no text, or no newer one, for a person; empty where all is well."""
    if last.error:
        return last.error
    if last.text:
        return ""
    if reason := hindrance(status):
        return reason
    if not every_s:
        return "observe.sample_every_s = 0: none is written but when somebody asks"
    return "the first one is written soon"


def no_room(parameters: int, free_bytes: int) -> str:
    """Why a model of so many is not loaded a second time on this machine; empty where there is room."""
    takes, most = 4 * parameters + PROCESS_BYTES, MEMORY_SHARE * free_bytes
    if takes <= most:
        return ""
    return (
        f"none is written: the model would take {takes / 1e9:.1f} GB of memory once more, and a third of what is "
        f"free are {most / 1e9:.1f} GB"
    )


def hosts_tokens(status: Status) -> int:
    """Of the oldest weights that a text through the swarm may meet; 0 where nobody says."""
    return min((m["weights_tokens"] for m in _hosts(status) if not m["behind"]), default=0)


def _is_newer(last: Sample, status: Status) -> bool:
    snapshot = status["snapshot"]
    has_learnt = snapshot["tokens"] != last.tokens or status["state"] == "done"
    return bool(snapshot["number"] != last.snapshot and has_learnt)


def _first_s(status: Status, every_s: float) -> float:
    """Nodes that were started together do not write at once."""
    least_s = min(FIRST_S, every_s)
    if is_through_swarm(status):
        return least_s * (1 + _writers(status).index(status["node_id"]))
    return least_s * (1 + int(status["node_id"][:4], 16) / 0xFFFF)


def _turns(status: Status) -> float:
    return SWARM_RARER * len(_writers(status)) if is_through_swarm(status) else 1.0


def _writers(status: Status) -> list[str]:
    """Those who hold weights, this node among them, sorted."""
    return sorted({status["node_id"], *(m["id"] for m in _hosts(status))})


def _unhosted(status: Status) -> list[int]:
    """Stages that a text would not get through."""
    if not is_through_swarm(status):
        return []
    runs = [m["stages"] for m in _hosts(status)]
    stages = range(status["stages"]["count"])
    return [stage for stage in stages if not any(a <= stage <= b for a, b in runs)]


def _hosts(status: Status) -> list[Mapping[str, Any]]:
    """Those who hold weights."""
    return [
        m for m in status["members"] if m["state"] == "alive" and m["weights_tokens"] is not None
    ]
