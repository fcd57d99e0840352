"""One node, from a state directory to a running daemon and back.

`run` reads what the directory holds, binds the ports, builds the node and drives it until it is
told to stop. Everything that can be wrong with the directory or the ports is found here, before the
node exists, and raised as one clear line. SIGTERM and SIGINT mean a clean stop: hand in the worker's
progress, write a snapshot, say goodbye; a second one means at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any

import uvloop

from peerlm import config, events
from peerlm.config import NodeSettings
from peerlm.daemon import control
from peerlm.daemon.address import advertised_host, page_port_for_others
from peerlm.daemon.answers import handler, look
from peerlm.daemon.bulk import Bulk
from peerlm.daemon.cutting import Cutting
from peerlm.daemon.desk import Desk
from peerlm.daemon.heaps import bound_heaps
from peerlm.daemon.holding import Holding, all_sizes, threads_of
from peerlm.daemon.introduction import Introduction
from peerlm.daemon.keeping import Keeping, tallies_of
from peerlm.daemon.link import Links
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.loop import Driver, now, wall
from peerlm.daemon.memory import cache_of_texts, keep_reading
from peerlm.daemon.notify import Notifier
from peerlm.daemon.page import Page
from peerlm.daemon.pools import full_pool
from peerlm.daemon.ports import preferred, remember
from peerlm.daemon.preparing import Preparing
from peerlm.daemon.sampling import Sampling
from peerlm.daemon.scrubbing import Scrubbing
from peerlm.daemon.serving import Serving
from peerlm.daemon.sockets import is_free
from peerlm.daemon.verifying import Verifying
from peerlm.daemon.watch import history_of, keep_watch
from peerlm.daemon.writers import require_packages
from peerlm.daemon.writing import Writing
from peerlm.data.records import BYTES_MAX as PASSES_BYTES_MAX
from peerlm.data.records import decode as decode_passes
from peerlm.errors import AuthError, ConfigError, PeerlmError, StateError, Unsaved, first_cause
from peerlm.identity import files
from peerlm.identity.chain import Chain, claimed_run
from peerlm.identity.gate import Gate
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import SignedPlan, verify_plan
from peerlm.membership.address_book import AddressBook, read_book
from peerlm.model.stages import held_parameters
from peerlm.node.birth import Birth
from peerlm.node.dial_back import Ports
from peerlm.node.made import BYTES_MAX as MADE_BYTES_MAX
from peerlm.node.made import read_made
from peerlm.node.node import Node
from peerlm.node.register import read_kept
from peerlm.node.stock import hashes
from peerlm.node.stored import Stored
from peerlm.observe.curves import Origin
from peerlm.store.disk import free_bytes, read_file, write_atomic
from peerlm.store.layout import StateDirectory, require_own
from peerlm.store.objects import Objects
from peerlm.train import protocol
from peerlm.types import ObjectHash, short

COMPUTE_THREADS = 2
"""Arithmetic on slow weights; numpy lets go of the interpreter, so two keep two cores busy."""

DISK_THREADS = 2
OTHER_THREADS = 4

CUT_THREADS = 2
"""Of a checkpoint: it takes as long as its bytes take to the disk, and nobody else waits for it."""

ADDRESS_BOOK_BYTES_MAX = 64 << 20
CATALOG_BYTES_MAX = 256 << 20
SCRUB_BYTES_MAX = 4096

FREE_SHARE = 10
"""One part in so many of what is free on the disk is offered to the swarm's store, unless node.toml says how much."""


@dataclass(frozen=True, slots=True)
class Home:
    """What a state directory says about its node, checked."""

    keys: NodeKeys
    chain: Chain
    gate: Gate
    plan: SignedPlan
    settings: NodeSettings
    origin: bool


