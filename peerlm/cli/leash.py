"""Children do not outlive the command that started them, however it ends."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import click

PR_SET_PDEATHSIG = 1

T = TypeVar("T")

ENDS = (signal.SIGTERM, signal.SIGHUP)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Call in the child: the kernel kills it, or sends it another signal, when the thread that started it ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def interrupt_on_terminate() -> None:
    """From here on SIGTERM and a closed terminal end the command as Ctrl-C does: what it has started is
    ended too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in ENDS:
        signal.signal(number, interrupt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What would end the command waits until what is inside is done: it puts away what there is."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupted(BaseException):
    """By the signal `number`, and a person has been told what becomes of the work."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Ended(KeyboardInterrupt):
    """Nobody has been told yet."""

    number = signal.SIGINT


@contextmanager
def interruption(then: str) -> Iterator[None]:
    """SIGTERM and a closed terminal end what is inside as Ctrl-C does, so that it leaves nothing half done; `then` says
    what becomes of it. Raises `Interrupted`."""

    def end(number: int, frame: object) -> None:
        error = _Ended()
        error.number = signal.Signals(number)
        raise error

    before = {number: signal.signal(number, end) for number in ENDS}
    try:
        yield
    except KeyboardInterrupt as error:
        if sys.stderr.isatty():
            click.echo(err=True)  # it shows ^C there
        click.echo(f"peerlm: interrupted; {then}", err=True)
        raise Interrupted(getattr(error, "number", signal.SIGINT)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def aside(call: Callable[[], T]) -> T:
    """What `call` returns, from a thread that nobody waits for in the end: Ctrl-C does not wait for a library that hears
    none until it is done."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()
