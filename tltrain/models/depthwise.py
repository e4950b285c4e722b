"""Depthwise convolutions of small maps, whose weight gradient torch computes slowly on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that gives the bits of nn.Conv2d, with a faster weight gradient where the map is small.

    Where the output is smaller than the kernel, oneDNN falls back to a kernel that takes 10 to 30 times as long as the
    rest of the layer. There the gradient is summed here, one position of the kernel at a time. Parameters have the
    same names.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> DepthwiseConv2d:
        """Return a layer with the parameters of `layer`, which has to be one that `is_depthwise`."""
        with torch.device("meta"):
            made = cls(
                layer.in_channels,
                layer.out_channels,
                (layer.kernel_size[0], layer.kernel_size[1]),
                (layer.stride[0], layer.stride[1]),
                (int(layer.padding[0]), int(layer.padding[1])),
                groups=layer.groups,
                bias=layer.bias is not None,
            )
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve float [B, C, H, W]."""
        if not self._is_slow(input):
            return super().forward(input)
        return _SmallMap.apply(input, self.weight, self.bias, self.stride, self.padding)

    def _is_slow(self, input: Tensor) -> bool:
        if input.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        sides = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        return any((side + 2 * int(pad) - kernel) // stride + 1 < kernel for side, kernel, stride, pad in sides)


class _SmallMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, bias, stride, padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        for_input = None
        if needs_input:
            for_input = conv2d_input(
                list(input.shape), weight, gradient, ctx.stride, ctx.padding, groups=weight.shape[0]
            )
        for_weight = _weight_gradient(input, weight, gradient, ctx.stride, ctx.padding) if needs_weight else None
        return for_input, for_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None, None


def _weight_gradient(
    input: Tensor, weight: Tensor, gradient: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return [C, 1, kh, kw]: for each position of the kernel the sum over batch and map of input times gradient."""
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((size - 1) * step + 1 for size, step in zip(gradient.shape[2:], stride, strict=True))
    result = torch.empty_like(weight)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            seen = padded[:, :, row : row + height : stride[0], column : column + width : stride[1]]
            result[:, 0, row, column] = (seen * gradient).sum((0, 2, 3))
    return result


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a depthwise convolution that `DepthwiseConv2d` can stand for."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def use_fast_depthwise(module: nn.Module) -> None:
    """Replace the depthwise convolutions in `module`; its parameters and their names stay."""
    found = [name for name, layer in module.named_modules() if is_depthwise(layer)]
    for name in found:
        parent, _, child = name.rpartition(".")
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        setattr(module.get_submodule(parent), child, DepthwiseConv2d.of(layer))
