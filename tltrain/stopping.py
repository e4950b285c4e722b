"""Ctrl-C and SIGTERM: training ends at its next step with a checkpoint, everything else at once; a second ends all."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from tltrain.errors import EXIT_TERMINATED

PREEMPTED = 1
"""In the place of a signal: the machine is taken back, and training is to go on elsewhere."""

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """Training has written a checkpoint and ended, because a signal asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """The signal."""


class _Wish:
    """What this process was asked for by signals."""

    number = 0
    """The first signal that nobody has followed yet; 0 without one."""
    is_deferred = False
    """Whether somebody looks at it, so that the program need not end at once."""


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
    try:
        yield
    finally:
        _wish.number = 0
        for number, handler in before.items():
            signal.signal(number, handler)


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
    if not _wish.is_deferred or _wish.number:
        end(number)
    _wish.number = number
    again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
    _log.warning("stopping after this step, with a checkpoint%s", again)
