"""`peerlm demo`: a swarm on this machine, one node of which is killed and comes back."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli.leash import interrupt_on_terminate
from peerlm.cli.numbers import Finite
from peerlm.errors import ConfigError, PeerlmError

if TYPE_CHECKING:
    from peerlm.cli.demo_story import Story

MODEL = "model"
SPREAD_MAX = 1e-3
LEARNT = 0.5 * math.log(256)
"""Nats per byte: half of what a model has that knows nothing. The first evaluation may come late, on a
busy machine, so it is no measure."""
"""The loss must fall at least to this share of what it was with random weights."""

KEYS = (
    *("ok", "nodes", "minutes", "tokens", "tokens_per_s", "loss_start", "loss_end"),
    *("consensus_distance", "bytes_sent", "bytes_allreduce", "kills", "rejoin_s", "model_dir"),
)


@click.command(short_help="Watch a swarm on this machine train, lose a node, and go on.")
@click.option("--nodes", type=click.IntRange(2, 16), default=3, show_default=True)
@click.option(
    "--minutes",
    type=Finite(0.5, 600),
    default=3.0,
    show_default=True,
    help="About how long it takes; the token budget follows from the measured rate.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object at the end, on standard output."
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep all state folders and logs in DIR, which must be new or empty.",
)
@click.pass_context
def demo(ctx: click.Context, nodes: int, minutes: float, as_json: bool, keep: Path | None) -> None:
    """Watch a swarm on this machine train, lose its first node, and go on.

    Real nodes on loopback train a small model on a Shakespeare of 1 MB. A third of the way the
    first node is killed with SIGKILL; at half time it is started again and catches up. In the end all
    nodes settle on one model, a sample of it is printed, and where it is.

    The exit code is 0 only if all of that has been seen to happen. Losses are in nats per byte; the
    consensus distance of the result is the spread of the models that the nodes wrote.

    \b
    Examples:
      peerlm demo
      peerlm demo --nodes 5 --minutes 10 --keep demo/
      peerlm demo --minutes 1 --json | jq .loss_end
    """
    folder = _folder(keep)
    interrupt_on_terminate()
    ctx.exit(0 if _perform(folder, nodes, minutes, as_json, keep is not None) else 1)


def _folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="peerlm-demo-"))
    if keep.exists() and any(keep.iterdir()):
        raise ConfigError(f"--keep {keep}: is not empty; name a new folder")
    keep.mkdir(parents=True, exist_ok=True)
    return keep.absolute()


def _perform(folder: Path, nodes: int, minutes: float, as_json: bool, keep: bool) -> bool:
    """The story, its display, its end. True if everything that was shown happened."""
    from peerlm.cli.demo_nodes import end_all
    from peerlm.cli.demo_story import Story
    from peerlm.cli.demo_view import view_on

    out = sys.stderr if as_json else sys.stdout
    view = view_on(out)
    story = Story(folder, nodes, minutes, view.show, view.say)
    result: dict[str, Any] = dict.fromkeys(KEYS) | {"ok": False, "nodes": nodes, "minutes": minutes}
    error = ""
    try:
        story.tell()
        end_all(story.scene.nodes)
        sample = _prove(story, folder, result)
        view.close()
        print(_closing(result, sample), file=out, flush=True)
    except PeerlmError as failure:
        view.close()
        error = str(failure)
        click.echo(f"peerlm: demo: {error}; logs are in {folder}", err=True)
    finally:
        view.close()
        end_all(story.scene.nodes, patience_s=0.0)
        if not keep and not error:
            _tidy(folder, keep_model=bool(result["ok"]))
    if as_json:
        click.echo(json.dumps({key: result[key] for key in KEYS}))
    return not error


def _tidy(folder: Path, keep_model: bool) -> None:
    """Leave the model of a demo that went well, nothing of one that was interrupted."""
    for path in folder.iterdir():
        if path.is_dir() and not (keep_model and path.name == MODEL):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)
    if not keep_model:
        folder.rmdir()


def _prove(story: Story, folder: Path, result: dict[str, Any]) -> str:
    """Fill in the result from what the nodes wrote; returns the sample. Raises `DemoFailed`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one token at a time has no use for more
    from peerlm.cli.demo_nodes import DemoFailed
    from peerlm.cli.demo_proof import relative_spread, sample, validation_loss

    scene, facts = story.scene, story.facts
    spread = relative_spread(facts.models)
    model = shutil.copytree(facts.models[0], folder / MODEL)
    loss = validation_loss(model, scene.nodes[0].layout)
    result.update(
        tokens=scene.tokens,
        tokens_per_s=round(scene.tokens / facts.training_s, 1),
        loss_start=scene.loss_start,
        loss_end=loss,
        consensus_distance=spread,
        bytes_sent=scene.bytes_sent,
        bytes_allreduce=scene.bytes_allreduce,
        kills=facts.kills,
        rejoin_s=round(facts.rejoin_s, 2),
        model_dir=str(model),
    )
    if spread >= SPREAD_MAX:
        raise DemoFailed(
            f"the nodes' models differ: relative spread {spread:.1e}, not < {SPREAD_MAX:g}"
        )
    if scene.loss_start is None or not loss < LEARNT:
        raise DemoFailed(
            f"the model has not learnt: validation loss {scene.loss_start} → {loss:.3f}"
        )
    result["ok"] = True
    return sample(model)


def _closing(result: dict[str, Any], sample: str) -> str:
    from peerlm.cli import words

    return (
        f"\n{sample}\n\n"
        f"validation loss  {result['loss_start']:.3f} → {result['loss_end']:.3f} nats per byte, "
        f"{words.count(result['tokens'])} tokens at {words.count(result['tokens_per_s'])}/s\n"
        f"one model        relative spread over {result['nodes']} nodes "
        f"{result['consensus_distance']:.1e}\n"
        f"bytes sent       {words.size(result['bytes_sent'])}; all-reduce in every step: "
        f"{words.size(result['bytes_allreduce'])}\n"
        f"first node       killed, and mixing again {result['rejoin_s']:.1f} s after its restart\n"
        f'model            {result["model_dir"]}   (peerlm generate "JULIET:" --model '
        f"{result['model_dir']})"
    )
