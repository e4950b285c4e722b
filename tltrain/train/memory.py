"""How much memory a lane takes, and how much is left for more of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tltrain.train.lane import Lane
from tltrain.train.tap_rates import spare_memory_bytes

STATES_PER_PARAMETER = 2
"""Tensors of a parameter's size that an optimiser keeps for it, at most (SGD keeps one, the Adam family two)."""
SPARED = 0.2
"""Share of the free memory that is left for activations of one lane, batches and whoever else is there."""


def lane_bytes(lane: Lane) -> int:
    """Return the bytes that a lane holds between steps and while it trains: weights, gradients, optimiser, average.

    What it needs for activations is not in it: lanes take turns with these.
    """
    trained = sum(_bytes(p) for p in lane.suffix.parameters() if p.requires_grad)
    held = sum(map(_bytes, lane.suffix.parameters())) + sum(map(_bytes, lane.suffix.buffers()))
    optimizer = trained * STATES_PER_PARAMETER
    return held * (2 if lane.ema is not None else 1) + trained + optimizer


def spare_bytes(device: torch.device) -> int:
    """Return the free memory on `device`; of a computer's own, half of what the system can give."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return spare_memory_bytes()


def has_room(lane: Lane, processes: int) -> bool:
    """Whether another lane like `lane` fits, where `processes` of this node draw on the same memory."""
    return lane_bytes(lane) * processes < (1 - SPARED) * spare_bytes(lane.group.device)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
