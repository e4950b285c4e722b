"""What ends a program before its time: Ctrl-C and SIGTERM, after a step with a checkpoint, and errors from outside."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from tltrain.errors import EXIT_TERMINATED, TltrainError

PREEMPTED = 1
"""In the place of a signal: the machine is taken back, and training is to go on elsewhere."""

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """Training has written a checkpoint and ended, because a signal asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """The signal."""


class CutShort(BaseException):
    """An error that strikes the main thread wherever it is: nothing there may take it for a mistake of its own."""

    def __init__(self, error: TltrainError) -> None:
        super().__init__(error)
        self.error = error


class _Wish:
    """What this process was asked for by signals, and by threads of its own."""

    number = 0
    """The first signal that nobody has followed yet; 0 without one."""
    is_deferred = False
    """Whether somebody looks at it, so that the program need not end at once."""
    is_handled = False
    """Whether signals raise exceptions in the main thread."""
    given_up: TltrainError | None = None
    """What the main thread is to raise."""


_wish = _Wish()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt and SIGTERM raise SystemExit for a `with` block: at once, or see `deferred`.

    Does nothing outside the main thread, to which signals come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _receive) for number in (signal.SIGINT, signal.SIGTERM)}
    was_handled, _wish.is_handled = _wish.is_handled, True
    try:
        with errors_told():
            yield
    finally:
        _wish.number, _wish.given_up, _wish.is_handled = 0, None, was_handled
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Raise, in the place of a CutShort that ends a `with` block, the error that it brings."""
    try:
        yield
    except CutShort as cut:
        raise cut.error from None


def give_up(error: TltrainError) -> None:
    """Have `error` end what the main thread waits for, where that is `handled`. Another thread calls this.

    Ends the program where nobody would raise it, and where it is called again since nobody has.
    """
    if not _wish.is_handled or _wish.given_up is not None:
        _log.error("%s", error)
        os._exit(error.exit_code)
    _wish.given_up = error
    # A signal also ends the read that the thread is in, as from a pipe or a network drive.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let the first signal only be noted for a `with` block, in which `wished` is looked at; a second one ends it."""
    before, _wish.is_deferred = _wish.is_deferred, True
    try:
        yield
    finally:
        _wish.is_deferred = before
    if _wish.number and not before:
        end(_wish.number)


def wished() -> int:
    """Return the signal that asks this process to end, 0 where none does."""
    return _wish.number


def end(number: int) -> NoReturn:
    """End the program as the signal `number` does: raises KeyboardInterrupt or SystemExit."""
    _wish.number = 0
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)


def _receive(number: int, _frame: object) -> None:
    if _wish.given_up is not None:
        raise CutShort(_wish.given_up)
    if not _wish.is_deferred or _wish.number:
        end(number)
    _wish.number = number
    again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
    _log.warning("stopping after this step, with a checkpoint%s", again)
