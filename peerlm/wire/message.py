"""The message catalogue: everything one node can say to another on the control plane.

Each message is a frozen dataclass with a number of its own. Field types and bounds are part of the type (`Annotated`), and
`wire.codec` checks every one of them on arrival: a message that decodes is well-formed. Whether it is *true* is the business of
the core that handles it. Numbers are never reused, and fields never move: `wire.versions` says how the catalogue may grow.

Planes: `Hello`, `Welcome` and `Refusal` travel in the clear on the introduction port (public data only). All others travel on
CURVE sockets, and the sender is the peer whose key opened the connection, never a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from peerlm.wire.bounds import Exactly, Least, Most

Id16 = Annotated[bytes, Exactly(16)]
Exactly8 = Annotated[bytes, Exactly(8)]
Hash32 = Annotated[bytes, Exactly(32)]
Key32 = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]
Host = Annotated[str, Most(255)]
Word = Annotated[str, Most(64)]
Line = Annotated[str, Most(400)]
Port = Annotated[int, Most(65_535)]
Count = Annotated[int, Most(2**62)]
Link = Annotated[bytes, Most(2048)]
Chain = Annotated[tuple[Link, ...], Most(6)]


@dataclass(frozen=True, slots=True)
class Struct:
    """Base of everything that can be encoded; `code` is its number on the wire."""

    code: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class Message(Struct):
    """Base of what can be sent by itself."""


# ----------------------------------------------------------------------- introduction (in the clear)


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The dialler shows who certified it. Nothing in it is secret."""

    code: ClassVar[int] = 1
    version: Annotated[int, Most(65_535)]
    run_id: Id16
    chain: Chain


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The other side's certificate chain and where its encrypted sockets are."""

    code: ClassVar[int] = 2
    version: Annotated[int, Most(65_535)]
    run_id: Id16
    chain: Chain
    control_port: Port
    bulk_port: Port
    seen_host: Host
    """The address the dialler's packets came from, as this node sees it."""


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """Why a hello was not accepted. `reason` is a stable word, `detail` a line for a person."""

    code: ClassVar[int] = 3
    reason: Word
    detail: Line


# --------------------------------------------------------------------------- facts that are gossiped


@dataclass(frozen=True, slots=True)
class NodeRecord(Struct):
    """What a node says of itself; signed by it. Newer (epoch, counter) replaces older."""

    code: ClassVar[int] = 10
    peer: Id16
    epoch: Count
    """Boot epoch: grows with every start of the daemon."""
    counter: Count
    """Raised by the owner alone, to refute a suspicion or to change the record."""
    host: Host
    """Where it can be dialled; empty: nowhere, it dials out."""
    intro_port: Port
    control_port: Port
    bulk_port: Port
    left: bool
    """True: the owner said goodbye. Final for this epoch."""


@dataclass(frozen=True, slots=True)
class Vitals(Struct):
    """How a node is doing, by itself; signed by it. Newer (epoch, version) replaces older."""

    code: ClassVar[int] = 11
    peer: Id16
    epoch: Count
    version: Count
    tokens: Count
    """Tokens its worker has trained on in this epoch: an entry of the swarm's grow-only count."""
    phase: Word
    active: bool
    """It holds state of this run's lineage and may donate it and answer exchanges."""
    participating: bool
    """It finished an exchange within the last few outer steps, or is settled."""
    settled: bool
    """The run's budget is reached and its weights have stopped moving."""
    plan_revision: Count
    loss: float | None
    """Training loss of θ, nats per token, averaged over the last steps."""
    val_loss: float | None
    """Loss of φ on the held-out text, nats per token."""
    distance: float | None
    """Relative distance of φ to its partners', from its recent exchanges."""
    tokens_per_s: float
    first_stage: Count = 0
    last_stage: Count = 0
    """The stages of the model that it holds; none where the first is above the last."""
    is_auto: bool = False
    """It decides by itself which stages it holds. All below is for those who decide, of a model in stages."""
    target_first: Count = 0
    target_last: Count = 0
    """The stages that it is going to hold: what it loads, and what it keeps."""
    is_draining: bool = False
    """It is going to leave."""
    memory_host: Count = 0
    memory_device: Count | None = None
    """Bytes that it offers for stages; no device: it trains in the host's memory."""
    flops_s: float = 0.0
    """How fast it trains, as measured; 0: not known yet."""
    line_bytes_s: float = 0.0
    """What its line carries, as measured; 0: not known yet."""
    store_bytes: Count = 0
    """What it offers the swarm's store; 0: it keeps nothing for others."""
    store_used: Count = 0
    """What it keeps of it."""
    store_label: Annotated[str, Most(32)] = ""
    """What it fails together with; empty: it fails alone."""
    store_lacking: Count = 0
    """Chunks that it should keep and does not have yet."""
    is_preprocessing: bool = False
    """It takes part in making token shards."""


