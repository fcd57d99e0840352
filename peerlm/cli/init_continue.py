"""`peerlm init --from CHECKPOINT --continue`: a run whose machines are all lost goes on from a checkpoint of its own.

What goes on: the weights, the plan, the swarm's count of tokens, and with it the schedule and the budget; what of the text is read,
and how many outer steps fragments have had; the optimizer's state, where the checkpoint has it. The new run's checkpoints name this one
as the one before them. What does not: keys, and so the run's id and its invites; names in its store; outer momentum.

A checkpoint that was copied out of the store has its manifest beside it, by which every byte is checked. A folder without one, of an
earlier release or of `peerlm export`, says in the header of its weights how far the run was, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from peerlm import config
from peerlm.cli.desk_here import progress
from peerlm.cli.plan import CHANGEABLE, require_text
from peerlm.config import Plan
from peerlm.config.mixture import OWN, STORED
from peerlm.data import tokenizer as tokenizers
from peerlm.data.records import BYTES_MAX as PASSES_BYTES_MAX
from peerlm.data.records import FILE as PASSES
from peerlm.data.records import Record, decode, encode, parts_of
from peerlm.data.shards import HEADER, ShardInfo
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.model.export import PLAN, TOKENIZER, WEIGHTS, open_model
from peerlm.model.moments import FILE as MOMENTS
from peerlm.model.plan import fragments
from peerlm.model.tensors import stored_tensors
from peerlm.store import disk
from peerlm.store.layout import StateDirectory
from peerlm.store.manifest import FILE, MANIFEST_BYTES_MAX, File, Kind, Manifest, read_manifest
from peerlm.swarm.vitals import TOKENS_MAX
from peerlm.types import FragmentId, ObjectHash, PeerId, RunId, printable, short

MAY_CHANGE = (*(field for field in CHANGEABLE if field != "data.source"), "model.stages")
"""Fields and sections that `--set` may change: as in a run that lives, and besides how the model is cut."""

VERSION_MAX = 2**62


@dataclass(frozen=True, slots=True)
class Past:
    """A run as a checkpoint has it."""

    folder: Path
    plan: Plan
    run_id: RunId
    tokens: int
    """Of the swarm."""
    manifest: ObjectHash | None = None
    """The checkpoint's; None: it is not there."""
    versions: tuple[int, ...] = ()
    """Outer steps of each fragment; none: not known."""
    passes: bytes = b""
    """What of the text is read; empty: not known."""
    no_optimizer: str = ""
    """Why what there is of its state is not to be used."""
    notes: tuple[str, ...] = ()
    """What a person should know of it, a line each."""

    @classmethod
    def read(cls, source: str) -> Past:
        """`source`: a folder of `peerlm checkpoint get` or `export`, or of `peerlm export`.

        Raises:
            ConfigError: it is none, or is damaged, or does not say how far the run was.
            StateError: it cannot be read.
        """
        if source.startswith(("hf:", "gguf:")):
            raise ConfigError(
                f"--continue does not go with --from {source}: it says nothing of a run; without --continue a new run begins with it"
            )
        folder = Path(source)
        if not (folder / FILE).exists():
            return cls._read_header(folder)
        manifest, name = _read_manifest(folder / FILE)
        checked = [_listed(manifest, WEIGHTS, folder), _listed(manifest, PLAN, folder)]
        checked += [file for path in (TOKENIZER,) if (file := manifest.file(path)) is not None]
        for file in checked:
            if trouble := _trouble_with(folder, manifest, file):
                raise ConfigError(f"{trouble}: copy the checkpoint anew")
        plan, _ = open_model(folder)
        run_id, tokens, versions = _told(manifest.meta, folder / FILE)
        passes, lost = b"", ""
        if (file := manifest.file(PASSES)) is not None:
            lost = _trouble_with(folder, manifest, file)
            if not lost and (folder / PASSES).stat().st_size <= PASSES_BYTES_MAX:
                passes = disk.read_file(folder / PASSES, PASSES_BYTES_MAX)
        no_optimizer = ""
        if (file := manifest.file(MOMENTS)) is not None and (folder / MOMENTS).exists():
            no_optimizer = _trouble_with(folder, manifest, file)
        notes = (lost,) if lost else ()
        return cls(folder, plan, run_id, tokens, name, versions, passes, no_optimizer, notes)

    @classmethod
    def _read_header(cls, folder: Path) -> Past:
        """Of a model without a manifest."""
        plan, _ = open_model(folder)
        header = stored_tensors(folder / WEIGHTS)[1]
        tokens = header.get("tokens", header.get("swarm_tokens", ""))
        counted = int(tokens) if tokens.isascii() and tokens.isdigit() and len(tokens) < 20 else -1
        run_id, counted, _ = _told({**header, "tokens": counted}, folder / WEIGHTS)
        note = (
            f"{folder / FILE}: there is none, so it is not known which checkpoint this is, what of the text was read, and whether "
            "every byte is as it was"
        )
        return cls(folder, plan, run_id, counted, notes=(note,))

    @property
    def tally(self) -> dict[tuple[PeerId, int], int]:
        """The swarm's tokens as an entry of the new run's count: all that was before is one entry, by the old run's name."""
        return {(PeerId(self.run_id), 0): self.tokens} if self.tokens else {}

    def versions_in(self, plan: Plan) -> dict[FragmentId, int]:
        """Outer steps of the new run's fragments. Cut otherwise, each has had as many as the one that had fewest."""
        old, new = fragments(self.plan), fragments(plan)
        if len(self.versions) != len(old):
            return {}
        if [(spec.name, spec.size) for spec in old] == [(spec.name, spec.size) for spec in new]:
            return {spec.id: version for spec, version in zip(new, self.versions, strict=True)}
        return {spec.id: min(self.versions) for spec in new}

    # -------------------------------------------------------------------------------------- plan

    def planned(self, name: str | None, changes: Mapping[str, str]) -> Plan:
        """The plan as it was, with what flags may change. Raises `ConfigError`: they ask for more, or nothing is left to train."""
        for field in changes:
            if field == "data.source":
                raise ConfigError(f"--set {field}: name the text with --data")
            if not {field, field.partition(".")[0]} & set(MAY_CHANGE):
                raise ConfigError(
                    f"--set {field} does not go with --continue: the run goes on as it was, and only {', '.join(MAY_CHANGE)} can "
                    "change; without --continue a new run begins with these weights"
                )
        named = {} if name is None else {"run.name": name}
        plan = config.with_changes(
            config.with_changes(self.plan, named, "--name"), changes, "--set"
        )
        if plan.run.token_budget <= self.tokens:
            raise ConfigError(
                f"run.token_budget = {plan.run.token_budget:,}: the swarm had trained on {self.tokens:,} tokens by then, so nothing is "
                "left to do; raise it with --set run.token_budget=N"
            )
        continues = "" if self.manifest is None else self.manifest.hex()
        return replace(plan, run=replace(plan.run, initial="given", continues=continues))

    # -------------------------------------------------------------------------------------- text

    def with_text(
        self,
        state: StateDirectory,
        plan: Plan,
        data: str | None,
        codec: tokenizers.Tokenizer,
        prepare: Callable[[str, str], list[ShardInfo]],
    ) -> Plan:
        """Keep the run's text, and its tokenizer, as objects; the plan names them, or the other text that `--data` asks for.

        Args:
            data: What `--data` names: shards as `peerlm data get` copies them, or text; None: the text is where it was.
            prepare: Makes shards of the text at a URL, which something has named.

        Raises:
            ConfigError: the text is not there, or no longer what it was.
            StateError: it cannot be read or kept.
        """
        self._keep_tokenizer(state, codec)
        source = plan.data.source if data is None else data
        if source == OWN:
            other = replace(plan.data, source=OWN, shards=(), shard_tokens=(), parts=())
            return plan if plan.data.source == OWN else replace(plan, data=other)
        if data is not None and _take_shards(Path(data), plan, state):
            require_text(plan, f"--data {data}:")
            return plan
        if source.startswith(STORED):
            if data is not None:
                raise ConfigError(
                    f"--data {source}: the swarm of a new run keeps nothing yet; name a folder of shards, or text"
                )
            raise ConfigError(
                f"data.source = {source}: the text was kept by the swarm that is gone; name a copy with --data: a folder of `peerlm data "
                "get`, or the text itself"
            )
        made = prepare(source, "data.source" if data is None else "--data")
        names, tokens = tuple(one.hash for one in made), tuple(one.tokens for one in made)
        if names == plan.data.shards:
            return plan
        if data is None:
            raise ConfigError(
                f"data.source = {source}: is no longer the text that the run has read; say --data {source} to go on with it as it is "
                "now, or name a copy with --data"
            )
        kept = replace(plan.data, source=data, shards=names, shard_tokens=tokens, parts=())
        return replace(plan, data=kept)

    def _keep_tokenizer(self, state: StateDirectory, codec: tokenizers.Tokenizer) -> None:
        named = tokenizers.BYTES
        if isinstance(codec, tokenizers.JsonTokenizer):
            named = blake3(codec.data).hexdigest()
        if named != self.plan.data.tokenizer:
            raise ConfigError(
                f"{self.folder}: its tokenizer is not the run's ({named[:16]}, the plan says {self.plan.data.tokenizer[:16]})"
            )
        if isinstance(codec, tokenizers.JsonTokenizer):
            disk.write_atomic(state.objects / named, codec.data)

    def keep_passes(self, state: StateDirectory, plan: Plan) -> str:
        """What of the text is read, for the new run's first node; in a line. Raises `StateError`."""
        if plan.data.source == OWN:
            return "each node's own text is read from its beginning"
        try:
            known = decode(self.passes)[0] if self.passes else []
        except ValueError as error:
            return f"the text is read from its beginning: {self.folder / PASSES}: {error}"
        if not known:
            return "the text is read from its beginning: what of it was read is not known"
        texts = {part.text: part.name for part in parts_of(plan) if not part.is_own}
        kept = [Record(record.passes) for record in known if record.passes.text in texts]
        if not kept:
            return (
                "the text is read from its beginning: it is another than before, or cut otherwise"
            )
        disk.write_atomic(state.passes, encode(kept))
        of_each = [
            f"{texts[r.passes.text]} in pass {r.passes.lowest}, {r.passes.position:.1%} read"
            for r in kept
        ]
        return f"the text goes on where it was: {'; '.join(of_each)}"

    @property
    def line(self) -> str:
        """What goes on, for a person."""
        return (
            f"goes on with run {self.plan.run.name} ({short(self.run_id)}) after {self.tokens:,} tokens; keys and id are new, so "
            "the others join by a new invite"
        )


