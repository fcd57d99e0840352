"""Everything in peerlm that turns foreign bytes into something, with true samples of what it reads.

A `Decoder` gives its samples, the errors it may answer with, and a `read` that goes on as far as the
program would: what was accepted is looked at again where something was promised of it (a message comes
back from its own encoding, a vector is finite, a distance is a number). Where a signature or checksum
stands before a parser, there is a second decoder whose inputs are signed or sealed after they were
damaged, as only a holder of the key, or a disk, could: else hardly any would get past the first gate.

Samples come from fixed seeds, so the same input number is the same input everywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from blake3 import blake3

from bench.fuzz_damage import Form
from peerlm import config
from peerlm.cli.logs import readable
from peerlm.config import NodeSettings, Plan
from peerlm.daemon import control
from peerlm.daemon.answers import _bytes
from peerlm.daemon.resolve import parse_address
from peerlm.data import records
from peerlm.data.passes import Lane, Passes
from peerlm.data.records import Record
from peerlm.errors import (
    AuthError,
    ChunkCorrupt,
    ConfigError,
    PeerlmError,
    StateError,
    Unreachable,
    WireError,
)
from peerlm.identity import canonical, files
from peerlm.identity.chain import (
    LINKS_MAX,
    Certificate,
    Chain,
    Enrolment,
    Invite,
    check_now,
    claimed_run,
    read_chain,
)
from peerlm.identity.invite import Inviter, Token, enrol, make_invite, parse_token, root_inviter
from peerlm.identity.keys import NodeKeys, Purpose, SigningKey
from peerlm.identity.revocation import sign_revocation, verify_revocation
from peerlm.identity.root import PLAN_BYTES_MAX, RunRoot, create_run, sign_plan, verify_plan
from peerlm.membership.address_book import AddressBook, read_book
from peerlm.mix import codec as vectors
from peerlm.mix import flow, sketch
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.vector import Vector
from peerlm.model.export import render_plan
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.store.snapshot import Contents, FragmentRecord, Manifest, Region
from peerlm.train import protocol
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, Role, RunId, TransferId, WallTime
from peerlm.wire import frame, message
from peerlm.wire.bounds import Exactly, Least, Most
from peerlm.wire.codec import (
    FRAME_BYTES_MAX,
    INTRODUCTION_BYTES_MAX,
    decode,
    decode_as,
    encode,
)
from peerlm.wire.message import Message, Struct

WALL = WallTime(1_800_000_000.0)
LATER = WallTime(WALL + 365 * 86_400.0)
VECTOR = 300
"""Elements of the vectors: two whole blocks and a part of one."""

Read = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Decoder:
    """`read` returns, or raises one of `refuses`; nothing else may come of it."""

    name: str
    form: Form
    samples: tuple[bytes, ...]
    read: Read
    refuses: tuple[type[Exception], ...] = ()
    bytes_max: int = 64 * 1024
    """Of inputs: what the place it reads from lets through, where that is not too much to try."""
    heap_max: int = 64 << 20
    """Memory that one input may claim."""


def all_decoders() -> tuple[Decoder, ...]:
    """In a fixed order, each under a name of its own."""
    found = (*_wire(), *_frames(), *_vectors(), *_identity(), *_kept(), *_spoken(), *_written())
    names = [decoder.name for decoder in found]
    assert len(set(names)) == len(names), "two decoders of one name"
    return found


# ------------------------------------------------------------------------------------------- wire


def _wire() -> Iterator[Decoder]:
    kinds = [
        kind
        for kind in vars(message).values()
        if isinstance(kind, type) and issubclass(kind, Struct) and kind.code
    ]
    samples = {kind: _struct_samples(kind) for kind in kinds}
    every = tuple(s for kind in kinds if issubclass(kind, Message) for s in samples[kind])
    yield Decoder("wire.decode", Form.MSGPACK, every, _whole_message, (WireError,), FRAME_BYTES_MAX)
    for kind in kinds:
        is_introduction = kind in (message.Hello, message.Welcome, message.Refusal)
        bound = INTRODUCTION_BYTES_MAX if is_introduction else FRAME_BYTES_MAX
        read = partial(_struct_of, kind, bound)
        yield Decoder(
            f"wire.{kind.__name__}", Form.MSGPACK, samples[kind], read, (WireError,), bound
        )


def _whole_message(data: bytes) -> object:
    got = decode(data)
    assert decode(encode(got)) == got, "a message that does not survive its own encoding"
    return got


def _struct_of(kind: type[Struct], bound: int, data: bytes) -> object:
    got = decode_as(kind, data, bytes_max=bound)
    assert type(got) is kind, f"{type(got).__name__} where {kind.__name__} was asked for"
    assert decode_as(kind, encode(got)) == got, "a struct that does not survive its own encoding"
    return got


def _struct_samples(kind: type[Struct]) -> tuple[bytes, ...]:
    rng = random.Random(kind.__name__)
    return tuple(encode(_struct(rng, kind, size)) for size in (1, 2, 2, 8))


def _struct(rng: random.Random, kind: type[Struct], size: int) -> Struct:
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{f.name: _field(rng, hints[f.name], size) for f in dataclasses.fields(kind)})


def _field(rng: random.Random, hint: Any, size: int) -> Any:
    """A value that the annotation allows; `size`: elements of a tuple, at most."""
    bounds: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds += more
    exactly = next((b.length for b in bounds if isinstance(b, Exactly)), None)
    most = min((b.value for b in bounds if isinstance(b, Most)), default=2.0**62)
    least = max((b.value for b in bounds if isinstance(b, Least)), default=0.0)
    if hint is bool:
        return rng.random() < 0.5
    if hint is int:
        return min(int(most), rng.choice((0, 1, 5, 300, 2**40, 2**62)))
    if hint is float:
        return rng.uniform(least, min(most, 10.0))
    if hint is bytes:
        return rng.randbytes(int(min(40, most)) if exactly is None else exactly)
    if hint is str:
        return rng.choice(("", "accept", "outer é", "127.0.0.1"))[: int(most)]
    if get_origin(hint) is tuple:
        count = int(min(size, most))
        return tuple(_field(rng, get_args(hint)[0], size) for _ in range(count))
    if get_origin(hint) in (Union, types.UnionType):
        chosen = rng.choice(get_args(hint))
        return None if chosen is type(None) else _field(rng, chosen, size)
    return _struct(rng, hint, size)


# ------------------------------------------------------------------------------- bulk, tensors


def _frames() -> Iterator[Decoder]:
    prefaces = tuple(frame.Preface(TransferId(_id(n)), 1 + 300 * n).pack() for n in range(3))
    yield Decoder("wire.frame.preface", Form.BYTES, prefaces, _preface, (WireError,))
    bodies = {
        frame.Kind.BEGIN: bytes(8),
        frame.Kind.DATA: b"x" * 100,
        frame.Kind.END: b"",
        frame.Kind.ABORT: b"no room",
    }
    for security in ("aead", "plain"):
        samples = tuple(_sealed(security, kind, body) for kind, body in bodies.items())
        yield Decoder(
            f"wire.frame.{security}",
            Form.BYTES,
            samples,
            partial(_opened, security),
            (WireError, ChunkCorrupt),
            2 * frame.CHUNK_BYTES,
        )


def _preface(data: bytes) -> object:
    got = frame.Preface.parse(data)
    assert got.pack() == data, "a preface that does not survive its own encoding"
    return got


def _cipher(security: str) -> frame.Cipher:
    return frame.Cipher(bytes(range(32)), frame.UP, 1, security)


def _sealed(security: str, kind: frame.Kind, body: bytes) -> bytes:
    room = memoryview(bytearray(frame.HEADER_BYTES + len(body) + frame.TAG_BYTES))
    return bytes(room[: _cipher(security).seal(kind, room, body)])


def _opened(security: str, data: bytes) -> object:
    """The first frame of what a connection gives, as a stream reads it."""
    if len(data) < frame.HEADER_BYTES:
        return None  # the rest may come
    kind, length = frame.parse_header(data)
    whole = frame.HEADER_BYTES + length + frame.TAG_BYTES
    assert whole <= frame.FRAME_BYTES_MAX, "a frame that asks for more memory than a buffer has"
    if len(data) < whole:
        return None
    body = _cipher(security).open(memoryview(bytearray(data[:whole])))
    assert len(body) == length, "a body of another length than was said"
    return kind


def _vectors() -> Iterator[Decoder]:
    rng = np.random.default_rng(1)
    values = rng.standard_normal(VECTOR).astype(np.float32)
    coded = {name: bytes(vectors.encode(values, name, rng)) for name in vectors.CODECS}
    for name in vectors.CODECS:
        samples = (coded[name], *coded.values())
        yield Decoder(
            f"mix.codec.{name}", Form.BYTES, samples, partial(_vector, name), (WireError,)
        )
    yield Decoder("mix.flow.respond", Form.BYTES, tuple(coded.values()), partial(_respond, values))
    yield Decoder("mix.flow.absorb", Form.BYTES, tuple(coded.values()), partial(_absorb, values))
    offer = message.FragmentOffer(0, 1, bytes(32), 4 * VECTOR, tuple(sketch.sketch(values, 1, 0)))
    offer = dataclasses.replace(offer, sketch=tuple(float(x) for x in offer.sketch))
    yield Decoder(
        "mix.sketch.distance",
        Form.MSGPACK,
        (encode(offer),),
        partial(_distance, offer.sketch),
        (WireError,),
    )


def _vector(name: str, data: bytes) -> object:
    got = vectors.decode(data, VECTOR, name)
    assert np.isfinite(got).all(), "an element that is not finite"
    return got.size


def _respond(values: Vector, data: bytes) -> object:
    fragment = SlowFragment(values)
    rng = np.random.default_rng(0)
    answers = [
        flow.respond(
            fragment,
            data,
            codec_request=name,
            codec_reply=reply,
            weight=0.5,
            clip_norm=clip,
            rng=rng,
        )
        for name, reply, clip in (
            ("fp32", "int4", None),
            ("fp16", "fp16", 1.0),
            ("int8", "int8", None),
        )
    ]
    assert np.isfinite(fragment.phi).all(), "weights that are not finite"
    return [_verdict(answer) for answer in answers]


def _absorb(values: Vector, data: bytes) -> object:
    fragment = SlowFragment(values)
    answers = [
        flow.absorb(fragment, data, codec_reply=name, weight=0.5, clip_norm=None)
        for name in vectors.CODECS
    ]
    assert np.isfinite(fragment.phi).all(), "weights that are not finite"
    return [_verdict(answer) for answer in answers]


def _verdict(answer: flow.Response | flow.Flow | flow.Refused) -> str:
    if isinstance(answer, flow.Refused):
        assert len(answer.reason) < 400, "a reason that is too long to send"
        return "refused"
    moved = answer.flow if isinstance(answer, flow.Response) else answer
    assert all(math.isfinite(n) for n in (moved.raw_norm, moved.applied_norm, moved.withheld_norm))
    return "moved"


def _distance(ours: tuple[float, ...], data: bytes) -> object:
    theirs = decode_as(message.FragmentOffer, data).sketch
    apart = sketch.distance(ours, theirs)
    assert apart >= 0, f"a distance of {apart}"
    return apart


# --------------------------------------------------------------------------------------- identity


class _Run:
    """A run with a delegate and a node below it, all from one seed."""

    def __init__(self) -> None:
        self.entropy = random.Random("fuzz").randbytes
        self.root = create_run("plays", self.entropy)
        working = (Role.TRAIN, Role.STORE, Role.INVITE)
        inviter = root_inviter(self.root)
        self.token = make_invite(inviter, working, LATER, LATER, ("tcp://h0:7700",), self.entropy)
        self.below = make_invite(self.token.inviter, (Role.TRAIN,), LATER, LATER, (), self.entropy)
        self.keys = NodeKeys.generate(self.entropy)
        self.chain: Chain = enrol(self.token.inviter, self.keys, WALL)
        self.long_chain: Chain = enrol(self.below.inviter, self.keys, WALL)
        self.place = (self.root.public_key, self.root.run_id)

    def link(self, key: SigningKey, body: bytes) -> bytes:
        """A link over any body, truly signed."""
        return canonical.encode([body, key.sign(Purpose.LINK, body)])


def _identity() -> Iterator[Decoder]:
    run = _Run()
    refuses = (AuthError,)
    yield Decoder("identity.canonical", Form.MSGPACK, _chain_samples(run), _canonical, refuses)
    yield from _chains(run)
    yield from _signed(run)
    yield from _secrets(run)
    texts = (run.token.to_text().encode(), run.below.to_text().encode())
    yield Decoder("identity.token", Form.TEXT, texts, lambda d: parse_token(_text(d)), refuses)
    raws = tuple(_token_raw(text) for text in texts)
    yield Decoder("identity.token.sealed", Form.MSGPACK, raws, _sealed_token, refuses, 8192)


def _chain_samples(run: _Run) -> tuple[bytes, ...]:
    hellos = [message.Hello(1, run.root.run_id, c) for c in (run.chain, run.long_chain)]
    return tuple(encode(hello) for hello in hellos)


def _canonical(data: bytes) -> object:
    value = canonical.decode(data, PLAN_BYTES_MAX, "input")
    assert canonical.encode(value) == data, "two encodings of one value"
    return None


def _chains(run: _Run) -> Iterator[Decoder]:
    def admitted(data: bytes) -> object:
        chain = decode_as(message.Hello, data, bytes_max=INTRODUCTION_BYTES_MAX).chain
        verified = read_chain(chain, *run.place)
        check_now(verified, WALL)
        return verified

    def own(data: bytes) -> object:
        return claimed_run(files._blobs(canonical.seal(data), 16_384, LINKS_MAX))

    refuses = (WireError, AuthError)
    samples = _chain_samples(run)
    yield Decoder("identity.chain", Form.MSGPACK, samples, admitted, refuses, 16_384)
    lists = tuple(canonical.encode(list(chain)) for chain in (run.chain, run.long_chain))
    yield Decoder("identity.chain.own", Form.MSGPACK, lists, own, (AuthError,), 16_384)

    rest, place = run.chain, run.place
    keys = (run.root.key, run.token.inviter.key, run.keys.signing)
    names = (Invite.NAME, Enrolment.NAME, Certificate.NAME)
    for at, (name, key) in enumerate(zip(names, keys, strict=True)):
        bodies = tuple(canonical.decode(link, 2048, "sample")[0] for link in rest)

        def signed(data: bytes, at: int = at, key: SigningKey = key) -> object:
            """The link at this place says whatever its true issuer signed."""
            chain = (*rest[:at], run.link(key, data), *rest[at + 1 :])
            verified = read_chain(chain, *place)
            check_now(verified, WALL)
            return verified

        yield Decoder(
            f"identity.{name}.signed",
            Form.MSGPACK,
            (bodies[at], bodies[at], *bodies),
            signed,
            (AuthError,),
            4096,
        )


def _signed(run: _Run) -> Iterator[Decoder]:
    place, root = run.place, run.root
    plan = sign_plan(root, config.preset("small"), 3)
    refuses = (AuthError, ConfigError)
    yield Decoder(
        "identity.plan",
        Form.MSGPACK,
        (plan.blob, sign_plan(root, Plan(), 1).blob),
        lambda data: verify_plan(data, *place),
        refuses,
        PLAN_BYTES_MAX,
    )

    def signed_plan(data: bytes) -> object:
        body = canonical.encode(["plan", root.run_id, 4, data])
        blob = canonical.encode([body, root.key.sign(Purpose.PLAN, body)])
        return verify_plan(blob, *place).plan

    plan_bytes = canonical.decode(canonical.decode(plan.blob, 9999, "")[0], 9999, "")[3]
    yield Decoder(
        "identity.plan.signed", Form.MSGPACK, (plan_bytes,), signed_plan, refuses, PLAN_BYTES_MAX
    )
    serials = [run.keys.peer_id, _id(7)]
    blobs = (
        sign_revocation(root_inviter(root), serials, WALL),
        sign_revocation(run.token.inviter, serials[:1], WALL),
    )
    yield Decoder(
        "identity.revocation",
        Form.MSGPACK,
        blobs,
        lambda data: verify_revocation(data, *place),
        (AuthError,),
        16_384,
    )

    def signed_revocation(data: bytes) -> object:
        signature = root.key.sign(Purpose.REVOCATION, data)
        return verify_revocation(canonical.encode([data, [], signature]), *place)

    bodies = tuple(canonical.decode(blob, 4096, "")[0] for blob in blobs)
    yield Decoder(
        "identity.revocation.signed", Form.MSGPACK, bodies, signed_revocation, (AuthError,), 8192
    )


def _secrets(run: _Run) -> Iterator[Decoder]:
    readers: tuple[tuple[str, bytes, Read], ...] = (
        ("keys", run.keys.to_bytes(), NodeKeys.from_bytes),
        ("root", run.root.to_bytes(), RunRoot.from_bytes),
        ("inviter", run.token.inviter.to_bytes(), Inviter.from_bytes),
    )
    for name, sealed, read in readers:
        whole = (sealed,)
        yield Decoder(f"identity.{name}", Form.BYTES, whole, read, (AuthError,), 8192)

        def resealed(data: bytes, read: Read = read) -> object:
            return read(canonical.seal(data))

        raw = (canonical.unseal(sealed, "sample"),)
        yield Decoder(f"identity.{name}.sealed", Form.MSGPACK, raw, resealed, (AuthError,), 8192)


def _token_raw(text: bytes) -> bytes:
    digits = text.decode().removeprefix("peerlm1-")
    return canonical.unseal(base64.urlsafe_b64decode(digits + "=" * (-len(digits) % 4)), "sample")


def _sealed_token(data: bytes) -> Token:
    digits = base64.urlsafe_b64encode(canonical.seal(data)).decode().rstrip("=")
    return parse_token("peerlm1-" + digits)


# ---------------------------------------------------------------------------------- kept on disks


def _kept() -> Iterator[Decoder]:
    def book_of(data: bytes) -> object:
        book, _ = read_book(data, Instant(100.0), WALL)
        again, note = read_book(book.to_bytes(Instant(100.0), WALL), Instant(100.0), WALL)
        assert not note, f"a book that cannot read itself: {note}"
        assert len(again) == len(book)
        return book.contacts()

    yield Decoder("membership.address_book", Form.JSON, (_book(),), book_of)
    path = Path("snapshot-00000001.manifest")
    refuses = (ChunkCorrupt, StateError)
    sealed = snapshot._encode(_manifest())
    yield Decoder(
        "store.manifest", Form.JSON, (sealed,), lambda d: snapshot._decode(d, path), refuses
    )

    def hashed(data: bytes) -> object:
        return snapshot._decode(blake3(data).hexdigest().encode() + b"\n" + data, path)

    body = (sealed.partition(b"\n")[2],)
    yield Decoder("store.manifest.hashed", Form.JSON, body, hashed, refuses)
    known = [Record(Passes(_id(n) * 2, 40), (Lane(0, 3, n),)) for n in range(3)]
    samples = (records.encode(known[:1]), records.encode(known, b"order"))
    yield Decoder("data.records", Form.BYTES, samples, records.decode, (ValueError,))


def _book() -> bytes:
    book = AddressBook(("tcp://h0:7700", "tcp://[::1]:7700"))
    for number in range(4):
        record = message.NodeRecord(
            _id(number), 1 + number, 2, f"h{number}", 7700, 7701, 7702, number == 2
        )
        alive = message.Alive(encode(record), bytes(64), (b"link" * 40, b"link" * 30))
        book.note(record, alive, Instant(10.0 * number))
    return book.to_bytes(Instant(100.0), WALL)


def _manifest() -> Manifest:
    def region(number: int) -> Region:
        return Region(512 * number, 512, ObjectHash(_id(number) * 2))

    contents = Contents(
        RunId(_id(1)), bytes(32), 2, {(PeerId(_id(9)), 1): 4096}, 4096, 1, WALL, final=False
    )
    fragments = tuple(
        FragmentRecord(
            FragmentId(n), f"blocks.{n}", 5, region(2 * n), region(2 * n + 1), (0.5, 1.25)
        )
        for n in range(3)
    )
    return Manifest(1, contents, region(0), fragments, "snapshot-00000001.safetensors", 4096)


# ----------------------------------------------------------------- said on this machine's sockets


def _spoken() -> Iterator[Decoder]:
    words = tuple(protocol.frame(word) for word in _worker_words())
    bodies = tuple(word[protocol.LENGTH.size :] for word in words)
    most = 1 << 20
    heap = 4 << 30  # claimed and never touched; and what it reads is our own child's word
    yield Decoder("train.protocol", Form.MSGPACK, bodies, protocol.decode, (WireError,), most, heap)
    stream = (b"".join(words), *words)
    yield Decoder("train.protocol.stream", Form.BYTES, stream, _stream, (WireError,), most, heap)
    settings: tuple[tuple[str, Plan | NodeSettings, Read], ...] = (
        ("Plan", config.preset("small"), partial(protocol.unpacked, Plan)),
        ("NodeSettings", NodeSettings(), partial(protocol.unpacked, NodeSettings)),
    )
    for name, sample, read in settings:
        yield Decoder(
            f"train.protocol.{name}",
            Form.MSGPACK,
            (protocol.packed(sample),),
            read,
            (ConfigError,),
            heap_max=heap,
        )
    requests = tuple(
        json.dumps(request).encode()
        for request in (
            {"command": "status"},
            {"command": "new_plan", "plan": "00ff" * 40},
            {"command": "revoke", "revocation": "ab" * 60},
        )
    )
    yield Decoder("daemon.control", Form.JSON, requests, _control, (), control.LINE_BYTES_MAX // 8)
    answers = (b'{"ok":true,"result":{"number":3}}\n', b'{"ok":false,"error":"no weights yet"}\n')
    layout = Layout(Path("state"))
    yield Decoder(
        "daemon.control.answer",
        Form.JSON,
        answers,
        partial(_answered, layout),
        (StateError,),
    )
    addresses = (b"tcp://h0:7700", b"[fe80::1]:7700", b"10.0.0.1", b"host.example.org:80")
    yield Decoder(
        "daemon.address", Form.TEXT, addresses, lambda d: parse_address(_text(d)), (Unreachable,)
    )


def _answered(layout: Layout, data: bytes) -> object:
    try:
        return control._result(data, layout)
    except PeerlmError as error:
        if type(error) is PeerlmError:  # the daemon's own words
            return str(error)
        raise


def _worker_words() -> Iterator[protocol.Message]:
    peer = PeerId(_id(3))
    plan, settings = protocol.packed(Plan()), protocol.packed(NodeSettings())
    fragment = FragmentId(1)
    yield protocol.Setup(1, True, peer, plan, settings, ("/a/b", "/a/c"), 4, b"")
    yield protocol.Steer(True, 10, 100, (peer, peer), 20)
    yield protocol.Correction(fragment, 3, protocol.ADD)
    yield protocol.BoundaryTaken(fragment)
    yield protocol.Evaluate()
    yield protocol.Ready("cpu", 4)
    yield protocol.Boundary(fragment, 2, 40)
    yield protocol.Applied(fragment, 2)
    yield protocol.Progress(40, 4096, None, 1000.0, 0, 1, texts=(_id(3) * 2,), finished=(0, 1, 5))
    yield protocol.Evaluated(math.nan, 3_100.0)
    yield protocol.Failed("out of memory")


def _stream(data: bytes) -> object:
    """As it comes from a socket: in pieces."""
    frames = protocol.Frames()
    found: list[protocol.Message] = []
    step = max(1, len(data) // 3)
    for at in range(0, len(data), step):
        found += frames.feed(data[at : at + step])
    return found


async def _handle(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the daemon's own handler does with bytes."""
    match command:
        case "new_plan":
            verify_plan(_bytes(arguments, "plan"), bytes(32), RunId(_id(0)))
        case "revoke":
            return {"blob": _bytes(arguments, "revocation").hex()}
    return arguments


