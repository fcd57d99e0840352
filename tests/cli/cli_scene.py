"""Helpers of the command's tests: outcomes, a control server in a thread, a sample of status."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from peerlm.daemon import control
from peerlm.node.dial_back import Reached
from peerlm.node.status import MemberSummary, Summary, TextSummary, as_json
from peerlm.store.layout import Layout
from peerlm.types import PeerId, RunId

SMALL = ("--set", "model.dim=16", "--set", "model.heads=2", "--set", "model.hidden=16")
"""Options of `peerlm init` that make a model of a few thousand parameters."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def assert_one_line(outcome: Outcome, code: int, *words: str) -> None:
    """The command failed with this code and said so in one line with these words."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("peerlm: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


@dataclass
class FakeDaemon:
    """Answers on the control socket from `answers`, and remembers what it was asked."""

    layout: Layout
    asked: list[tuple[str, dict[str, Any]]]
    answers: dict[str, Any]


Handle = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class serving:
    """A control server on a loop of its own, in a thread."""

    def __init__(
        self,
        layout: Layout,
        handle: Handle,
        group: str = "",
        streams: dict[str, control.Stream] | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self._server = self._do(control.serve(layout, handle, group, streams))
        except BaseException:
            self._end()
            raise

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> serving:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._server.close())
        self._end()


# ----------------------------------------------------------------------------- what it answers


def member(number: int, **changes: Any) -> MemberSummary:
    return replace(
        MemberSummary(
            peer=PeerId(bytes([number]) * 16),
            address=f"tcp://10.0.0.{number}:7700",
            state="alive",
            phase="training",
            participating=True,
            active=True,
            tokens=1_000_000,
            tokens_per_s=2_345.6,
            loss=1.75,
            val_loss=1.8,
            distance=0.0123,
            linked=True,
        ),
        **changes,
    )


def sample_summary(**changes: Any) -> Summary:
    return replace(
        Summary(
            peer=PeerId(b"\x01" * 16),
            run_id=RunId(b"\xaa" * 16),
            run_name="plays",
            phase="training",
            phase_reason="",
            address="tcp://10.0.0.1:7700",
            reached=Reached(by=1),
            epoch=3,
            plan_revision=1,
            plan_hash=b"\xab" * 32,
            continues="",
            token_budget=20_000_000,
            tokens=1_000_000,
            swarm_tokens=2_500_000,
            swarm_tokens_per_s=5_000.0,
            loss=1.75,
            val_loss=1.81,
            consensus_distance=0.0123,
            participating=True,
            members=(member(1), member(2, state="dead", phase="", participating=False, loss=None)),
            exchanges={"ok": 12, "busy": 2, "refused": 0, "timed_out": 1},
            exchange_reasons={"busy: exchanging": 2},
            clip_booked=0.01,
            bytes_sent=12_345_678,
            bytes_received=11_000_000,
            bytes_allreduce=99_000_000,
            stages=(0, 0, 1),
            lacking=(),
            stream_lost=0,
            stream_bytes=(0, 0),
            inner_steps=12,
            line_use=0.48,
            line_bytes_s=12_500_000.0,
            worker_state="running",
            worker_device="cpu",
            worker_device_wanted="cpu",
            worker_threads=1,
            worker_restarts=1,
            worker_last_error="killed by signal 9",
            tokens_per_s=2_500.0,
            nonfinite_steps=0,
            worker_silent_s=0.0,
            batch_tokens=2_048,
            noise_scale=31_000.0,
            data_pass=1,
            data_position=0.25,
            texts=(
                TextSummary("plays", 0.75, 1, 0.25, 1.8),
                TextSummary("news", 0.25, 3, 0.5, None),
            ),
            shards=(3, 3),
            arriving="",
            fetched_bytes=0,
            fetch_total_bytes=0,
            snapshot_number=4,
            snapshot_tokens=2_400_000,
            snapshot_error="",
            model_dir="",
            dial_errors={},
            refused_plans={},
            shut_out="",
            notes=(),
        ),
        **changes,
    )


SAMPLE = {
    "text": "MENENIUS:\nWhat then?",
    "snapshot": 4,
    "tokens": 2_400_000,
    "at": 1_700_000_000.0,
    "through_swarm": False,
    "cpu_s": 4.2,
    "writing": False,
    "why": "",
}


def answer_of(summary: Summary) -> dict[str, Any]:
    """What the daemon's `status` gives: the node's summary, and its process."""
    process = {
        "pid": 7,
        "listening": {"host": "", "ports": [7700, 7701, 7702]},
        "files_max": 16_384,
        "rss_mb": 63.4,
        "loop_lag_p99_ms": 1.5,
        "bulk_bytes_sent": 12_400_000,
        "bulk_bytes_received": 11_100_000,
        "bulk_waiting": 2,
        "counters": {"links_garbage": 2, "introduction_over_budget": 1, "bulk_dropped_corrupt": 3},
    }
    own = {"sample": SAMPLE, "page": "http://127.0.0.1:7703/", "daemon": process}
    return as_json(summary) | own
