"""What happens in the demo, and the proof that it happened.

    found a run, start its node, invite the others          every node mixes
    kill the first node with SIGKILL at a third              its worker dies too, the others notice and go on
    start it again at half time                              it catches up, mixes and trains again
    train to the budget                                      all nodes settle and write the same model

Every line on the right is a condition that is waited for, with a deadline; one that is not met is a
`DemoFailed` which says which. The token budget follows from the measured rate, so that the run ends
near the minutes asked for; changing it is a new revision of the plan, signed by the root, as any
person would do it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from peerlm.cli import words
from peerlm.cli.demo_nodes import DemoFailed, DemoNode, peerlm
from peerlm.cli.plan import current_plan
from peerlm.model.plan import parameter_count

POLL_S = 0.5
RATE_WINDOW_S = 15.0
GUESSED_RATE = 8_000.0
"""Tokens/s of the swarm assumed for the first budget; the learning rate's warm-up follows it."""

KILL_AT, RESTART_AT = 1 / 3, 1 / 2
STEER_AT = (0.68, 0.84)
"""Shares of the time at which the budget is looked at again, after the first look."""

SETTLE_SHARE, SETTLE_S = 0.06, 10.0
"""Of the time is left for settling: this share, at most so long."""

GATHER_SHARE = 0.25
"""Of the time, until all train."""

MEASURE_S = 15.0
STEP_S = 120.0
"""Longest wait for a step of the story, however short the demo is to be."""

WORKER_GONE_S = 2.0
PARAMETER_BYTES = 4


@dataclass(slots=True)
class Scene:
    """Where the story stands; what the displays show. Rates in tokens/s, times in s."""

    nodes: list[DemoNode]
    seconds: float
    began: float
    budget: int = 0
    tokens: int = 0
    rate: float = 0.0
    val_loss: float | None = None
    loss_start: float | None = None
    distance: float | None = None
    bytes_allreduce: int = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """Of the time the demo is to take."""
        return self.elapsed_s / self.seconds

    @property
    def bytes_sent(self) -> int:
        return sum(node.bytes_sent for node in self.nodes)


@dataclass(slots=True)
class Facts:
    """What has been measured on the way."""

    kills: int = 0
    noticed_s: float = 0.0
    rejoin_s: float = 0.0
    training_s: float = 0.0
    models: list[Path] = field(default_factory=list)


