"""Everything that can happen to a node: the inputs of its cores.

The daemon and the simulator turn sockets, files, processes and arithmetic into these; `node.Node`
turns them into effects (`peerlm.effects`). An event names tensors (a fragment, a transfer), it never
carries one. What a driver reports is a fact about *our own* machine; what came from a peer is in
`Received` and stays a claim until a core has checked it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peerlm.types import FragmentId, Memory, ObjectHash, PeerId, TransferId
from peerlm.wire.message import Hello, Message, Refusal, Welcome


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


# ------------------------------------------------------------------------------------ network


@dataclass(frozen=True, slots=True)
class HelloCame(Event):
    """Somebody introduced itself. Answer with `AnswerIntroduction(route, …)`."""

    route: bytes
    hello: Hello
    from_host: str


@dataclass(frozen=True, slots=True)
class IntroductionAnswered(Event):
    """An introduction we started was answered. `host` is the resolved address that answered."""

    address: str
    host: str
    answer: Welcome | Refusal


@dataclass(frozen=True, slots=True)
class IntroductionFailed(Event):
    """`step` is resolve, connect or handshake; `detail` a line for a person."""

    address: str
    step: str
    detail: str


@dataclass(frozen=True, slots=True)
class LinkUp(Event):
    """An encrypted connection to this peer works. `dialled`: by us."""

    peer: PeerId
    dialled: bool


@dataclass(frozen=True, slots=True)
class LinkDown(Event):
    """No connection to this peer is left. `reason`: closed, denied, timeout."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Received(Event):
    """A well-formed message over a connection that only `peer`'s key can have opened."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Misbehaved(Event):
    """A peer sent bytes that are no message. `what` is the `WireError`'s line."""

    peer: PeerId
    what: str


@dataclass(frozen=True, slots=True)
class DialTried(Event):
    """What came of `TryDial`. `failure`: why a port could not be reached, a line for a person; else
    empty, and `answer` is what was said at the introduction port."""

    peer: PeerId
    failure: str = ""
    answer: Welcome | Refusal | None = None


# ------------------------------------------------------------------------------ exchanges, pulls


@dataclass(frozen=True, slots=True)
class ExchangeEnded(Event):
    """The tensors of an exchange this node *initiated* have been moved and applied, or not.

    `outcome`: ok, lost (no complete reply in time), refused (the reply failed a gate), cancelled.
    Norms are of this fragment: `raw_norm` = |d̂|, `applied_norm` = |u| after clipping and weighting,
    `booked` = what clipping kept back: weight · (|d̂| − τ), or 0. `work_s`: processor time it took here.
    `line_bytes_s`: what the way to the peer lately took of ours, as measured; 0 where that is not known.
    """

    transfer: TransferId
    outcome: str
    reason: str = ""
    raw_norm: float = 0.0
    applied_norm: float = 0.0
    phi_norm: float = 0.0
    clipped: bool = False
    booked: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    work_s: float = 0.0
    line_bytes_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ExchangeServed(Event):
    """The same for an exchange a peer initiated. Outcome `ok`: our side is applied, reply sent."""

    transfer: TransferId
    outcome: str
    reason: str = ""
    raw_norm: float = 0.0
    applied_norm: float = 0.0
    phi_norm: float = 0.0
    clipped: bool = False
    booked: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    work_s: float = 0.0
    line_bytes_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChannelOpened(Event):
    """Both sides have shown their keys: the channel carries."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class ChannelWanted(Event):
    """Texts are on their way to this peer, or from it."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ChannelEnded(Event):
    """Of a channel that was not cancelled here. `reason` is one line."""

    transfer: TransferId
    reason: str


@dataclass(frozen=True, slots=True)
class PullProgressed(Event):
    transfer: TransferId
    bytes_received: int
    """So far, of this object."""


@dataclass(frozen=True, slots=True)
class PullEnded(Event):
    """`outcome`: ok (verified and on disk), lost, corrupt, cancelled, failed (our disk)."""

    transfer: TransferId
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PullServed(Event):
    transfer: TransferId
    outcome: str
    bytes_sent: int


# ---------------------------------------------------------------------------- the swarm's store


@dataclass(frozen=True, slots=True)
class ObjectKept(Event):
    """A process of this machine put an object into the store, durably."""

    object_hash: ObjectHash
    size: int


