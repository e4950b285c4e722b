"""A network on its device: the memory format of its convolutions, and the precision that it computes in."""

from __future__ import annotations

import torch
from torch import nn

from tltrain.spec.schema import TrainSpec

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(train: TrainSpec, device: torch.device) -> torch.autocast:
    """Return the autocast context of the precision that a spec's `train` section names."""
    return torch.autocast(device.type, dtype=AUTOCAST[train.precision], enabled=train.precision != "fp32")


def place(module: nn.Module, train: TrainSpec, device: torch.device) -> nn.Module:
    """Move `module` to `device`, its convolutions in the memory format of a spec's `train` section."""
    module.to(device)
    if train.channels_last:
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
