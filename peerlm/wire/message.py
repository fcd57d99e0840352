"""The message catalogue: everything one node can say to another on the control plane.

Here are the messages of introduction, membership, plan, exchange, weights and channels; those about the store are in
`wire.store_talk`, facts that are gossiped in `wire.rumor`. Whoever uses them has them from here: they share one range of
numbers, and the codec reads this module.

Each message is a frozen dataclass with a number of its own. Field types and bounds are part of the
type (`Annotated`), and `wire.codec` checks every one of them on arrival: a message that decodes is
well-formed. Whether it is *true* is the business of the core that handles it.

Numbers are never reused, and fields never move: `wire.versions` says how the catalogue may grow so
that a node of the version before still follows.

Planes: `Hello`, `Welcome` and `Refusal` travel in the clear on the introduction port (public data
only). All others travel on CURVE sockets, and the sender is the peer whose key opened the
connection, never a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from peerlm.wire.bounds import Least, Most
from peerlm.wire.fields import (
    Chain,
    Count,
    Hash32,
    Host,
    Id16,
    Key32,
    Line,
    Port,
    Word,
)
from peerlm.wire.fields import Message as Message
from peerlm.wire.fields import Struct as Struct
from peerlm.wire.rumor import Alive as Alive
from peerlm.wire.rumor import Dead as Dead
from peerlm.wire.rumor import Named as Named
from peerlm.wire.rumor import NameRecord as NameRecord
from peerlm.wire.rumor import NodeRecord as NodeRecord
from peerlm.wire.rumor import PlanNews as PlanNews
from peerlm.wire.rumor import Pulse as Pulse
from peerlm.wire.rumor import Revoked as Revoked
from peerlm.wire.rumor import Rumor as Rumor
from peerlm.wire.rumor import Rumors as Rumors
from peerlm.wire.rumor import Suspect as Suspect
from peerlm.wire.rumor import Vitals as Vitals
from peerlm.wire.store_talk import HaveAsk as HaveAsk
from peerlm.wire.store_talk import HaveGive as HaveGive
from peerlm.wire.store_talk import JobAsk as JobAsk
from peerlm.wire.store_talk import JobNews as JobNews
from peerlm.wire.store_talk import JobResult as JobResult
from peerlm.wire.store_talk import JobShard as JobShard
from peerlm.wire.store_talk import NameDigest as NameDigest
from peerlm.wire.store_talk import NamesAsk as NamesAsk
from peerlm.wire.store_talk import NamesGive as NamesGive
from peerlm.wire.store_talk import PartAsk as PartAsk
from peerlm.wire.store_talk import PartChunk as PartChunk
from peerlm.wire.store_talk import PartGive as PartGive
from peerlm.wire.store_talk import ProofAsk as ProofAsk
from peerlm.wire.store_talk import ProofGive as ProofGive

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
