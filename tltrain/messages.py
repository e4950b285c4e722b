"""Problems and log lines on stderr, as every program of the package shows them."""

from __future__ import annotations

import logging
import os
import sys

from tltrain.errors import TltrainError

_LEVELS = {-1: logging.ERROR, 0: logging.INFO, 1: logging.DEBUG}
_HANDLER = "tltrain.messages"
_RED, _YELLOW, _RESET = "\033[31m", "\033[33m", "\033[0m"


def set_up_logging(verbosity: int) -> None:
    """Send the log of `tltrain` to stderr as short lines: -1 errors alone, 0 what matters, 1 everything."""
    logger = logging.getLogger("tltrain")
    for old in [handler for handler in logger.handlers if handler.name == _HANDLER]:
        logger.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.name = _HANDLER
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[verbosity])


class _Formatter(logging.Formatter):
    """The message alone, with its level in front where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        color = _YELLOW if record.levelno == logging.WARNING else _RED
        return f"{colored(record.levelname.lower() + ':', color)} {text}"


def colored(text: str, color: str) -> str:
    """Text in color where stderr is a terminal and NO_COLOR is not set."""
    wanted = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{color}{text}{_RESET}" if wanted else text


def show_error(error: TltrainError) -> None:
    """Print every problem of an error to stderr, one a line."""
    for problem in error.problems:
        print(colored("error:", _RED), problem, file=sys.stderr)


def show_interrupt(interrupt: KeyboardInterrupt) -> None:
    """Print to stderr that the program was interrupted, and how to go on where the interrupt says so."""
    print(f"Interrupted. {interrupt}".rstrip(), file=sys.stderr)
