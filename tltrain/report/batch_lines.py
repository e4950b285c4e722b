"""What `train.batch_size: auto` has found, as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from tltrain.spec.schema import OptimSpec, TrainSpec

_LINEAR = ("sgd", "rmsprop")
REFERENCE = TrainSpec.model_fields["batch_size"].default
"""The batch that rates are usually given for here: the default of train.batch_size."""


def batch_lines(found: Mapping[str, Any], optim: OptimSpec) -> list[str]:
    """Return the batch size, what it is made of, what bounds it, and what the usual rule makes of the rate.

    found: `FoundBatchSize.to_dict()`.
    """
    made_of = f"{found['images_per_pass']} images x {found['num_workers']} worker{'s' * (found['num_workers'] > 1)}"
    if found["accumulation_steps"] > 1:
        made_of += f" x {found['accumulation_steps']} accumulation steps"
    text = f"{found['batch_size']} = {made_of}: {_reason(found)}. {_rate(found['batch_size'], optim)}"
    return textwrap.wrap(text, 80, initial_indent=f"{'Batch size':<12}", subsequent_indent=" " * 12)


def _reason(found: Mapping[str, Any]) -> str:
    peaks = [(each["images"], each["peak_bytes"]) for each in found["tried"] if each["peak_bytes"] is not None]
    measured = f"; {peaks[-1][0]} take {peaks[-1][1] / 1e9:.2f} of {found['room_bytes'] / 1e9:.1f} GB" if peaks else ""
    return {
        "memory": f"the largest power of two that fits{measured}",
        "images": f"with more, an epoch would have fewer than 10 steps{measured}",
        "rule": f"above 8,192 no rule for the rate is known to hold{measured}",
    }[found["limited_by"]]


def _rate(batch_size: int, optim: OptimSpec) -> str:
    """Say what follows for the learning rate, which stays as the spec has it.

    Linear for plain gradients (https://arxiv.org/abs/1706.02677), the square root for those that are divided by their
    own size (https://arxiv.org/abs/2205.10287).
    """
    ratio, kept = batch_size / REFERENCE, f"optim.learning_rate stays {optim.learning_rate:g}"
    if ratio == 1:
        return kept
    name, factor = ("linear", ratio) if optim.name in _LINEAR else ("square-root", ratio**0.5)
    return f"{kept}; one that is good at {REFERENCE} images would be {factor:.3g} times as large by the {name} rule"