@dataclass(frozen=True, slots=True)
class Alive(Struct):
    """A node's own record with its signature and certificate chain; also carries `left`."""

    code: ClassVar[int] = 20
    record: Annotated[bytes, Most(1024)]
    """An encoded `NodeRecord`."""
    signature: Signature
    chain: Chain


@dataclass(frozen=True, slots=True)
class Suspect(Struct):
    """`accuser` got no sign of life of `peer`."""

    code: ClassVar[int] = 21
    peer: Id16
    epoch: Count
    counter: Count
    accuser: Id16


@dataclass(frozen=True, slots=True)
class Dead(Struct):
    """A suspicion of `peer` ran out at `accuser`."""

    code: ClassVar[int] = 22
    peer: Id16
    epoch: Count
    counter: Count
    accuser: Id16


@dataclass(frozen=True, slots=True)
class Pulse(Struct):
    """A node's vitals with its signature."""

    code: ClassVar[int] = 23
    vitals: Annotated[bytes, Most(512)]
    """An encoded `Vitals`."""
    signature: Signature


@dataclass(frozen=True, slots=True)
class Revoked(Struct):
    """A signed revocation (`identity.revocation`)."""

    code: ClassVar[int] = 24
    blob: Annotated[bytes, Most(16_384)]


@dataclass(frozen=True, slots=True)
class PlanNews(Struct):
    """There is a plan of this revision; ask the sender for it."""

    code: ClassVar[int] = 25
    revision: Count
    plan_hash: Hash32


@dataclass(frozen=True, slots=True)
class NameRecord(Struct):
    """What a name in the swarm's store stands for; signed by its writer. Of two, the one with the larger
    (lamport, writer) holds; of equal ones a removal, then what `store.names` draws from a hash."""

    code: ClassVar[int] = 26
    name: Annotated[str, Most(96)]
    kind: Word
    manifest: Annotated[bytes, Most(32)]
    """Its hash; empty: the name was removed."""
    size: Count
    """Bytes of the manifest."""
    lamport: Count
    writer: Id16
    wall: Annotated[float, Least(0.0)]
    replicas: Annotated[int, Most(64)]
    is_pinned: bool
    about: Annotated[str, Most(200)]
    """Where it came from, for people."""


@dataclass(frozen=True, slots=True)
class Named(Struct):
    """A name's record with its signature and the writer's certificate chain."""

    code: ClassVar[int] = 27
    record: Annotated[bytes, Most(1024)]
    signature: Signature
    chain: Chain


Rumor = Alive | Suspect | Dead | Pulse | Revoked | PlanNews | Named
Rumors = Annotated[tuple[Rumor, ...], Most(256)]


# ----------------------------------------------------------------------------------- membership


