"""A real worker process, with the test in the daemon's place."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from peerlm.daemon.worker_link import _progressed
from peerlm.data.mixture import Mixture
from peerlm.data.records import decode, parts_of
from peerlm.data.shards import prepare
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.node.coverage import Coverage
from peerlm.train import protocol
from peerlm.types import FragmentId, Instant
from tests.net.tiny_run import ME, plan, settings, shards
from tests.net.worker_scene import MODULE, Daemon, worker

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("corpus"))


def test_it_survives_a_theta_that_is_no_number_and_leaves_with_its_daemon(
    corpus: list[Path],
) -> None:
    with worker(corpus) as (daemon, process):
        daemon.hear(protocol.Initialised)
        start = daemon.memory.boundary[1].copy()
        assert daemon.hear(protocol.Ready) == protocol.Ready("cpu", 1)
        assert np.isfinite(start).all()
        assert start.any()
        daemon.train()
        assert daemon.hear(protocol.Progress).nonfinite_steps == 0

        daemon.memory.correction[1][:] = np.nan
        daemon.channel.send(protocol.Correction(FragmentId(1), 7, protocol.ADD))
        daemon.hear(protocol.Applied, lambda m: m.seq == 7)
        broken = daemon.hear(protocol.Boundary, lambda m: m.fragment == 1 and m.applied_seq == 7)
        assert np.isnan(daemon.memory.boundary[1]).all()
        daemon.channel.send(protocol.BoundaryTaken(broken.fragment))
        report = daemon.hear(protocol.Progress, lambda m: m.nonfinite_steps > 0)

        daemon.memory.correction[1][:] = start
        daemon.channel.send(protocol.Correction(FragmentId(1), 8, protocol.RESET))
        daemon.hear(protocol.Applied, lambda m: m.seq == 8)
        healed = daemon.hear(protocol.Progress, lambda m: m.loss is not None)
        assert healed.tokens > report.tokens
        assert np.isfinite(healed.loss)  # type: ignore[arg-type]

        daemon.socket.close()
        assert process.wait(timeout=2) == 0


def test_it_learns_from_a_mixture_and_tells_what_another_can_go_on_from(
    corpus: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "letters.txt"
    other.write_text("".join(chr(97 + n * n % 26) for n in range(30_000)))
    more = [shard.path for shard in prepare(str(other), ByteTokenizer(), tmp_path / "shards")]
    mixture = plan(
        **{
            "data.source": "swarm:plays*3+letters",
            "data.shards": [path.name for path in (*corpus, *more)],
            "data.parts": [len(corpus), len(more)],
        }
    )
    texts = tuple(part.text for part in parts_of(mixture))
    with worker([*corpus, *more], plan=mixture) as (daemon, _):
        daemon.hear(protocol.Ready)
        daemon.train()
        before = daemon.hear(protocol.Progress, lambda m: len(m.finished) > 30)
        daemon.channel.send(protocol.Evaluate())
        said = daemon.hear(protocol.Evaluated)
    assert before.texts == texts
    assert {*before.finished[::3]} == {0, 1}, "of both"
    assert len(said.val_losses) == 2
    assert said.val_loss == pytest.approx(0.75 * said.val_losses[0] + 0.25 * said.val_losses[1])
    kept = Coverage(mixture, b"", random.Random(1), Instant(0.0))
    kept.read(_progressed(1, before))
    drawn = np.frombuffer(before.order[32:], "<u8")
    assert abs(drawn[0] - 3 * drawn[1]) < 4
    again = Mixture.open([*corpus, *more], mixture, ME, mixture.train.batch)
    again.go_on(*decode(kept.for_start()))
    assert again.told().order == before.order
    for _ in range(20):
        again.next_batch()
    first = set(zip(*[iter(before.finished)] * 3, strict=True))
    assert first.isdisjoint(zip(*[iter(again.told().finished)] * 3, strict=True)), "nothing twice"


def test_it_goes_on_with_the_optimizer_of_the_one_before(
    corpus: list[Path], tmp_path: Path
) -> None:
    """That was killed; kept while it trained, and once more when it has drained. The next is two local workers."""
    path = tmp_path / "snapshots" / "optimizer.safetensors"
    path.parent.mkdir()

    def steps() -> float:
        return float(load_file(path)["step.embedding.weight"])

    with worker(corpus, moments=str(path)) as (daemon, process):
        assert daemon.hear(protocol.Ready).optimizer == ""
        daemon.train()
        daemon.channel.send(protocol.Keep())
        assert daemon.hear(protocol.Kept).error == ""
        before = steps()
        report = daemon.hear(protocol.Progress, lambda m: m.steps > before)
        daemon.channel.send(protocol.Drain())
        daemon.hear(protocol.Drained)
        assert daemon.hear(protocol.Kept).error == ""
        assert steps() >= report.steps > before > 0
        before = steps()
        process.kill()
    two = {"train.local_workers": 2}
    with worker(corpus, fresh=False, moments=str(path), **two) as (daemon, process):
        assert daemon.hear(protocol.Ready).optimizer == "goes on from what was kept"
        daemon.train()
        report = daemon.hear(protocol.Progress, lambda m: m.loss is not None)
        daemon.channel.send(protocol.Drain())
        daemon.hear(protocol.Drained)
        assert daemon.hear(protocol.Kept).error == ""
        assert steps() >= before + report.steps


def test_it_dies_with_a_daemon_that_is_killed_though_somebody_still_holds_the_socket(
    corpus: list[Path],
) -> None:
    daemon = Daemon()
    fds = (daemon.its_socket.fileno(), daemon.descriptor)
    program = (
        "import os, subprocess\n"
        f"command = {MODULE + [str(fd) for fd in fds]!r} + [str(os.getpid())]\n"
        f"process = subprocess.Popen(command, pass_fds={fds!r})\n"
        "print(process.pid, flush=True)\n"
        "process.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, pass_fds=fds
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        daemon.set_up(corpus, settings())
        daemon.hear(protocol.Ready)
        parent.kill()
    assert select.select([child], [], [], 2)[0], "the worker outlived its daemon"
    os.close(child)
    daemon.close()


def test_it_waits_for_shards_at_rest_and_is_stopped_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 1000)
    made = prepare(str(tmp_path / "text.txt"), ByteTokenizer(), tmp_path / "shards", 15_000)
    assert len(made) == 3
    sizes = {"data.shards": [s.hash for s in made], "data.shard_tokens": [s.tokens for s in made]}
    later = made[1].path.rename(tmp_path / "later")
    with worker([s.path for s in made], plan(**sizes), absent=(0, 1, 2)) as (daemon, process):
        daemon.hear(protocol.Ready)
        daemon.train()
        daemon.hear(protocol.Progress)
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        assert daemon.hear(protocol.Progress).steps == 0, "a sign of life, though it has no text"
        assert sum(psutil.Process(process.pid).cpu_times()[:2]) - before < 0.3

        later.rename(made[1].path)
        daemon.channel.send(protocol.Shards((0, 2)))
        report = daemon.hear(protocol.Progress, lambda m: m.loss is not None)
        assert report.steps > 0
        assert report.ranges == ((43_000 - 2_150) // 33 - 1,), "as if all of it were here"
        daemon.channel.send(protocol.Evaluate())
        assert np.isnan(daemon.hear(protocol.Evaluated).val_loss), "held-out text is not here"
        daemon.channel.send(protocol.Shards(()))
        daemon.channel.send(protocol.Evaluate())
        assert np.isfinite(daemon.hear(protocol.Evaluated).val_loss)

        daemon.channel.send(protocol.Shards((0, 1, 2)))
        daemon.hear(protocol.Progress, lambda m: not m.lanes)
        daemon.channel.send(protocol.Drain())
        daemon.hear(protocol.Drained)
        daemon.channel.send(protocol.Stop())
        assert process.wait(timeout=5) == 0


def test_too_little_memory_fails_in_one_line(corpus: list[Path]) -> None:
    with worker(corpus, **{"limits.memory_bytes": 200_000_000}) as (daemon, process):
        told = daemon.hear(protocol.Failed).error
        assert "Error: " in told
        assert "\n" not in told
        assert process.wait(timeout=5) == 1


def test_a_worker_whose_parent_is_not_its_daemon_does_nothing() -> None:
    done = subprocess.run([*MODULE, "98", "99", "1"], timeout=10, check=False)
    assert done.returncode == 0
