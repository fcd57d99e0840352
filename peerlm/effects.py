"""Everything a node can ask for: the whole side-effect surface of the cores.

A core returns a list of these; the driver carries them out in order and reports back with events
(`peerlm.events`). An effect that can fail says which event tells so. Tensors are named, not carried.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerlm.types import FragmentId, ObjectHash, PeerId, TransferId
from peerlm.wire.message import Message, Refusal, Welcome


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of all effects."""


# ------------------------------------------------------------------------------------ network


@dataclass(frozen=True, slots=True)
class Introduce(Effect):
    """Say hello at `host:port` → `IntroductionAnswered` or `IntroductionFailed`, within 8 s."""

    address: str


@dataclass(frozen=True, slots=True)
class AnswerIntroduction(Effect):
    route: bytes
    answer: Welcome | Refusal


@dataclass(frozen=True, slots=True)
class Admit(Effect):
    """From now on connections opened with this CURVE key are this peer's."""

    peer: PeerId
    curve_key: bytes


@dataclass(frozen=True, slots=True)
class Expel(Effect):
    """Drop the peer's key, its messages and our connections to it."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class OpenLink(Effect):
    """Keep an encrypted connection to this peer → `LinkUp`, later `LinkDown`."""

    peer: PeerId
    host: str
    control_port: int
    curve_key: bytes


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Send over any connection with the peer; dropped and counted when there is none."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class SendFresh(Effect):
    """Send over a new connection made for this message: an old one may be stuck while its peer is
    well. The answer comes as `Received`. This is the fallback probe."""

    peer: PeerId
    host: str
    control_port: int
    curve_key: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class TryDial(Effect):
    """Introduce ourselves at this address and knock at its other ports; whatever is found, hang up
    → `DialTried`."""

    peer: PeerId
    host: str
    intro_port: int
    control_port: int
    bulk_port: int


# ------------------------------------------------------------------------------ exchanges, pulls


@dataclass(frozen=True, slots=True)
class RunExchange(Effect):
    """Encode φ of `fragment`, send it, absorb the reply → `ExchangeEnded`.

    weight: share c of the difference this side moves; clip_norm: τ, the most |d̂| counts for
    (None: too few exchanges yet, the driver takes a fifth of |φ|).
    through_momentum: it is m that moves by it, and φ in the next outer step.
    Given up after `progress_timeout_s` without a byte, or `timeout_s` in all.
    """

    transfer: TransferId
    peer: PeerId
    host: str
    bulk_port: int
    fragment: FragmentId
    codec_request: str
    codec_reply: str
    key_up: bytes
    key_down: bytes
    weight: float
    clip_norm: float | None
    progress_timeout_s: float
    timeout_s: float
    through_momentum: bool = False


@dataclass(frozen=True, slots=True)
class ServeExchange(Effect):
    """Expect a peer's request, apply our side, send the reply → `ExchangeServed`."""

    transfer: TransferId
    peer: PeerId
    fragment: FragmentId
    codec_request: str
    codec_reply: str
    request_bytes: int
    key_up: bytes
    key_down: bytes
    weight: float
    clip_norm: float | None
    progress_timeout_s: float
    timeout_s: float
    through_momentum: bool = False


@dataclass(frozen=True, slots=True)
class CancelTransfer(Effect):
    """Stop an exchange or pull whose outcome no longer matters; nothing of it is applied after."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class RunChannel(Effect):
    """Dial a peer for a channel that lasts until it breaks or is cancelled → `ChannelOpened`, `ChannelEnded`."""

    transfer: TransferId
    peer: PeerId
    host: str
    bulk_port: int
    key_up: bytes
    key_down: bytes
    for_texts: bool = False
    """It carries laps, and not hops."""


@dataclass(frozen=True, slots=True)
class ServeChannel(Effect):
    """The same, for a peer that dials."""

    transfer: TransferId
    peer: PeerId
    key_up: bytes
    key_down: bytes
    for_texts: bool = False


@dataclass(frozen=True, slots=True)
class TellHosts(Effect):
    """Who can advance texts has changed: each with the first and last stage that it holds. `behind`: those of them
    that should not, where another holds the stage."""

    hosts: tuple[tuple[PeerId, int, int], ...]
    behind: tuple[PeerId, ...] = ()
    ways_s: tuple[tuple[float, float], ...] = ()
    """Of each, seconds that a token takes from here to there, and between there and a third; 0: not known. Empty: of none."""


@dataclass(frozen=True, slots=True)
class RunPull(Effect):
    """Pull an object into the store and verify it → `PullProgressed`…, `PullEnded`."""

    transfer: TransferId
    peer: PeerId
    host: str
    bulk_port: int
    object_hash: ObjectHash
    size: int
    key_up: bytes
    key_down: bytes
    progress_timeout_s: float
    is_chunk: bool = False
    """It is kept for the swarm's store."""


