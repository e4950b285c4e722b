"""When ranks stop together: each may have been asked to, and all have to end after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

from tltrain.train.distributed import Group

INTERVAL_S = 0.5
"""About how often ranks ask each other."""


class StopAgreement:
    """Has all ranks of a group end after the same step, the first at which one of them was asked to.

    They ask each other at steps that all of them know, so that it costs one small collective about every INTERVAL_S.
    """

    def __init__(self, group: Group, wished: Callable[[], int]) -> None:
        """wished: returns the signal that asks this rank to end, 0 where none does."""
        self._group, self._wished = group, wished
        self._asked_at, self._asked_step, self._next_step = time.monotonic(), 0, 0

    def signal_at(self, step: int, *, ask: bool = False) -> int:
        """Return the signal to end with after `step`, 0 to go on. Every rank calls it after the same steps.

        ask: now in any case.
        """
        if self._group.world_size == 1:
            return self._wished()
        if step < self._next_step and not ask:
            return 0
        now = time.monotonic()
        seconds, steps = now - self._asked_at, step - self._asked_step
        pace = max(1, round(INTERVAL_S * steps / seconds)) if steps > 0 and seconds > 0 else 1
        signal, pace = self._group.largest([self._wished(), pace])
        self._asked_at, self._asked_step, self._next_step = now, step, step + pace
        return signal
