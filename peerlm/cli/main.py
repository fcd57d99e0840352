"""The `peerlm` command: finds the subcommand, and turns every failure into one line and a code.

    0    done                             4    a token, certificate or signature does not hold
    1    failed                           5    a peer or source could not be reached
    2    a setting or argument is wrong   130  interrupted (143 by SIGTERM, 129 by SIGHUP)
    3    the state folder cannot be used, or no daemon runs on it

Subcommands are imported when they are asked for, so that a command that needs little starts at
once. A traceback is shown only with PEERLM_DEBUG=1.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from peerlm.cli.commands import Commands
from peerlm.cli.leash import Interrupted
from peerlm.errors import AuthError, ConfigError, PeerlmError, StateError, Unreachable, Unsaved
from peerlm.types import printable

COMMANDS = {
    "demo": "demo:demo",
    "init": "init:init",
    "up": "up:up",
    "invite": "invite:invite",
    "join": "join:join",
    "status": "status:status",
    "peers": "status:peers",
    "why": "status:why",
    "placement": "placement:placement",
    "data": "data:data",
    "checkpoint": "checkpoint:checkpoint",
    "store": "store:store",
    "top": "top:top",
    "doctor": "doctor:doctor",
    "generate": "generate:generate",
    "serve": "serve:serve",
    "key": "key:key",
    "sim": "sim:sim",
    "bench": "bench:bench",
    "chaos": "chaos:chaos",
    "ray": "ray:ray",
    "export": "export:export",
    "plan": "plan:plan",
    "pause": "steer:pause",
    "resume": "steer:resume",
    "stop": "steer:stop",
    "leave": "steer:leave",
    "logs": "logs:logs",
    "service": "service:service",
    "revoke": "revoke:revoke",
    "root": "root:root",
    "rm": "remove:rm",
    "completion": "completion:completion",
    "version": "version:version",
}
"""Name → module under peerlm.cli and the command in it; in the order in which help lists them."""

EXIT_CODES: tuple[tuple[type[PeerlmError], int], ...] = (
    (ConfigError, 2),
    (Unsaved, 6),
    (StateError, 3),
    (AuthError, 4),
    (Unreachable, 5),
)
INTERRUPTED = 130
BROKEN_PIPE = 141
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@click.group(
    cls=Commands,
    commands_at=COMMANDS,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """Train one language model on many machines, none of which matters.

    There is no server and no first machine: every node mixes its weights with others in pairs, any
    of them may die at any moment, and the address of any lets a new one in.

    \b
    See it on this machine alone, in three minutes:
      peerlm demo

    \b
    A run of your own. On the first machine:
      peerlm init
      peerlm up
      peerlm invite            prints the line for the other machines:
    \b
    On every other machine:
      peerlm join tcp://HOST:PORT --token TOKEN

    \b
    Every command takes --state DIR: the folder of one node. Without it, in this order:
    $PEERLM_STATE, $STATE_DIRECTORY (set by systemd), the service's, the user's own state folder.
    Exit codes: 1 failed, 2 wrong setting or argument, 3 state folder or no daemon,
    4 token or certificate, 5 unreachable, 130 interrupted.
    """


def main(args: list[str] | None = None) -> int:
    """Run one command; returns the exit code and never raises (but with PEERLM_DEBUG=1)."""
    os.umask(0o077)  # keys, weights, text and logs are the owner's alone
    _open_missing_streams()
    try:
        result = cli.main(args=args, prog_name="peerlm", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"peerlm: {_usage(error)}", err=True)
        return error.exit_code
    except Interrupted as error:
        return 128 + error.number
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop_output()
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("PEERLM_DEBUG"):
            raise
        code, line = explain(error)
        if isinstance(error, OSError) and error.errno in NO_ROOM and _output_is_lost():
            line = f"standard output: {line}"
        click.echo(f"peerlm: {line}", err=True)
        return code


def _usage(error: click.ClickException) -> str:
    """What click finds wrong with the words of a command, and where to read more, in one line."""
    wrong = printable(" ".join(error.format_message().split())).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return wrong if context is None else f"{wrong}; see `{context.command_path} --help`"


def _open_missing_streams() -> None:
    """A stream that the shell has closed (`>&-`) leads nowhere, and no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for as long as we live


def _output_is_lost() -> bool:
    """Whether it is standard output that takes nothing more; then the rest of it is dropped."""
    try:
        sys.stdout.write("\n")  # a stream without a buffer has nothing left to flush
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return True
    return False


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for a person."""
    match error:
        case PeerlmError():
            code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
            return code, printable(" ".join(str(error).split()))
        case OSError() if error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            return 1, f"{where}{error.strerror}"
        case _:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            return (
                1,
                f"internal error: {printable(what)}; PEERLM_DEBUG=1 shows where. Please report it",
            )
