"""The picture of a comparison: what each way to train sends and learns, and how it gets there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt


def draw(path: Path, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Two panels into `path`, of each method's best rate."""
    figure, (by_bytes, by_tokens) = plt.subplots(1, 2, figsize=(11, 5))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = {method: f"C{number % 10}" for number, method in enumerate(methods)}
    for method in methods:
        of_method = [row for row in rows if row["method"] == method and row["best"]]
        sent = [max(row["bytes_per_node"], 1e3) / 1e6 for row in of_method]
        losses = [row["val_loss"] for row in of_method]
        by_bytes.plot(sent, losses, "o-", color=colours[method], label=method)
        least = min(of_method, key=lambda row: float(row["val_loss"]))
        tokens, curve = zip(*least["curve"], strict=True)
        by_tokens.plot([t / 1e6 for t in tokens], curve, color=colours[method], label=method)
    by_bytes.set(xscale="log", xlabel="sent by a node, MB", ylabel="validation loss, nats/token")
    by_tokens.set(xlabel="tokens of all, millions", ylabel="validation loss, nats/token")
    for axis in (by_bytes, by_tokens):
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130, format=path.suffix[1:].lower())
    plt.close(figure)