# ------------------------------------------------------------------------------- what is in it


def _read_manifest(path: Path) -> tuple[Manifest, ObjectHash]:
    encoded = disk.read_file(path, MANIFEST_BYTES_MAX)
    try:
        manifest = read_manifest(encoded)
    except ChunkCorrupt as error:
        raise ConfigError(f"{path}: {error}: copy the checkpoint anew") from None
    if manifest.kind != Kind.CHECKPOINT:
        raise ConfigError(f"{path}: is of {manifest.kind}, and of no checkpoint")
    return manifest, ObjectHash(blake3(encoded).digest())


def _listed(manifest: Manifest, name: str, folder: Path) -> File:
    file = manifest.file(name)
    if file is None:
        raise ConfigError(f"{folder / FILE}: lists no {name}, so it is of no checkpoint")
    return file


def _trouble_with(folder: Path, manifest: Manifest, file: File) -> str:
    """Why a file is not what the manifest says; empty if it is."""
    path, chunks = folder / file.path, manifest.chunks_of(file)
    size = sum(chunk.size for chunk in chunks)
    if not path.is_file():
        return f"{path}: no such file, though {FILE} lists it"
    found, at = disk.ReadFile(path), 0
    if found.size_bytes != size:
        return f"{path}: has {found.size_bytes:,} bytes, {FILE} says {size:,}"
    with progress(f"checking {file.path}", in_bytes=True) as tell:
        for chunk in chunks:
            if found.hash(at, chunk.size) != chunk.hash:
                return f"{path}: is not what {FILE} says, from byte {at:,} on"
            at += chunk.size
            tell(at, size, "")
    return ""


