"""A table that is shown in place on a terminal, with log lines passing above it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

Show = Callable[[list[str]], None]


@contextlib.contextmanager
def shown_in_place(console: Console | None = None) -> Iterator[Show | None]:
    """Yield what shows lines in place of those before, for a `with` block; None where stderr is no terminal.

    The lines are gone at the end. What is printed or logged meanwhile goes above them.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    live = Live(console=console, transient=True, auto_refresh=False)
    handlers = _handlers_of_stderr()
    with live, _logging_to_current_stderr(handlers):

        def show(lines: list[str]) -> None:
            fitting = lines[: max(1, console.height - 1)]
            live.update(Text("\n".join(fitting), no_wrap=True, overflow="ellipsis"), refresh=True)

        yield show


@contextlib.contextmanager
def _logging_to_current_stderr(handlers: Sequence[logging.StreamHandler[Any]]) -> Iterator[None]:
    """Let handlers that hold the old stderr write to the one that Live has put in its place."""
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


def _handlers_of_stderr() -> list[logging.StreamHandler[Any]]:
    handlers = [handler for name in ("", "tltrain") for handler in logging.getLogger(name).handlers]
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream is sys.stderr]
