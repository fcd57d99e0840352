"""The flame graph of docs/benchmarks.md: where a node's threads are while it answers exchanges.

    python tools/flame.py [--seconds 20] [--out docs/exchange-flame.svg]

Two nodes exchange 100 MB of fp32 in rounds; py-spy (`pip install py-spy`; it may need root) looks at the one that
answers. Threads that wait, and what the benchmark itself does between two rounds, are left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from peerlm.bench.exchange import Asked, peerlm_nodes

PAGE = Path(__file__).parent.parent / "docs" / "exchange-flame.svg"
RATE_HZ = 250
WAITING = (
    "_worker",
    "EpollSelector.select",
    "Runner.run",
    "_WorkItem.run",
    "Event.wait",
    "readline",
)
NOT_OURS = ("renew", "prepare", "mix_all", "obey")

WIDTH, ROW, CHARACTER = 1200, 17, 6.6


@dataclass
class Frame:
    samples: int = 0
    inside: dict[str, Frame] = field(default_factory=dict)

    def depth(self) -> int:
        return 1 + max((frame.depth() for frame in self.inside.values()), default=0)


def record(seconds: int, raw: Path) -> None:
    asked = Asked(100, 2, 1, ("fp32",), ("aead",), ())
    with (
        tempfile.TemporaryDirectory() as folder,
        peerlm_nodes(Path(folder), asked, "fp32", "aead") as nodes,
    ):
        answering = nodes.children[1].processes()[0].pid
        command = ["py-spy", "record", "--function", "--format", "raw", "--output", str(raw)]
        command += ["--rate", str(RATE_HZ), "--duration", str(seconds), "--pid", str(answering)]
        spy = subprocess.Popen(command)
        while spy.poll() is None:
            nodes.prepare()
            nodes.round()
        if spy.returncode:
            sys.exit("py-spy failed")


def read(raw: Path) -> Frame:
    root = Frame()
    for line in raw.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        names = [name.split(" (")[0] for name in stack.split(";")]
        if names[-1] in WAITING or any(part in name for name in names for part in NOT_OURS):
            continue
        root.samples += int(samples)
        frame = root
        for name in names:
            frame = frame.inside.setdefault(name, Frame())
            frame.samples += int(samples)
    return root


def draw(root: Frame) -> str:
    height = ROW * root.depth()
    boxes: list[str] = []

    def box(name: str, frame: Frame, x: float, level: int) -> None:
        width = WIDTH * frame.samples / root.samples
        if width < 1:
            return
        share = 100 * frame.samples / root.samples
        fill = f"hsl({20 + sum(map(ord, name)) % 35} 80% 65%)"
        shown = name if len(name) * CHARACTER < width else name[: int(width / CHARACTER)]
        boxes.append(
            f'<g><title>{escape(name)}: {share:.1f} %</title><rect x="{x:.1f}" y="{level * ROW}" '
            f'width="{width:.1f}" height="{ROW - 1}" fill="{fill}" rx="2"/>'
            f'<text x="{x + 3:.1f}" y="{level * ROW + 12}">{escape(shown)}</text></g>'
        )
        for inner, one in sorted(frame.inside.items()):
            box(inner, one, x, level + 1)
            x += WIDTH * one.samples / root.samples

    box("all that does not wait", root, 0.0, 0)
    style = "text{font:11px ui-monospace,monospace;fill:#222}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
    return "\n".join([head, f"<style>{style}</style>", *boxes, "</svg>", ""])


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--seconds", type=int, default=20)
    flags.add_argument("--out", type=Path, default=PAGE)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks"
        record(args.seconds, raw)
        root = read(raw)
    if not root.samples:
        sys.exit("nothing was seen")
    args.out.write_text(draw(root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
