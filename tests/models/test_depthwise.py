"""Fast depthwise convolutions: the values of torch's own, and gradients as good."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tltrain.models.depthwise import DepthwiseConv2d, is_depthwise, use_fast_depthwise
from tltrain.models.zoo import build_network
from tltrain.spec.schema import ModelSpec


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("side", "kernel", "stride", "bias"), [(2, 3, 1, False), (4, 5, 2, True), (9, 3, 1, False)])
def test_values_are_torchs_and_gradients_are_right(
    side: int, kernel: int, stride: int, bias: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=16, bias=bias)
    fast = DepthwiseConv2d.of(plain)
    images = torch.randn(8, 16, side, side).contiguous(memory_format=layout).requires_grad_()
    expected, result = plain(images), fast(images)
    assert torch.equal(expected, result)
    upstream = torch.randn_like(expected)
    wanted = [images, *plain.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(result, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    fast = DepthwiseConv2d.of(nn.Conv2d(3, 3, 3, 1, 1, groups=3, dtype=torch.float64))
    assert torch.autograd.gradcheck(fast, torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True))


def test_layers_are_replaced_with_parameters_and_names_as_they_are() -> None:
    network = build_network(ModelSpec(name="mobilenet_v3_small", weights="random"), 10, seed=0).module
    before = network.state_dict()
    count = sum(map(is_depthwise, network.modules()))
    use_fast_depthwise(network)
    assert sum(isinstance(layer, DepthwiseConv2d) for layer in network.modules()) == count > 5
    after = network.state_dict()
    assert all(before[name].data_ptr() == after[name].data_ptr() for name in before)
    assert list(before) == list(after)


def test_other_convolutions_are_left_alone() -> None:
    others = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, dilation=2, groups=4))
    use_fast_depthwise(others)
    assert all(type(layer) is nn.Conv2d for layer in others)
