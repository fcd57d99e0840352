"""`peerlm checkpoint export`: a checkpoint out of the store, to wherever fsspec reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli.chunk_reading import Reader
from peerlm.cli.data import record_of
from peerlm.cli.desk_here import Tell, open_desk, progress
from peerlm.cli.leash import interruption
from peerlm.cli.state import state_option
from peerlm.cli.whole_files import Folder
from peerlm.errors import ConfigError, StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import FILE as MANIFEST
from peerlm.store.manifest import Kind

if TYPE_CHECKING:
    from peerlm.store.manifest import Manifest

WHERE = "URL"

BLOCK_BYTES = 4 << 20

LAST = "model.safetensors"
"""Written behind all others, and removed before them: where it is, the rest is."""


@click.command(short_help="Write one to a folder anywhere: file, s3, hdfs, …")
@click.argument("name")
@click.argument("url")
@click.option(
    "--format",
    "form",
    type=click.Choice(["peerlm", "hf"]),
    default="peerlm",
    show_default=True,
    help="hf: config.json and the names of tensors that `transformers` knows; Llama's shape only.",
)
@click.option("--force", is_flag=True, help="Replace a model that is there.")
@state_option
@interruption("no half-written file is left, and the same command begins again")
def export(layout: Layout, name: str, url: str, form: str, force: bool) -> None:
    """Write the checkpoint NAME to the folder URL: model.safetensors, plan.toml (with --format hf: config.json) and, if the
    run has one, tokenizer.json; what a run that goes on from it needs besides (`peerlm init --continue`), but for hf. Chunks that
    are not on this node come from others; each is checked.

    \b
    Examples:
      peerlm checkpoint export checkpoint-000001200000 /srv/models/plays
      peerlm checkpoint export checkpoint-000001200000 hdfs://namenode/models/plays
      peerlm checkpoint export final s3://bucket/plays --format hf
    """
    from peerlm.data import sources

    with open_desk(layout) as desk:
        if record_of(desk, name)["kind"] != Kind.CHECKPOINT:
            raise ConfigError(f"{name} is no checkpoint: `peerlm data get {name} DIR` copies it")
        manifest = desk.manifest(name)
    with sources.explained(url, WHERE, "written"):
        fs, folder = sources.file_system(url)
        _require_free(fs, folder, url, force=force)
        with (
            Reader(layout) as reader,
            progress(f"writing {name}", in_bytes=True) as tell,
            Folder(fs, folder, LAST if force else "") as out,
        ):
            if form == "peerlm":
                written = _copy(manifest, out, reader, tell)
            else:
                written = _converted(manifest, out, reader, tell)
    click.echo(f"{name}: {', '.join(written)} in {url}")


def _require_free(fs: Any, folder: str, url: str, *, force: bool) -> None:
    if fs.exists(_below(folder, LAST)) and not force:
        raise ConfigError(f"{url} holds a model already: name another folder, or say --force")
    fs.makedirs(folder, exist_ok=True)


def _copy(manifest: Manifest, folder: Folder, reader: Reader, tell: Tell) -> list[str]:
    files = sorted(manifest.files, key=lambda file: file.path == LAST)
    done = 0
    for file in files:
        if file.path == LAST:
            with folder.writing(MANIFEST) as out:
                out.write(manifest.encode())
        with folder.writing(file.path) as out:
            for data in _read(reader, manifest.chunks_of(file), file.path):
                out.write(data)
                done += len(data)
                tell(done, manifest.size_bytes, "")
    return [*(file.path for file in files[:-1]), MANIFEST, files[-1].path]


def _read(reader: Reader, chunks: Any, path: str) -> Iterator[bytes]:
    with closing(reader.read(chunks)) as found:
        for _, data in found:
            if isinstance(data, StateError):
                raise StateError(f"{path}: {data}")
            yield data


def _converted(manifest: Manifest, folder: Folder, reader: Reader, tell: Tell) -> list[str]:
    """By way of a folder here, since tensors change their order."""
    from fsspec.implementations.local import LocalFileSystem

    from peerlm.cli.weights_here import from_folder
    from peerlm.model.hf import write_hf

    with TemporaryDirectory(prefix="peerlm-") as own, TemporaryDirectory(prefix="peerlm-") as hf:
        with Folder(LocalFileSystem(), own) as whole:
            _copy(manifest, whole, reader, tell)
        weights = from_folder(Path(own))
        write_hf(Path(hf), weights.plan, weights.values, weights.tokenizer, {}, weights.codec().end)
        names = sorted((path.name for path in Path(hf).iterdir()), key=lambda name: name == LAST)
        for name in names:
            with Path(hf, name).open("rb") as source, folder.writing(name) as out:
                while block := source.read(BLOCK_BYTES):
                    out.write(block)
    return names


def _below(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