def run(
    root: Path,
    *,
    seeds: tuple[str, ...] = (),
    port: int | None = None,
    local_workers: int | None = None,
    changes: Mapping[str, str] | None = None,
    control_group: str = "",
    notifier: Notifier | None = None,
    journal: str = "",
    quiet: bool = False,
) -> int:
    """Run the node of the state directory `root` until it is stopped; returns the exit code.

    Args:
        seeds: addresses to try first, besides the address book.
        port: base port instead of node.toml's.
        local_workers: processes that train, instead of node.toml's.
        changes: fields of node.toml that are other for this life of the daemon.
        control_group: group that may use the control socket, where node.toml names none.
        notifier: tells the service manager of this machine.
        journal: address of the journal's socket; empty: log to standard error.
        quiet: log to the file only.

    Raises:
        StateError, ConfigError, AuthError: the node cannot start; one line says why.
        Unsaved: it has ended, and its last snapshot failed.
    """
    os.umask(0o077)  # whatever is written from here on is the owner's alone
    bound_heaps()
    require_own(root)
    with StateDirectory(root) as state:
        home = read_home(state)
        if changes:
            home = _changed(home, changes, "--set-node")
        if local_workers is not None:
            home = _changed(home, {"train.local_workers": local_workers}, "--local-workers")
        if control_group and not home.settings.control.group:
            home = _changed(home, {"control.group": control_group}, "--control-group")
        require_packages(home.settings)
        log = DaemonLog(state.log, home.settings.control.log_level, quiet=quiet, journal=journal)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                error = runner.run(_live(state, home, log, seeds, port, notifier or Notifier()))
        except ExceptionGroup as group:
            cause = first_cause(group)
            if isinstance(cause, PeerlmError):
                raise cause from None
            log.write("error", "internal", {"traceback": "".join(format_exception(cause))})
            error = f"internal error: {cause!r}; see `peerlm logs`"
        finally:
            log.close()
    if error:
        raise StateError(error)
    return 0


def _changed(home: Home, changes: Mapping[str, Any], option: str) -> Home:
    return replace(home, settings=config.with_changes(home.settings, changes, option))


def read_home(state: StateDirectory) -> Home:
    """Read and check a node's directory. Raises `StateError`, `ConfigError`, `AuthError`."""
    root = state.root
    keys, chain = files.read_keys(root), files.read_chain_file(root)
    if keys is None or chain is None:
        raise StateError(
            f"no node in {root}: make a run with `peerlm init` or enter one with `peerlm join`"
        )
    try:
        run_id, root_public_key = claimed_run(chain)
    except AuthError as error:
        raise StateError(f"{state.chain}: {error}; put back a copy of it, or join again") from None
    blob = files.read_plan(root)
    if blob is None:
        raise StateError(f"{state.plan}: missing; put back a copy of it, or join again")
    try:
        plan = verify_plan(blob, root_public_key, run_id)
    except AuthError as error:
        raise StateError(f"{state.plan}: {error}; put back a copy of it, or join again") from None
    gate = Gate(root_public_key, run_id)
    gate.revocations.merge(files.read_revocations(root))
    return Home(keys, chain, gate, plan, read_settings(state.node_settings), _is_origin(root))


def read_settings(path: Path) -> NodeSettings:
    """node.toml, or the defaults where there is none. Raises `ConfigError`."""
    if not path.exists():
        return NodeSettings()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return config.read_toml(NodeSettings, text, str(path))


def _is_origin(root: Path) -> bool:
    return (root / "origin").exists()


# ------------------------------------------------------------------------------------- the daemon


async def _live(
    state: StateDirectory,
    home: Home,
    log: DaemonLog,
    seeds: tuple[str, ...],
    port: int | None,
    notifier: Notifier,
) -> str:
    """The daemon's life; returns the line to end with, empty for a wanted end."""
    async with open_daemon(state, home, log, seeds, port) as driver:
        _on_signals(driver)
        _announce(driver, log)
        driver.begin()
        if driver.page is not None:
            driver.page.history = driver.history
            driver.page.report = log.write
            driver.page.sampling = driver.sampling
            driver.page.status = lambda: look(driver)[1]
        writing = _start_writing(state, home, log)
        viewers = (driver.history, writing, driver.sampling)
        watching = asyncio.create_task(
            keep_watch(lambda: look(driver), notifier, *viewers, state, driver.saver)
        )
        watching.add_done_callback(driver.watch_ended)
        try:
            error = await driver.holding.until_halted()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await writing.close()
    if not error and (unsaved := driver.unsaved()):
        raise Unsaved(unsaved)
    return error


def _start_writing(state: StateDirectory, home: Home, log: DaemonLog) -> Writing:
    plan = home.plan.plan
    origin = Origin(plan.run.name, home.gate.run_id.hex(), home.keys.peer_id.hex())
    return Writing(home.settings.observe, origin, state.root, log.write)


