"""What the command line shows besides its messages: streams, warnings, and origins behind settings."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterable

from tltrain.errors import Problem


def set_up_streams() -> None:
    """Let characters that the terminal cannot show be escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_warnings(problems: Iterable[Problem]) -> None:
    """Log each problem as a warning."""
    for problem in problems:
        logging.getLogger("tltrain").warning("%s", problem)


def short_origins(origins: dict[str, str]) -> dict[str, str]:
    """Origins with the name of the file instead of its path, so that they fit behind a setting."""
    return {key: os.path.basename(origin) for key, origin in origins.items()}


def is_quiet() -> bool:
    """Whether errors alone are wanted (`-q`)."""
    return not logging.getLogger("tltrain").isEnabledFor(logging.INFO)