class Story:
    """`show` is called at every look at the nodes; `say` with a line when something happens."""

    def __init__(
        self,
        folder: Path,
        nodes: int,
        minutes: float,
        show: Callable[[Scene], None],
        say: Callable[[str], None],
    ) -> None:
        self.scene = Scene(
            [DemoNode(number, folder) for number in range(1, nodes + 1)],
            60 * minutes,
            time.monotonic(),
        )
        self.facts = Facts()
        self._show, self._say = show, say
        self._seen: deque[tuple[float, int]] = deque()
        self._highest: dict[tuple[int, int], int] = {}
        self._training_since: float | None = None
        self._deadline_s = 1.5 * 60 * minutes + 2 * STEP_S

    def tell(self) -> Facts:
        """The whole story. Raises `DemoFailed` naming what did not happen."""
        self._found()
        self._gather()
        self._settle_on_budget(wait_s=min(MEASURE_S, 0.1 * self.scene.seconds))
        self._until(KILL_AT)
        self._kill_first()
        self._until(RESTART_AT)
        self._restart_first()
        for share in STEER_AT:
            self._until(share)
            self._settle_on_budget()
        self._finish()
        return self.facts

    # ---------------------------------------------------------------------------- the chapters

    def _found(self) -> None:
        first, scene = self.scene.nodes[0], self.scene
        scene.budget = int(GUESSED_RATE * scene.seconds)
        threads = max(1, (psutil.cpu_count() or 1) // len(scene.nodes))
        self._settings = (
            *("--set-node", "network.port=0", "--set-node", "network.host=127.0.0.1"),
            *("--set-node", f"limits.threads={threads}", "--set-node", "limits.snapshot_every_s=5"),
        )
        peerlm(
            *("init", "--state", str(first.layout.root), *self._settings),
            *("--set", f"run.token_budget={scene.budget}", "--set", "swarm.profile=test"),
            *("--set", f"train.val_every_s={max(4.0, scene.seconds / 30)}"),
        )
        plan = current_plan(first.layout).plan
        self._tokens_per_step = plan.train.batch * plan.model.context
        self._parameters = parameter_count(plan.model, plan.data.vocab)
        self._say(
            f"a run is founded: {self._parameters / 1e6:.2f} M parameters, a Shakespeare of 1 MB"
        )
        first.start("up")

    def _gather(self) -> None:
        first, *others = self.scene.nodes
        self._wait("node 1 listens", lambda: bool(first.status and first.status["address"]))
        line = peerlm("invite", "--state", str(first.layout.root)).split()
        address, token = line[2], line[4]
        for node in others:
            node.start("join", address, "--token", token, *self._settings)
        self._say(f"{len(others)} more nodes join it at {address}")
        self._wait("every node trains and mixes", lambda: self._all_mix() and self._all_train())
        # What a slow start has taken is given back: the kill and the return need it.
        scene = self.scene
        scene.seconds += max(0.0, scene.elapsed_s - GATHER_SHARE * scene.seconds)
        self._say("every node trains and mixes")

    def _kill_first(self) -> None:
        first, *others = self.scene.nodes
        self._wait("every node mixes before the kill", self._all_mix)
        before, began = self.scene.tokens, time.monotonic()
        assert first.status is not None, "it has just been mixing"
        victim = first.status["node_id"]
        children = first.kill()
        self.facts.kills += 1
        self._say(
            f"node 1, the first of all, is killed with SIGKILL at {words.count(before)} tokens"
        )
        if not children:
            raise DemoFailed("node 1 was to be killed while its worker ran, but it had none")
        while alive := [child for child in children if _is_alive(child)]:
            if time.monotonic() - began > WORKER_GONE_S:
                raise DemoFailed(
                    f"node 1's worker ({alive[0].pid}) outlived it by {WORKER_GONE_S:g} s"
                )
            time.sleep(0.02)
        self._wait(
            "another node notices that node 1 is gone",
            lambda: any(_sees(node, victim) in ("suspect", "dead") for node in others),
        )
        self.facts.noticed_s = time.monotonic() - began
        self._say(f"the others noticed after {self.facts.noticed_s:.1f} s; its worker died with it")
        self._wait(
            "the others train on without node 1",
            lambda: self.scene.tokens >= before + len(others) * self._tokens_per_step,
        )

    def _restart_first(self) -> None:
        first = self.scene.nodes[0]
        began = time.monotonic()
        self._say(
            f"node 1 is started again; the others are at {words.count(self.scene.tokens)} tokens"
        )
        first.start("up")
        self._wait("node 1 mixes again after its restart", lambda: _mixes(first) or _is_done(first))
        self.facts.rejoin_s = time.monotonic() - began
        assert first.status is not None, "it has just been mixing"
        self._say(
            f"node 1 has caught up ({words.count(first.status['swarm_tokens'])} tokens) and mixes "
            f"again, {self.facts.rejoin_s:.1f} s after its start"
        )
        self._wait("node 1 trains again after its restart", lambda: _trains(first))
        self._say(f"node 1 trains again, {time.monotonic() - began:.1f} s after its start")

    def _finish(self) -> None:
        nodes = self.scene.nodes
        self._wait("the budget is reached", lambda: self.scene.tokens >= self.scene.budget, 1e9)
        assert self._training_since is not None, "the nodes have trained"
        self.facts.training_s = time.monotonic() - self._training_since
        self._say("the token budget is reached; the nodes settle")
        self._wait("every node settles and writes its model", lambda: all(map(_is_done, nodes)))
        self.facts.models = [Path(n.status["model_dir"]) for n in nodes if n.status]
        self._say("every node has settled and written its model")

    # ------------------------------------------------------------------------------ the budget

    def _settle_on_budget(self, wait_s: float = 0.0) -> None:
        """Set the token budget so that training ends in time at the present rate, unless it does."""
        scene = self.scene
        if wait_s:
            self._seen.clear()
            until = time.monotonic() + wait_s
            self._wait("the rate is measured", lambda: time.monotonic() >= until)
        left_s = scene.seconds - min(SETTLE_SHARE * scene.seconds, SETTLE_S) - scene.elapsed_s
        wanted = scene.tokens + int(scene.rate * max(left_s, 5.0))
        if abs(wanted - scene.budget) < 0.05 * wanted or scene.tokens >= scene.budget:
            return
        state = str(scene.nodes[0].layout.root)
        peerlm("plan", "set", f"run.token_budget={wanted}", "--state", state)
        scene.budget = wanted
        self._say(
            f"at {words.count(scene.rate)} tokens/s the budget is set to {words.count(wanted)} tokens: "
            f"about {words.span(max(left_s, 5.0))} more"
        )

    # ------------------------------------------------------------------------- looking, waiting

    def _until(self, share: float) -> None:
        """Let time pass, unless the budget is used up before."""
        scene = self.scene
        self._wait(
            "time passes",
            lambda: scene.share >= share or scene.tokens >= scene.budget,
            limit_s=scene.seconds,
        )

    def _wait(self, what: str, is_so: Callable[[], bool], limit_s: float = STEP_S) -> None:
        """Look at the nodes until it is so. Raises `DemoFailed`."""
        began = time.monotonic()
        while True:
            self._look()
            if is_so():
                return
            waited_s = time.monotonic() - began
            if waited_s > limit_s or self.scene.elapsed_s > self._deadline_s:
                raise DemoFailed(f"{what}: not within {waited_s:.0f} s; {self._why()}")
            time.sleep(max(0.0, POLL_S - (time.monotonic() - began - waited_s)))

    def _look(self) -> None:
        for node in self.scene.nodes:
            node.look()
            if node.state != "killed":
                node.check_up()
            self._check_count(node)
        self._measure()
        self._show(self.scene)

    def _check_count(self, node: DemoNode) -> None:
        """The swarm's token count never goes backwards in a node's life."""
        if node.status is None:
            return
        life, tokens = (node.number, node.status["epoch"]), node.status["swarm_tokens"]
        if tokens < self._highest.get(life, 0):
            raise DemoFailed(
                f"the swarm's token count went back on {node.name}: {self._highest[life]:,} → {tokens:,}"
            )
        self._highest[life] = tokens

    def _measure(self) -> None:
        scene, now = self.scene, time.monotonic()
        answers = [node.status for node in scene.nodes if node.status is not None]
        if not answers:
            return
        scene.tokens = max(scene.tokens, *(a["swarm_tokens"] for a in answers))
        if scene.tokens and self._training_since is None:
            self._training_since = now
        self._seen.append((now, scene.tokens))
        while now - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        if (span_s := now - self._seen[0][0]) > 1.0:
            scene.rate = (scene.tokens - self._seen[0][1]) / span_s
        scene.val_loss = _mean([a["val_loss"] for a in answers])
        scene.distance = _mean([a["consensus_distance"] for a in answers])
        if scene.loss_start is None:
            scene.loss_start = scene.val_loss
        steps, others = scene.tokens / self._tokens_per_step, len(scene.nodes) - 1
        per_step = 2 * others / len(scene.nodes) * PARAMETER_BYTES * self._parameters
        scene.bytes_allreduce = int(steps * per_step)

    def _all_mix(self) -> bool:
        return all(map(_mixes, self.scene.nodes))

    def _all_train(self) -> bool:
        return all(node.status and node.status["tokens"] for node in self.scene.nodes)

    def _why(self) -> str:
        """What the nodes that are not mixing say of it."""
        told = [
            f"{node.name} is {node.state}" + (f" ({node.status['why'][0]})" if node.status else "")
            for node in self.scene.nodes
        ]
        return "; ".join(told)


def _is_alive(process: psutil.Process) -> bool:
    """Whether it can still do anything; one that is dead but not yet reaped cannot."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _mixes(node: DemoNode) -> bool:
    status = node.status
    return bool(status and status["participating"] and status["exchanges"]["ok"])


def _trains(node: DemoNode) -> bool:
    """Its worker takes inner steps, or the run has come to its end meanwhile."""
    status = node.status
    return bool(
        status
        and (status["worker"]["tokens_per_s"] > 0 or status["state"] not in ("ready", "training"))
    )


def _is_done(node: DemoNode) -> bool:
    return bool(node.status and node.status["state"] == "done" and node.status["model_dir"])


def _sees(node: DemoNode, peer: str) -> str:
    """The state in which `node` sees a member; empty if it does not."""
    members = node.status["members"] if node.status else []
    return next((str(m["state"]) for m in members if m["id"] == peer), "")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
