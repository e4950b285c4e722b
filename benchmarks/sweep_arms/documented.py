"""Arm A: Ray Tune with a TorchTrainer in every trial, the way Ray's documentation shows it.

    PYTHONPATH=benchmarks python -m sweep_arms.documented SPEC

Each trial starts a worker group of its own, which decodes the images in every epoch. One worker with one core
per trial, as many trials at once as there are cores. A trial's driver takes a custom resource instead of a core,
for with cores on both sides the drivers could hold all of them and wait for their own workers forever.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
import torch
from ray import train, tune
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from ray.tune.integration.ray_train import TuneReportCallback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from tltrain.data.decode import decode
from tltrain.data.splits import Split
from tltrain.data.transforms import evaluation_transform

from .common import (
    FREEZE_DEPTH,
    LEARNING_RATE,
    Sweep,
    Values,
    build,
    evaluate,
    freeze,
    make_optimizer,
    make_row,
    make_schedule,
    open_data,
    prepare,
    read_sweep,
    set_train_mode,
    train_epoch,
    write_table,
)
from .tune_results import read_curves


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images decoded, resized and normalised when asked for: float32 [3, H, W] and the class's number."""

    def __init__(self, split: Split, sweep: Sweep) -> None:
        preprocessing = prepare(sweep)
        self._split = split
        self._transform = v2.Compose(
            [
                evaluation_transform(preprocessing),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = decode(self._split.read(index), self._split.identity(index))
        return self._transform(image), int(self._split.labels[index])


def train_fn_per_worker(config: dict[str, Any]) -> None:
    """Train one trial on one worker, and report every epoch."""
    sweep: Sweep = config["sweep"]
    values: Values = config["values"]
    train_split, val_split, num_classes = open_data(sweep)
    network = build(num_classes, sweep.seed)
    frozen = freeze(network, values[FREEZE_DEPTH])
    model = prepare_model(network)
    train_set, val_set = ImageDataset(train_split, sweep), ImageDataset(val_split, sweep)
    # What shuffle=True comes to on several workers; on one, it makes the order that of the other arms.
    sampler = DistributedSampler(train_set, seed=sweep.seed)
    train_loader = prepare_data_loader(DataLoader(train_set, batch_size=sweep.batch_size, sampler=sampler))
    val_loader = prepare_data_loader(DataLoader(val_set, batch_size=sweep.batch_size))
    optimizer = make_optimizer(network, values[LEARNING_RATE], sweep)
    schedule = make_schedule(optimizer, len(train_set), sweep)
    for epoch in range(sweep.epochs):
        sampler.set_epoch(epoch)
        set_train_mode(network, frozen)
        train_loss = train_epoch(model, train_loader, schedule, seed=sweep.seed, epoch=epoch)
        network.eval()
        train.report(make_row(epoch + 1, train_loss, evaluate(model, val_loader)))


def train_driver_fn(config: Values, sweep: Sweep) -> None:
    """Run one trial: a TorchTrainer of its own."""
    trainer = TorchTrainer(
        train_fn_per_worker,
        train_loop_config={"sweep": sweep, "values": config},
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(
            name=f"train-trial_id={tune.get_context().get_trial_id()}",
            storage_path=str(sweep.folder.resolve()),
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def main() -> None:
    """Run the sweep."""
    sweep = read_sweep(sys.argv[1])
    num_concurrent = os.cpu_count() or 1
    ray.init(address="local", resources={"trial": num_concurrent})
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_driver_fn, sweep=sweep), {"trial": 1}),
        param_space={key: tune.grid_search(values) for key, values in sweep.space.items()},
        tune_config=tune.TuneConfig(metric="val_top1", mode="max", max_concurrent_trials=num_concurrent),
        run_config=tune.RunConfig(name="tune", storage_path=str(sweep.folder.resolve())),
    )
    write_table(sweep, read_curves(tuner.fit()))


if __name__ == "__main__":
    main()
