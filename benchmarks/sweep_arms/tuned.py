"""Arm B: Ray Tune as a good engineer tunes it by hand, one trial per core at a time.

    PYTHONPATH=benchmarks python -m sweep_arms.tuned SPEC

Actors are reused, so a process and its network are made once per core. There is no worker group inside a trial.
Images are decoded once and shared through Ray's object store. The frozen stages run without autograd, and the
convolutions run channels last.
"""

from __future__ import annotations

import copy
import logging
import os
import sys

# Read by Ray when it is first imported: no boxes on the terminal.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from torch import Tensor, nn

from .common import (
    FREEZE_DEPTH,
    LEARNING_RATE,
    Images,
    Row,
    Sweep,
    Values,
    build,
    decode_all,
    evaluate,
    freeze,
    make_optimizer,
    make_row,
    make_schedule,
    normalised,
    prepare,
    read_sweep,
    stages,
    train_batches,
    train_epoch,
    val_batches,
    write_table,
)
from .tune_results import read_curves


class FineTune(tune.Trainable):
    """One trial after another; a step is an epoch."""

    # tune.with_parameters adds arguments of its own to those of the base class.
    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, config: Values, sweep: Sweep, images: Images
    ) -> None:
        """Build the network once; `images` is read from shared memory."""
        self.sweep, self.images = sweep, images
        self.preprocessing = prepare(sweep)
        self.network = build(images.num_classes, sweep.seed).to(memory_format=torch.channels_last)
        self.pretrained = copy.deepcopy(self.network.state_dict())
        self._start(config)

    def reset_config(self, new_config: Values) -> bool:
        """Begin another trial in this process."""
        self.network.load_state_dict(self.pretrained)
        self._start(new_config)
        return True

    def _start(self, values: Values) -> None:
        frozen = freeze(self.network, values[FREEZE_DEPTH])
        self.prefix = nn.Sequential(*frozen).eval()
        self.suffix = nn.Sequential(*stages(self.network)[len(frozen) :])
        optimizer = make_optimizer(self.network, values[LEARNING_RATE], self.sweep)
        self.schedule = make_schedule(optimizer, len(self.images.train_labels), self.sweep)
        self.epoch = 0

    def _forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            tap = self.prefix(images)
        return self.suffix(tap)

    def step(self) -> Row:
        """Train and validate one epoch."""
        self.suffix.train()
        batches = normalised(train_batches(self.images, self.sweep, self.epoch), self.preprocessing)
        train_loss = train_epoch(self._forward, batches, self.schedule, seed=self.sweep.seed, epoch=self.epoch)
        self.suffix.eval()
        validation = evaluate(self._forward, normalised(val_batches(self.images, self.sweep), self.preprocessing))
        self.epoch += 1
        return make_row(self.epoch, train_loss, validation)


def make_scheduler(sweep: Sweep) -> TrialScheduler:
    """Return Tune's scheduler, with its own defaults."""
    return AsyncHyperBandScheduler(max_t=sweep.epochs) if sweep.scheduler == "asha" else FIFOScheduler()


def make_tuner(sweep: Sweep, images: Images) -> tune.Tuner:
    """Return the tuner of the whole grid."""
    trainable = tune.with_parameters(FineTune, sweep=sweep, images=images)
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={key: tune.grid_search(values) for key, values in sweep.space.items()},
        tune_config=tune.TuneConfig(metric="val_top1", mode="max", scheduler=make_scheduler(sweep), reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(sweep.folder.resolve()),
            stop={"training_iteration": sweep.epochs},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def main() -> None:
    """Run the sweep."""
    sweep = read_sweep(sys.argv[1])
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    write_table(sweep, read_curves(make_tuner(sweep, decode_all(sweep)).fit()))


if __name__ == "__main__":
    main()
