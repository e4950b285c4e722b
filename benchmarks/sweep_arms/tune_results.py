"""From Ray Tune's results to the curves that all arms are compared by."""

from __future__ import annotations

import sys
from typing import Any

from ray.tune import ResultGrid

from .common import FREEZE_DEPTH, LEARNING_RATE, Row, Values, make_row


def read_curves(results: ResultGrid) -> list[tuple[Values, list[Row]]]:
    """Return the values and the curve of every trial. Ends the process where one failed."""
    if results.errors:
        sys.exit(f"{results.num_errors} trials failed, the first with: {results.errors[0]}")
    return [(_values(result.config), _curve(result.metrics_dataframe)) for result in results]


def _values(config: dict[str, Any] | None) -> Values:
    assert config is not None
    return {key: config[key] for key in (LEARNING_RATE, FREEZE_DEPTH)}


def _curve(frame: Any) -> list[Row]:
    return frame[list(make_row(0, 0.0, (0.0, 0.0)))].to_dict("records")
