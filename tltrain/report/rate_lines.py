"""A learning-rate range test as lines of at most 80 columns: a row per rate with a bar, and what to take."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from tltrain.report.markup import shortened
from tltrain.report.scales import duration_text, number_text

_BAR = 44


def rate_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of what `RangeTest.to_dict` gives."""
    depths = found["depths"]
    about = f"{len(depths[0]['curves'])} rates at {len(depths)} freeze depth{'s' * (len(depths) > 1)}"
    steps = f"up to {found['steps']} steps of {found['batch_size']} images, {duration_text(found['seconds'])}"
    lines = [f"{shortened(found['model'], 30)} with {found['optimizer']}: {about},", steps]
    for depth in depths:
        lines += ["", *_depth_lines(depth)]
    return lines


def _depth_lines(depth: Mapping[str, Any]) -> list[str]:
    suggestion, curves = depth["suggestion"], depth["curves"]
    most = max(curve["final_loss"] or 0.0 for curve in curves)
    frozen = f"{depth['frozen_stages']} stages frozen, {depth['trained_parameters']:,} parameters train"
    rate = suggestion["learning_rate"]
    taken = "Suggestion  none" if rate is None else f"Suggestion  optim.learning_rate={number_text(rate)}"
    return [
        f"freeze_depth {shortened(str(depth['freeze_depth']), 18)} ({frozen})",
        f"{'rate':>10}{'steps':>7}{'loss':>9}  mean of the last steps",
        *(_row(curve, most, is_taken=curve["rate"] == rate) for curve in curves),
        taken,
        *textwrap.wrap(suggestion["reason"], 80, initial_indent=" " * 12, subsequent_indent=" " * 12),
    ]


def _row(curve: Mapping[str, Any], most: float, *, is_taken: bool) -> str:
    loss, mark = curve["final_loss"], "*" if is_taken else " "
    start = f"{mark}{number_text(curve['rate'], 3):>9}{len(curve['losses']):>7}"
    if loss is None:
        return f"{start}{'-':>9}  shoots up"
    bar = "#" * max(1, round(_BAR * loss / most))
    return f"{start}{loss:>9.4f}  {bar}"
