"""What nodes say to each other about the swarm's store: which names there are, who keeps what, parts and jobs.

Names are compared in ranges of their digests, chunks are asked for by the thousand, and who keeps a chunk has to prove it
(docs/store.md). A checkpoint is gathered in parts from those who hold them; token shards are made by whoever has the
time. The chunks themselves come by pulls (`wire.message`), as all objects do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from peerlm.wire.bounds import Least, Most
from peerlm.wire.fields import Count, Exactly8, Hash32, Id16, Line, Message, Struct
from peerlm.wire.rumor import Named

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
    """Anti-entropy of names whose digest is from `low` to `high`: give me what is newer, and, unless this is a reply,
    ask me for what you lack."""

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
    """As in `NamesAsk`."""


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
    """I gather a checkpoint: cut these fragments (from 500,000 on: their moments; 999,999: what of the text is read), keep the chunks, and tell me their hashes."""

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
    """A token shard, or what was found in a task before there are any, as a chunk that its maker keeps."""

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
    """What I am at now; the number behind the last task: I conclude the sweep."""
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
