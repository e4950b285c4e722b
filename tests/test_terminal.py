"""The table in place: only on a terminal, cleared at the end, with log lines above it."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from tltrain.progress import Bar
from tltrain.terminal import shown_in_place


def terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=80, height=10, _environ={"TERM": "xterm"})


@pytest.fixture(autouse=True)
def colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of somebody who has nothing against control characters."""
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_no_color_is_like_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    with shown_in_place(terminal(stream)) as show:
        assert show is None
    assert stream.getvalue() == ""


def test_the_bar_fills_the_last_line_with_its_facts() -> None:
    stream = io.StringIO()
    with shown_in_place(terminal(stream)) as show:
        assert show is not None
        show([], Bar("Epoch 2/5 training", 0.25, images_per_s=1234.0, left_s=75.0))
    line = next(
        line for line in re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", stream.getvalue()).splitlines() if "Epoch" in line
    )
    assert len(line.rstrip()) <= 80
    assert line.split("Epoch 2/5 training")[1].strip(" ━╺╸").startswith("25 %  1,234 images/s  1:15 left")


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
        show(["first table"], None)
        show([f"row {number}" for number in range(20)], None)
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
            show(["the table"], Bar("Epoch 1/2", 0.5))
            logger.warning("out of memory")
        assert "out of memory" in stream.getvalue()
        assert old.getvalue() == ""
        assert handler.stream is old
    finally:
        logger.removeHandler(handler)
