"""Curves for Weights & Biases: one run there for a node, whichever of its lives it is in.

The run's id follows from those of our run and of the node, so a node that is started again resumes it with nothing
to remember. The key is wandb's own affair: it finds it where `wandb login` has put it, or in WANDB_API_KEY.
"""

from __future__ import annotations

import os
from pathlib import Path

from peerlm.observe.curves import Origin, Reading
from peerlm.observe.history import short
from peerlm.store.disk import explained

PROJECT = "peerlm"


class WandbWriter:
    """Raises what wandb raises."""

    def __init__(self, origin: Origin, folder: Path) -> None:
        import wandb

        with explained("use", folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        run, node = short(origin.run_id), short(origin.node_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=f"{run}-{node}",
            resume="allow",
            name=f"{origin.run_name} {node}",
            group=f"{origin.run_name} {run}",
            config={"run": origin.run_name, "run_id": origin.run_id, "node_id": origin.node_id},
            dir=str(folder),
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True
            ),
        )

    def write(self, reading: Reading) -> None:
        """Steps are tokens of the swarm; wandb passes over one that is before its last."""
        self._run.log(dict(reading.values), step=reading.step)

    def close(self) -> None:
        self._run.finish()
