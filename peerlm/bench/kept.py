"""Trials that are done, as lines of JSON in a file, so that hours of them can be interrupted and go on.

A line has everything that its trial depends on, a hash of peerlm's own code included; only an equal trial takes its
outcome from there. A line that was being written when the power went counts for nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from blake3 import blake3

import peerlm
from peerlm.bench.quality import Setting, Trial
from peerlm.config import to_dict
from peerlm.errors import PeerlmError


class KeptTrials:
    """`path`: None keeps them in memory alone. Raises `PeerlmError` if it cannot be used."""

    def __init__(self, path: Path | None, setting: Setting) -> None:
        self._path = path
        self._setting = _identity(setting)
        self._done: dict[str, dict[str, Any]] = {}
        self._is_torn = False
        if path is not None:
            try:
                with path.open("a+", encoding="utf-8") as file:  # not only after the first hour
                    file.seek(0)
                    text = file.read()
            except (OSError, UnicodeDecodeError) as error:
                raise PeerlmError(f"--keep {path}: cannot be used: {error}") from None
            for line in text.splitlines():
                self._read(line)
            self._is_torn = bool(text) and not text.endswith("\n")

    def found(self, trial: Trial) -> dict[str, Any] | None:
        return self._done.get(self._key(trial))

    def keep(self, trial: Trial, outcome: dict[str, Any]) -> None:
        """On the disk when this returns."""
        key = self._key(trial)
        self._done[key] = outcome
        if self._path is None:
            return
        line = json.dumps({"trial": json.loads(key), "found": outcome}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + line if self._is_torn else line)
                file.flush()
                os.fsync(file.fileno())
            self._is_torn = False
        except OSError as error:
            raise PeerlmError(f"--keep {self._path}: cannot be written: {error}") from None

    def _key(self, trial: Trial) -> str:
        return json.dumps({**self._setting, **dataclasses.asdict(trial)}, sort_keys=True)

    def _read(self, line: str) -> None:
        try:
            parsed = json.loads(line)
            trial, outcome = parsed["trial"], parsed["found"]
        except (ValueError, KeyError, TypeError):
            return
        if isinstance(outcome, dict) and "val_losses" in outcome:
            self._done[json.dumps(trial, sort_keys=True)] = outcome


def _code() -> str:
    """A hash of everything that is peerlm but its command line."""
    digest, package = blake3(), Path(peerlm.__file__).parent
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] != "cli":
            digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _identity(setting: Setting) -> dict[str, Any]:
    """A setting without the places that its text lies at: a shard's name is its hash."""
    plan = json.dumps(to_dict(setting.plan), sort_keys=True)
    return {
        "code": _code(),
        "plan": blake3(plan.encode()).hexdigest(),
        "shards": [[Path(path).name for path in paths] for paths in setting.shards],
        "nodes": setting.nodes,
        "tokens": setting.tokens,
        "link": setting.link,
        "speeds": list(setting.speeds),
        "device": setting.device,
    }
