"""The spec: every setting, its type, its default and its meaning. Defaults stand here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tltrain.errors import Problem, SpecError

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
SPEC_VERSION = 1

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
FreezeDepth = Annotated[int, Field(ge=0)] | str
Bounds = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
Triple = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class Section(BaseModel):
    """Base of all parts of a spec: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ModelSpec(Section):
    """The pretrained network and how much of it stays frozen."""

    name: str | None = None
    """A torchvision classifier (`resnet50`), `efficientnet_lite0`, or `timm/NAME` with the timm extra."""
    factory: str | None = None
    """`package.module:function` that builds your own network; needs `allow_code: true`. Instead of `name`."""
    weights: str = "default"
    """`default`, a torchvision weight name, `random`, a path or URL of a state dict, or an earlier run's folder."""
    freeze_depth: FreezeDepth = "all"
    """How many stages are frozen: a number, a stage's name (frozen up to and including it), or `all` but the head."""
    batchnorm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    """Momentum of the running statistics in trained BatchNorm layers; null keeps the network's own."""

    @model_validator(mode="after")
    def _name_or_factory(self) -> ModelSpec:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give exactly one of model.name and model.factory")
        return self


class DataSpec(Section):
    """Where the images come from and how they are prepared."""

    train: str
    """A folder with one folder per class or of Parquet files, a Parquet or Arrow file, a CSV of paths and labels,
    WebDataset shards (`webdataset:PATTERN`), `torchvision:NAME`, `huggingface:PATH_OR_NAME` or `python:module:name`."""
    val: Fraction | str | None = 0.1
    """A fraction of `train` (stratified, seeded), another source, or null for none."""
    test: Fraction | str | None = None
    """A source never seen in training, a fraction of `train`, or null for none."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the fractions drawn from `train`; null takes the run's `seed`."""
    root: str = "~/.cache/tltrain/data"
    """Folder in which data sets of torchvision and Hugging Face are kept, and copies of large Parquet folders."""
    download: bool = True
    """Whether data sets of torchvision and Hugging Face may be downloaded into `root`."""
    image_column: str | None = None
    """Column of a table with image bytes or paths; null takes `image`, `path` or `file_name`."""
    label_column: str = "label"
    """Column of a table, or key in a WebDataset sample's JSON, with the class names or numbers."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of the square images the network sees, in pixels; null takes the weights' own."""
    resize_size: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Shorter side before the centre crop, in pixels; null keeps the weights' proportion to `image_size`."""
    mean: Triple | None = None
    """Mean per channel subtracted from pixels in 0..1; null takes the weights' own."""
    std: Triple | None = None
    """Standard deviation per channel; null takes the weights' own."""
    augment: Literal["none", "basic", "randaugment", "trivialaugment"] = "none"
    """Random changes of training images: `basic` is a random crop and a horizontal flip."""
    mixup: NonNegative = 0.0
    """Alpha of mixup's Beta distribution; 0 turns it off."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix's Beta distribution; 0 turns it off."""
    num_loader_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Decoding processes per training worker; `auto` takes its share of the CPUs."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What becomes of an image that cannot be used: it ends the run (`fail`), or it is left out and listed (`skip`)."""
    max_bad_fraction: Fraction = 0.05
    """Largest share of a source's images that may be left out (`on_bad_image: skip`); above it the run ends."""
    thumbnails: Annotated[int, Field(ge=0, le=200)] = 24
    """Test images of each kind (surest mistakes, least certain) that are kept small for the report; 0 keeps none."""


