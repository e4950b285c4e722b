"""Tickets of trials, and what lanes cost. Light, for the broker's process works with it: no torch, no Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tltrain.engine.work import Ticket
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply, cohort_key

MAX_LIKELY = 64
"""Sets of values for whose lanes taps are computed beforehand."""


def make_ticket(spec: Spec, shares: Mapping[str, float], trial: str, values: dict[str, Any]) -> Ticket:
    """Return the ticket of a lane that starts from the pretrained network."""
    own = apply(spec, Trial(trial, values))
    return Ticket(trial, values, cohort_key(own), own.train.epochs, cost=lane_cost(own.model.freeze_depth, shares))


def distinct_in_frozen_part(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return the values of one trial of each set that differs in the optimiser alone: such lanes share taps."""
    others = {
        json.dumps({k: v for k, v in trial.values.items() if not k.startswith("optim.")}, sort_keys=True): trial.values
        for trial in trials
    }
    return list(others.values())[:MAX_LIKELY]


def lane_cost(freeze_depth: int | str, shares: Mapping[str, float]) -> float:
    """Return the cost of a lane's epoch in forward passes of the network: forward and backward above the cut."""
    names = list(shares)
    if freeze_depth == "all":
        depth = len(names) - 1
    else:
        depth = freeze_depth if isinstance(freeze_depth, int) else names.index(freeze_depth) + 1
    return 3 * sum(list(shares.values())[depth:]) + 0.01
