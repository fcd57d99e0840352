"""The bulk thread: sockets on one side, transfers on the other, nothing but moving in between.

Each transfer we initiate has a DEALER of its own; transfers of others arrive at one ROUTER. A
connection gets past its handshake only with the cookie of a transfer that is expected here
(ZeroMQ's PLAIN mechanism; the cookie says nothing of the keys), and each frame past that must be
sealed with its keys. Whatever does not fit is dropped and counted.

Everything here runs in that thread, but `call`, which any thread may use; a second thread reads and
writes what comes from and goes to the disk.
"""

from __future__ import annotations

import hmac
import socket as tcp
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import zmq

from peerlm.daemon import zap
from peerlm.daemon.sockets import (
    Socket,
    bind,
    connect,
    make_context,
    make_socket,
    property_of,
    receive,
)
from peerlm.daemon.throttle import TokenBucket
from peerlm.daemon.transfer import Transfer
from peerlm.errors import Unreachable, WireError
from peerlm.types import Instant, TransferId
from peerlm.wire.frame import CHUNK_BYTES, Buffer, Kind, cookie, parse

HELD_BYTES_MAX = 1 << 30
"""Requests and replies of all transfers at once; what would pass it is not begun."""

TRANSFERS_MAX = 256
REDIAL_S_MIN, REDIAL_S_MAX = 0.25, 8.0
"""Until the other side is first heard, it is dialled anew after so long, each time twice as long: it
may not have expected us yet, and libzmq does not come back after a refused handshake."""

BATCH = 64
ROUTER_RETRY_S = 0.01
"""A ROUTER does not tell when one peer's full queue has room again."""

PROGRESS_EVERY_S = 0.2
GOODBYE_MS = 1000
HEARTBEAT_TIMEOUT_MS = 30_000
POLL_S_MAX = 60.0


@dataclass(slots=True, eq=False)
class Entry:
    """A transfer with its connection and who awaits it."""

    transfer: Transfer
    taken: Callable[[memoryview | BaseException], None]
    """Told once: what was wanted is here, or why it is not."""
    holds_bytes: int = 0
    given: Callable[[int | BaseException], None] | None = None
    """Told once, after `taken`, who serves an object: the peer has all, or why not."""
    progressed: Callable[[int], None] | None = None
    target: tuple[str, int] | None = None
    is_taken: bool = False
    dealer: Socket | None = None
    redial_at: float = 0.0
    redial_s: float = field(default_factory=lambda: REDIAL_S_MIN)
    route: bytes | None = None
    stuck: list[Buffer] = field(default_factory=list)
    """A sealed frame the socket would not take yet."""
    reported_at: float = 0.0