class OptimSpec(Section):
    """The optimiser and the learning-rate schedule."""

    name: Literal["sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad"] = "sgd"
    """An optimiser of torch.optim."""
    learning_rate: Positive = 0.01
    """Peak learning rate of the head."""
    momentum: Fraction = 0.9
    """Momentum of sgd and rmsprop."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay rates of the moments (adam, adamw, nadam, radam, adamax)."""
    weight_decay: NonNegative = 0.0
    """Weight decay of trained parameters; frozen ones never decay."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to biases and normalisation layers."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    """How the learning rate changes after the warm-up."""
    warmup_epochs: NonNegative = 0.0
    """Epochs in which the rate rises linearly from near zero (one_cycle: length of its rising part, 0 means 30 %)."""
    step_epochs: Count = 10
    """Epochs between two drops (schedule step)."""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What the rate is multiplied by at each drop (schedule step)."""
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the peak rate that is left at the end (cosine, one_cycle)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the rate per stage below the head: stage s of S trains at rate * layer_decay ** (S - 1 - s)."""


class UnfreezeSpec(Section):
    """A later phase in which more stages are trained."""

    at_epoch: Count
    """First epoch of the phase, counted from 0."""
    freeze_depth: FreezeDepth
    """Stages still frozen from then on; fewer than before."""
    learning_rate_factor: Positive = 1.0
    """What all learning rates are multiplied by from then on."""


class EarlyStoppingSpec(Section):
    """When to stop because validation no longer improves."""

    patience: Count = 3
    """Epochs without improvement before training stops."""
    min_delta: NonNegative = 0.0
    """The smallest change of `train.best_metric` that counts as an improvement."""


class TrainSpec(Section):
    """The training loop."""

    epochs: Count = 5
    """Passes over the training images."""
    batch_size: Count | Literal["auto"] = 64
    """Images per optimiser step, over all workers and accumulation steps together; `auto` finds the most that fit."""
    accumulation_steps: Count = 1
    """Parts in which each worker computes its share of a batch, to save memory."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass (autocast); fp16 uses a gradient scaler."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the cross-entropy."""
    class_weights: Literal["none", "balanced"] | dict[str, NonNegative] = "none"
    """Weights of the classes in the loss: `balanced` is inverse frequency (mean 1), or a number per class name."""
    clip_grad_norm: Positive | None = None
    """Largest norm of a lane's gradient; null does not clip."""
    ema_decay: Fraction | None = None
    """Decay per step of an exponential moving average of the weights, which is then what is evaluated and kept."""
    early_stopping: EarlyStoppingSpec | None = None
    """Stop when validation no longer improves; null trains all epochs."""
    unfreeze: UnfreezeSpec | list[UnfreezeSpec] | None = None
    """Later phases in which more stages are trained."""
    best_metric: Literal["top1", "loss"] = "top1"
    """Validation metric that decides which checkpoint is the best."""
    channels_last: bool = True
    """Memory format of convolutions; faster on most CPUs and GPUs."""
    compile: bool = False
    """Compile the trained layers with torch.compile."""
    deterministic: bool = False
    """Ask for deterministic algorithms on GPUs too (slower). CPU runs are deterministic anyway."""

    @property
    def images_per_step(self) -> int:
        """`batch_size` as a number. Raises SpecError where it is `auto`, which every run settles before it begins."""
        if self.batch_size == "auto":
            raise SpecError(Problem("auto stands for no number here", "Give one", key="train.batch_size"))
        return self.batch_size

    @property
    def unfreeze_phases(self) -> list[UnfreezeSpec]:
        """The later phases in order of their first epoch."""
        phases = self.unfreeze or []
        return sorted(phases if isinstance(phases, list) else [phases], key=lambda phase: phase.at_epoch)


class ElasticWorkers(Section):
    """A number of workers that may change while a run goes on."""

    min: Count
    """Fewest workers that training goes on with."""
    max: Count
    """Most workers that are used."""

    @model_validator(mode="after")
    def _ordered(self) -> ElasticWorkers:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        return self


class ResourcesSpec(Section):
    """What each run takes of the cluster."""

    num_workers: Count | ElasticWorkers = 1
    """Training processes (DistributedDataParallel ranks): a number, or `{min, max}` to follow the cluster."""
    gpus_per_worker: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of each worker; `auto` is 1 where the cluster has GPUs and 0 otherwise."""
    cpus_per_worker: Count = 1
    """CPU cores of each worker."""
    placement: Literal["pack", "spread"] = "pack"
    """Whether workers share as few nodes as possible or spread over as many as possible."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of the worker group after lost workers or nodes. Errors of the user or the data are never retried."""
    wait_s: NonNegative = 0.0
    """Seconds to wait for nodes that an autoscaler adds before the request is refused."""
    queue_timeout_s: NonNegative = 86_400.0
    """Seconds to wait for room that the cluster has and others use, before the run ends."""
    collective_timeout_s: Positive = 300.0
    """Seconds after which a collective that some worker never joins fails the attempt."""
    loader_timeout_s: Positive = 240.0
    """Seconds without an image, from a worker's loader processes or read by itself, after which the attempt fails."""


class CheckpointSpec(Section):
    """When checkpoints are written and how many stay."""

    every_epochs: Count | None = 1
    """Epochs between two checkpoints; null leaves them to `every_steps`. The last epoch always has one."""
    every_steps: Count | None = None
    """Optimiser steps between two checkpoints; null leaves them to `every_epochs`."""
    keep: Count = 2
    """Newest checkpoints that are kept. The best one is always kept besides."""