@dataclass(frozen=True, slots=True)
class Greeting(Message):
    """First message on a new connection, from the dialler; answered by one with `reply` set."""

    code: ClassVar[int] = 30
    myself: Alive
    plan_revision: Count
    plan_hash: Hash32
    reply: bool
    software: Word = ""
    """The sender's release of peerlm, for people; since version 3."""


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Are you well? Answered by Ack with the same `seq`."""

    code: ClassVar[int] = 31
    seq: Count
    rumors: Rumors


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """Sign of life. `target` is who is alive: the sender, or who it pinged on our behalf."""

    code: ClassVar[int] = 32
    seq: Count
    target: Id16
    rumors: Rumors


@dataclass(frozen=True, slots=True)
class PingRequest(Message):
    """Please ping `target` for me, and answer Ack with its id, or Nack if it stays silent."""

    code: ClassVar[int] = 33
    seq: Count
    target: Id16


@dataclass(frozen=True, slots=True)
class Nack(Message):
    """I am well, but `target` has not answered me."""

    code: ClassVar[int] = 34
    seq: Count
    target: Id16


@dataclass(frozen=True, slots=True)
class Gossip(Message):
    """Rumors, sent on a timer of their own."""

    code: ClassVar[int] = 35
    rumors: Rumors


@dataclass(frozen=True, slots=True)
class DigestEntry(Struct):
    """What I know of one peer, without the proof."""

    code: ClassVar[int] = 36
    peer: Id16
    epoch: Count
    counter: Count
    state: Annotated[int, Most(3)]
    """0 alive, 1 suspect, 2 dead, 3 left."""
    vitals_epoch: Count
    vitals_version: Count


@dataclass(frozen=True, slots=True)
class Sync(Message):
    """Anti-entropy: here is what I know; tell me what is newer, and ask for what you lack."""

    code: ClassVar[int] = 37
    entries: Annotated[tuple[DigestEntry, ...], Most(4096)]
    reply: bool


@dataclass(frozen=True, slots=True)
class Tally(Struct):
    """Tokens that a node trained on in one boot epoch."""

    code: ClassVar[int] = 38
    peer: Id16
    epoch: Count
    tokens: Count


@dataclass(frozen=True, slots=True)
class Tallies(Message):
    """The swarm's token count as the sender knows it, the long dead included; merged by maximum.
    Told on a new link: vitals tell of the living, this of everybody else."""

    code: ClassVar[int] = 39
    entries: Annotated[tuple[Tally, ...], Most(4096)]


@dataclass(frozen=True, slots=True)
class RangesDone(Message):
    """Ranges of a text that are finished in a pass, by whomever; passes below `lowest` are over. From who trains to who trains."""

    code: ClassVar[int] = 110
    text: Hash32
    lowest: Annotated[int, Most(2**40)]
    number: Count
    bits: Annotated[bytes, Most(8192)]
    """For range i, bit i % 8 of byte i // 8."""
    few: Annotated[bytes, Most(8192)]
    """Further ranges, each as two bytes, the lower first."""


# ------------------------------------------------------------------------------------------ plan


@dataclass(frozen=True, slots=True)
class PlanAsk(Message):
    """Send me your plan."""

    code: ClassVar[int] = 40


@dataclass(frozen=True, slots=True)
class PlanGive(Message):
    """The plan in force at the sender, as the root signed it."""

    code: ClassVar[int] = 41
    signed_plan: Annotated[bytes, Most(512 * 1024)]


@dataclass(frozen=True, slots=True)
class PlanRefused(Message):
    """Your plan is not ours; nothing else you say is heard. `detail` names the field."""

    code: ClassVar[int] = 42
    detail: Line


# -------------------------------------------------------------------------------------- exchange


@dataclass(frozen=True, slots=True)
class ExchangeRequest(Message):
    """Mix fragment `fragment` with me. The tensors follow on the bulk plane once accepted."""

    code: ClassVar[int] = 50
    transfer: Id16
    plan_hash: Hash32
    fragment: Annotated[int, Most(1_000_000)]
    version: Count
    codec_request: Word
    codec_reply: Word
    request_bytes: Annotated[int, Most(2**28)]
    ramp: Annotated[float, Least(0.0), Most(1.0)]
    """Share of the usual weight this node should be given; below 1 while it is new, or where its
    sampler mixes the pair by less."""
    key_up: Key32
    key_down: Key32


@dataclass(frozen=True, slots=True)
class ExchangeAnswer(Message):
    """`verdict`: accept, busy or refuse; `reason` says why for the last two."""

    code: ClassVar[int] = 51
    transfer: Id16
    verdict: Word
    reason: Line
    ramp: Annotated[float, Least(0.0), Most(1.0)]
    """As in the request: the responder's, for the weight the initiator gives it."""