def _told(meta: Mapping[str, Any], path: Path) -> tuple[RunId, int, tuple[int, ...]]:
    """Of which run a checkpoint is, after how many tokens, and the outer steps of its fragments. Raises `ConfigError`."""
    run, tokens, versions = meta.get("run"), meta.get("tokens"), meta.get("versions", [])
    try:
        run_id = RunId(bytes.fromhex(run)) if isinstance(run, str) else RunId(b"")
    except ValueError:
        run_id = RunId(b"")
    if len(run_id) != 16 or type(tokens) is not int or not 0 <= tokens <= TOKENS_MAX:
        raise ConfigError(
            f"{path}: does not say of which run it is, after how many tokens; without --continue a new run begins with these weights"
        )
    if not isinstance(versions, list) or not all(
        type(version) is int and 0 <= version < VERSION_MAX for version in versions
    ):
        raise ConfigError(f"{path}: versions = {printable(str(versions)[:60])}: must be counts")
    return run_id, tokens, tuple(versions)


def _take_shards(folder: Path, plan: Plan, state: StateDirectory) -> bool:
    """Whether the run's shards lie in a folder, by whatever names; they are kept as objects. Raises `ConfigError`: only some do."""
    wanted, width = set(plan.data.shards), tokenizers.token_dtype(plan.data.vocab).itemsize
    if not folder.is_dir() or not wanted:
        return False
    sizes, found = {HEADER.size + width * count for count in plan.data.shard_tokens}, set[str]()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (sizes and path.stat().st_size not in sizes):
            continue
        file = disk.ReadFile(path)
        name = file.hash(0, file.size_bytes).hex()
        if name in wanted - found:
            _copy(file, state.objects / name, name)
            found.add(name)
    if found and found != wanted:
        lacks = next(name for name in plan.data.shards if name not in found)
        raise ConfigError(
            f"--data {folder}: has {len(found)} of the {len(wanted)} shards that the run reads; {lacks[:16]}… is not among them"
        )
    return bool(found)


def _copy(file: disk.ReadFile, path: Path, name: str) -> None:
    digest, at = blake3(), 0
    with disk.AtomicFile(path) as out:
        while at < file.size_bytes:
            block = file.read_at(at, min(disk.BLOCK_BYTES, file.size_bytes - at))
            digest.update(block)
            out.write(block)
            at += len(block)
        if digest.hexdigest() != name:
            raise StateError(f"{file.path} changed while it was read")