_SERVER = control.ControlServer(Layout(Path("state")), _handle)


def _control(data: bytes) -> object:
    line = data.split(b"\n", 1)[0]
    try:
        _SERVER._answer(line).send(None)
    except StopIteration as done:
        reply: dict[str, Any] = done.value
    else:
        raise AssertionError("a request that waits for something")
    assert set(reply) in ({"ok", "result"}, {"ok", "error"}), f"a reply of {sorted(reply)}"
    assert "internal error" not in str(reply.get("error")), reply["error"]
    text = json.dumps(control.finite(reply), separators=(",", ":"))
    assert "\n" not in text, "a reply of two lines"
    return None


# ------------------------------------------------------------------------------ written by people


def _written() -> Iterator[Decoder]:
    tomls = {
        Plan: tuple(render_plan(p).encode() for p in (Plan(), config.preset("small"))),
        NodeSettings: (
            b'[network]\nhost = "::"\nport = 7700\nadvertise = "h0"\n\n[limits]\nthreads = 2\n'
            b"snapshot_every_s = 30.5\n\n[train]\ncompile = false\n\n[control]\n# group\n",
        ),
    }
    for kind, samples in tomls.items():

        def read(data: bytes, kind: type[Plan] | type[NodeSettings] = kind) -> object:
            return config.read_toml(kind, _text(data), "plan.toml")

        name = f"config.{kind.__name__}"
        yield Decoder(name, Form.TOML, samples, read, (ConfigError,), 128 * 1024)
    changes = (
        b"mix.inner_steps=50",
        b"train.lr=1e-3",
        b"model.blocks=[attention]",
        b"model.tied=false",
        b"data.source=swarm:plays*0.5",
    )
    yield Decoder("config.changes", Form.TOML, changes, _changed, (ConfigError,))
    logs = (
        b'{"time":"2026-01-01T00:00:00","level":"info","event":"member_dead","peer":"ab"}',
        b'{"time":1,"level":"warning","event":"x","why":{"a":[1,2]}}',
    )
    yield Decoder("cli.logs", Form.JSON, logs, _log_line)


def _changed(data: bytes) -> object:
    name, _, value = _text(data).partition("=")
    return config.with_changes(Plan(), {name.strip(): value.strip()}, "--set")


def _log_line(data: bytes) -> object:
    line = readable(_text(data).splitlines()[0] if data.strip() else "")
    assert line.isprintable(), "a line that could move the cursor"
    return line


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _id(number: int) -> bytes:
    return bytes([number]) * 16
