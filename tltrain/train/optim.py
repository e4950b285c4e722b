"""Optimisers, their parameter groups and learning-rate schedules; optimiser state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tltrain.spec.schema import OptimSpec, UnfreezeSpec

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def schedule_factor(step: int, optim: OptimSpec, *, total_steps: int, steps_per_epoch: int) -> float:
    """Return what the peak learning rate is multiplied by at `step` (0-based, of `total_steps`).

    A pure function of the step, so a resumed run needs no scheduler state. The cosine is that of SGDR
    (Loshchilov and Hutter 2017) without restarts; one_cycle rises from 1/25 of the peak (Smith and Topin 2018).
    """
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    if optim.schedule == "one_cycle":
        rising = max(1, warmup_steps or round(0.3 * total_steps))
        if step < rising:
            return _cosine_between(1 / 25, 1.0, step / rising)
        return _cosine_between(1.0, optim.final_factor, _share(step - rising, total_steps - rising))
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if optim.schedule == "cosine":
        return _cosine_between(1.0, optim.final_factor, _share(step - warmup_steps, total_steps - warmup_steps))
    if optim.schedule == "step":
        return optim.step_factor ** (step // (optim.step_epochs * steps_per_epoch))
    return 1.0


def _share(done: int, total: int) -> float:
    return done / max(1, total)


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def phase_factor(epoch: int, phases: Iterable[UnfreezeSpec]) -> float:
    """Return the product of the learning-rate factors of all phases that have begun by `epoch`."""
    return math.prod(phase.learning_rate_factor for phase in phases if phase.at_epoch <= epoch)


def parameter_groups(
    module: nn.Module, optim: OptimSpec, *, stage_of: Callable[[str], int], num_stages: int
) -> list[dict[str, Any]]:
    """Return one optimiser group per (stage, decays or not), each with `names` and its rate `scale`.

    `scale` is layer_decay ** (stages above this one); the schedule multiplies it.
    """
    undecayed = set() if optim.decay_norm_and_bias else _norm_and_bias(module)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (stage_of(name), name not in undecayed)
        if key not in groups:
            scale = optim.layer_decay ** (num_stages - 1 - key[0])
            decay = optim.weight_decay if key[1] else 0.0
            groups[key] = {"params": [], "names": [], "scale": scale, "weight_decay": decay}
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def _norm_and_bias(module: nn.Module) -> set[str]:
    names = {name for name, _ in module.named_parameters() if name.endswith("bias")}
    for prefix, child in module.named_modules():
        if isinstance(child, NORM_LAYERS):
            names |= {f"{prefix}.{name}" for name, _ in child.named_parameters(recurse=False)}
    return names


def build_optimizer(
    groups: list[dict[str, Any]], optim: OptimSpec, *, is_scaled: bool = False
) -> torch.optim.Optimizer:
    """Return the optimiser of torch.optim that `optim` names, over `groups`; fused where torch can.

    A fused step takes half the time of SGD's and a quarter of AdamW's on a CPU. It needs `match_layouts` before it.
    is_scaled: the loss is scaled (fp16); steps are not fused then, for torch's fused SGD begins with a momentum that
    nobody has set where the very first step is skipped.
    """
    rate, betas, fused = optim.learning_rate, (optim.betas[0], optim.betas[1]), not is_scaled
    sgd = {"lr": rate, "momentum": optim.momentum, "nesterov": optim.nesterov}
    builders: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(groups, **sgd, fused=fused),
        "adam": lambda: torch.optim.Adam(groups, lr=rate, betas=betas, fused=fused),
        "adamw": lambda: torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused),
        "nadam": lambda: torch.optim.NAdam(groups, lr=rate, betas=betas),
        "radam": lambda: torch.optim.RAdam(groups, lr=rate, betas=betas),
        "adamax": lambda: torch.optim.Adamax(groups, lr=rate, betas=betas),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=rate, momentum=optim.momentum),
        "adagrad": lambda: torch.optim.Adagrad(groups, lr=rate),
    }
    return builders[optim.name]()


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give every gradient the strides of its parameter.

    torch's fused steps on a CPU walk through memory without a look at strides: a contiguous gradient of a
    channels_last parameter would be added to the wrong elements, without an error.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = _laid_out_as(parameter, parameter.grad)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the strides of `parameter` where its dimensions are larger than 1."""
    layouts = zip(parameter.shape, parameter.stride(), value.stride(), strict=True)
    if all(wanted == actual or size == 1 for size, wanted, actual in layouts):
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `optimizer` its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["names"]]


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimiser's state per parameter name; rates and decays are not state, the spec has them."""
    names, state = _names(optimizer), optimizer.state_dict()["state"]
    return {names[index]: values for index, values in state.items()}


def load_state_by_name(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `state_by_name` gave. Parameters without an entry start afresh (they were just unfrozen)."""
    index = {name: position for position, name in enumerate(_names(optimizer))}
    saved = {index[name]: dict(values) for name, values in state.items()}
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = _laid_out_as(parameter, value)
