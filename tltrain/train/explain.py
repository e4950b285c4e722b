"""What a spec would do, worked out without training: data counts, stages, what is frozen, costs and rates."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tltrain.data.loader import steps_per_epoch
from tltrain.data.splits import Skipped, Splits, load_splits
from tltrain.data.transforms import resolve_preprocessing
from tltrain.errors import TltrainError
from tltrain.models.zoo import Network, build_network, check_image_size
from tltrain.spec.schema import Spec


@dataclass(frozen=True)
class StageReport:
    """One stage: its parameters, whether it trains, at which peak rate, and its share of the forward cost."""

    name: str
    parameters: int
    trained: bool
    learning_rate: float | None
    batchnorm: str
    forward_share: float
    trained_from_epoch: int | None = None


@dataclass(frozen=True)
class Explanation:
    """A spec worked out."""

    classes: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    steps_per_epoch: int
    image_size: int
    data_fingerprint: str
    """sha256 over the names, sizes and labels of all images."""
    stages: tuple[StageReport, ...]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def trained_parameters(self) -> int:
        """Parameters that train from the first epoch."""
        return sum(stage.parameters for stage in self.stages if stage.trained)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        totals = {"parameters": self.parameters, "trained_parameters": self.trained_parameters}
        return {**asdict(self), "classes": list(self.classes), **totals}


def explain(spec: Spec) -> Explanation:
    """Work `spec` out: reads the data's labels and builds the network, without its pretrained weights.

    Raises DataError and SpecError with every problem that can be found before training.
    """
    splits, network = check(spec)
    staged = network.staged
    preprocessing = resolve_preprocessing(spec.data, network.preprocessing)
    depth = staged.resolve_depth(spec.model.freeze_depth)
    shares = forward_shares(network, preprocessing.crop_size)
    stages = tuple(_stage_report(spec, network, index, depth, share) for index, share in enumerate(shares))
    return Explanation(
        classes=splits.classes,
        num_train=len(splits.train),
        num_val=len(splits.val) if splits.val else 0,
        num_test=len(splits.test) if splits.test else 0,
        steps_per_epoch=steps_per_epoch(len(splits.train), spec.train.images_per_step),
        image_size=preprocessing.crop_size,
        data_fingerprint=splits.fingerprint,
        stages=stages,
        notes=(*network.notes, *splits.warnings, *_size_notes(spec, len(splits.train))),
    )


def _size_notes(spec: Spec, num_images: int) -> list[str]:
    if num_images >= spec.train.images_per_step:
        return []
    return [f"{num_images} training images are fewer than a batch of {spec.train.images_per_step}: one step per epoch"]


def check(spec: Spec, skipped: Skipped | None = None) -> tuple[Splits, Network]:
    """Load the splits and build the network with random weights. Raises what is wrong with either, together.

    skipped: images that are left out.
    """
    problems: list[TltrainError] = []
    splits, network = None, None
    try:
        splits = load_splits(spec.data, spec.seed, allow_code=spec.allow_code, skipped=skipped)
    except TltrainError as error:
        problems.append(error)
    model = spec.model.model_copy(update={"weights": "random"})
    try:
        network = build_network(model, len(splits.classes) if splits else 2, seed=spec.seed, allow_code=spec.allow_code)
        for setting in (
            spec.model.freeze_depth,
            *(phase.freeze_depth for phase in spec.train.unfreeze_phases),
        ):
            network.staged.resolve_depth(setting)
        check_image_size(network, resolve_preprocessing(spec.data, network.preprocessing).crop_size)
    except TltrainError as error:
        problems.append(error)
    if problems:
        raise type(problems[0])([problem for error in problems for problem in error.problems])
    assert splits is not None
    assert network is not None
    return splits, network


def forward_shares(network: Network, image_size: int) -> list[float]:
    """Return each stage's share of one forward pass's floating-point operations, on images of `image_size` pixels.

    Counted on meta tensors, so nothing is computed; the network's weights are gone afterwards.
    """
    network.module.to("meta")
    value, counts = torch.zeros(1, 3, image_size, image_size, device="meta"), []
    staged = network.staged
    last = len(staged.stages) - 1
    for index in range(last):
        value, count = _counted(staged.prefix(index, index + 1), value)
        counts.append(count)
    counts.append(_counted(staged.suffix(last).eval(), value)[1])
    total = sum(counts) or 1
    return [count / total for count in counts]


@torch.no_grad()
def _counted(module: nn.Module, value: Tensor) -> tuple[Tensor, int]:
    with FlopCounterMode(display=False) as counter:
        output = module(value)
    return output, counter.get_total_flops()


def _stage_report(spec: Spec, network: Network, index: int, depth: int, share: float) -> StageReport:
    staged = network.staged
    stage, is_trained = staged.stages[index], index >= depth
    scale = spec.optim.layer_decay ** (len(staged.stages) - 1 - index)
    phases = [
        phase.at_epoch
        for phase in spec.train.unfreeze_phases
        if not is_trained and index >= staged.resolve_depth(phase.freeze_depth)
    ]
    return StageReport(
        name=stage.name,
        parameters=stage.num_parameters,
        trained=is_trained,
        learning_rate=spec.optim.learning_rate * scale if is_trained else None,
        batchnorm=_batchnorm_mode(network, index, is_trained),
        forward_share=share,
        trained_from_epoch=min(phases) + 1 if phases else None,
    )


def _batchnorm_mode(network: Network, index: int, is_trained: bool) -> str:
    kinds = Counter(
        network.staged.stage_of(f"{name}.running_mean")
        for name, module in network.module.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    )
    if not kinds[index]:
        return "none"
    return "batch statistics" if is_trained else "stored statistics"