@dataclass(frozen=True, slots=True)
class ExchangeDone(Message):
    """The initiator has applied the reply, or gave up: the responder may forget it."""

    code: ClassVar[int] = 52
    transfer: Id16
    applied: bool


# ------------------------------------------------------------------------------- state and objects


@dataclass(frozen=True, slots=True)
class StateAsk(Message):
    """What slow weights could you donate?"""

    code: ClassVar[int] = 60


@dataclass(frozen=True, slots=True)
class FragmentOffer(Struct):
    """One fragment of a donor's snapshot: an object, and a sketch others can compare with."""

    code: ClassVar[int] = 61
    fragment: Annotated[int, Most(1_000_000)]
    version: Count
    object_hash: Hash32
    size: Annotated[int, Most(2**32)]
    sketch: Annotated[tuple[float, ...], Most(64)]


@dataclass(frozen=True, slots=True)
class StateGive(Message):
    """A donor's snapshot; empty `fragments`: nothing to give (yet)."""

    code: ClassVar[int] = 62
    plan_hash: Hash32
    tokens: Count
    """Tokens the swarm had trained on when the snapshot was taken, as the donor knew it."""
    final: bool
    """The run is settled: these are the finished weights."""
    fragments: Annotated[tuple[FragmentOffer, ...], Most(4096)]


@dataclass(frozen=True, slots=True)
class PullRequest(Message):
    """Serve me this object; chunks follow on the bulk plane once accepted."""

    code: ClassVar[int] = 63
    transfer: Id16
    object_hash: Hash32
    key_up: Key32
    key_down: Key32


@dataclass(frozen=True, slots=True)
class PullAnswer(Message):
    """`verdict`: accept, busy or refuse. `size` is the object's, in bytes."""

    code: ClassVar[int] = 64
    transfer: Id16
    verdict: Word
    reason: Line
    size: Annotated[int, Most(2**40)]


# -------------------------------------------------------------------------------- the swarm's store


@dataclass(frozen=True, slots=True)
class NameDigest(Struct):
    """What I know of one name, which is told by the first bytes of its BLAKE3."""

    code: ClassVar[int] = 90
    name: Exactly8
    lamport: Count
    writer: Id16
    tie: Annotated[bytes, Most(8)] = b""
    """Which of two records of one writer and number; empty: the sender does not tell them apart."""


@dataclass(frozen=True, slots=True)
class NamesAsk(Message):
    """Names whose digest is from `low` to `high`: give me what is newer, and, unless this is a reply, ask me for what you lack."""

    code: ClassVar[int] = 91
    low: Exactly8
    high: Exactly8
    entries: Annotated[tuple[NameDigest, ...], Most(4096)]
    reply: bool
    is_current: bool = False
    """What I know is of late (`store.current`)."""


@dataclass(frozen=True, slots=True)
class NamesGive(Message):
    """Names that the other has not, or not so new."""

    code: ClassVar[int] = 92
    names: Annotated[tuple[Named, ...], Most(64)]
    is_current: bool = False


@dataclass(frozen=True, slots=True)
class HaveAsk(Message):
    """Which of these do you keep, verified?"""

    code: ClassVar[int] = 93
    number: Count
    """The answer has the same."""
    hashes: Annotated[tuple[Hash32, ...], Most(1024)]
    is_due: bool
    """Count only what is yours to keep, so that you will not drop it because I have it."""


@dataclass(frozen=True, slots=True)
class HaveGive(Message):
    """A bit for each, the first in the highest place of the first byte."""

    code: ClassVar[int] = 94
    number: Count
    bits: Annotated[bytes, Most(128)]


@dataclass(frozen=True, slots=True)
class ProofAsk(Message):
    """Show that you keep this chunk: the BLAKE3 of `nonce` and all its bytes, one after the other."""

    code: ClassVar[int] = 95
    object_hash: Hash32
    nonce: Id16
    """The BLAKE2b (16 bytes) of your id under the key `seed`; any other you do not answer."""
    seed: Annotated[bytes, Most(16)] = b""


