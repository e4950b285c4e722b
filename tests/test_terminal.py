"""The table in place: only on a terminal, cleared at the end, with log lines above it."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.console import Console

from tltrain.terminal import shown_in_place


def terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=80, height=10, _environ={"TERM": "xterm"})


@pytest.mark.parametrize(
    "console", [Console(file=io.StringIO()), Console(force_terminal=True, _environ={"TERM": "dumb"})]
)
def test_without_a_terminal_nothing_is_shown_in_place(console: Console) -> None:
    with shown_in_place(console) as show:
        assert show is None


def test_lines_replace_those_before_and_are_cut_to_the_terminals_height() -> None:
    stream = io.StringIO()
    with shown_in_place(terminal(stream)) as show:
        assert show is not None
        show(["first table"])
        show([f"row {number}" for number in range(20)])
    shown = stream.getvalue()
    assert "\x1b[2K" in shown.split("first table")[1]  # the line was erased
    assert "row 8" in shown
    assert "row 9" not in shown


def test_log_lines_pass_above_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, old = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", old)
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("tltrain")
    logger.addHandler(handler)
    try:
        with shown_in_place(terminal(stream)) as show:
            assert show is not None
            show(["the table"])
            logger.warning("out of memory")
        assert "out of memory" in stream.getvalue()
        assert old.getvalue() == ""
        assert handler.stream is old
    finally:
        logger.removeHandler(handler)
