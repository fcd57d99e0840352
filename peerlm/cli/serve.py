"""`peerlm serve`: this node's weights answer over HTTP."""

from __future__ import annotations

import ipaddress
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peerlm.cli.state import require_node, state_option
from peerlm.errors import ConfigError
from peerlm.store.layout import Layout
from peerlm.types import Instant

if TYPE_CHECKING:
    from peerlm.cli.weights_here import Weights
    from peerlm.config import Plan
    from peerlm.data.tokenizer import Tokenizer
    from peerlm.serve.engine import Slots
    from peerlm.serve.route import Version

VERSIONS_MAX = 2
"""Versions of the weights in memory at once."""

keys_option = click.option(
    "--keys",
    "keys_path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of API keys.  [default: api_keys in the node's folder]",
)


@click.command(short_help="Answer over HTTP with this node's weights, as OpenAI's interface does.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0: a free one."
)
@click.option(
    "--model",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="An exported model.  [default: this node's newest snapshot, and newer ones as they come]",
)
@click.option(
    "--swarm",
    is_flag=True,
    help="Answer through the stages of a model that this node need not hold whole; its daemon must run.",
)
@keys_option
@click.option("--no-keys", is_flag=True, help="Let in whoever can connect.")
@click.option(
    "--name", "names", multiple=True, metavar="HOST", help="One more name clients may reach it by."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Of the processor; 0: torch decides."
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Texts written at once.",
)
@click.option(
    "--queue", type=click.IntRange(0, 65_536), default=64, show_default=True, help="Texts waiting."
)
@click.option(
    "--cache-mb",
    type=click.IntRange(1, 1 << 24),
    default=1024,
    show_default=True,
    help="Most memory for what sessions remember; fewer are answered at once if it does not do.",
)
@click.option(
    "--chunk",
    type=click.IntRange(16, 1 << 20),
    default=256,
    show_default=True,
    help="Tokens of prompts read between two tokens of those who write.",
)
@click.option(
    "--max-tokens",
    "tokens_max",
    type=click.IntRange(1, 1 << 20),
    default=4096,
    show_default=True,
    help="Most tokens of one answer.",
)
@click.option(
    "--body-kb",
    type=click.IntRange(1, 1 << 20),
    default=1024,
    show_default=True,
    help="Most of one request.",
)
@click.option(
    "--refresh-s",
    type=click.FloatRange(0.1, 86_400),
    default=5.0,
    show_default=True,
    help="How often to look for newer weights, and for changes of the keys.",
)
@state_option
def serve(
    layout: Layout,
    host: str,
    port: int,
    folder: Path | None,
    swarm: bool,
    keys_path: Path | None,
    no_keys: bool,
    names: tuple[str, ...],
    device: str,
    threads: int,
    sessions: int,
    queue: int,
    cache_mb: int,
    chunk: int,
    tokens_max: int,
    body_kb: int,
    refresh_s: float,
) -> None:
    """Answer completions and chats over HTTP until Ctrl-C or SIGTERM, as OpenAI's interface does.

    It works beside a running daemon and without one. While the node trains, new requests are answered with its
    newest snapshot. Where there are keys (`peerlm key add`), each request must show one; at other addresses
    than this machine's own it is not started without. With --swarm texts go through whoever holds the stages of the
    model. docs/serve.md has the endpoints and their fields.

    \b
    Examples:
      peerlm serve
      peerlm serve --model finished-model/ --port 8000
      peerlm serve --host 0.0.0.0 --name ada.example.org --sessions 64
      peerlm serve --swarm
    """
    from peerlm.serve import keys

    if swarm and folder is not None:
        raise ConfigError("--swarm and --model: give one of them")
    if keys_path is not None and not keys_path.exists():
        raise ConfigError(
            f"--keys {keys_path}: no such file; `peerlm key add NAME --keys {keys_path}` makes it"
        )
    keys_path = keys_path or layout.api_keys
    if no_keys and keys.read(keys_path):
        raise ConfigError(f"--no-keys, and {keys_path} holds keys: remove them or leave it away")
    if not no_keys and not _is_loopback(host) and not keys.read(keys_path):
        raise ConfigError(
            f"--host {host!r} can be reached from elsewhere and there are no keys: add one with "
            "`peerlm key add NAME`, or say --no-keys"
        )
    listener = _listen(host, port)
    try:
        if swarm:
            answerer = _through_the_swarm(layout, sessions, chunk)
        else:
            slots = partial(_slots, sessions=sessions, cache_bytes=cache_mb * 1_000_000)
            answerer = _from_here(Source(layout, folder), slots, device, threads, chunk)
        _serve(
            answerer,
            listener,
            keys_path,
            queue=queue,
            tokens_max=tokens_max,
            body_bytes_max=body_kb * 1000,
            refresh_s=refresh_s,
            no_keys=no_keys,
            names=names,
        )
    finally:
        listener.close()


