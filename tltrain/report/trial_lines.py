"""A sweep as it goes: a line per trial that ends, or the whole table again and again where it can be shown in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ENDED = ("finished", "stopped", "failed")
TABLE_ROWS = 16


def trial_line(entry: Mapping[str, Any], number: int, total: int) -> str:
    """Return one line of at most 80 columns about a trial that has ended."""
    values = " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in entry["values"].items())
    best = entry["best"]
    result = f"top-1 {100 * best['top1']:.1f} %" if best else "no result"
    return f"{number:>4}/{total:<4} {entry['trial']}  {result:<13} {values}"[:80]


def winner_lines(state: Mapping[str, Any], confirmed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return who won, with what, and how sure that is."""
    values = ", ".join(f"{key}={value}" for key, value in state["winner_values"].items())
    lines = [f"Winner      {state['winner']}: {values}"]
    for entry in confirmed:
        low, high = entry["interval"] or (entry["mean"], entry["mean"])
        seeds = len(entry["seeds"])
        shown = f"{100 * entry['mean']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"Confirmed   {entry['trial']}: mean validation top-1 {shown} over {seeds} seeds")
    return lines