@dataclass(frozen=True, slots=True)
class ObjectLost(Event):
    """An object of the store was damaged, or has vanished; it is not here any more."""

    object_hash: ObjectHash
    reason: str


@dataclass(frozen=True, slots=True)
class ManifestRead(Event):
    """`reason`: why it cannot be used; then it is not here any more, or `is_wrong`."""

    manifest: ObjectHash
    chunks: tuple[tuple[ObjectHash, int], ...]
    reason: str = ""
    is_wrong: bool = False
    """It is here, undamaged, and no manifest: whoever wrote its name made it so."""
    makers: tuple[PeerId, ...] = ()
    """Nodes that keep them for certain when the name is new, besides its writer."""
    made: Mapping[ObjectHash, PeerId] = field(default_factory=dict)
    """Which of the makers made a chunk, where it is said."""
    tasks: int = 0
    """Of a job; 0: it is none."""
    replaces: bool = False
    """What the job makes takes its name from whatever has it."""
    sweep: str = ""
    """What is made of the source before tokens are; empty: tokens."""


@dataclass(frozen=True, slots=True)
class ProofMade(Event):
    """`digest` is empty where the chunk could not be read."""

    peer: PeerId
    object_hash: ObjectHash
    nonce: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class FragmentCut(Event):
    """`chunks` is empty where there is nothing to cut, or it could not be kept."""

    slot: bytes
    fragment: FragmentId
    version: int
    chunks: tuple[tuple[ObjectHash, int], ...]
    reason: str = ""
    """Why the disk did not take them."""


@dataclass(frozen=True, slots=True)
class CheckpointWritten(Event):
    """`reason`: why it came to nothing."""

    slot: bytes
    manifest: ObjectHash
    size: int
    """Bytes of the manifest."""
    reason: str = ""
    lacks: str = ""
    """Why the optimizer's state is not in it, though it should be."""


# ------------------------------------------------------------------------------ slow weights, disk


@dataclass(frozen=True, slots=True)
class OuterStepped(Event):
    """A boundary has been dealt with. Not finite: θ was reset to φ. Not stepped: for that reason, or
    because the boundary was void; nothing else happened then and the norms mean nothing."""

    generation: int
    fragment: FragmentId
    finite: bool
    stepped: bool
    version: int
    progress_norm: float
    phi_norm: float


@dataclass(frozen=True, slots=True)
class SnapshotWritten(Event):
    """Slow weights are durable. `offers` describe it as objects others can pull."""

    number: int
    tokens: int
    """The swarm's token count it belongs to."""
    offers: tuple[tuple[FragmentId, int, ObjectHash, int, tuple[float, ...]], ...]
    """(fragment, version, object hash, bytes, sketch) of each fragment."""
    seconds: float
    trouble: str = ""
    """Why older ones could not be removed."""


@dataclass(frozen=True, slots=True)
class SnapshotFailed(Event):
    reason: str


@dataclass(frozen=True, slots=True)
class SaveFailed(Event):
    """What a `Save…` effect gave could not be written; the driver tries again by itself."""

    name: str
    """address_book, plan, chain or revocations."""
    reason: str


@dataclass(frozen=True, slots=True)
class ModelFailed(Event):
    """The finished model could not be written."""

    reason: str


@dataclass(frozen=True, slots=True)
class StateInstalled(Event):
    """Slow weights are in memory. `origin`: fresh, snapshot or peers."""

    origin: str


@dataclass(frozen=True, slots=True)
class StateRejected(Event):
    """Fetched state could not be used (a fragment's values are not finite, say)."""

    fragment: FragmentId
    reason: str


@dataclass(frozen=True, slots=True)
class ModelWritten(Event):
    """The finished model is on disk."""

    directory: str


@dataclass(frozen=True, slots=True)
class CorpusReady(Event):
    """All corpus objects the plan names are on this disk and verified; or this node's own text is
    ready, and `objects` is empty."""

    objects: tuple[tuple[ObjectHash, int], ...] = ()
    """(hash, bytes) of each, to donate."""
    number: int = 0
    """Of the `PrepareCorpus` that this answers."""


@dataclass(frozen=True, slots=True)
class CorpusMissing(Event):
    """These objects must be fetched from peers; all others that the plan names are on this disk and verified."""

    missing: tuple[ObjectHash, ...]
    here: tuple[tuple[ObjectHash, int], ...] = ()
    """(hash, bytes) of the others, to donate."""
    number: int = 0