@dataclass(frozen=True, slots=True)
class ProofGive(Message):
    """`digest` is empty where it is not kept."""

    code: ClassVar[int] = 96
    object_hash: Hash32
    nonce: Id16
    digest: Annotated[bytes, Most(32)]


@dataclass(frozen=True, slots=True)
class PartAsk(Message):
    """I gather a checkpoint: cut these fragments as they are now, keep the chunks, and tell me their hashes."""

    code: ClassVar[int] = 97
    slot: Id16
    """The answer has the same."""
    fragments: Annotated[tuple[Annotated[int, Most(1_000_000)], ...], Most(4096)]


@dataclass(frozen=True, slots=True)
class PartChunk(Struct):
    """A chunk of a fragment's φ."""

    code: ClassVar[int] = 98
    hash: Hash32
    size: Annotated[int, Least(1), Most(2**22)]


@dataclass(frozen=True, slots=True)
class PartGive(Message):
    """A fragment is cut; without chunks: it cannot be had here."""

    code: ClassVar[int] = 99
    slot: Id16
    fragment: Annotated[int, Most(1_000_000)]
    version: Count
    chunks: Annotated[tuple[PartChunk, ...], Most(1024)]


@dataclass(frozen=True, slots=True)
class JobShard(Struct):
    """A token shard, as a chunk that its maker keeps."""

    code: ClassVar[int] = 100
    hash: Hash32
    size: Annotated[int, Least(1), Most(2**22)]
    tokens: Count


@dataclass(frozen=True, slots=True)
class JobResult(Struct):
    """A task of a job is made: its shards in order, the same whoever makes it."""

    code: ClassVar[int] = 101
    task: Annotated[int, Most(1_000_000)]
    maker: Id16
    documents: Count
    shards: Annotated[tuple[JobShard, ...], Most(16_384)]


@dataclass(frozen=True, slots=True)
class JobNews(Message):
    """Where I am with a job, and results that you may not know."""

    code: ClassVar[int] = 102
    job: Hash32
    """Its manifest."""
    is_making: bool
    """I take part."""
    trouble: Line
    """Why I do not, where something is in the way."""
    taken: Annotated[tuple[Annotated[int, Most(1_000_000)], ...], Most(1024)]
    """What I am at now."""
    results: Annotated[tuple[JobResult, ...], Most(64)]


@dataclass(frozen=True, slots=True)
class JobAsk(Message):
    """Tell me results of a job that I have not, and, unless this is a reply, ask me for what you lack."""

    code: ClassVar[int] = 103
    job: Hash32
    low: Annotated[int, Most(1_000_000)]
    """The task of the first bit."""
    bits: Annotated[bytes, Most(4096)]
    """A bit for each task, set where I have its result; the first in the highest place of the first byte."""
    reply: bool


# ----------------------------------------------------------------------------------------- channels


@dataclass(frozen=True, slots=True)
class ChannelRequest(Message):
    """Between our stages the stream has to go both ways: keep a connection with me for it; of training, or of texts."""

    code: ClassVar[int] = 80
    transfer: Id16
    key_up: Key32
    key_down: Key32
    for_texts: bool = False


@dataclass(frozen=True, slots=True)
class ChannelAnswer(Message):
    """`verdict`: accept, busy or refuse; `reason` says why for the last two."""

    code: ClassVar[int] = 81
    transfer: Id16
    verdict: Word
    reason: Line


# ----------------------------------------------------------------------------------------- dialling


@dataclass(frozen=True, slots=True)
class DialMe(Message):
    """Please try whether you can dial me there, and tell me by `Dialled`."""

    code: ClassVar[int] = 70
    host: Host
    intro_port: Port
    control_port: Port
    bulk_port: Port


@dataclass(frozen=True, slots=True)
class Dialled(Message):
    """I have tried to dial you at `host`. Sent to who asked, and without being asked when it failed."""

    code: ClassVar[int] = 71
    host: Host
    ok: bool
    """All three ports were reached, and you answered."""
    detail: Line
    """Why not."""
