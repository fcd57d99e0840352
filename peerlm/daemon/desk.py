"""The store's desk: how processes of this machine put into the swarm's store, and read from it.

A person's commands and the file system (`peerlm.filesystem`) speak to the daemon over its control socket (`desk_client`),
with the command `store`; from then on the connection carries frames, each a length of four bytes and a msgpack list. A
request is a word and its arguments; the answer [true, result], [false, a line for a person], and before it perhaps [null, progress]:

    put       data                                  [hash, bytes]: it is durable on this node
    read      hash, bytes, seconds                  data, pulled from others where it is not here
    publish   name, kind, manifest, options         what `names` says of it
    remove    name                                  nil
    pin       name, whether                         nil
    names     -                                     a list of {name, kind, manifest, bytes, replicas, …}
    manifest  name, seconds                         its bytes
    survey    hashes                                [[replicas of each], nodes that did not answer, {node: how many}]
    checked   hashes                                {here, unknown, oldest}: when those that are here were last read by scrubbing
    verified  manifest, how many chunks cannot be had   nil: all of it was just read, and that is remembered
    checkpoint  name, whether to pin                the name, once it is in the store; an empty name: the usual one
    status    -                                     {…}: docs/store.md explains it
    repair    -                                     nil: without waiting, and without a ceiling
    scrub     -                                     {checked, damaged, seconds}; progress is [checked, all]
    jobs      name, or empty                        a list of {name, tasks, done, tokens, made_by, makers, troubles, …}
    done      name                                  pages of bits of a job's tasks: made or not

and, of the process that makes shards (`cli.data_work`), which counts as there from its first `work` on:

    work      -                                     [name, job], the job's manifest's hash, to work on; or nil
    next      job                                   a task's number, or: wait, finish, over
    made      job, task, documents, [[hash, bytes, tokens], …]    whether the job goes on
    failed    job, a line                           nil: this node takes no part
    rows      job                                   [[task, documents, [[hash, bytes, tokens], …]], …] of all tasks
    again     job                                   nil: chunks of it cannot be had, so it is asked anew who has them
    false     job, task, a line                     nil: what was found in the task is damaged, so its maker is not believed
    name      job, manifest                         nil: the corpus has its name, or the job of the next sweep has this one's

What is put counts as long as it is in a manifest of a name; the rest is dropped after a day. This file decides nothing:
it asks `node.storing`, and moves bytes on threads. Frames are in `desk_frames`, the words of the process that makes
shards are answered in `desk_making`, and what nobody waits for at this desk is done in `desk_chores`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from peerlm import effects as fx
from peerlm import events
from peerlm.daemon.desk_chores import Chores
from peerlm.daemon.desk_frames import as_hash, packed, read_frame
from peerlm.daemon.desk_making import MakingDesk
from peerlm.effects import Effect
from peerlm.errors import ChunkCorrupt, PeerlmError, StateError, WireError
from peerlm.node.register import Writing
from peerlm.store.manifest import (
    CHUNK_BYTES,
    NAME,
    Kind,
    Manifest,
    manifest_hash,
    read_manifest,
)
from peerlm.store.objects import Objects
from peerlm.types import Instant, ObjectHash, Role, WallTime, short

if TYPE_CHECKING:
    from peerlm.daemon.scrubbing import Scrubbing
    from peerlm.daemon.verifying import Verifying
    from peerlm.node.node import Node
    from peerlm.wire.message import NameRecord

HASHES_MAX = 1_000_000
"""In one request."""

LOOKED_AT = 8192
"""Chunks of a manifest, between two turns of the loop."""

CHECKPOINT_S = 900.0
"""A checkpoint that a person has asked for comes to something in this time, or to nothing."""

PUT_TRIES = 3

LOOK_S = 1.0

TROUBLED_S = 10.0
"""A reader waits no longer while this node's disk takes nothing."""

OPTIONS = frozenset(("replicas", "is_pinned", "about", "replaces"))