@dataclass(frozen=True, slots=True)
class CorpusUnusable(Event):
    """The text cannot be used; a person must act. The node stays a member."""

    reason: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class TextsCounted(Event):
    """So many texts go through the stages held here now."""

    count: int


@dataclass(frozen=True, slots=True)
class MemoryRead(Event):
    """What this machine could offer for stages if it held none."""

    offered: Memory


# -------------------------------------------------------------------------------------- worker


@dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    """The worker has its model on its device and waits for nothing."""

    generation: int
    device: str
    threads: int
    optimizer: str = ""
    """What its optimizer begins with, in a line; empty: nothing was kept."""
    paces: tuple[float, ...] = ()
    """Tokens a second of one module of each kind; empty: not tried."""


@dataclass(frozen=True, slots=True)
class OptimizerKept(Event):
    """The optimizer's state is on the disk, or `error` says why it is not. `seconds`: what that took of worker and disk."""

    generation: int
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class BoundaryReached(Event):
    """A fragment's θ lies in shared memory, read after `steps` inner steps of this generation."""

    generation: int
    fragment: FragmentId
    applied_seq: int
    steps: int


@dataclass(frozen=True, slots=True)
class WorkerProgressed(Event):
    """Totals of this generation, and the training loss since the last report."""

    generation: int
    steps: int
    tokens: int
    loss: float | None
    tokens_per_s: float
    nonfinite_steps: int
    stream_lost: int = 0
    stream_sent: int = 0
    stream_received: int = 0
    """Microbatches that came to nothing; bytes between stages."""
    busy: float = 1.0
    """Share of the time in which it worked, since the last report; the rest it waited for others."""
    texts: tuple[bytes, ...] = ()
    ranges: tuple[int, ...] = ()
    """What it reads, and in how many ranges each; none: it reads nothing."""
    finished: tuple[int, ...] = ()
    """Text (its place in `texts`), pass and range of each that was finished since the last report."""
    lanes: tuple[int, ...] = ()
    """Text, pass, range and windows read, of each that it is in the midst of."""
    order: bytes = b""
    """How far the drawing from `texts` is (`data.records`)."""
    lacks_text: bool = False
    """It has read what it can of the shards that are here, and waits for more."""
    worked_tokens_s: float = 0.0
    """Tokens a second, each as the share of the held stages' FLOPs that it took here; 0: as many as `tokens_per_s`."""


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    generation: int
    val_loss: float
    tokens: int
    """The swarm's tokens when the evaluated φ was copied."""
    noise_scale: float | None = None
    """Of θ's gradients, in tokens; None: not known."""
    val_losses: tuple[float, ...] = ()
    """Of each text that the worker reads; nan where nothing is held out."""


@dataclass(frozen=True, slots=True)
class WorkerDrained(Event):
    """After `DrainWorker`: the last boundary of every fragment is in, θ will not move again."""

    generation: int


@dataclass(frozen=True, slots=True)
class WorkerExited(Event):
    """The worker is gone. `error` is its last word: one line, empty for an asked-for stop."""

    generation: int
    error: str


# -------------------------------------------------------------------------------------- person


@dataclass(frozen=True, slots=True)
class Pause(Event):
    """Stop inner steps; stay a member, keep mixing."""


@dataclass(frozen=True, slots=True)
class Resume(Event):
    pass


@dataclass(frozen=True, slots=True)
class Leave(Event):
    """Hand in the worker's progress, write a snapshot, say goodbye, then stop. `hands_over`: only when others hold what
    only this node holds, if there are any who could."""

    hands_over: bool = False


@dataclass(frozen=True, slots=True)
class ReachWanted(Event):
    """Have the others try to dial this node."""


@dataclass(frozen=True, slots=True)
class SnapshotWanted(Event):
    """Write a snapshot now, whenever the next one is due."""


@dataclass(frozen=True, slots=True)
class NewPlan(Event):
    """A person on this machine signed a new revision."""

    signed_plan: bytes


@dataclass(frozen=True, slots=True)
class NewRevocation(Event):
    """A person on this machine signed a revocation."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class LoopLagged(Event):
    """The daemon's loop could not run for this long: our own health, not our peers'."""

    seconds: float