@contextlib.asynccontextmanager
async def open_daemon(
    state: StateDirectory,
    home: Home,
    log: DaemonLog,
    seeds: tuple[str, ...] = (),
    port: int | None = None,
) -> AsyncIterator[Driver]:
    """A daemon with its ports bound and its node made, ready to `begin`; all of it ends with the
    context."""
    async with contextlib.AsyncExitStack() as stack:
        # Pools end behind the tasks that use them.
        compute = stack.enter_context(full_pool(COMPUTE_THREADS, "peerlm-compute"))
        disk = stack.enter_context(full_pool(DISK_THREADS, "peerlm-disk"))
        cut = stack.enter_context(full_pool(CUT_THREADS, "peerlm-cut"))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        driver = Driver(state, log, tasks)
        loop = asyncio.get_running_loop()
        stack.callback(loop.set_exception_handler, loop.get_exception_handler())
        loop.set_exception_handler(driver.on_loop_fault)
        ports = await _listen(driver, state, home, seeds, port, stack)
        epoch = state.next_epoch(wall())
        loop.set_default_executor(full_pool(OTHER_THREADS, "peerlm-other"))
        holding = driver.holding = Holding(driver, state, home, epoch, compute, disk)
        driver.serving = Serving(
            driver.post,
            home.keys.peer_id,
            lambda: _serve_setup(home, driver, state),
            lambda peer, data: driver.transfers.lap(peer, data),
            lambda peer: peer in driver.node.work.seen.runs,
            log.write,
        )
        stack.push_async_callback(driver.serving.close)
        stack.push_async_callback(holding.close)
        await holding.build()
        offered = holding.offered
        driver.keeping.drop_leftovers(hashes(offered.placed.copies) if offered else ())
        driver.scrubbing = _scrubbing(driver, state, holding.objects, home, disk)
        driver.cutting = Cutting(loop, driver.post, holding.objects, home.gate.run_id, cut)
        driver.desk = Desk(
            lambda: driver.node,
            driver.post,
            driver.take,
            driver.saved,
            holding.objects,
            driver.scrubbing,
            disk,
            now,
            wall,
            Verifying(state.verified, disk, wall),
        )
        stack.push_async_callback(driver.desk.close)
        driver.preparing = Preparing(state.root, home.settings.store.folders, log.write)
        stack.push_async_callback(driver.preparing.close)
        driver.node = _make_node(home, driver.keeping, holding, ports, epoch, seeds, state, log)
        driver.history = history_of(state)
        driver.sampling = _sampling(driver, state, home, log)
        streams = {"gateway": driver.serving.talk, "store": driver.desk.talk}
        server = await control.serve(state, handler(driver), home.settings.control.group, streams)
        stack.push_async_callback(server.close)
        stack.callback(driver.end)
        stack.push_async_callback(driver.sampling.close)
        scrubbing = tasks.create_task(driver.scrubbing.run())
        stack.callback(scrubbing.cancel)
        if offered and offered.is_auto:
            reading = keep_reading(home.settings, lambda: holding.takes, driver.post)
            stack.callback(tasks.create_task(reading).cancel)
        yield driver


async def _listen(
    driver: Driver,
    state: StateDirectory,
    home: Home,
    seeds: tuple[str, ...],
    port: int | None,
    stack: contextlib.AsyncExitStack,
) -> Ports:
    """Bind the three ports. Asked for, they must be free; the default ones may be replaced."""
    network = home.settings.network
    base = network.port if port is None else port
    or_free = base == 0 or (port is None and base == config.NetworkSection().port)
    wanted = preferred(state, base, or_free=or_free, is_free=partial(is_free, network.host))
    driver.introduction = await Introduction.listen(
        driver.post, network.host, wanted[0], or_free=or_free
    )
    stack.push_async_callback(driver.introduction.close)
    keys = home.keys
    driver.links = Links(
        driver.post,
        network.host,
        wanted[1],
        keys.curve_public,
        keys.curve_secret,
        keys.peer_id,
        or_free=or_free,
    )
    stack.push_async_callback(driver.links.close, graceful=True)
    driver.bulk = Bulk(
        network.host,
        wanted[2],
        security=network.bulk_security,
        upload_bytes_s=network.upload_bytes_s,
        download_bytes_s=network.download_bytes_s,
        or_free=or_free,
    )
    stack.push_async_callback(driver.bulk.close)
    host, page_port = advertised_host(network, seeds), 0
    if home.settings.page.enabled:
        driver.page = _open_page(state, home.settings)
        stack.push_async_callback(driver.page.close)
        page_port = page_port_for_others(
            home.settings.page.host, network.host, host, driver.page.port
        )
    taken = (driver.introduction.port, driver.links.port, driver.bulk.port)
    remember(state, base, taken)
    return Ports(host, *taken, page_port)


def _open_page(state: StateDirectory, settings: NodeSettings) -> Page:
    page = settings.page
    or_free = page.port in (0, config.PageSection().port)
    names = (settings.network.advertise,) if settings.network.advertise else ()
    return Page.listen(state, page.host, page.port, or_free=or_free, names=names)


