"""Settings that were given but have no effect beside the others: worth a warning, not an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from tltrain.errors import Problem
from tltrain.spec.checks import has_validation
from tltrain.spec.domains import samples, try_value
from tltrain.spec.keys import SPACE
from tltrain.spec.names import (
    ARCHIVE_SUFFIX,
    HUGGINGFACE_PREFIX,
    TABLE_SUFFIXES,
    TORCHVISION_PREFIX,
    WEBDATASET_PREFIX,
)
from tltrain.spec.schema import Spec
from tltrain.spec.yaml_text import dotted

_ADAMS = ("adam", "adamw", "nadam", "radam", "adamax")


class _Rule(NamedTuple):
    """`key` has no effect where `unused` holds, for the reason given."""

    key: str
    unused: Callable[[Spec], bool]
    reason: str


def _sources(spec: Spec) -> list[str]:
    return [text for text in (spec.data.train, spec.data.val, spec.data.test) if isinstance(text, str)]


def _no_tables(spec: Spec) -> bool:
    return not any(
        text.partition("?")[0].lower().endswith(TABLE_SUFFIXES) or text.startswith(HUGGINGFACE_PREFIX)
        for text in _sources(spec)
    )


def _no_labels(spec: Spec) -> bool:
    is_archive = (WEBDATASET_PREFIX in text or text.endswith(ARCHIVE_SUFFIX) for text in _sources(spec))
    return _no_tables(spec) and not any(is_archive)


def _root_unused(spec: Spec) -> bool:
    """Data sets are kept there, and copies of Parquet folders, which may be any folder."""
    is_file = (text.partition("?")[0].lower().endswith((*TABLE_SUFFIXES, ARCHIVE_SUFFIX)) for text in _sources(spec))
    return all(is_file)


def _nothing_fetched(spec: Spec) -> bool:
    return not any(text.startswith((TORCHVISION_PREFIX, HUGGINGFACE_PREFIX)) for text in _sources(spec))


def _head_only(spec: Spec) -> bool:
    return spec.model.freeze_depth == "all" and not spec.train.unfreeze


RULES = (
    _Rule(
        "optim.momentum",
        lambda s: s.optim.name not in ("sgd", "rmsprop"),
        "only sgd and rmsprop have a momentum",
    ),
    _Rule("optim.nesterov", lambda s: s.optim.name != "sgd", "only sgd has Nesterov momentum"),
    _Rule("optim.betas", lambda s: s.optim.name not in _ADAMS, "only " + ", ".join(_ADAMS) + " have betas"),
    _Rule("optim.decay_norm_and_bias", lambda s: s.optim.weight_decay == 0, "optim.weight_decay is 0"),
    _Rule("optim.step_epochs", lambda s: s.optim.schedule != "step", "optim.schedule is not step"),
    _Rule("optim.step_factor", lambda s: s.optim.schedule != "step", "optim.schedule is not step"),
    _Rule(
        "optim.final_factor",
        lambda s: s.optim.schedule in ("constant", "step"),
        "only the schedules cosine and one_cycle have an end",
    ),
    _Rule("optim.layer_decay", _head_only, "only the head is trained"),
    _Rule("train.best_metric", lambda s: not has_validation(s), "there are no validation images (data.val)"),
    _Rule("data.image_column", _no_tables, "no source is a table"),
    _Rule("data.label_column", _no_labels, "no source is a table or has labels in JSON"),
    _Rule("data.root", _root_unused, "no source is kept there"),
    _Rule("data.download", _nothing_fetched, "no source is torchvision:NAME or huggingface:NAME"),
    _Rule("data.max_bad_fraction", lambda s: s.data.on_bad_image == "fail", "data.on_bad_image is fail"),
    _Rule("cache.views", lambda s: s.data.augment == "none", "data.augment is none: an image has one view"),
    _Rule("cache.dir", lambda s: s.cache.budget_gb == 0, "cache.budget_gb is 0"),
    _Rule(
        "sweep.grace_epochs",
        lambda s: s.sweep is not None and s.sweep.scheduler == "fifo",
        "the scheduler fifo stops no trial",
    ),
    _Rule(
        "sweep.num_trials",
        lambda s: s.sweep is not None and s.sweep.search == "grid",
        "a grid is run as a whole",
    ),
)


def unused_settings(spec: Spec, given: Collection[str]) -> Iterator[Problem]:
    """A problem for each of the `given` dotted keys, searched ones among them, that changes nothing."""
    for rule in RULES:
        keys = [key for key in (rule.key, dotted((*SPACE, rule.key))) if key in given]
        if keys and rule.unused(spec) and all(rule.unused(variant) for variant in _variants(spec)):
            yield from (Problem(f"has no effect: {rule.reason}", "Leave it out", key=key) for key in keys)


def _variants(spec: Spec) -> Iterator[Spec]:
    """The specs that a sweep makes by changing one setting: what is unused beside one value may serve another."""
    for key, domain in spec.sweep.space.items() if spec.sweep else ():
        for value in samples(domain):
            variant, _ = try_value(spec, key, value)
            if variant is not None:
                yield variant.model_copy(update={"sweep": spec.sweep})