class Mover:
    """Owns the thread and the sockets. Raises `ConfigError` when the port cannot be had."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        or_free: bool,
        window: int,
        upload_bytes_s: float,
        download_bytes_s: float,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        now = Instant(time.monotonic())
        self._upload = TokenBucket(upload_bytes_s, CHUNK_BYTES, now)
        self._download = TokenBucket(download_bytes_s, CHUNK_BYTES, now)
        self._queue_frames = 2 * window + 16
        self._on_crash = on_crash
        self._entries: dict[TransferId, Entry] = {}
        self._by_dealer: dict[Socket, Entry] = {}
        self._active: dict[Entry, None] = {}
        """Entries that may have something to send, in the order they came to have it."""
        self._held_bytes = 0
        self._tick_at = float("inf")
        self._pump_at = float("inf")
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = tcp.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._context = make_context(io_threads=2, sockets_max=4096)
        self._gate = self._context.socket(zmq.ROUTER)
        self._gate.bind(zap.ADDRESS)
        self._router = self._make_socket(zmq.ROUTER)
        self._router.set(zmq.PLAIN_SERVER, 1)
        self._poller = zmq.Poller()
        self._stopping = False
        try:
            self.port = bind(self._router, host, port, or_free=or_free)
        except BaseException:
            self._close_sockets()
            raise
        for source in (self._gate, self._router, self._wake_out):
            self._poller.register(source, zmq.POLLIN)
        self._disk = ThreadPoolExecutor(1, "bulk-disk")
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)
        self._thread.start()

    def call(self, command: Callable[[], None]) -> None:
        """Run in the bulk thread, soon. From any thread."""
        self._commands.append(command)
        try:
            self._wake_in.send(b"\0")
        except OSError:
            pass  # full: it is awake already; closed: it has ended

    def wait_ended(self) -> None:
        """Block until the thread has ended, after `stop`."""
        self._thread.join()
        self._disk.shutdown(wait=False)

    # ------------------------------------------------------------------ commands, by way of `call`

    def add(self, entry: Entry) -> None:
        """Begin a transfer, or tell it why not."""
        name = entry.transfer.id
        full = self._held_bytes + entry.holds_bytes > HELD_BYTES_MAX and self._entries
        if name in self._entries:
            entry.taken(Unreachable("admission", f"transfer {name.hex()} is under way already"))
        elif full or len(self._entries) >= TRANSFERS_MAX:
            line = f"{len(self._entries)} transfers of {self._held_bytes} bytes are under way"
            entry.taken(Unreachable("admission", line))
        else:
            self._entries[name] = entry
            self._held_bytes += entry.holds_bytes
            self._tick_at = 0.0

    def give(self, transfer: TransferId, data: Buffer) -> bool:
        """Make the reply to a request; False when it comes too late."""
        entry = self._entries.get(transfer)
        if entry is None or entry.transfer.offer is not None:
            return False
        entry.holds_bytes += len(data)
        self._held_bytes += len(data)
        entry.transfer.give(data)
        self._activate(entry)
        self._tick_at = 0.0
        return True

    def cancel(self, transfer: TransferId, reason: str) -> None:
        entry = self._entries.get(transfer)
        if entry is not None:
            self._fail(entry, Unreachable("transfer", reason))

    def stop(self) -> None:
        self._fail_all(Unreachable("transfer", "this node is stopping"))
        self._stopping = True

    # ---------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self._fail_all(error)
            self._on_crash(error)
        finally:
            self._close_sockets()

    def _turn(self) -> None:
        wait_s = min(self._tick_at, self._pump_at) - time.monotonic()
        ready = self._poller.poll(int(1000 * max(0.0, min(wait_s + 0.001, POLL_S_MAX))))
        now = Instant(time.monotonic())
        for source, signs in ready:
            if source is self._gate:
                self._drain(self._gate, zap.REQUEST_PARTS_MAX, self._on_knock)
            elif source is self._router:
                self._drain(self._router, 3, partial(self._on_inbound, now))
            elif source in self._by_dealer:
                self._on_dealer(source, signs, now)
            elif isinstance(source, int):
                self._wake_out.recv(4096)
        while self._commands:
            self._commands.popleft()()
        if now >= self._tick_at:
            self._tick(now)
        self._pump()

    def _on_dealer(self, dealer: Socket, signs: int, now: Instant) -> None:
        entry = self._by_dealer[dealer]
        if signs & zmq.POLLOUT:
            self._poller.modify(dealer, zmq.POLLIN)
        self._drain(dealer, 2, partial(self._on_frame, entry, None, now))
        self._activate(entry)

    def _drain(
        self, socket: Socket, parts_max: int, handle: Callable[[list[zmq.Frame]], None]
    ) -> None:
        for _ in range(BATCH):
            parts = None if socket.closed else receive(socket, parts_max)
            if parts is None:
                return
            handle(parts)

    def _on_knock(self, parts: list[zmq.Frame]) -> None:
        """Who may open a connection: whoever has the cookie of a transfer we expect."""
        request = zap.parse(parts)
        if request is None or request.mechanism != b"PLAIN" or len(request.credentials) != 2:
            return
        name, secret = request.credentials
        entry = self._entry_named(name.decode("ascii", errors="replace"))
        if entry is None or not hmac.compare_digest(cookie(entry.transfer.key_up), secret):
            self.counters["connections_denied"] += 1
            self._gate.send_multipart(request.reply(b"400", ""))
        else:
            self._gate.send_multipart(request.reply(b"200", name.decode()))

    def _entry_named(self, name: str) -> Entry | None:
        try:
            entry = self._entries.get(TransferId(bytes.fromhex(name)))
        except ValueError:
            return None
        return entry if entry is not None and not entry.transfer.initiator else None

    def _on_inbound(self, now: Instant, parts: list[zmq.Frame]) -> None:
        entry = self._entry_named(property_of(parts[0], "User-Id"))
        if entry is None:
            self.counters["dropped_unknown"] += 1
        else:
            self._on_frame(entry, parts[0].bytes, now, parts[1:])
            self._activate(entry)

    def _on_frame(
        self, entry: Entry, route: bytes | None, now: Instant, parts: list[zmq.Frame]
    ) -> None:
        transfer = entry.transfer
        try:
            if len(parts) != 2:
                raise WireError(f"{len(parts)} parts")
            header = parse(parts[0].buffer)
        except WireError:
            self.counters["dropped_garbage"] += 1
            return
        if header.transfer != transfer.id:
            self.counters["dropped_unknown"] += 1
            return
        verdict = transfer.on_frame(header, parts[0].buffer, parts[1].buffer, now)
        if verdict:
            self.counters[f"dropped_{verdict}"] += 1
            return
        self.counters["bytes_received"] += len(parts[0].buffer) + len(parts[1].buffer)
        if route is not None:
            entry.route = route
        self._tick_at = min(self._tick_at, transfer.wakes_at)
        self._use_disk(entry)
        self._look_at(entry, now)

    def _look_at(self, entry: Entry, now: Instant) -> None:
        """Tell who waits what has become of a transfer."""
        transfer = entry.transfer
        if transfer.failure is not None:
            self._fail(entry, transfer.failure)
            return
        if entry.progressed is not None and (
            transfer.has_all or now >= entry.reported_at + PROGRESS_EVERY_S
        ):
            entry.reported_at = now
            entry.progressed(transfer.bytes_received)
        if transfer.has_all and not entry.is_taken:
            entry.is_taken = True
            entry.taken(transfer.want.memory)
            if transfer.initiator:
                self._remove(entry, "")
        if transfer.peer_is_done and not transfer.initiator:
            if entry.given is not None:
                entry.given(transfer.bytes_sent)
            self._remove(entry, None)

    def _tick(self, now: Instant) -> None:
        for entry in list(self._entries.values()):
            entry.transfer.tick(now)
            if entry.transfer.failure is not None:
                self._fail(entry, entry.transfer.failure)
                continue
            self._activate(entry)
            if entry.target and not entry.transfer.heard and now >= entry.redial_at:
                self._dial(entry, now)
        self._tick_at = min(
            (entry.transfer.wakes_at for entry in self._entries.values()), default=float("inf")
        )

    # ---------------------------------------------------------------------------------- entries

    def _is_live(self, entry: Entry) -> bool:
        return self._entries.get(entry.transfer.id) is entry

    def _dial(self, entry: Entry, now: Instant) -> None:
        assert entry.target is not None
        self._hang_up(entry)
        entry.redial_at = now + entry.redial_s
        entry.redial_s = min(2 * entry.redial_s, REDIAL_S_MAX)
        dealer = entry.dealer = self._make_socket(zmq.DEALER)
        dealer.set(zmq.IMMEDIATE, 1)
        dealer.set(zmq.PLAIN_USERNAME, entry.transfer.id.hex().encode())
        dealer.set(zmq.PLAIN_PASSWORD, cookie(entry.transfer.key_up))
        connect(dealer, *entry.target)
        self._by_dealer[dealer] = entry
        self._poller.register(dealer, zmq.POLLIN | zmq.POLLOUT)

    def _hang_up(self, entry: Entry, linger_ms: int = 0) -> None:
        if entry.dealer is not None:
            self._poller.unregister(entry.dealer)
            del self._by_dealer[entry.dealer]
            entry.dealer.close(linger=linger_ms)
            entry.dealer = None

    def _fail(self, entry: Entry, error: BaseException) -> None:
        if not self._is_live(entry):
            return
        if not entry.is_taken:
            entry.is_taken = True
            entry.taken(error)
        elif entry.given is not None:
            entry.given(error)
        self._remove(entry, str(error) or type(error).__name__)

    def _fail_all(self, error: BaseException) -> None:
        for entry in list(self._entries.values()):
            self._fail(entry, error)

    def _remove(self, entry: Entry, goodbye: str | None) -> None:
        """Forget a transfer. `goodbye`: why we give up, '' for having all, None to say nothing."""
        del self._entries[entry.transfer.id]
        self._held_bytes -= entry.holds_bytes
        self._active.pop(entry, None)
        if goodbye is not None and entry.transfer.heard:
            entry.stuck = []
            entry.transfer.end(goodbye)
            self._send(entry, list(entry.transfer.next_frame()))
        self._hang_up(entry, GOODBYE_MS)

    # ------------------------------------------------------------------------------- disk

    def _use_disk(self, entry: Entry) -> None:
        transfer = entry.transfer
        while transfer.reads:
            chunk = transfer.reads.pop(0)
            self._disk.submit(self._read, entry, chunk)
        while transfer.writes:
            offset, data = transfer.writes.pop(0)
            self._disk.submit(self._write, entry, offset, data)

    def _read(self, entry: Entry, chunk: int) -> None:
        offer = entry.transfer.offer
        assert offer is not None
        offset = chunk * CHUNK_BYTES
        try:
            data = offer.read(offset, min(CHUNK_BYTES, offer.size - offset))
        except Exception as error:
            self.call(partial(self._fail, entry, error))
        else:
            self.call(partial(self._on_read, entry, chunk, data))

    def _on_read(self, entry: Entry, chunk: int, data: Buffer) -> None:
        entry.transfer.loaded(chunk, data)
        self._activate(entry)

    def _write(self, entry: Entry, offset: int, data: memoryview) -> None:
        sink = entry.transfer.want.sink
        assert sink is not None
        if not self._is_live(entry):
            return  # given up meanwhile: nothing of it may be applied
        try:
            sink(offset, data)
        except Exception as error:
            self.call(partial(self._fail, entry, error))
        else:
            self.call(partial(self._on_written, entry))

    def _on_written(self, entry: Entry) -> None:
        if self._is_live(entry):
            entry.transfer.written()
            self._look_at(entry, Instant(time.monotonic()))
            self._activate(entry)

    # ------------------------------------------------------------------------------- sending

    def _activate(self, entry: Entry) -> None:
        if self._is_live(entry):
            self._active[entry] = None

    def _pump(self) -> None:
        """Let each active transfer send one frame in turn until none can."""
        self._pump_at = float("inf")
        while self._active:
            moved = False
            for entry in list(self._active):
                moved |= self._send_one(entry)
            if not moved:
                return

    def _send_one(self, entry: Entry) -> bool:
        """False when nothing was sent; then `_pump_at` says when to try again, if time alone may
        change that."""
        if not self._is_live(entry):
            self._active.pop(entry, None)
            return False
        if not entry.stuck:
            job = entry.transfer.next_job()
            if job is None:
                self._active.pop(entry, None)
                return False
            if not self._may_move(job):
                return False
            entry.stuck = list(entry.transfer.next_frame())
        if self._send(entry, entry.stuck):
            entry.stuck = []
            return True
        return False

    def _may_move(self, job: tuple[Kind, int, int]) -> bool:
        kind, _, length = job
        if not length:
            return True
        bucket = self._upload if kind is Kind.DATA else self._download
        now = Instant(time.monotonic())
        delay_s = bucket.delay_s(now)
        if delay_s > 0:
            self._pump_at = min(self._pump_at, now + delay_s)
            return False
        bucket.take(length, now)
        return True

    def _send(self, entry: Entry, parts: list[Buffer]) -> bool:
        try:
            if entry.dealer is not None:
                entry.dealer.send_multipart(parts, zmq.DONTWAIT, copy=False)
            elif entry.route is not None:
                self._router.send_multipart([entry.route, *parts], zmq.DONTWAIT, copy=False)
            else:
                self._active.pop(entry, None)  # until it is heard from again
                return False
        except zmq.ZMQError as error:
            if entry.dealer is not None:
                self._poller.modify(entry.dealer, zmq.POLLIN | zmq.POLLOUT)
                self._active.pop(entry, None)
            elif error.errno == zmq.EHOSTUNREACH:
                entry.route = None
            else:
                self._pump_at = min(self._pump_at, time.monotonic() + ROUTER_RETRY_S)
            return False
        self.counters["bytes_sent"] += sum(len(part) for part in parts)
        return True

    def _make_socket(self, kind: int) -> Socket:
        return make_socket(
            self._context,
            kind,
            frame_bytes_max=CHUNK_BYTES + 1024,
            hwm=self._queue_frames,
            heartbeat_timeout_ms=HEARTBEAT_TIMEOUT_MS,
        )

    def _close_sockets(self) -> None:
        for entry in list(self._by_dealer.values()):
            self._hang_up(entry)
        self._router.close(linger=0)
        self._gate.close(linger=0)
        self._wake_in.close()
        self._wake_out.close()
        self._context.term()