@dataclass(frozen=True, slots=True)
class ServePull(Effect):
    """Serve an object's chunks as they are asked for → `PullServed`."""

    transfer: TransferId
    peer: PeerId
    object_hash: ObjectHash
    key_up: bytes
    key_down: bytes
    progress_timeout_s: float


# ---------------------------------------------------------------------------- the swarm's store


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """A fragment that was cut into chunks, somewhere."""

    fragment: FragmentId
    version: int
    chunks: tuple[tuple[ObjectHash, int], ...]
    """(hash, bytes)."""
    peer: PeerId
    """Who keeps them."""


@dataclass(frozen=True, slots=True)
class ReadManifest(Effect):
    """Read a manifest that is here → `ManifestRead`."""

    manifest: ObjectHash


@dataclass(frozen=True, slots=True)
class DropChunks(Effect):
    """Remove what was kept for the store."""

    hashes: tuple[ObjectHash, ...]


@dataclass(frozen=True, slots=True)
class MakeProof(Effect):
    """BLAKE3 of the nonce and a chunk that is kept here → `ProofMade`."""

    peer: PeerId
    """Who gets it, or whose own is to be compared with it."""
    object_hash: ObjectHash
    nonce: bytes


@dataclass(frozen=True, slots=True)
class TellReaders(Effect):
    """These objects are here now: whoever waits for one can read it."""

    hashes: tuple[ObjectHash, ...]


@dataclass(frozen=True, slots=True)
class TellCheckpoint(Effect):
    """One is in the store, or came to nothing for that `reason`."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MakeShards(Effect):
    """Whether there is a job for this node: the process that makes shards runs as long as there is."""

    is_wanted: bool


@dataclass(frozen=True, slots=True)
class TellSurveyed(Effect):
    """The survey of this number is done."""

    number: int


MOMENTS = 500_000
"""From this number on, of what checkpoints are gathered from: what the optimizer remembers of fragment n − MOMENTS. A release
that does not know it says that it has no such fragment."""

PASSES = FragmentId(999_999)
"""In the same place: what of the text is read, as a host of the first stage knows it."""


@dataclass(frozen=True, slots=True)
class CutFragments(Effect):
    """φ of these fragments as it is now, or what is kept of their moments, as chunks → `FragmentCut` for each."""

    slot: bytes
    fragments: tuple[FragmentId, ...]
    passes: bytes = b""
    """What `PASSES` stands for, if it is among them; empty: nothing is known."""


@dataclass(frozen=True, slots=True)
class WriteCheckpoint(Effect):
    """A checkpoint's manifest out of its parts, kept → `CheckpointWritten`."""

    slot: bytes
    tokens: int
    parts: tuple[CheckpointPart, ...]
    """In the order of fragments."""
    before: bytes
    """Manifest of the checkpoint before it; empty: there is none."""
    moments: tuple[CheckpointPart, ...] = ()
    """The same of the optimizer's state; none: it goes without."""
    passes: CheckpointPart | None = None
    """What of the text is read."""


# ------------------------------------------------------------------------------ slow weights, disk


@dataclass(frozen=True, slots=True)
class StepOuter(Effect):
    """Take the outer step of a boundary that lies in shared memory → `OuterStepped`."""

    generation: int
    fragment: FragmentId
    applied_seq: int


@dataclass(frozen=True, slots=True)
class InstallSnapshot(Effect):
    """Slow weights := this node's newest valid snapshot → `StateInstalled`."""


@dataclass(frozen=True, slots=True)
class InstallObjects(Effect):
    """Slow weights := these pulled objects → `StateInstalled`, or `StateRejected` when an object's
    values are not finite or do not have the sketch its donor showed to others."""

    objects: tuple[tuple[FragmentId, int, ObjectHash, tuple[float, ...]], ...]
    """(fragment, version, object hash, sketch)."""


@dataclass(frozen=True, slots=True)
class WriteSnapshot(Effect):
    """→ `SnapshotWritten` or `SnapshotFailed`. At most one at a time."""

    tokens: int
    own_tokens: int
    final: bool
    """The run is settled: these are the finished weights."""
    tallies: tuple[tuple[PeerId, int, int], ...]
    """(peer, boot epoch, tokens): the swarm's grow-only token count."""


