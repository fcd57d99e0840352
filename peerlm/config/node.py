"""node.toml: what a machine decides for itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peerlm.config.fields import at_least, between, one_of, option
from peerlm.types import HOST_LETTERS

_STAGES = re.compile(r"all|none|auto|[0-9]{1,4}(-[0-9]{1,4})?")


@dataclass(frozen=True, slots=True)
class NetworkSection:
    host: str = option("", "Interface address to listen on; empty means all.")
    port: int = between(
        0,
        65_533,
        7700,
        "Base port: introduction on it, control on the next, bulk on the one "
        "after. 0 picks free ports. If the default is taken and no port was asked for, free ones "
        "are picked.",
    )
    advertise: str = option(
        "",
        "Address peers should dial; empty means found out (the outgoing interface). Set it behind "
        "NAT or when a name should be used.",
        allowed="a name or an address, as others can dial it, without a port",
        ok=HOST_LETTERS.issuperset,
    )
    upload_bytes_s: int = at_least(
        0, 0, "Ceiling on bulk bytes sent; 0 means none.", unit="bytes/s"
    )
    download_bytes_s: int = at_least(
        0, 0, "Ceiling on bulk bytes fetched; 0 means none.", unit="bytes/s"
    )
    bulk_security: str = one_of(
        "aead",
        ("aead", "plain"),
        "`aead` encrypts every bulk chunk (AES-256-GCM). `plain` "
        "only hashes: for networks you trust wholly.",
    )


@dataclass(frozen=True, slots=True)
class LimitsSection:
    disk_bytes: int = at_least(
        0,
        0,
        "Most the state directory may hold; 0 means no limit. Snapshots are skipped, "
        "and said so, when they would pass it.",
        unit="bytes",
    )
    memory_bytes: int = at_least(
        0,
        0,
        "The worker may use at most this much address space on the host; 0 means no limit.",
        unit="bytes",
    )
    threads: int = between(
        0,
        4096,
        0,
        "CPU threads of the worker; 0 means the cores divided by the nodes on this host.",
    )
    snapshot_every_s: float = at_least(
        1.0, 30.0, "Time between snapshots: what a `kill -9` of all nodes can lose.", unit="s"
    )


@dataclass(frozen=True, slots=True)
class LocalTrainSection:
    device: str = option(
        "auto",
        "`auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Texts of the swarm's members are advanced on it too.",
        allowed="auto, cpu, cuda, cuda:N, mps",
        ok=lambda v: v in ("auto", "cpu", "cuda", "mps") or v.startswith("cuda:"),
    )
    pace_tokens_s: float = at_least(
        0.0, 0.0, "Never train faster than this; 0 means as fast as it goes.", unit="tokens/s"
    )
    pace_of_all_tokens_s: float = at_least(
        0.0,
        0.0,
        "Never train faster than an equal share of this with all who read text: where every node has it, the swarm keeps to this "
        "pace, and takes over what one of them did who goes. 0 means no limit.",
        unit="tokens/s",
    )
    local_workers: int = between(
        1,
        64,
        1,
        "Processes that train together as this one node, with a CUDA device each, or on the processor. "
        "Each takes `train.batch` sequences in an inner step; gradients are averaged over all. Linux only.",
    )
    compile: bool = option(False, "Run the model through torch.compile.")
    enabled: bool = option(True, "False: be a member that stores and donates, but never trains.")
    keep_optimizer: bool = option(
        True,
        "Keep the inner optimizer's state on the disk beside the snapshots, as often as those are written, and go on with "
        "it after a restart: 4 bytes a parameter that Muon moves, 8 one of AdamW's, and as much again while it is written.",
    )


@dataclass(frozen=True, slots=True)
class HostSection:
    stages: str = option(
        "all",
        "Stages of the model that this node holds and trains: `all`, one (`0`), a run (`1-2`), or `auto`: it "
        "decides by itself, by what it offers and what the swarm lacks. Whoever holds stage 0 reads the text. `none`: it "
        "stands aside, without weights; it keeps what the swarm stores, makes token shards and may ask for texts.",
        allowed="all, none, auto, one stage (1) or a run of them (1-2)",
        ok=lambda v: _STAGES.fullmatch(v) is not None,
    )
    sessions: int = at_least(
        0,
        32,
        "Texts of the swarm's members that this node advances at once through the stages it holds, if it has the "
        "role serve; 0: none. Fewer where a quarter of the memory that is free on their device when the first comes, 1 GiB at most, "
        "does not do for so many.",
    )
    memory_bytes: int = at_least(
        0, 0, "Offered with `auto`, of the host; 0 means half of what is free.", unit="bytes"
    )
    device_bytes: int = at_least(
        0,
        0,
        "The same of a device with memory of its own; 0 means four fifths of what `nvidia-smi` says is free, or none.",
        unit="bytes",
    )

    @property
    def is_aside(self) -> bool:
        """It is to hold no stage."""
        return self.stages == "none"


@dataclass(frozen=True, slots=True)
class StoreSection:
    enabled: bool = option(
        True, "Keep chunks of the swarm's data and checkpoints, if this node has the role store."
    )
    bytes: int = at_least(
        0,
        0,
        "Offered to the swarm; chunks are spread in proportion. 0 means a tenth of what is free on the disk.",
        unit="bytes",
    )
    label: str = option(
        "",
        "What this machine fails together with: a rack, a room, a branch. Two replicas of a chunk are kept under one "
        "label only where there are too few. Empty: it fails alone.",
        allowed="at most 32 characters",
        ok=lambda v: len(v.encode()) <= 32,
    )
    repair_after_s: float = at_least(
        1.0,
        600.0,
        "A node that was away for so long is taken for gone, and its chunks are copied to others.",
        unit="s",
    )
    repair_bytes_s: int = at_least(
        0,
        20_000_000,
        "Ceiling on what repair fetches, but for chunks of which one replica is left; 0 means none.",
        unit="bytes/s",
    )
    keep_s: float = at_least(
        0.0,
        86_400.0,
        "A chunk that is others' to keep stays here for so long, unless its room is needed.",
        unit="s",
    )
    scrub_days: float = at_least(
        0.0, 28.0, "Every chunk is read and checked once in so many days; 0: never.", unit="days"
    )
    checkpoint_every_s: float = at_least(
        0.0,
        1800.0,
        "A checkpoint of the whole swarm goes into its store so often; one node gathers it, and if it does not another "
        "does. 0: this node gathers none.",
        unit="s",
    )
    checkpoints_kept: int = at_least(
        1, 3, "Who gathers one removes all but so many of the newest; pinned ones stay."
    )
    preprocess: bool = option(
        True, "Take part in `peerlm data add`: read text, clean it, make tokens of it."
    )
    folders: str = option(
        "",
        "Folders that all nodes see under the same path, with `:` between them: text below is read for other nodes' "
        "`peerlm data add` too. Empty: only sources on the network.",
    )


@dataclass(frozen=True, slots=True)
class LocalDataSection:
    local: str = option(
        "",
        "This node's own text, for a plan that says data.source = local or has `local` in a mixture: an fsspec URL, file, "
        "directory or glob. It is read here and never leaves the machine.",
    )


@dataclass(frozen=True, slots=True)
class ControlSection:
    group: str = option(
        "", "Unix group that may use status, pause and stop; empty means only the owner."
    )
    log_level: str = one_of(
        "info", ("debug", "info", "warning", "error"), "How much the daemon writes to its log."
    )


@dataclass(frozen=True, slots=True)
class PageSection:
    enabled: bool = option(
        True, "Serve the page, `/status`, `/metrics`, `/healthz` and `/readyz` over HTTP."
    )
    host: str = option(
        "127.0.0.1",
        "Interface address to serve on; empty means all. Who can reach it can read what `peerlm status` "
        "says, and nothing more: there is no password. Members are told of a page that they can see at this node's "
        "address, so that theirs link to it.",
    )
    port: int = between(
        0,
        65_535,
        7703,
        "Port to serve on; 0 picks a free one. If the default is taken a free one is picked; `status` says "
        "which.",
    )


WRITERS = ("csv", "tensorboard", "wandb")


@dataclass(frozen=True, slots=True)
class ObserveSection:
    writers: tuple[str, ...] = option(
        (),
        "Other tools that get this node's curves. `tensorboard` and `wandb` need the package of that name.",
        allowed="a list of: " + ", ".join(WRITERS),
        ok=lambda v: len(set(v)) == len(v) and all(writer in WRITERS for writer in v),
    )
    folder: str = option(
        "curves",
        "Folder of their files; one that does not start with / is below the state folder. Several nodes "
        "of one user may share it.",
        allowed="non-empty",
        ok=bool,
    )
    every_s: float = at_least(
        1.0, 10.0, "Time between two points; none is written in which nothing is new.", unit="s"
    )
    sample_every_s: float = at_least(
        0.0,
        900.0,
        "Time between two sample texts of the newest snapshot, for `peerlm top`, the page and `status --json`: each costs a process of "
        "its own some seconds of one core, 20 at the most, and the pause is 200 times as long at the least. Of a model of "
        "which this node holds a part, times four and times the nodes that hold parts. 0: none but when somebody asks.",
        unit="s",
    )
    sample_prompt: str = option(
        "\n",
        "What a sample text begins with.",
        allowed="1 to 1000 characters",
        ok=lambda v: 1 <= len(v) <= 1000,
    )


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What this machine decides for itself."""

    network: NetworkSection = NetworkSection()
    limits: LimitsSection = LimitsSection()
    train: LocalTrainSection = LocalTrainSection()
    host: HostSection = HostSection()
    store: StoreSection = StoreSection()
    data: LocalDataSection = LocalDataSection()
    control: ControlSection = ControlSection()
    page: PageSection = PageSection()
    observe: ObserveSection = ObserveSection()
