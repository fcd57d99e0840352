"""What the commands of `peerlm sim` share: bounds of their options, and the line that plays a run again."""

from __future__ import annotations

import shlex
from typing import Any

import click
from click.core import ParameterSource

from peerlm.errors import ConfigError

SEED_MAX = 2**62
JOBS_MAX = 1024
RUNS_MAX = 1_000_000
REASON_CHARS = 160
OUTSIDE = ("as_json", "plot", "jobs")
"""Options that change nothing of a run."""


def check_between(option: str, value: float, low: float, high: float) -> None:
    """Raises `ConfigError`, naming the option."""
    if not low <= value <= high:
        raise ConfigError(f"{option} {value}: must be from {low:,} to {high:,}")


def check_seed(seed: int) -> None:
    check_between("--seed", seed, 0, SEED_MAX)


def check_jobs(jobs: int) -> None:
    check_between("--jobs", jobs, 0, JOBS_MAX)


def this_command() -> str:
    """The command that is being performed, as one types it, without the options that were not given."""
    context = click.get_current_context()
    words = context.command_path.split()
    for option in context.command.params:
        name = str(option.name)
        value, source = context.params[name], context.get_parameter_source(name)
        if name in OUTSIDE or source is ParameterSource.DEFAULT:
            continue
        for each in value if option.multiple else (value,):
            words += [option.opts[0], str(each)]
    return shlex.join(words)


def how(broken: BaseException) -> str:
    """What went wrong: a promise in its own words, anything else with its kind."""
    is_promise = isinstance(broken, AssertionError) and str(broken)
    return str(broken) if is_promise else f"{type(broken).__name__}: {broken}"


def reason(error: Exception) -> str:
    """Why a file cannot be used, in few words and without its name."""
    words = error.strerror if isinstance(error, OSError) else None
    text = " ".join((words or str(error) or type(error).__name__).split())
    return text if len(text) <= REASON_CHARS else f"{text[:REASON_CHARS]}…"


def options_text(**options: Any) -> str:
    """`--key value` for each, a space before it; values are told to the last digit."""
    return "".join(f" --{key} {shlex.quote(str(value))}" for key, value in options.items())