class Domain(Section):
    """What values a searched key takes: exactly one of these."""

    grid: Annotated[list[Any], Field(min_length=1, max_length=1000)] | None = None
    """Each of these values with each of every other grid."""
    choice: Annotated[list[Any], Field(min_length=1, max_length=1000)] | None = None
    """One of these values, drawn evenly."""
    uniform: Bounds | None = None
    """A number between two bounds."""
    loguniform: Bounds | None = None
    """A number between two positive bounds, its logarithm drawn evenly."""
    quniform: Triple | None = None
    """A multiple of the third number between the first two."""
    randint: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """A whole number from the first bound up to, but not including, the second."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Domain:
        if sum(values is not None for values in self.__dict__.values()) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """Which of the keys is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def values(self) -> list[Any]:
        """What is listed: the values of a grid or a choice, the bounds (and the step) of the others."""
        return getattr(self, self.kind)


class ConfirmSpec(Section):
    """Train the best trials again over several seeds before one of them is called the winner."""

    top: Count = 3
    """How many of the best trials."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """How many seeds each, the sweep's own among them."""


class SweepSpec(Section):
    """A search over settings of the spec."""

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """Dotted key of the spec (`optim.learning_rate`) -> the values it takes."""
    num_trials: Count | None = None
    """How many trials; null runs the whole grid once."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """How values are chosen: all of the grid, at random, or by Optuna from the results so far."""
    scheduler: Literal["fifo", "asha", "median", "hyperband", "pbt", "pb2"] = "fifo"
    """What stops or changes trials early: nothing (fifo), or a scheduler of Ray Tune."""
    grace_epochs: Count = 1
    """Epochs before a scheduler may stop a trial."""
    metric: Literal["val_top1", "val_loss", "val_top5"] = "val_top1"
    """Metric that trials are compared by."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less of it is better; null takes what suits the metric."""
    max_concurrent: Count | None = None
    """Most trials that Ray Tune follows at a time; null follows all that the machine can."""
    time_budget_s: Positive | None = None
    """Seconds after which no more trials are started and running ones end."""
    isolation: Literal["lanes", "process"] = "lanes"
    """`lanes` share decoding and frozen stages on common workers; `process` gives each trial workers of its own."""
    confirm: ConfirmSpec | None = None
    """Train the best trials again over several seeds; null picks the best single result."""

    @property
    def better(self) -> Literal["max", "min"]:
        """Whether more or less of the metric is better."""
        return self.mode or ("min" if self.metric == "val_loss" else "max")


class CacheSpec(Section):
    """Keeping what the frozen stages give, where it is the same in every epoch and trial."""

    budget_gb: NonNegative = 4.0
    """Most gigabytes (10^9 bytes) that each node keeps; 0 keeps nothing."""
    dir: str | None = None
    """Folder for memory-mapped files, which later sweeps use again; null keeps it in memory."""
    views: Count | None = None
    """With `data.augment`: how many random views of each image there are, taken in turn by the epochs; null draws anew
    in every epoch, so that nothing can be kept."""


class Spec(Section):
    """One fine-tuning run, or a sweep of them."""

    version: Annotated[int, Field(ge=1)] = SPEC_VERSION
    """Version of the spec's format."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Name of the run and of its folder: lower-case letters, digits and hyphens."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the split, the order, the augmentation, the new head and dropout."""
    allow_code: bool = False
    """Whether the spec may name Python code of yours to run (`model.factory`, `data.train: python:...`)."""
    model: ModelSpec
    """The pretrained network and how much of it stays frozen."""
    data: DataSpec
    """Where the images come from and how they are prepared."""
    optim: OptimSpec = OptimSpec()
    """The optimiser and the learning-rate schedule."""
    train: TrainSpec = TrainSpec()
    """The training loop."""
    resources: ResourcesSpec = ResourcesSpec()
    """What the run takes of the cluster."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When checkpoints are written and how many stay."""
    sweep: SweepSpec | None = None
    """A search over settings; null trains once."""
    cache: CacheSpec = CacheSpec()
    """What is kept of the frozen stages' work."""
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Experiment trackers that are told of the run; `mlflow` and `wandb` are extras, set up by their own variables."""
    storage: str = "runs"
    """Folder or `s3://`, `gs://`, ... address under which the run's folder stands."""
