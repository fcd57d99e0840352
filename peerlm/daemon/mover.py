"""The bulk thread: TCP connections on one side, transfers on the other, nothing but moving in between.

The bulk port is open to everybody. A connection says first which transfer it is for and proves that it
has that transfer's key; until then it is a *caller*, of whom few are kept and not for long (`daemon.callers`). Each
transfer has one connection, from its initiator to its responder; how fast it may go is said by `daemon.rates`, and when it
is over, the connection is kept for the next one between them (`daemon.parting`).

The thread asks every stream in turn to read one frame and to write one; when none moves it
waits until a socket is ready, a pause of the throttle is over, or somebody calls. Arithmetic of an
exchange is done right here, chunk by chunk, while a chunk is in the caches. Everything runs in that
thread, but `call`, which any thread may use.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from peerlm.daemon.buffers import Buffers
from peerlm.daemon.callers import Caller, Callers
from peerlm.daemon.kept import Target
from peerlm.daemon.parting import Parting
from peerlm.daemon.rates import Rates
from peerlm.daemon.sockets import drop, listen_tcp
from peerlm.daemon.stopwatch import Stopwatch
from peerlm.daemon.stream import Stream, Talk, watch
from peerlm.daemon.talks import Fetch, Give
from peerlm.errors import ChunkCorrupt, Unreachable, WireError
from peerlm.types import Instant, TransferId
from peerlm.wire.frame import (
    ATTEMPTS_MAX,
    DOWN,
    PREFACE_BYTES,
    UP,
    Cipher,
    Kind,
    Preface,
    parse_header,
)

HELD_BYTES_MAX = 1 << 30
"""What all transfers hold at once; what would pass it is not begun."""

TRANSFERS_MAX = 256
REDIAL_S = 0.25
"""A pull whose connection broke is dialled anew after so long, and then twice as long each time."""

TICK_S = 0.05
PROGRESS_EVERY_S = 0.2
POLL_S_MAX = 60.0


@dataclass(slots=True, eq=False)
class Entry:
    """A transfer with its connection and who awaits it."""

    id: TransferId
    talk: Talk
    keys: tuple[bytes, bytes]
    """Up, down."""
    target: Target | None
    """Where to dial; None for the responder."""
    progress_timeout_s: float
    timeout_s: float
    taken: Callable[[BaseException | None], None]
    """Told once: all that was wanted is here and good, or why not."""
    holds_bytes: int = 0
    given: Callable[[int | BaseException], None] | None = None
    """Told once, after `taken`, who serves: the peer has all, or why not."""
    progressed: Callable[[int], None] | None = None
    began_at: float = 0.0
    moved_at: float = 0.0
    attempt: int = 0
    """Of the newest connection; a responder takes none but later ones."""
    is_taken: bool = False
    stream: Stream | None = None
    dialling: socket.socket | None = None
    redial_at: float = float("inf")
    redial_s: float = REDIAL_S
    reported_at: float = 0.0
    work_s: float = 0.0
    """Processor time that this thread has spent on it."""
    line_bytes_s: float = 0.0
    """What its connection could send, by the time that all was here; 0 if that is not known."""

    @property
    def peer_name(self) -> str:
        return f"{self.target[0]} bulk port {self.target[1]}" if self.target else "the peer"


class Mover:
    """Owns the thread and the sockets. Raises `ConfigError` when the port cannot be had."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        or_free: bool,
        security: str,
        upload_bytes_s: float,
        download_bytes_s: float,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._spent = Stopwatch(self.counters)
        now = Instant(time.monotonic())
        self._security = security
        self._rates = Rates(upload_bytes_s, download_bytes_s, self.counters, now)
        self._on_crash = on_crash
        self._entries: dict[TransferId, Entry] = {}
        self._active: dict[Entry, None] = {}
        """Entries that may have something to move."""
        self._buffers = Buffers()
        self._held_bytes = 0
        self._tick_at = 0.0
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._parting = Parting(
            self._selector, self._buffers, lambda caller: self._callers.again(caller)
        )
        self._stopping = False
        try:
            self._listener = listen_tcp(host, port, or_free=or_free)
        except BaseException:
            self._close_all()
            raise
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._on_wake)
        self._callers = Callers(self._listener, self._selector, self.counters, self._look_at)
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Connections that are kept; may be read in any thread."""
        return len(self._parting.kept)

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

    # ------------------------------------------------------------------ commands, by way of `call`

    def add(self, entry: Entry) -> None:
        """Begin a transfer, or tell it why not."""
        full = self._held_bytes + entry.holds_bytes > HELD_BYTES_MAX and self._entries
        if entry.id in self._entries:
            line = f"transfer {entry.id.hex()} is under way already"
            entry.taken(Unreachable("admission", line))
        elif full or len(self._entries) >= TRANSFERS_MAX:
            line = f"{len(self._entries)} transfers of {self._held_bytes} bytes are under way"
            entry.taken(Unreachable("admission", line))
        else:
            self._entries[entry.id] = entry
            self._held_bytes += entry.holds_bytes
            entry.began_at = entry.moved_at = entry.reported_at = time.monotonic()
            if entry.target is not None:
                self._dial(entry)
            else:
                self._tick_at = 0.0
                for caller in self._callers.all():
                    if caller.has_spoken:
                        self._look_at(caller)

    def cancel(self, transfer: TransferId, reason: str) -> None:
        entry = self._entries.get(transfer)
        if entry is not None:
            self._fail(entry, Unreachable("transfer", reason))

    def moved(self, entry: Entry, error: BaseException | None) -> None:
        """The disk has done its part of a transfer, or cannot."""
        if self._entries.get(entry.id) is not entry:
            return
        if error is not None:
            self._fail(entry, error)
        else:
            entry.moved_at = time.monotonic()
            self._active[entry] = None

    def nudge(self, entry: Entry) -> None:
        """It has more to say."""
        if self._entries.get(entry.id) is entry:
            self._active[entry] = None

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
            self._close_all()

    def _turn(self) -> None:
        tick_at, wait_s = self._tick_at, 0.0
        if not self._active and not self._commands:
            tick_at = min(tick_at, self._callers.next_at, self._parting.kept.next_at)
            wait_s = min(tick_at, self._rates.resume_at) - time.monotonic()
        with self._spent("wait"):
            ready = self._selector.select(max(0.0, min(wait_s, POLL_S_MAX)))
        for key, mask in ready:
            key.data(mask)
        while self._commands:
            self._commands.popleft()()
        now = time.monotonic()
        if self._rates.may_resume(now):
            self._active.update(dict.fromkeys(self._entries.values()))
        if now >= tick_at:
            self._tick(now)
        self._move()

    def _on_wake(self, mask: int) -> None:
        self._wake_out.recv(4096)

    def _move(self) -> None:
        """Let each stream read and write one frame. Between two rounds of this the sockets, the clock
        and whoever calls are looked at, however fast one stream is."""
        for entry in list(self._active):
            if self._entries.get(entry.id) is not entry or entry.stream is None:
                self._active.pop(entry, None)
            elif not self._move_one(entry, entry.stream):
                self._active.pop(entry, None)
                if entry.stream is not None:
                    ready = partial(self._on_ready, entry.stream, entry)
                    watch(self._selector, entry.stream, ready)

    def _move_one(self, entry: Entry, stream: Stream) -> bool:
        before, began = sum(stream.wire_bytes), time.thread_time()
        moved = self._rates.read(stream)
        stream.look()
        moved |= self._rates.write(stream)
        entry.work_s += time.thread_time() - began
        if sum(stream.wire_bytes) != before:
            entry.moved_at = time.monotonic()
        self._after(entry, stream)
        return moved

    def _after(self, entry: Entry, stream: Stream) -> None:
        """Tell who waits what has become of a transfer."""
        now = time.monotonic()
        if entry.progressed is not None and isinstance(entry.talk, Fetch):
            done = entry.talk.is_done
            if done or now >= entry.reported_at + PROGRESS_EVERY_S:
                entry.reported_at = now
                entry.progressed(entry.talk.heard_bytes)
        if stream.failure is not None:
            self._broke(entry, stream)
            return
        if entry.is_taken or not stream.is_good:
            pass
        elif entry.target is None or stream.said_end:
            self._tell_taken(entry)
        if stream.has_ended:
            if entry.given is not None:
                entry.given(stream.said_bytes)
            self._remove(entry)

    def _tell_taken(self, entry: Entry) -> None:
        if not entry.is_taken:
            entry.is_taken = True
            if entry.stream is not None:
                entry.line_bytes_s = self._rates.line_bytes_s(entry.stream)
            entry.taken(None)

    def _broke(self, entry: Entry, stream: Stream) -> None:
        """A connection is of no more use. A pull goes on over another one."""
        failure = stream.failure
        assert failure is not None
        if isinstance(failure, ChunkCorrupt):
            self.counters["dropped_corrupt"] += 1
        if isinstance(entry.talk, Fetch) and stream.is_good and stream.said_end:
            self._tell_taken(entry)  # all is here; only our last word may not have arrived
            self._remove(entry)
            return
        if stream.is_stale and entry.target is not None:
            self._parting.forget_kept(entry.target)
            entry.talk.rewind()
            self._dial(entry)
            return
        resumes = isinstance(entry.talk, Fetch | Give) and isinstance(failure, Unreachable)
        resumes &= not stream.was_aborted
        if not resumes:
            if isinstance(failure, Unreachable):
                failure = Unreachable(failure.step, f"{entry.peer_name}: {failure}")
            elif isinstance(failure, WireError):
                failure = WireError(f"{entry.peer_name}: {failure}")
            self._fail(entry, failure)
            return
        self._hang_up(entry)
        if entry.target is not None:
            if stream.heard_bytes:
                entry.redial_s = REDIAL_S
            entry.redial_at = time.monotonic() + entry.redial_s
            entry.redial_s *= 2

    # ---------------------------------------------------------------------------------- time

    def _tick(self, now: float) -> None:
        self._callers.tick(now)
        self._tick_at = now + TICK_S if self._entries or self._parting else float("inf")
        for entry in list(self._entries.values()):
            if entry.stream is not None:
                self._rates.look(entry.stream, Instant(now))
            if now >= entry.began_at + entry.timeout_s:
                line = f"{entry.peer_name}: not done in {entry.timeout_s:g} s"
                self._fail(entry, Unreachable("transfer", line))
            elif now >= entry.moved_at + entry.progress_timeout_s:
                if entry.target is not None:  # others that were kept may lead nowhere as well
                    self._parting.forget_kept(entry.target)
                self._fail(entry, self._why_silent(entry))
            elif now >= entry.redial_at:
                self._dial(entry)
        self._parting.tick(now)

    def _why_silent(self, entry: Entry) -> Unreachable:
        stream, talk = entry.stream, entry.talk
        heard = stream.heard_bytes if stream is not None else 0
        heard = talk.heard_bytes if isinstance(talk, Fetch) else heard
        patience = f"{entry.progress_timeout_s:g} s"
        if not heard and (stream is None or entry.target is not None):
            return Unreachable("connect", f"{entry.peer_name}: no answer in {patience}")
        line = f"{entry.peer_name}: nothing came for {patience}, {heard} bytes are here"
        return Unreachable("transfer", line)

    # ------------------------------------------------------------------------------- connections

    def _dial(self, entry: Entry) -> None:
        assert entry.target is not None
        self._hang_up(entry)
        entry.redial_at = float("inf")
        entry.attempt += 1
        self._tick_at = 0.0
        if entry.attempt >= ATTEMPTS_MAX:
            self._fail(entry, Unreachable("connect", f"{entry.peer_name}: too many attempts"))
            return
        if (kept := self._parting.kept.take(entry.target)) is not None:
            self._begin(entry, kept, was_kept=True)
            return
        family = socket.AF_INET6 if ":" in entry.target[0] else socket.AF_INET
        try:
            dialling = entry.dialling = socket.socket(family, socket.SOCK_STREAM)
            dialling.setblocking(False)
            dialling.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialling.connect(entry.target)
        except BlockingIOError:
            pass
        except (OSError, ValueError) as error:  # an address that sockets do not take is no address
            self._not_dialled(entry, error)
            return
        ready = partial(self._on_dialled, entry, dialling)
        self._selector.register(dialling, selectors.EVENT_WRITE, ready)

    def _on_dialled(self, entry: Entry, dialling: socket.socket, mask: int) -> None:
        if entry.dialling is not dialling:
            return
        if code := dialling.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._not_dialled(entry, OSError(code, os.strerror(code)))
            return
        entry.dialling = None
        self._begin(entry, dialling)

    def _begin(self, entry: Entry, connection: socket.socket, *, was_kept: bool = False) -> None:
        self._selector.unregister(connection)
        self.counters["begun_kept" if was_kept else "begun_fresh"] += 1
        seal = Cipher(entry.keys[0], UP, entry.attempt, self._security)
        opens = Cipher(entry.keys[1], DOWN, entry.attempt, self._security)
        entry.stream = Stream(
            connection,
            entry.talk,
            seal,
            opens,
            self._buffers.lend(),
            dials=True,
            spent=self._spent,
            was_kept=was_kept,
        )
        self._rates.set_pace(entry.stream)
        first = entry.talk.first if isinstance(entry.talk, Fetch) else 0
        entry.stream.begin(Preface(entry.id, entry.attempt).pack(), first)
        self._active[entry] = None

    def _not_dialled(self, entry: Entry, error: OSError | ValueError) -> None:
        line = f"{entry.peer_name}: {getattr(error, 'strerror', '') or error}"
        self._fail(entry, Unreachable("connect", line))

    def _look_at(self, caller: Caller) -> None:
        """Whether a caller who has said its first words may come in."""
        try:
            preface = Preface.parse(caller.came[:PREFACE_BYTES])
        except WireError:
            self._callers.turn_away(caller, "garbage")
            return
        entry = self._entries.get(preface.transfer)
        if entry is None or entry.target is not None:
            return  # it may have come before it is expected
        opens = Cipher(entry.keys[0], UP, preface.attempt, self._security)
        try:
            first = _first_chunk(caller, opens)
        except (ChunkCorrupt, WireError):
            self._callers.turn_away(caller, "corrupt")
            return
        resumes = entry.stream is None or isinstance(entry.talk, Give)
        if preface.attempt <= entry.attempt or not resumes:
            self._callers.turn_away(caller, "replayed")
            return
        if not entry.talk.seek(first) if isinstance(entry.talk, Give) else first:
            self._callers.turn_away(caller, "garbage")
            return
        self._callers.let_go(caller)
        self._hang_up(entry)
        seal = Cipher(entry.keys[1], DOWN, preface.attempt, self._security)
        entry.attempt, entry.stream = (
            preface.attempt,
            Stream(
                caller.connection,
                entry.talk,
                seal,
                opens,
                self._buffers.lend(),
                dials=False,
                spent=self._spent,
            ),
        )
        self._rates.set_pace(entry.stream)
        entry.moved_at = time.monotonic()
        self._active[entry] = None

    def _on_ready(self, stream: Stream, entry: Entry, mask: int) -> None:
        stream.note_ready(mask)
        if entry.stream is stream:
            self._active[entry] = None

    # ---------------------------------------------------------------------------------- ends

    def _fail(self, entry: Entry, error: BaseException) -> None:
        if self._entries.get(entry.id) is not entry:
            return
        if entry.stream is not None:
            entry.stream.abort(str(error) or type(error).__name__)
        if not entry.is_taken:
            entry.is_taken = True
            entry.taken(error)
        elif entry.given is not None:
            entry.given(error)
        self._remove(entry)

    def _fail_all(self, error: BaseException) -> None:
        for entry in list(self._entries.values()):
            self._fail(entry, error)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.id]
        self._held_bytes -= entry.holds_bytes
        self._active.pop(entry, None)
        if (stream := entry.stream) is not None:
            entry.stream = None
            self._tick_at = 0.0
            self._parting.add(stream, entry.target)
        self._hang_up(entry)

    def _hang_up(self, entry: Entry) -> None:
        if entry.dialling is not None:
            drop(self._selector, entry.dialling)
            entry.dialling = None
        if entry.stream is not None:
            self._parting.close(entry.stream)
            entry.stream = None

    def _close_all(self) -> None:
        self._parting.close_all()
        if hasattr(self, "_callers"):
            self._callers.turn_all_away()
            self._listener.close()
        self._wake_in.close()
        self._wake_out.close()
        self._selector.close()


def _first_chunk(caller: Caller, opens: Cipher) -> int:
    """What a caller's first frame asks for. Raises `ChunkCorrupt`, `WireError`."""
    frame = memoryview(bytearray(caller.came[PREFACE_BYTES:]))
    kind, length = parse_header(frame)
    if kind is not Kind.BEGIN or length != 8:
        raise WireError("a first frame that does not begin")
    return int.from_bytes(opens.open(frame), "big")