class Desk:
    """The daemon's end, and what carries out the store's effects.

    Args:
        take: carries out effects of the node.
        saved: until what is kept under a name is on the disk as it is now.
        pool: threads that may touch the disk.
    """

    def __init__(
        self,
        node: Callable[[], Node],
        post: Callable[[events.Event], None],
        take: Callable[[Callable[[], list[Effect]]], None],
        saved: Callable[[str], Awaitable[None]],
        objects: Objects,
        scrubbing: Scrubbing,
        pool: Executor,
        now: Callable[[], Instant],
        wall: Callable[[], WallTime],
        verifying: Verifying,
    ) -> None:
        self._verifying = verifying
        self._node, self._post, self._take, self._saved = node, post, take, saved
        self._objects, self._scrubbing, self._pool = objects, scrubbing, pool
        self._now, self._wall = now, wall
        self._scrubbed: dict[str, Any] = {}
        """What the last full pass found, and when."""
        self._readers: dict[ObjectHash, list[asyncio.Future[None]]] = {}
        self._surveys: dict[int, asyncio.Future[None]] = {}
        self._checkpoints: list[asyncio.Future[str]] = []
        """Those that wait for the next."""
        self._chores = Chores(objects, pool, post)
        self._making = MakingDesk(node, take, saved, self._keep_manifest, now, wall)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def has(self, object_hash: ObjectHash) -> bool:
        """Whether it is kept for the store, at this moment."""
        return self._objects.has_chunk(object_hash)

    # -------------------------------------------------------------------------------- effects

    def perform(self, effect: Effect) -> None:
        match effect:
            case fx.ReadManifest():
                self._spawn(self._chores.read_manifest(effect.manifest))
            case fx.DropChunks():
                self._objects.condemn_chunks(
                    effect.hashes
                )  # at once: what is put from now on is written
                self._spawn(self._chores.drop(effect.hashes))
            case fx.MakeProof():
                self._spawn(self._chores.prove(effect))
            case fx.TellReaders():
                for object_hash in effect.hashes:
                    for reader in self._readers.pop(object_hash, ()):
                        _settle(reader)
            case fx.TellCheckpoint():
                waiting, self._checkpoints = self._checkpoints, []
                for future in waiting:
                    _end(future, effect.name, effect.reason)
            case fx.TellSurveyed():
                if (survey := self._surveys.pop(effect.number, None)) is not None:
                    _settle(survey)
            case _:
                raise AssertionError(f"the desk does not carry out {type(effect).__name__}")

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_pool(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    # ------------------------------------------------------------------------------- the socket

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the process hangs up; requests are answered in order."""

        def write(*frame: Any) -> None:
            if writer.is_closing():  # uvloop would raise an error that means nothing to us
                raise ConnectionResetError("the asker has hung up")
            for part in packed(*frame):
                writer.write(part)

        async def say(*frame: Any) -> None:
            write(*frame)
            await writer.drain()

        with contextlib.ExitStack() as leaving:
            await self._talk(reader, write, say, leaving)

    async def _talk(
        self,
        reader: asyncio.StreamReader,
        write: Callable[..., None],
        say: Callable[..., Awaitable[None]],
        leaving: contextlib.ExitStack,
    ) -> None:
        is_maker = False
        while True:
            try:
                request = await read_frame(reader)
                if request[0] == "work" and not is_maker:
                    is_maker = True
                    self._making.is_there(1)
                    leaving.callback(self._making.is_there, -1)
                result = await self._answer(request, lambda *at: write(None, list(at)))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except WireError as error:  # where the next frame begins is not known
                await say(False, str(error))
                return
            except PeerlmError as error:
                await say(False, str(error))
            except Exception as error:  # a fault of ours must not take the daemon down
                await say(False, f"internal error in {request[0]}: {error!r}")
            else:
                await say(True, result)

    async def _answer(self, request: list[Any], progress: Callable[..., None]) -> Any:
        match request:
            case ["put", bytes() as data]:
                return await self._put(data)
            case ["read", bytes() as wanted, int() as size, int() | float() as seconds]:
                return await self._read(as_hash(wanted), size, float(seconds))
            case ["publish", str() as name, str() as kind, bytes() as manifest, dict() as options]:
                return await self._publish(name, kind, manifest, options)
            case ["remove", str() as name]:
                return await self._remove(name)
            case ["pin", str() as name, bool() as is_pinned]:
                return await self._pin(name, is_pinned)
            case ["names"]:
                return [self._as_dict(e.record) for e in self._node().storing.register.living()]
            case ["manifest", str() as name, int() | float() as seconds]:
                record = self._record(name)
                return await self._read(as_hash(record.manifest), record.size, float(seconds))
            case ["survey", list() as hashes] if len(hashes) <= HASHES_MAX:
                return await self._survey([as_hash(wanted) for wanted in hashes])
            case ["checked", list() as hashes] if len(hashes) <= HASHES_MAX:
                found = await self._scrubbing.checked([as_hash(one) for one in hashes])
                return dataclasses.asdict(found)
            case ["verified", bytes() as manifest, int() as missing] if missing >= 0:
                living = self._node().storing.register.living()
                named = {ObjectHash(e.record.manifest) for e in living}
                return await self._verifying.note(as_hash(manifest), missing, named)
            case ["checkpoint", str() as name, bool() as is_pinned]:
                return await self._checkpoint(name, is_pinned)
            case ["status"]:
                return self._status()
            case ["jobs", str() as name]:
                jobs = self._node().library.jobs.standing(name)
                return [{**job, "preparing": self._making.preparing()} for job in jobs]
            case ["done", str() as name]:
                return self._node().library.jobs.done_of(name)
            case [
                "work" | "next" | "made" | "failed" | "again" | "false" | "rows" | "name",
                *arguments,
            ]:
                return await self._making.answer(request[0], arguments)
            case ["repair"]:
                self._take(lambda: self._node().storing.repair_now(self._now()))
                return None
            case ["scrub"]:
                return await self._scrub(progress)
        word = request[0] if request and isinstance(request[0], str) else "…"
        raise StateError(f"the store's desk does not know {word[:40]!r} with these arguments")

    async def _put(self, data: bytes) -> list[Any]:
        if not 0 < len(data) <= CHUNK_BYTES:
            raise StateError(f"a chunk has 1 to {CHUNK_BYTES} bytes, not {len(data)}")
        for _ in range(PUT_TRIES):
            object_hash = await self._on_pool(self._objects.put_chunk, data)
            if self._objects.has_chunk(object_hash):
                break  # else it was dropped while it was put
        self._post(events.ObjectKept(object_hash, len(data)))
        return [object_hash, len(data)]

    async def _read(self, wanted: ObjectHash, size: int, seconds: float) -> bytes:
        storing = self._node().storing
        for _ in range(2):  # once more where what was here turns out to be damaged
            if wanted not in storing.here:
                await self._pull(wanted, size, seconds)
            try:
                data: bytes = await self._on_pool(self._objects.read_verified, wanted)
            except (ChunkCorrupt, StateError) as error:
                self._tell_lost(wanted, str(error))
            else:
                return data
        raise StateError(f"object {short(wanted)} cannot be read, nor be had from others")

    def _tell_lost(self, object_hash: ObjectHash, reason: str) -> None:
        """At once, so that it is not taken to be here any more."""
        event = events.ObjectLost(object_hash, reason)
        self._take(lambda: self._node().storing.handle(event, self._now()))

    async def _pull(self, wanted: ObjectHash, size: int, seconds: float) -> None:
        storing = self._node().storing
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.setdefault(wanted, []).append(reader)
        began = self._now()
        self._take(lambda: storing.read(wanted, size, began))
        try:
            waited_s = await self._wait_come(reader, began, seconds)
            if not reader.done():
                why = storing.awaited.trouble_since(began) or "no node that has it was found"
                raise StateError(
                    f"object {short(wanted)} is not here, and has not come in {waited_s:.0f} s: {why}; see `peerlm store "
                    "status`"
                )
        finally:
            others = [r for r in self._readers.get(wanted, ()) if r is not reader]
            if others:
                self._readers[wanted] = others
            elif self._readers.pop(wanted, None) is not None:
                self._take(lambda: storing.read_no_more(wanted))

    async def _wait_come(
        self, reader: asyncio.Future[None], began: Instant, seconds: float
    ) -> float:
        """Until it has come, or is given up waiting for; how long that was, in seconds."""
        waited_s, troubled_s = 0.0, 0.0
        while not reader.done() and waited_s < seconds and troubled_s < TROUBLED_S:
            look_s = min(LOOK_S, seconds - waited_s)
            await asyncio.wait({reader}, timeout=look_s)
            waited_s += look_s
            trouble = self._node().storing.awaited.trouble_since(began)
            troubled_s = troubled_s + look_s if trouble else 0.0
        return waited_s

    async def _publish(
        self, name: str, kind: str, encoded: bytes, options: dict[str, Any]
    ) -> dict[str, Any]:
        if kind not in frozenset(Kind) or not options.keys() <= OPTIONS:
            raise StateError(f"no such kind or options: {kind[:40]!r}, {sorted(options)}")
        replicas = options.get("replicas", 3)
        if type(replicas) is not int or not 1 <= replicas <= 32:
            raise StateError(f"--replicas {replicas}: must be 1 to 32")
        manifest = await self._keep_manifest(encoded)
        here, has_chunk = self._node().storing.here, self._objects.has_chunk
        missing = []
        for at in range(0, len(manifest.chunks), LOOKED_AT):
            part = manifest.chunks[at : at + LOOKED_AT]
            missing += [c for c in part if c.hash not in here or not has_chunk(c.hash)]
            await asyncio.sleep(0)  # others have their turn
        if missing:
            raise StateError(
                f"{len(missing)} of {len(manifest.chunks)} chunks of {name} are not here any more (the first: "
                f"{short(missing[0].hash)}): put them again"
            )
        kept = events.ObjectKept(manifest_hash(encoded), len(encoded))
        await self._write(name, Kind(kind), kept, {"replicas": replicas, **options})
        return self._as_dict(self._record(name))

    async def _keep_manifest(self, encoded: bytes) -> Manifest:
        manifest: Manifest = await self._on_pool(read_manifest, encoded)
        await self._on_pool(self._objects.put_chunk, encoded)
        return manifest

    async def _write(
        self, name: str, kind: Kind, kept: events.ObjectKept | None, options: dict[str, Any]
    ) -> None:
        """Until it is on this node's disk. Raises `StateError`, as `Storing.write`."""
        now, storing = self._now(), self._node().storing
        came = storing.came(kept, now) if kept else []
        manifest, size = (kept.object_hash, kept.size) if kept else (None, 0)
        wanted = Writing(name, kind, manifest, size, **options)
        written = storing.write(wanted, self._wall(), now)
        self._take(lambda: [*came, *written])
        await self._saved("catalog")

    def _as_dict(self, record: NameRecord) -> dict[str, Any]:
        return {**_as_dict(record), **self._verifying.said(ObjectHash(record.manifest))}

    def _record(self, name: str) -> NameRecord:
        found = self._node().storing.register.names.get(name)
        if found is None or not found.record.manifest:
            raise StateError(
                f"the swarm's store has nothing of the name {name[:100]}: see `peerlm data ls`"
            )
        return found.record

    async def _remove(self, name: str) -> None:
        kind = Kind(self._record(name).kind)
        await self._write(name, kind, None, {"replaces": True})

    async def _pin(self, name: str, is_pinned: bool) -> None:
        record = self._record(name)
        kept = events.ObjectKept(ObjectHash(record.manifest), record.size)
        if kept.object_hash not in self._node().storing.here:
            raise StateError(f"the manifest of {name} has not come to this node yet: try again")
        options = {"replicas": record.replicas, "about": record.about}
        await self._write(
            name, Kind(record.kind), kept, {"is_pinned": is_pinned, "replaces": True, **options}
        )

    async def _survey(self, hashes: list[ObjectHash]) -> list[Any]:
        node = self._node()
        survey, effects = node.storing.survey(hashes, self._now())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._surveys[survey.number] = done
        self._take(lambda: effects)
        await done
        kept = survey.kept + Counter({node.me: survey.here})
        held = {peer.hex(): count for peer, count in sorted(kept.items())}
        return [survey.counts, [peer.hex() for peer in survey.silent], held]

    async def _checkpoint(self, name: str, is_pinned: bool) -> str:
        """Raises `StateError`: it came to nothing."""
        node = self._node()
        if name and not NAME.fullmatch(name):
            raise StateError(f"{name[:100]!r} cannot be a name: see `peerlm data add --help`")
        if not node.work.installed:
            raise StateError("this node has no weights yet")
        checkpoints = node.library.checkpoints
        if checkpoints.is_wanted or checkpoints.is_gathering:
            raise StateError("a checkpoint is being gathered already: try again in a moment")
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._checkpoints.append(ended)
        self._take(lambda: node.library.want_checkpoint(name, is_pinned=is_pinned))
        try:
            return await asyncio.wait_for(ended, CHECKPOINT_S)
        except TimeoutError:
            raise StateError("no checkpoint came about; see `peerlm logs`") from None

    def _status(self) -> dict[str, Any]:
        node = self._node()
        standing = node.storing.standing()
        lacking = {node.me.hex(): node.storing.lacking}
        for peer, *_ in standing.nodes:
            vitals = node.company.vitals_of(peer)
            if vitals is not None:
                lacking[peer.hex()] = vitals.store_lacking
        used = {peer.hex(): _used(node, peer) for peer, *_ in standing.nodes}
        return {
            "node": node.me.hex(),
            "may_write": node.company.allows(node.me, Role.STORE),
            "capacity_bytes": standing.capacity,
            "used_bytes": standing.used,
            "names": standing.names,
            "chunks": dataclasses.asdict(standing.catalog),
            "unread": standing.unread,
            "pulling": standing.pulling,
            "unfound": standing.unfound,
            "is_full": standing.full,
            "trouble": standing.trouble,
            "checkpoints_kept_back": node.library.checkpoints.succession.kept_back,
            "distrusted": [peer.hex() for peer in standing.distrusted],
            "distrust": {
                peer.hex(): {"why": known.why, "for_s": max(0.0, known.until - self._now())}
                for peer, known in standing.distrusted.items()
            },
            "nodes": [
                {
                    "id": peer.hex(),
                    "capacity_bytes": capacity,
                    "used_bytes": used[peer.hex()],
                    "label": label,
                    "is_live": is_live,
                    "lacking": lacking.get(peer.hex(), 0),
                }
                for peer, capacity, label, is_live in standing.nodes
            ],
            "lost": node.storing.lost_here,
            "hedged_bytes": node.storing.hedged_bytes + node.work.acquisition.hedged_bytes,
            "scrubbed": self._scrubbed,
        }

    async def _scrub(self, progress: Callable[..., None]) -> dict[str, Any]:
        found = await self._scrubbing.scrub_now(progress)
        self._scrubbed = {**dataclasses.asdict(found), "at": self._wall()}
        return self._scrubbed


def _used(node: Node, peer: Any) -> int:
    if peer == node.me:
        return node.storing.used
    vitals = node.company.vitals_of(peer)
    return 0 if vitals is None else vitals.store_used


def _as_dict(record: NameRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "kind": record.kind,
        "manifest": record.manifest.hex(),
        "manifest_bytes": record.size,
        "replicas": record.replicas,
        "is_pinned": record.is_pinned,
        "about": record.about,
        "writer": record.writer.hex(),
        "written_at": record.wall,
    }


def _end(future: asyncio.Future[str], name: str, why: str) -> None:
    if future.done():
        return
    if why:
        future.set_exception(StateError(f"the checkpoint came to nothing: {why}"))
    else:
        future.set_result(name)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
