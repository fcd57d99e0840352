"""The hosts of a model in stages, from a command on one of its nodes: through this node's daemon."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from peerlm.cli.plan import current_plan
from peerlm.cli.weights_here import prompt_ids, tokenizer_of
from peerlm.config import Plan
from peerlm.daemon import control
from peerlm.data import tokenizer as tokenizers
from peerlm.errors import StateError
from peerlm.serve.engine import TorchSampler
from peerlm.serve.route import Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Job, Service
from peerlm.serve.session import Sampling
from peerlm.serve.swarm import Swarm
from peerlm.store.layout import Layout
from peerlm.train.channel import Channel

CHUNK = 256
"""Tokens of the prompt in one lap."""


def open_swarm(
    layout: Layout, say: Callable[[str], None] = lambda _: None
) -> tuple[Plan, tokenizers.Tokenizer, Swarm]:
    """The run's plan and tokenizer, and the way through its hosts. `say` takes a line where one of them talks nonsense.

    Raises:
        NoDaemon, StateError: this node's daemon does not run, or has not got the tokenizer yet.
    """
    plan = current_plan(layout).plan

    def dial() -> Channel:
        connection: socket.socket = control.dial(layout, "gateway")
        return Channel(connection)

    swarm = Swarm(plan, dial, say)
    data = tokenizer_of(layout, plan)
    codec = tokenizers.ByteTokenizer() if data is None else tokenizers.JsonTokenizer(data)
    return plan, codec, swarm


def text_after(
    layout: Layout,
    prompt: str,
    tokens: int,
    temperature: float,
    rng_seed: int,
    note: Callable[[str], None],
) -> Iterator[str]:
    """The swarm's continuation of the prompt, piece by piece. `note` takes a line where the prompt is not read whole,
    or a host's answer cannot be used.

    Raises:
        ConfigError: the prompt cannot be used.
        StateError: there is no way through the swarm, or it was lost on the way.
    """
    plan, codec, swarm = open_swarm(layout, note)
    ids = prompt_ids(codec, prompt, plan.model.context, note)
    scheduler = Scheduler(1, 1, min(CHUNK, swarm.turn_max))
    version = Version("swarm", None, swarm)
    service = Service(scheduler, TorchSampler(), codec, version)
    service.submit(Job((tuple(ids),), (rng_seed,), Sampling(temperature), tokens))
    return _pieces(service)


def _pieces(service: Service) -> Iterator[str]:
    while not service.is_idle:
        for told in service.step():
            if told.error:
                raise StateError(f"the swarm cannot go on with this text: {told.error}")
            if told.piece is not None:
                yield told.piece.text
