"""Schedules, parameter groups and optimiser state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tltrain.spec.schema import OptimSpec, UnfreezeSpec
from tltrain.train import optim

STEPS, PER_EPOCH = 40, 10


def rates(settings: dict[str, object]) -> list[float]:
    spec = OptimSpec.model_validate(settings)
    return [optim.schedule_factor(step, spec, total_steps=STEPS, steps_per_epoch=PER_EPOCH) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0])
def test_every_schedule_stays_between_zero_and_the_peak_and_reaches_it(schedule: str, warmup_epochs: float) -> None:
    factors = rates({"schedule": schedule, "warmup_epochs": warmup_epochs, "step_epochs": 2})
    assert min(factors) > 0
    assert max(factors) == pytest.approx(1.0)


def test_cosine_equals_torchs_own() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0.1)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates({"schedule": "cosine", "final_factor": 0.1}) == pytest.approx(expected)


def test_step_schedule_drops_at_its_epochs() -> None:
    factors = rates({"schedule": "step", "step_epochs": 2, "step_factor": 0.5})
    assert factors == [1.0] * 20 + [0.5] * 20


def test_warmup_rises_linearly_and_then_the_schedule_begins() -> None:
    factors = rates({"schedule": "constant", "warmup_epochs": 1.0})
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10:] == [1.0] * 30


def test_one_cycle_peaks_where_the_warmup_ends() -> None:
    factors = rates({"schedule": "one_cycle", "warmup_epochs": 2.0})
    assert factors.index(max(factors)) == 20
    assert factors[0] == pytest.approx(1 / 25)


def test_phase_factors_multiply_from_their_epoch_on() -> None:
    phases = [
        UnfreezeSpec(at_epoch=1, freeze_depth=3, learning_rate_factor=0.5),
        UnfreezeSpec(at_epoch=3, freeze_depth=0, learning_rate_factor=0.2),
    ]
    assert [optim.phase_factor(epoch, phases) for epoch in range(4)] == pytest.approx([1.0, 0.5, 0.5, 0.1])


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def groups_of(settings: dict[str, object]) -> list[dict[str, object]]:
    return optim.parameter_groups(
        network(),
        OptimSpec.model_validate(settings),
        stage_of=lambda name: 1 if name.startswith("3") else 0,
        num_stages=2,
    )


def test_layer_decay_scales_lower_stages_down() -> None:
    scales = {tuple(group["names"]): group["scale"] for group in groups_of({"layer_decay": 0.5})}  # pyright: ignore
    assert scales == {("0.weight", "0.bias", "1.weight", "1.bias"): 0.5, ("3.weight", "3.bias"): 1.0}


def test_norm_and_bias_are_left_out_of_weight_decay_on_request() -> None:
    groups = groups_of({"weight_decay": 0.1, "decay_norm_and_bias": False})
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}  # pyright: ignore
    assert decayed == {"0.weight", "3.weight"}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad"])
def test_state_by_name_puts_an_optimizer_back_exactly(name: str) -> None:
    def steps(count: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(count):
            module(torch.ones(2, 3, 3, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def build(module: nn.Module) -> torch.optim.Optimizer:
        spec = OptimSpec.model_validate({"name": name, "learning_rate": 0.01})
        return optim.build_optimizer(optim.parameter_groups(module, spec, stage_of=lambda _: 0, num_stages=1), spec)

    first, second = network(), network()
    optimizer = build(first)
    steps(3, first, optimizer)
    saved = copy.deepcopy(optim.state_by_name(optimizer))
    second.load_state_dict(first.state_dict())
    resumed = build(second)
    optim.load_state_by_name(resumed, saved)
    steps(2, first, optimizer)
    steps(2, second, resumed)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_memory_layouts_do_not_change_what_a_step_does(name: str) -> None:
    def trained(layouts: tuple[torch.memory_format, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        module = nn.Conv2d(3, 4, 3, bias=False)
        weight, *gradients = (torch.randn(4, 3, 3, 3, generator=generator) for _ in layouts)
        module.weight.data = weight.contiguous(memory_format=layouts[0])
        spec = OptimSpec.model_validate({"name": name, "learning_rate": 0.01})
        groups = optim.parameter_groups(module, spec, stage_of=lambda _: 0, num_stages=1)
        optimizer = optim.build_optimizer(groups, spec)
        for gradient, layout in zip(gradients, layouts[1:], strict=True):
            module.weight.grad = gradient.contiguous(memory_format=layout)
            optim.match_layouts(optimizer)
            optimizer.step()
            plain = {"weight": {k: v.contiguous() for k, v in optim.state_by_name(optimizer)["weight"].items()}}
            optim.load_state_by_name(optimizer, plain)
        return module.weight.detach()

    contiguous, last = torch.contiguous_format, torch.channels_last
    expected = trained((contiguous,) * 4)
    torch.testing.assert_close(trained((last, contiguous, last, contiguous)), expected, rtol=1e-6, atol=1e-7)


def test_parameters_without_saved_state_start_afresh() -> None:
    module = network()
    spec = OptimSpec()
    optimizer = optim.build_optimizer(optim.parameter_groups(module, spec, stage_of=lambda _: 0, num_stages=1), spec)
    optim.load_state_by_name(optimizer, {"3.weight": {"momentum_buffer": torch.ones(2, 4)}})
    assert set(optim.state_by_name(optimizer)) == {"3.weight"}
