"""Facts that are gossiped: what is told of nodes, of the plan and of names, by whoever heard it.

A fact is no message: it rides on probes and on gossip, and lives as long as it is told. So it has to prove itself,
whoever brings it. What a node says of itself (`NodeRecord`, `Vitals`) and what a writer says of a name (`NameRecord`)
is encoded and signed, and carried as those bytes with the signature; `Suspect` and `Dead` are opinions, and count
as long as who is meant does not refute them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from peerlm.wire.bounds import Least, Most
from peerlm.wire.fields import Chain, Count, Hash32, Host, Id4, Id16, Port, Signature, Struct, Word

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
    weights_tokens: Count | None = None
    """The swarm's, when its newest snapshot was written: it answers texts with that. None: it has none, or does not say."""
    may_preprocess: bool = False
    """It would, if there were some to make: it has room, the role `store`, and its settings let it."""
    delay_us: Count = 0
    """One way between it and its neighbours, the middle one, in microseconds; 0: not known yet."""
    paces: Annotated[tuple[Count, ...], Most(8)] = ()
    """Tokens a second that it would train on with one module of each kind (`model.stages.KINDS`); empty: not known."""
    mixed_with: Annotated[tuple[Id4, ...], Most(4)] = ()
    """Whom it has exchanged weights with in the last five minutes, the latest first: how their ids begin."""
    mixed_s: Annotated[tuple[Count, ...], Most(4)] = ()
    """How many seconds ago each, rounded down to a power of two."""
    page_port: Port = 0
    """Where its page is seen at the address at which it is dialled; 0: nowhere, or it does not say."""
    busy: Count | None = None
    """Tenths of the time in which its worker works; the rest it waits for others. None: it does not train, or does not say."""
    texts: Count = 0
    """Texts that go through it now: no more than so many, a power of two."""


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
