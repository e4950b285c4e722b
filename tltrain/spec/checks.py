"""What settings must be to each other: names that exist, numbers that fit, parts that need another."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator

from tltrain.errors import Problem
from tltrain.spec.names import (
    HUGGINGFACE_PREFIX,
    PYTHON_PREFIX,
    TIMM_PREFIX,
    TORCHVISION_DATA_SETS,
    TORCHVISION_PREFIX,
    WEBDATASET_PREFIX,
    model_names,
    source_parts,
)
from tltrain.spec.schema import ElasticWorkers, Spec
from tltrain.spec.wording import nearest, printable
from tltrain.spec.yaml_text import parse_scalar

_EXAMPLES = {HUGGINGFACE_PREFIX: "huggingface:ylecun/mnist", WEBDATASET_PREFIX: "webdataset:shards/train-*.tar"}
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_Check = Callable[[Spec], Iterator[Problem]]
_CHECKS: list[tuple[tuple[str, ...], _Check]] = []


def _reads(*keys: str) -> Callable[[_Check], _Check]:
    """Register a check with the keys that it reads: it is left out where one of them is wrong already."""

    def register(check: _Check) -> _Check:
        _CHECKS.append((keys, check))
        return check

    return register


def check(spec: Spec, wrong: Iterable[str] = ()) -> list[Problem]:
    """Every problem between settings; `wrong` are keys whose values are stand-ins for faulty ones."""
    bad = tuple(wrong)
    found: list[Problem] = []
    for keys, function in _CHECKS:
        if not overlap(keys, bad):
            found += function(spec)
    return found


def overlap(keys: Iterable[str], others: Collection[str]) -> bool:
    """Whether one of `keys` is one of `others`, or holds it, or lies within it."""
    return any(_overlap(key, other) for key in keys for other in others)


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


@_reads("model.name")
def _model_exists(spec: Spec) -> Iterator[Problem]:
    name, known = spec.model.name, model_names()
    if name is None or not known or name in known or (name.startswith(TIMM_PREFIX) and name != TIMM_PREFIX):
        return
    close = nearest(name, known, count=3, cutoff=0.4) or ["resnet50", "vgg16", "efficientnet_lite0"]
    action = f"Nearest names: {', '.join(close)}. Others: timm/NAME, or model.factory"
    yield Problem(f"there is no model {printable(name)}", action, key="model.name")


@_reads("model.factory", "allow_code")
def _factory_is_allowed(spec: Spec) -> Iterator[Problem]:
    factory = spec.model.factory
    if factory is None:
        return
    if not _FACTORY.fullmatch(factory):
        what = f"{printable(factory)} is not package.module:function"
        yield Problem(what, "Write for example my_project.networks:build", key="model.factory")
    if not spec.allow_code:
        action = "If you trust it, write allow_code: true at the top level"
        yield Problem("the spec names Python code to run", action, key="model.factory")


@_reads("cache.views", "data.mixup", "data.cutmix")
def _views_are_not_mixed(spec: Spec) -> Iterator[Problem]:
    if spec.cache.views is not None and (spec.data.mixup or spec.data.cutmix):
        action = "Set data.mixup and data.cutmix to 0, or leave cache.views out"
        yield Problem("images that are mixed with others have no views of their own", action, key="cache.views")


@_reads("model.freeze_depth", "train.unfreeze")
def _depths_are_no_quoted_numbers(spec: Spec) -> Iterator[Problem]:
    depths = {"model.freeze_depth": spec.model.freeze_depth}
    phases = spec.train.unfreeze if isinstance(spec.train.unfreeze, list) else []
    if spec.train.unfreeze is not None and not isinstance(spec.train.unfreeze, list):
        depths["train.unfreeze.freeze_depth"] = spec.train.unfreeze.freeze_depth
    depths |= {f"train.unfreeze.{index}.freeze_depth": phase.freeze_depth for index, phase in enumerate(phases)}
    for key, depth in depths.items():
        yield from _quoted_number(key, depth, "Give a number of stages, a stage's name or all")


@_reads("data.train", "data.val", "data.test", "allow_code")
def _code_in_sources_is_allowed(spec: Spec) -> Iterator[Problem]:
    for part in ("train", "val", "test"):
        source, key = getattr(spec.data, part), f"data.{part}"
        if not isinstance(source, str) or not source.startswith(PYTHON_PREFIX):
            continue
        if not _FACTORY.fullmatch(source.removeprefix(PYTHON_PREFIX)):
            what = f"{printable(source)} is not python:package.module:function"
            yield Problem(what, "Write for example python:my_project.images:load", key=key)
        if not spec.allow_code:
            action = "If you trust it, write allow_code: true at the top level"
            yield Problem("the spec names Python code to run", action, key=key)


@_reads("data.train", "data.val", "data.test")
def _sources_are_named(spec: Spec) -> Iterator[Problem]:
    for part in ("train", "val", "test"):
        source, key = getattr(spec.data, part), f"data.{part}"
        yield from _quoted_number(key, source if part != "train" else None, "Give a source, a fraction or null")
        prefix, name, _ = source_parts(source) if isinstance(source, str) else ("", "", "")
        if prefix in (HUGGINGFACE_PREFIX, WEBDATASET_PREFIX) and not name.strip():
            yield Problem(f"nothing stands behind {prefix}", f"Write for example {_EXAMPLES[prefix]}", key=key)
        if prefix == TORCHVISION_PREFIX and name not in TORCHVISION_DATA_SETS:
            close = nearest(name, TORCHVISION_DATA_SETS, cutoff=0.5)
            guess = f"Did you mean torchvision:{close[0]}? " if close else ""
            action = f"{guess}Known: {', '.join(TORCHVISION_DATA_SETS)}"
            yield Problem(f"there is no data set torchvision:{printable(name)}", action, key=key)


@_reads("model.weights", "data.train", "data.root", "storage")
def _texts_are_not_empty(spec: Spec) -> Iterator[Problem]:
    texts = {
        "model.weights": spec.model.weights,
        "data.train": spec.data.train,
        "data.root": spec.data.root,
        "storage": spec.storage,
    }
    for key, text in texts.items():
        if not text.strip():
            yield Problem("the text is empty", "Give a value, or leave the key out", key=key)


def _quoted_number(key: str, value: object, otherwise: str) -> Iterator[Problem]:
    """Where a number or a text may stand, a number in quotes is read as a text that nobody meant."""
    if not isinstance(value, str):
        return
    if not value.strip():
        yield Problem("the text is empty", otherwise, key=key)
    elif isinstance(parse_scalar(value), (int, float)):
        yield Problem(f'"{printable(value)}" is text, not a number', "Take away the quotes", key=key)


@_reads("data.val", "data.test")
def _something_is_left_to_train_on(spec: Spec) -> Iterator[Problem]:
    fractions = [part for part in (spec.data.val, spec.data.test) if isinstance(part, float)]
    if len(fractions) == 2 and sum(fractions) >= 1:
        what = f"val ({fractions[0]}) and test ({fractions[1]}) together take all of train"
        yield Problem(what, "Their sum must be below 1", key="data.test")


@_reads("data.image_size", "data.resize_size")
def _crop_fits(spec: Spec) -> Iterator[Problem]:
    crop, resize = spec.data.image_size, spec.data.resize_size
    if crop is not None and resize is not None and resize < crop:
        what = f"{resize} is smaller than data.image_size, the {crop} pixels that are cropped from it"
        yield Problem(what, f"Give at least {crop}", key="data.resize_size")


@_reads("data.std")
def _std_divides(spec: Spec) -> Iterator[Problem]:
    if spec.data.std is not None and min(spec.data.std) <= 0:
        yield Problem("pixels cannot be divided by it", "Give numbers above 0", key="data.std")


@_reads("optim.name", "optim.nesterov", "optim.momentum")
def _nesterov_has_momentum(spec: Spec) -> Iterator[Problem]:
    if spec.optim.nesterov and spec.optim.name == "sgd" and spec.optim.momentum == 0:
        action = "Give optim.momentum, for example 0.9, or write nesterov: false"
        yield Problem("Nesterov momentum needs a momentum above 0", action, key="optim.nesterov")


@_reads("optim.warmup_epochs", "train.epochs")
def _warmup_ends(spec: Spec) -> Iterator[Problem]:
    warmup, epochs = spec.optim.warmup_epochs, spec.train.epochs
    if warmup > epochs:
        what = f"a warm-up of {warmup:g} epochs is longer than the training ({epochs})"
        yield Problem(what, "Shorten it, or raise train.epochs", key="optim.warmup_epochs")


@_reads("train.unfreeze", "train.epochs", "model.freeze_depth")
def _phases_follow_each_other(spec: Spec) -> Iterator[Problem]:
    given = spec.train.unfreeze or []
    keys = {id(phase): f"train.unfreeze.{i}" for i, phase in enumerate(given)} if isinstance(given, list) else {}
    depth, before = spec.model.freeze_depth, -1
    for phase in spec.train.unfreeze_phases:
        key = keys.get(id(phase), "train.unfreeze")
        if phase.at_epoch >= spec.train.epochs:
            what = f"the phase begins at epoch {phase.at_epoch}, but the last one is {spec.train.epochs - 1}"
            yield Problem(what, "Begin earlier, or raise train.epochs", key=f"{key}.at_epoch")
        if phase.at_epoch == before:
            what = f"two phases begin at epoch {before}"
            yield Problem(what, "Keep one of them", key=f"{key}.at_epoch")
        if isinstance(phase.freeze_depth, int) and isinstance(depth, int) and phase.freeze_depth >= depth:
            what = f"{phase.freeze_depth} frozen stages are not fewer than the {depth} before"
            yield Problem(what, f"Give a number below {depth}", key=f"{key}.freeze_depth")
        depth, before = phase.freeze_depth, phase.at_epoch


@_reads("train.batch_size", "train.accumulation_steps", "resources.num_workers")
def _batch_is_shared_out(spec: Spec) -> Iterator[Problem]:
    workers, steps = spec.resources.num_workers, spec.train.accumulation_steps
    most = workers.max if isinstance(workers, ElasticWorkers) else workers
    if spec.train.batch_size != "auto" and spec.train.batch_size < most * steps:
        parts = f"{most} workers" + (f" x {steps} accumulation steps" if steps > 1 else "")
        what = f"a batch of {spec.train.batch_size} cannot be shared out to {parts}"
        yield Problem(what, f"Give at least {most * steps}, or lower the others", key="train.batch_size")


@_reads("checkpoint.every_epochs", "checkpoint.every_steps")
def _checkpoints_are_written(spec: Spec) -> Iterator[Problem]:
    if spec.checkpoint.every_epochs is None and spec.checkpoint.every_steps is None:
        what = "every_epochs and every_steps are both null, so nothing could be resumed"
        yield Problem(what, "Give one of them", key="checkpoint.every_epochs")


@_reads("train.early_stopping", "data.val")
def _stopping_has_validation(spec: Spec) -> Iterator[Problem]:
    if spec.train.early_stopping is not None and not has_validation(spec):
        action = "Give data.val, for example 0.1, or write early_stopping: null"
        yield Problem("early stopping needs validation images", action, key="train.early_stopping")


def has_validation(spec: Spec) -> bool:
    """Whether there is a validation set."""
    return spec.data.val is not None and spec.data.val != 0
