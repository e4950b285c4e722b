"""Lines and a progress bar that are shown in place on a terminal, with log lines and results passing above them."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tltrain.progress import Bar

Show = Callable[[Sequence[str], Bar | None], None]


@contextlib.contextmanager
def shown_in_place(console: Console | None = None) -> Iterator[Show | None]:
    """Yield what shows lines and a bar in place of those before, for a `with` block.

    None where stderr is no terminal or NO_COLOR is set. What is shown is gone at the end. What is printed or logged
    meanwhile goes above it.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal or os.environ.get("NO_COLOR"):
        yield None
        return
    # Results that go to a file must not pass through the terminal that is drawn on.
    live = Live(console=console, transient=True, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
    handlers = _handlers_of_stderr()
    with live, _logging_to_current_stderr(handlers):

        def show(lines: Sequence[str], bar: Bar | None = None) -> None:
            room = max(1, console.height - 1 - (bar is not None))
            text = Text("\n".join(lines[:room]), no_wrap=True, overflow="ellipsis")
            parts = [*([text] if lines else []), *([_drawn(bar)] if bar else [])]
            live.update(Group(*parts), refresh=True)

        yield show


def _drawn(bar: Bar) -> Table:
    """The bar as one line of the terminal's width."""
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(bar.label, ProgressBar(total=1.0, completed=bar.share), f"{100 * bar.share:.0f} %  {bar.facts}")
    return line


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
