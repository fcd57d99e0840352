"""A published model through three nodes, beside what transformers writes with it.

`peerlm init --from gguf:FILE` makes a run of the file's weights, in three stages; its first node holds stage 0, and two others join for the
rest. Nobody trains. Twenty pieces of the shipped text are gone on with greedily, all at once through the nodes, and one after another by
transformers, which reads the same file. Any GGUF file of a Llama will do (docs/weights.md says what is refused).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Missed, Row, say
from bench.texts import STAGES, Line
from bench.texts_same import CHUNK, GREEDY, PROMPTS, Texts, differing, jobs_of, prompts, written
from peerlm.bench.founding import Values, options
from peerlm.bench.nodes import running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.plan import current_plan
from peerlm.cli.swarm_here import open_swarm
from peerlm.config import Plan
from peerlm.model.plan import parameter_count
from peerlm.serve.engine import use_threads

INIT_S = 3600.0
READY_S = 1800.0


class Given(Line):
    """Of a file's weights; nobody trains."""

    def __init__(self, folder: Path, file: Path, plan: Values) -> None:
        super().__init__(folder, STAGES, plan, {"train.enabled": False})
        self._file = file

    def _local_of(self, node: DemoNode) -> Values:
        return {**super()._local_of(node), "host.sessions": PROMPTS}

    def found(self) -> None:
        """Raises `Missed`."""
        first = self.nodes[0]
        settings = options("--set", self._plan) + options("--set-node", self._local_of(first))
        asked = ["init", "--from", f"gguf:{self._file}", "--state", str(first.layout.root)]
        done = subprocess.run(
            [*first.program, *asked, *settings],
            capture_output=True,
            text=True,
            timeout=INIT_S,
            check=False,
        )
        if done.returncode:
            raise Missed(f"peerlm init: {done.stderr.strip()[-200:]}")

    def start(self) -> None:
        self.found()
        self.nodes[0].start("up")
        self.wait("the first node answers", lambda: self.nodes[0].status is not None)
        for node in self.nodes[1:]:
            self.join(node)
        self.wait("every node has its weights on disk", self.all_serve, limit_s=READY_S)

    def all_serve(self) -> bool:
        ids = {s["node_id"] for s in self.statuses()}
        return len(ids) == len(self.nodes) and all(
            s["snapshot"]["number"] and {m["id"] for m in s["members"] if m["linked"]} >= ids
            for s in self.statuses()
        )


def by_transformers(file: Path, asked: Sequence[tuple[int, ...]], tokens: int) -> Texts:
    """What it writes after each prompt, greedily. A token that ends a text is like any other."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    model: Any = transformers.LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype="float32", local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None
    texts = []
    for prompt in asked:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            all_ids = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        texts.append(all_ids[0, len(prompt) :].tolist())
    return texts


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    use_threads(0)
    file = args.gguf.absolute()
    plan_values: Values = {"model.stages": STAGES, "model.context": args.context}
    with running(Given(folder, file, plan_values)) as swarm:
        say("the run is made")
        swarm.start()
        plan = current_plan(swarm.nodes[0].layout).plan
        _, codec, route = open_swarm(swarm.nodes[0].layout)
        asked = prompts(codec, plan.model.context - args.tokens)
        jobs = jobs_of(asked, args.tokens, GREEDY)
        yield from about(args.gguf, plan, asked, args.tokens)
        say("three nodes, all at once")
        through = written(route, jobs, codec)
        tracebacks = swarm.tracebacks()
    say("transformers, a text after another")
    theirs = by_transformers(file, asked, args.tokens)
    yield Row("texts that differ from transformers'", differing(through, theirs), at_most=0)
    yield Row("tracebacks in all logs", tracebacks, at_most=0)


def about(file: Path, plan: Plan, asked: Sequence[tuple[int, ...]], tokens: int) -> Iterator[Row]:
    parameters = parameter_count(plan.model, plan.data.vocab)
    yield Row("file", file.name)
    yield Row("parameters", parameters / 1e6, "M")
    yield Row("stages, on a node each", STAGES)
    yield Row("texts at once", PROMPTS)
    yield Row("tokens of each", tokens)
    yield Row("tokens of the prompts", f"1 to {max(map(len, asked))}")
    yield Row("tokens of prompts in a step", CHUNK)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--gguf", type=Path, metavar="FILE", required=True, help="of a Llama")
    flags.add_argument("--context", type=int, default=192, help="tokens the model looks back [192]")
    flags.add_argument("--tokens", type=int, default=64, help="of a text [64]")
    return report.perform("texts_gguf", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
