"""What a run prints: results on stdout, as text or as JSON lines, and how it goes on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tltrain.progress import Bar
from tltrain.report import lines
from tltrain.report.batch_lines import batch_lines
from tltrain.report.trial_lines import trial_line
from tltrain.spec.schema import Spec
from tltrain.terminal import Show, shown_in_place

if TYPE_CHECKING:
    from tltrain.train.batch_size import FoundBatchSize

PLAIN_INTERVAL_S = 60.0
"""Seconds between two lines that say how far it is, where no bar can be drawn."""


class Output:
    """Where a run's header, epochs, trials and result go.

    as_json: one JSON object a line on stdout, each with its `event`, instead of text. quiet: nothing else, anywhere.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._as_json, self._quiet = as_json, quiet
        self._has_columns = False

    def tell(self, text: str) -> None:
        """Print a line about how it goes to stderr."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def batch_size(self, found: FoundBatchSize, spec: Spec) -> None:
        """Print what `train.batch_size: auto` has found for `spec`."""
        for line in batch_lines(found.to_dict(), spec.optim):
            self.tell(line)
        self._event("batch_size", found.to_dict())

    def start(self, facts: Mapping[str, Any]) -> None:
        """Print what is known before it begins."""
        for line in lines.header(facts):
            self.tell(line)
        self._event("start", facts)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Print a row of metrics.jsonl."""
        heading = [] if self._has_columns else [lines.COLUMNS]
        self._has_columns = True
        self._print("epoch", row, [*heading, lines.epoch_line(row, epochs)])

    def lane_epoch(self, row: Mapping[str, Any]) -> None:
        """Print a row of a sweep, which has too many of them for people."""
        self._event("epoch", row)

    def trial(self, entry: Mapping[str, Any], number: int, total: int, *, is_shown: bool) -> None:
        """Print that a trial has ended; as text unless it `is_shown` otherwise."""
        if not is_shown:
            self.tell(trial_line(entry, number, total))
        self._event("trial", entry)

    def result(self, state: Mapping[str, Any], texts: Sequence[str]) -> None:
        """Print what came of it: run.json's `state`, or `texts` for people."""
        self._print("result", state, texts)

    def _print(self, event: str, fields: Mapping[str, Any], texts: Sequence[str]) -> None:
        if not self._as_json and not self._quiet:
            print("\n".join(texts), flush=True)
        self._event(event, fields)

    def _event(self, event: str, fields: Mapping[str, Any]) -> None:
        if self._as_json:
            print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)

    @contextlib.contextmanager
    def live(self) -> Iterator[tuple[Show, bool]]:
        """Yield what shows lines and a bar, and whether it shows them in place.

        Without a terminal it says now and then how far it is.
        """
        if self._quiet:
            yield lambda lines, bar: None, False
            return
        with shown_in_place() as show:
            yield show or self._tell_seldom(), show is not None

    def _tell_seldom(self) -> Show:
        told_at = time.monotonic()

        def show(_: Sequence[str], bar: Bar | None) -> None:
            nonlocal told_at
            if bar is not None and time.monotonic() - told_at >= PLAIN_INTERVAL_S:
                told_at = time.monotonic()
                self.tell(str(bar))

        return show
