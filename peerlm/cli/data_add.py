"""`peerlm data add`: files or text into the swarm's store, under a name.

Everything is read here, cut into chunks, put into this node's store and then named; the other nodes fetch their chunks
from here and from each other. Text that they can read where it is becomes tokens on all of them (`data_job`). It is done
when two nodes have all of it on their disks, so that none of them is needed any more.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli import copies, data_job, memory, room, words
from peerlm.cli.chunk_writing import Writer
from peerlm.cli.data import distinct, facts_of, require_name
from peerlm.cli.desk_here import Tell, open_desk, progress
from peerlm.cli.leash import aside, interruption
from peerlm.cli.numbers import Finite
from peerlm.cli.state import state_option
from peerlm.errors import StateError
from peerlm.store.layout import Layout

if TYPE_CHECKING:
    from concurrent.futures import Future

    from peerlm.daemon.desk_client import Client
    from peerlm.data.prepared import Job
    from peerlm.data.sources import Source
    from peerlm.store.manifest import Chunk, Manifest

WHERE = "URL"

OF_RUN = "run"

TOKENS_SHARE = 0.5
"""Of text is what its tokens take, or more: two bytes for each, which stands for some four."""


@dataclass(frozen=True, slots=True)
class Making:
    """How text becomes a corpus."""

    tokenizer: str
    encoding: str
    field: str
    form: str
    dedup: bool
    near: float


@click.command(short_help="Put files or text into the store, under a name.")
@click.argument("url")
@click.option("--name", help="In the store.  [default: from the URL's last part]")
@click.option(
    "--replicas",
    type=click.IntRange(1, 32),
    default=3,
    show_default=True,
    help="Nodes that are to keep each chunk.",
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["corpus", "files"]),
    default="corpus",
    show_default=True,
    help="corpus: text, as token shards to train on. files: bytes as they are.",
)
@click.option(
    "--tokenizer",
    metavar="bytes|FILE|train:N",
    default=OF_RUN,
    help="Of a corpus: bytes, a `tokenizers` JSON file, or one with N entries, trained on this text.  [default: the run's]",
)
@click.option(
    "--encoding",
    default="utf-8",
    show_default=True,
    help="Of the text. auto: each file's own, as far as it shows.",
)
@click.option(
    "--field",
    default="text",
    show_default=True,
    help="Where the text is in a record of JSON lines, or the column of a parquet file.",
)
@click.option(
    "--nfc", "form", flag_value="NFC", default="", help="Compose characters (Unicode NFC)."
)
@click.option("--nfkc", "form", flag_value="NFKC", help="And unify variants of them (NFKC).")
@click.option("--dedup", is_flag=True, help="Leave out documents that have come before.")
@click.option(
    "--near",
    type=Finite(0.5, 1.0),
    metavar="SHARE",
    help="Leave out those too that share so much with an earlier one, e.g. 0.8.",
)
@click.option("--here", is_flag=True, help="Only this node makes tokens of it.")
@click.option("--replace", "replaces", is_flag=True, help="The name stands for this from now on.")
@copies.wait_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/store.md explains it.")
@state_option
@interruption("the same command begins anew, but what has been put is not put again")
def add(
    layout: Layout,
    url: str,
    name: str | None,
    replicas: int,
    kind: str,
    tokenizer: str,
    encoding: str,
    field: str,
    form: str,
    dedup: bool,
    near: float | None,
    here: bool,
    replaces: bool,
    wait: int,
    as_json: bool,
) -> None:
    """Put what URL stands for into the swarm's store: a file, a folder, a glob, or any fsspec URL (https://, s3://, …).

    Text on the network, and in a folder of store.folders in node.toml, is made into tokens by all nodes that can read it. It
    goes on without this command: run the same one again to wait for it, and `peerlm data rm job-NAME` to end it.

    Run again after an interruption it is soon where it was: chunks that are there already cost nothing. With one node alone
    there is one copy, and others fetch theirs when they join.

    \b
    Examples:
      peerlm data add texts/ --name plays
      peerlm data add 's3://bucket/logs/*.jsonl.gz' --field message --dedup --tokenizer train:8192
      peerlm data add tables/ --as files --replicas 2 --wait 0
    """
    from peerlm.data import files

    name = files.name_of(url) if name is None else name
    require_name(name)
    making = Making(tokenizer, encoding, field, form, dedup, near or 0.0)
    with open_desk(layout) as desk:
        adding = Adding(desk, layout, url, name, replaces, replicas if wait else 0)
        shared = None if here or kind == "files" else data_job.shared(desk, layout, url, name)
        if shared is not None:
            record, manifest = adding.together(shared, making, replicas)
        else:
            manifest = adding.files() if kind == "files" else adding.corpus(making)
            record = adding.publish(manifest, replicas)
        found = copies.wait_named(desk, record, distinct(manifest), wait)
    _report(record, manifest, found, as_json)
    copies.require_enough(record, found, wait)


class Adding:
    """One URL on its way into the store. `copies`: replicas that there must be room for; 0: nobody waits for them."""

    def __init__(
        self, desk: Client, layout: Layout, url: str, name: str, replaces: bool, copies: int
    ) -> None:
        from peerlm.data import files

        self._desk, self._layout, self._url, self._copies = desk, layout, url, copies
        self._name, self._replaces = name, replaces
        self._about = files.about(url)

    # -------------------------------------------------------------------------------- files

    def files(self) -> Manifest:
        """Put the files as they are. Raises: ConfigError, StateError."""
        from peerlm.data import files, sources
        from peerlm.store.manifest import Kind, of_files

        source = sources.listed(self._url, WHERE, with_empty=True)
        placed = files.placed(source)
        self._require_free("files", {path: file.size for path, file in placed})
        self._require_room(source, source.size_bytes)
        made: list[tuple[str, list[Future[Chunk]]]] = []
        with progress("putting", in_bytes=True) as tell, Writer(self._layout) as writer:
            done = 0
            with sources.explained(source.url, WHERE):
                fs, _ = sources.file_system(source.url)
            for path, file in placed:
                made.append((path, []))
                for data in files.chunks(fs, file, WHERE, time.sleep):
                    made[-1][1].append(writer.put(data))
                    done += len(data)
                    tell(done, source.size_bytes or None, path)
            put = [(path, [one.result() for one in parts]) for path, parts in made]
        return of_files(Kind.FILES, put, {})

    # ------------------------------------------------------------------------------- corpora

    def corpus(self, making: Making) -> Manifest:
        """Put text as token shards. Raises: ConfigError, StateError."""
        from peerlm.data import jobs
        from peerlm.data.prepared import Sweep

        job = self._job(making)
        while job.sweep is not Sweep.TOKENS:
            job = self._concluded(job)
        manifest = self._shards(job)
        jobs.require_unchanged(job.source)  # or it would be half of one version, half of another
        return manifest

    def together(
        self, shared: data_job.Shared, making: Making, replicas: int
    ) -> tuple[dict[str, Any], Manifest]:
        """Have text put as token shards by all nodes: (what `names` says of it, its manifest). Raises: ConfigError,
        StateError."""
        from peerlm.data.sources import Source

        self._url = shared.url
        if not shared.is_under_way:
            shared.begin(self._job(making), replicas, self._about, replaces=self._replaces)
        else:
            asked = self._asked(making, Source(self._url, WHERE, ()))
            shared.require_same(asked, replicas, self._about, replaces=self._replaces)
        return shared.wait()

    def _job(self, making: Making) -> Job:
        """What is to be made, in its first sweep. Nothing but the listing has been read."""
        from peerlm.data import findings, sources, versions

        self._require_free("corpus", None)
        source = sources.listed(self._url, WHERE)
        self._require_room(source, int(source.size_bytes * TOKENS_SHARE))
        job = self._asked(making, source)
        return findings.begun(replace(job, versions=versions.of(job)))

    def _asked(self, making: Making, source: Source) -> Job:
        from peerlm.data import tokenizer, vocabulary
        from peerlm.data.clean import Clean
        from peerlm.data.prepared import Job, Recipe

        clean = Clean(unicode=making.form, exact=making.dedup, near=making.near)
        job = Job(source, Recipe(making.encoding, making.field, clean))
        if making.tokenizer == OF_RUN:
            from peerlm.cli.plan import current_plan
            from peerlm.cli.weights_here import tokenizer_of

            plan = current_plan(self._layout).plan
            return replace(job, tokenizer=tokenizer_of(self._layout, plan), vocab=plan.data.vocab)
        entries = vocabulary.entries_asked(making.tokenizer, "--tokenizer")
        if entries is not None:
            return replace(job, entries=entries)
        codec = tokenizer.load(making.tokenizer, "--tokenizer")
        if isinstance(codec, tokenizer.JsonTokenizer):
            return replace(job, tokenizer=codec.data)
        return job

    def _concluded(self, job: Job) -> Job:
        """The job of the next sweep, all of this one made here."""
        from peerlm.data import encodings, making
        from peerlm.data.prepared import Sweep

        again = "nothing was put yet, and the same command reads all of it anew"
        kept = partial(memory.require_for_duplicates, where=WHERE)
        with (
            interruption(again),
            progress(f"looking for {data_job.SWEEPS[job.sweep]}", in_bytes=True) as tell,
        ):
            following = aside(partial(making.concluded, job, None, _telling(tell, job), kept))
        if job.sweep is Sweep.ENCODINGS:
            counts = encodings.counted(encodings.of_all(job.source, following.encodings))
            click.echo(data_job.encodings_line(counts), err=True)
        return following

    def _shards(self, job: Job) -> Manifest:
        from peerlm.data import making
        from peerlm.data.prepared import Done
        from peerlm.data.shards import ShardFact, corpus_manifest

        made: dict[tuple[int, int], ShardFact] = {}
        documents = 0
        with progress("making tokens", in_bytes=True) as tell:
            for part in making.shards(job, progress=_telling(tell, job)):
                if isinstance(part, Done):
                    documents += part.documents
                else:
                    kept = self._desk.put(part.data)
                    fact = ShardFact(kept, len(part.data), part.tokens)
                    made[part.task, part.number] = fact
        facts = [made[at] for at in sorted(made)]
        manifest, parts = corpus_manifest(facts, job.tokenizer, job.vocab_made, documents)
        for data in parts:
            self._desk.put(data)
        return manifest

    # --------------------------------------------------------------------------- names and room

    def _require_free(self, kind: str, sizes: dict[str, int | None] | None) -> None:
        """Before anything is read: what would be refused in the end."""
        known = next((one for one in self._desk.names() if one["name"] == self._name), None)
        if known is None or self._replaces:
            return
        is_same = known["kind"] == kind and known["about"] == self._about
        if sizes is not None and is_same:
            is_same = _could_be(self._desk.manifest(self._name), sizes)
        if not is_same:
            raise StateError(
                f"the name {self._name} is taken ({known['kind']}, by node {known['writer'][:8]}); choose another with "
                f"--name, replace it with --replace, or remove it first: peerlm data rm {self._name}"
            )

    def _require_room(self, source: Source, least_bytes: int) -> None:
        """Raises `StateError`: all nodes together do not offer so much, or have not so much free, or this one may add nothing.
        `least_bytes`: what becomes of it takes about so much."""
        said = self._desk.status()
        if not said["may_write"]:
            raise StateError(
                "this node may write no names: it came by an invite without the role store"
            )
        nodes = [node for node in said["nodes"] if node["is_live"]]
        offered = sum(node["capacity_bytes"] for node in nodes)
        if not offered:
            raise StateError(
                "no live node offers room to the store: see store.enabled and store.bytes in node.toml"
            )
        if source.size_bytes > offered:
            raise StateError(
                f"{words.size(source.size_bytes)} do not fit: the store's nodes offer {words.size(offered)} together; "
                "raise store.bytes in their node.toml"
            )
        is_known = any(one["name"] == self._name for one in self._desk.names())
        if self._copies and not is_known:  # else much of it may be there
            room.require_free(said, least_bytes, self._copies)

    def publish(self, manifest: Manifest, replicas: int) -> dict[str, Any]:
        """Raises: StateError, the name is taken, or there is no room for copies."""
        known = next((one for one in self._desk.names() if one["name"] == self._name), None)
        options = {"replicas": replicas, "about": self._about, "replaces": self._replaces}
        is_pinned = known is not None and known["is_pinned"]
        if self._copies:
            room.require_copies_fit(self._desk, manifest, self._copies)
        return self._desk.publish(self._name, manifest, is_pinned=is_pinned, **options)


def _could_be(manifest: Manifest, sizes: dict[str, int | None]) -> bool:
    """Whether the files may be the same, by their names and sizes."""
    there = {f.path: sum(chunk.size for chunk in manifest.chunks_of(f)) for f in manifest.files}
    return there.keys() == sizes.keys() and all(
        size is None or there[path] == size for path, size in sizes.items()
    )


def _telling(tell: Tell, job: Job) -> Any:
    total = job.source.size_bytes or None

    def told(size_bytes: int, tokens: int) -> None:
        tell(size_bytes, total, f"{words.count(tokens)} so far" if tokens else "")

    return told


# ------------------------------------------------------------------------------------ words


def _report(
    record: dict[str, Any], manifest: Manifest, found: copies.Copies | None, as_json: bool
) -> None:
    facts = facts_of(manifest)
    if as_json:
        click.echo(json.dumps({**record, **facts, **copies.facts(found)}, indent=2))
        return
    tokens = "" if facts["tokens"] is None else f"{words.count(facts['tokens'])} tokens, "
    size = f"{words.size(facts['bytes'])} in {words.some(facts['chunks'], 'chunk')}"
    click.echo(f"{record['name']}: {tokens}{words.some(facts['files'], 'file')}, {size}")
    if said := copies.line(record, found):
        click.echo(said)
