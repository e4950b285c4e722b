"""Where a process's time goes: waiting for images, frozen stages, lanes, validation, checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from tltrain.data.loader import Batch

OTHER = "other"
_MAX_SPANS = 4096


class Phases:
    """Seconds per phase. Of nested phases the innermost counts, so that every moment counts once.

    On a GPU the times are those of its queue: what the program has asked for counts when the GPU gets to it, and a
    wait for images counts where the GPU had nothing else to do.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_cuda = device, device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, Any, Any]] = []
        self._current, self._since = OTHER, self._now()
        self.num_decoded = 0
        """Images that have come from the loader."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block to the phase `name`."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def images(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield `batches`; the time it takes to get them counts as `decode`."""
        iterator = iter(batches)
        while True:
            with self("decode"):
                batch = next(iterator, None)
            if batch is None:
                return
            self.num_decoded += len(batch.images)
            yield batch

    def seconds(self) -> dict[str, float]:
        """Return phase -> seconds so far, `other` being the rest since the start."""
        self._switch(self._current)
        self._settle()
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _switch(self, name: str) -> str:
        """Let the time from now on count to `name`; return what it counted to before."""
        before, now = self._current, self._now()
        self._spans.append((before, self._since, now))
        self._current, self._since = name, now
        if len(self._spans) >= _MAX_SPANS:
            self._settle()
        return before

    def _settle(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
        for name, start, end in self._spans:
            self._seconds[name] += start.elapsed_time(end) / 1000 if self._is_cuda else end - start
        self._spans.clear()


def add_seconds(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of several counts of seconds per phase."""
    total: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for name, seconds in part.items():
            total[name] += seconds
    return {name: round(seconds, 3) for name, seconds in total.items()}
