"""Tests of tltrain.models.parts: what stays frozen, what trains, and that neither touches the other."""

from __future__ import annotations

import copy
import hashlib
import socket

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tltrain.models.stages import StagedNetwork
from tltrain.models.zoo import Network, build_network
from tltrain.spec.schema import ModelSpec


def build(name: str = "resnet18") -> Network:
    return build_network(ModelSpec(name=name, weights="random"), 7, seed=0)


def images(size: int = 64, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def digest(module: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


class Noisy(nn.Module):
    """A network with all that differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.two, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.one(x)))
        x = nn.functional.dropout(self.two(x), 0.5, self.training)
        return self.head(x.mean((2, 3)))


def test_a_frozen_prefix_stays_as_it_is_through_train_and_forward():
    network = build("efficientnet_lite0")
    prefix, batch = network.staged.prefix(0, 5), images()
    before, expected = digest(network.module), prefix(batch)
    prefix.train()
    assert not any(module.training for module in prefix.modules())
    assert torch.equal(prefix(batch), expected)
    assert digest(network.module) == before


def test_dropout_between_frozen_layers_is_off():
    staged, batch = StagedNetwork(Noisy()), images(8)
    prefix = staged.prefix(0, 2).train()
    assert torch.equal(prefix(batch), prefix(batch))


def test_a_frozen_prefix_wants_no_gradient_and_shares_the_networks_layers():
    network = build()
    prefix = network.staged.prefix(0, 3)
    assert not any(parameter.requires_grad for parameter in prefix.parameters())
    assert prefix.get_submodule("layer1.0.conv1") is network.module.get_submodule("layer1.0.conv1")


def test_a_suffix_made_after_a_prefix_of_the_same_stages_trains_them():
    staged = build().staged
    staged.prefix(0, 5)
    assert all(parameter.requires_grad for parameter in staged.suffix(0).parameters())


def test_training_a_suffix_leaves_the_network_and_other_suffixes_alone():
    network = build()
    suffix, other = network.staged.suffix(2), network.staged.suffix(2)
    before = digest(network.module), digest(other)
    tap = network.staged.prefix(0, 2)(images())
    suffix.train()
    suffix(tap).sum().backward()
    torch.optim.SGD(suffix.parameters(), 0.1).step()
    assert digest(suffix) != before[1]
    assert (digest(network.module), digest(other)) == before


def test_the_modes_of_a_suffix_switch_all_that_differs_between_them():
    suffix, batch = StagedNetwork(Noisy()).suffix(0), images(8)
    statistics = suffix.get_buffer("norm.running_mean").clone()
    assert torch.equal(suffix(batch), suffix(batch))
    suffix.train()
    assert not torch.equal(suffix(batch), suffix(batch))
    assert not torch.equal(suffix.get_buffer("norm.running_mean"), statistics)
    suffix.eval()
    assert torch.equal(suffix(batch), suffix(batch))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "swin_t"])
def test_stochastic_depth_is_active_in_training_alone(name: str):
    suffix, batch = build(name).staged.suffix(0), images(32, number=8)
    with torch.no_grad():
        suffix.train()
        assert not torch.equal(suffix(batch), suffix(batch))
        suffix.eval()
        assert torch.equal(suffix(batch), suffix(batch))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_gradients_and_statistics_of_the_longest_suffix_are_the_networks_own(name: str):
    network, batch = build(name), images()
    suffix, whole = network.staged.suffix(0).train(), copy.deepcopy(network.module).train()
    suffix(batch).square().sum().backward()
    whole(batch).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    assert gradients.keys() == dict(suffix.named_parameters()).keys()
    for parameter_name, parameter in suffix.named_parameters():
        gradient = gradients[parameter_name]
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient), parameter_name
    assert digest(suffix) == digest(whole)


class Idle(nn.Module):
    """A network with a layer that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.idle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x))


def test_a_layer_that_is_never_used_is_kept_but_wants_no_gradient():
    staged = StagedNetwork(Idle())
    suffix = staged.suffix(0)
    assert suffix.state_dict().keys() == Idle().state_dict().keys()
    assert {n for n, p in suffix.named_parameters() if not p.requires_grad} == {"idle.weight", "idle.bias"}


class BufferUser(nn.Module):
    """A network that reads its own buffers, kept and not kept, and makes a constant of nothing."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x) * self.scale.abs() + self.shift + torch.arange(4.0))


def test_buffers_and_constants_travel_with_their_part():
    network = BufferUser()
    staged, batch = StagedNetwork(network), torch.randn(3, 4)
    suffix = staged.suffix(0)
    assert torch.equal(suffix(batch), network(batch))
    assert suffix.state_dict().keys() == network.state_dict().keys()
    assert all(tensor.is_meta for tensor in suffix.to("meta").buffers())
    network.scale.fill_(3.0)
    assert torch.equal(staged.suffix(0)(batch), network(batch))


def test_a_copy_of_a_suffix_is_its_equal_and_independent():
    staged = build().staged
    suffix, tap = staged.suffix(3), staged.prefix(0, 3)(images())
    twin = copy.deepcopy(suffix)
    assert torch.equal(twin(tap), suffix(tap))
    twin.train()(tap)
    assert not suffix.training
    assert digest(twin) != digest(suffix)


def test_a_suffix_trains_under_torch_compile_in_both_modes():
    suffix, batch = StagedNetwork(Noisy()).suffix(1), torch.randn(2, 8, 6, 6)
    compiled = torch.compile(suffix, backend="aot_eager")
    assert torch.allclose(compiled(batch), suffix(batch))
    suffix.train()
    assert not torch.equal(compiled(batch), compiled(batch))
    compiled(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in suffix.parameters())
    suffix.eval()
    assert torch.equal(compiled(batch), compiled(batch))


def test_a_suffix_trains_under_distributed_data_parallel():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        network = build()
        suffix, tap = network.staged.suffix(2), network.staged.prefix(0, 2)(images())
        alone = copy.deepcopy(suffix).train()
        wrapped = DistributedDataParallel(suffix).train()
        for module in (wrapped, alone):
            module(tap).square().sum().backward()
        gradients = zip(suffix.parameters(), alone.parameters(), strict=True)
        assert all(a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad) for a, b in gradients)
    finally:
        distributed.destroy_process_group()