@dataclass(frozen=True, slots=True)
class Rehost(Effect):
    """Write a snapshot of what is held and of these objects, hold other stages from then on, and have their work
    begun by `Node.rehost`; where that fails, by the old ones."""

    first: int
    stop: int
    objects: tuple[tuple[FragmentId, int, ObjectHash, tuple[float, ...]], ...]
    """As in `InstallObjects`."""
    is_installed: bool
    """There are weights of what is held."""
    snapshot: WriteSnapshot


@dataclass(frozen=True, slots=True)
class DropObjects(Effect):
    """Remove these objects; one that cannot be removed now goes at the next start."""

    hashes: tuple[ObjectHash, ...]


@dataclass(frozen=True, slots=True)
class WriteModel(Effect):
    """Write the finished model → `ModelWritten`."""

    tokens: int


@dataclass(frozen=True, slots=True)
class PrepareCorpus(Effect):
    """Check the plan's corpus on this disk → `CorpusReady`, `CorpusMissing`, `CorpusUnusable`."""

    is_kept: bool = False
    """From here on all of it is kept for others, though this node reads none."""
    number: int = 0
    """Of two checks under way only the answer to the later is of use."""
    anew: bool = False
    """Hash also what was hashed before, by this daemon, and lies there untouched."""


@dataclass(frozen=True, slots=True)
class Save(Effect):
    """Replace a small file of the state directory, durably: `address_book`, `plan`, `placement`, `catalog`,
    `made` or `passes`."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SaveChain(Effect):
    """Keep our renewed certificate chain."""

    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SaveRevocations(Effect):
    """Keep all revocations known."""

    blobs: tuple[bytes, ...]


# -------------------------------------------------------------------------------------- worker


@dataclass(frozen=True, slots=True)
class StartWorker(Effect):
    """Start a worker. `fresh`: it makes the initial weights (→ `StateInstalled("fresh")` before
    `WorkerReady`); otherwise θ := φ."""

    generation: int
    fresh: bool
    passes: bytes = b""
    """What of the text is read (`data.passes`), and what the worker before was in the midst of."""
    absent: tuple[int, ...] = ()
    """Shards of the plan's text that are not here yet, by their places in it."""
    cold: bool = False
    """It is to begin without what is kept of the optimizer's state."""


@dataclass(frozen=True, slots=True)
class TellShards(Effect):
    """Which shards of its text the worker can read has changed."""

    generation: int
    absent: tuple[int, ...]
    """As in `StartWorker`; all others are here."""


@dataclass(frozen=True, slots=True)
class KeepOptimizer(Effect):
    """Have the worker write its optimizer's state to the disk → `OptimizerKept`."""

    generation: int


@dataclass(frozen=True, slots=True)
class StopWorker(Effect):
    """→ `WorkerExited`."""

    generation: int


@dataclass(frozen=True, slots=True)
class SteerWorker(Effect):
    """What the worker should go by from its next inner step on."""

    generation: int
    training: bool
    """False: keep still, apply corrections."""
    swarm_tokens: int
    """For the learning rate."""
    members: tuple[PeerId, ...]
    """Live trainers, sorted: who reads which text."""
    inner_steps: int
    """Between two boundaries of a fragment."""
    hosts: tuple[tuple[PeerId, int, int], ...] = ()
    """With whom there is a channel, and the first and last stage that each holds."""
    passes: bytes = b""
    """What of the text is read by now; empty: nothing is known."""
    ways_s: tuple[float, ...] = ()
    """Of each of `hosts`, seconds that a microbatch takes there and its gradient back; 0: not known. Empty: of none."""


@dataclass(frozen=True, slots=True)
class EvaluateSlow(Effect):
    """Evaluate a copy of φ on held-out text → `Evaluated`."""

    generation: int
    tokens: int


@dataclass(frozen=True, slots=True)
class DrainWorker(Effect):
    """Take no more inner steps, hand in a last boundary of every fragment → `WorkerDrained`."""

    generation: int


# -------------------------------------------------------------------------------------- node


@dataclass(frozen=True, slots=True)
class UsePlan(Effect):
    """A newer signed plan holds from now on (the driver rebuilds what depends on it)."""

    signed_plan: bytes


@dataclass(frozen=True, slots=True)
class Log(Effect):
    """A fact for the log: event word first, then fields."""

    level: str
    event: str
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Halt(Effect):
    """The daemon must stop. `error` empty: as asked; else the line a person sees."""

    error: str