def _make_node(
    home: Home,
    keeping: Keeping,
    holding: Holding,
    ports: Ports,
    epoch: int,
    seeds: tuple[str, ...],
    state: StateDirectory,
    log: DaemonLog,
) -> Node:
    for note in keeping.notes:
        log.write("warning", "snapshot_passed_over", {"why": note})
    birth = Birth(
        keys=home.keys,
        chain=home.chain,
        gate=home.gate,
        plan=home.plan,
        settings=home.settings,
        ports=ports,
        epoch=epoch,
        sizes=holding.sizes,
        hosting=holding.hosting,
        offered=holding.offered,
        all_sizes=all_sizes(home.plan.plan) if holding.offered else {},
        seeds=seeds,
        book=_read_book(state, log),
        origin=home.origin,
        restored=holding.restored,
        tallies=tallies_of(keeping.restored),
        stored=_stored(home, holding.objects, state, log),
        passes=_read_passes(state, log),
    )
    return Node(birth, random.SystemRandom(), now(), wall())


def _sampling(driver: Driver, state: StateDirectory, home: Home, log: DaemonLog) -> Sampling:
    plan, observe = home.plan.plan, home.settings.observe
    parameters = held_parameters(plan, range(plan.model.stages))
    return Sampling(state, observe, parameters, driver.saver, log.write)


def _scrubbing(
    driver: Driver, state: StateDirectory, objects: Objects, home: Home, disk: Executor
) -> Scrubbing:
    def lost(object_hash: ObjectHash, reason: str) -> None:
        driver.post(events.ObjectLost(object_hash, reason))

    days, rng = home.settings.store.scrub_days, random.Random(home.keys.peer_id)
    at = read_file(state.scrub, SCRUB_BYTES_MAX) if state.scrub.exists() else b""
    save = partial(write_atomic, state.scrub)
    return Scrubbing(objects, disk, lost, days=days, wall=wall, rng=rng, state=at, save=save)


def _stored(home: Home, objects: Objects, state: StateDirectory, log: DaemonLog) -> Stored:
    """What the disk has of the swarm's store, and how much room this node offers."""
    memory = b""
    if state.catalog.exists():
        memory = read_file(state.catalog, CATALOG_BYTES_MAX)
        try:
            read_kept(memory)
        except StateError as error:
            log.write("warning", "catalog", {"why": str(error)})
            memory = b""
    made: bytes | None = b""
    if state.made.exists():
        try:
            made = read_file(state.made, MADE_BYTES_MAX)
            read_made(made, home.keys.peer_id)
        except StateError as error:
            log.write("warning", "made", {"why": str(error)})
            made = None
    store, chunks = home.settings.store, objects.chunks
    room = store.bytes or sum(size for _, size in chunks) + free_bytes(state.root) // FREE_SHARE
    return Stored(room if store.enabled else 0, chunks, memory, made)


def _read_passes(state: StateDirectory, log: DaemonLog) -> bytes:
    """What of the text is read; nothing if that cannot be made out."""
    if not state.passes.exists():
        return b""
    data = read_file(state.passes, PASSES_BYTES_MAX)
    try:
        decode_passes(data)
    except ValueError as error:
        log.write("warning", "passes", {"why": f"{state.passes}: {error}"})
        return b""
    return data


def _read_book(state: StateDirectory, log: DaemonLog) -> AddressBook:
    data = b""
    if state.address_book.exists():
        data = read_file(state.address_book, ADDRESS_BOOK_BYTES_MAX)
    book, note = read_book(data, now(), wall())
    if note:
        log.write("warning", "address_book", {"why": note})
    return book


def _serve_setup(home: Home, driver: Driver, state: StateDirectory) -> protocol.ServeSetup:
    held = driver.holding.held
    return protocol.ServeSetup(
        peer=home.keys.peer_id,
        plan=protocol.packed(driver.worker.plan),
        state=str(state.root.absolute()),
        first_stage=held[0],
        last_stage=held[-1],
        sessions=home.settings.host.sessions,
        threads=threads_of(home.settings),
        cache_bytes=cache_of_texts(),
        device=home.settings.train.device,
    )


def _on_signals(driver: Driver) -> None:
    """The first asks for a clean stop, the second ends at once."""

    def stop() -> None:
        if driver.node.is_leaving:
            if not driver.halted.done():
                driver.halted.set_result("")
        else:
            driver.post(events.Leave())

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _announce(driver: Driver, log: DaemonLog) -> None:
    company = driver.node.company
    facts = {
        "node": short(driver.node.me),
        "run": f"{company.plan.plan.run.name} ({short(company.gate.run_id)})",
        "address": company.address,
        "ports": f"{company.ports.introduction} {company.ports.control} {company.ports.bulk}",
        "epoch": company.membership.incarnation[0],
        "page": driver.page.url if driver.page is not None else "",
        "pid": os.getpid(),
    }
    log.write("info", "listening", facts)