class Source:
    """Where weights come from. `first` must be called first."""

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        self._layout, self._folder = layout, folder
        self._number = 0
        self._slots: Slots | None = None

    def first(self) -> Weights:
        """Raises `ConfigError`, `StateError`."""
        from peerlm.cli.weights_here import from_folder, from_snapshot
        from peerlm.store import snapshot

        if self._folder is not None:
            return from_folder(self._folder)
        require_node(self._layout)
        self._number = snapshot.newest(self._layout)
        return from_snapshot(self._layout, say)

    def as_version(self, weights: Weights, slots: Slots) -> Version:
        """Raises `ConfigError` for weights that do not fit, or are not finite."""
        from peerlm.serve.engine import Whole
        from peerlm.serve.route import Version, name_of

        self._slots = slots
        if weights.plan.model != slots.plan.model or weights.plan.data != slots.plan.data:
            raise ConfigError("the newest snapshot is of another model; start again to serve it")
        values = list(weights.values)
        return Version(name_of(values, weights.tokens), weights.tokens, Whole(slots, values))

    def newer(self) -> Version | None:
        """What the newest snapshot holds, if it is newer than what was given out last."""
        from peerlm.cli.weights_here import from_snapshot
        from peerlm.store import snapshot

        number = snapshot.newest(self._layout) if self._folder is None else 0
        if number <= self._number:
            return None
        self._number = number  # whatever comes of it: what cannot be used is not read again
        assert self._slots is not None
        return self.as_version(from_snapshot(self._layout, say), self._slots)


@dataclass(frozen=True, slots=True)
class Answerer:
    """What texts are advanced with. `newer`: weights that came since it was asked last."""

    plan: Plan
    codec: Tokenizer
    version: Version
    slots: int
    bytes: int
    chunk: int
    newer: Callable[[], Version | None] | None


def _from_here(
    source: Source,
    make_slots: Callable[[Plan, str], Slots],
    device: str,
    threads: int,
    chunk: int,
) -> Answerer:
    weights = source.first()
    codec = weights.codec()
    from peerlm.serve.engine import use_threads
    from peerlm.train.learner import choose_device

    use_threads(threads)
    slots = make_slots(weights.plan, str(choose_device(device, "--device")))
    version = source.as_version(weights, slots)
    return Answerer(weights.plan, codec, version, slots.count, slots.bytes, chunk, source.newer)


def _slots(plan: Plan, device: str, *, sessions: int, cache_bytes: int) -> Slots:
    from peerlm.serve.engine import Slots

    return Slots(plan, sessions, cache_bytes, device)


def _through_the_swarm(layout: Layout, sessions: int, chunk: int) -> Answerer:
    require_node(layout)
    from peerlm.cli.swarm_here import open_swarm
    from peerlm.serve.route import Version

    plan, codec, swarm = open_swarm(layout, say)
    chunk = min(chunk, swarm.turn_max)
    return Answerer(plan, codec, Version("swarm", None, swarm), sessions, 0, chunk, None)


def _serve(
    answerer: Answerer,
    listener: socket.socket,
    keys_path: Path,
    *,
    queue: int,
    tokens_max: int,
    body_bytes_max: int,
    refresh_s: float,
    no_keys: bool,
    names: tuple[str, ...],
) -> None:
    from peerlm.serve import http, keys
    from peerlm.serve.driver import Driver, keep_new, repeat
    from peerlm.serve.engine import TorchSampler, slot_bytes
    from peerlm.serve.metrics import Metrics
    from peerlm.serve.scheduler import Scheduler
    from peerlm.serve.service import Service

    plan, codec, version = answerer.plan, answerer.codec, answerer.version
    now = Instant(time.monotonic())
    keyring = keys.Keyring([] if no_keys else keys.read(keys_path), now)

    def refresh_keys() -> None:
        keyring.replace(keys.read(keys_path), Instant(time.monotonic()))

    metrics = Metrics()
    scheduler = Scheduler(answerer.slots, queue, answerer.chunk)
    service = Service(scheduler, TorchSampler(), codec, version)
    driver = Driver(service, metrics, slot_bytes(plan))
    served = http.Served(
        name=plan.run.name,
        context=plan.model.context,
        vocab=plan.data.vocab,
        tokens_max=tokens_max,
        body_bytes_max=body_bytes_max,
        made=int(time.time()),
    )

    async def serving() -> None:
        front = http.Front(served, driver, codec, keyring, metrics, random.SystemRandom(), names)
        beside = []
        if answerer.newer is not None:
            beside.append(
                keep_new(
                    driver, answerer.newer, every_s=refresh_s, versions_max=VERSIONS_MAX, say=say
                )
            )
        if not no_keys:
            beside.append(repeat(refresh_keys, every_s=refresh_s, say=say))
        await http.until_told_to_stop(front, driver, listener, beside)

    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    who = "who shows a key" if keyring.is_needed else "whoever can connect"
    click.echo(
        f"serving {plan.run.name!r} ({version.name}) at http://{shown}:{port}/v1 to {who}: "
        f"{answerer.slots} texts at once, {queue} waiting; {answerer.bytes / 1e6:,.0f} MB set aside"
    )
    http.run(serving())


def _listen(host: str, port: int) -> socket.socket:
    from peerlm.daemon.sockets import listen_tcp

    try:
        return listen_tcp(host, port)
    except ConfigError:
        raise ConfigError(
            f"cannot listen at {host or 'all addresses'}, port {port}: another program may have it; choose another "
            "--port (0: any free one) or --host"
        ) from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def say(line: str) -> None:
    click.echo(f"peerlm: {line}", err=True)
