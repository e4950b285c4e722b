"""What the settings of a sweep must be to each other and to the rest of the spec, and what deserves a warning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from tltrain.errors import Problem
from tltrain.spec.checks import has_validation, overlap
from tltrain.spec.domains import LISTED, MUTABLE, mutable_keys, num_configurations
from tltrain.spec.keys import SPACE
from tltrain.spec.schema import Spec, SweepSpec
from tltrain.spec.searched import check_searched
from tltrain.spec.yaml_text import dotted

_POPULATION = ("pbt", "pb2")
_PAUSING = (*_POPULATION, "hyperband")
_SEARCH = ("sweep.space", "sweep.search", "sweep.num_trials")


def check_sweep(spec: Spec, wrong: Collection[str] = ()) -> list[Problem]:
    """Every problem of the sweep; `wrong` are keys whose values are stand-ins for faulty ones."""
    if spec.sweep is None:
        return []
    found = list(check_searched(spec, wrong))
    wrong = [*wrong, *(problem.key for problem in found)]
    for keys, function in _CHECKS:
        if not overlap(keys, wrong):
            found += function(spec, spec.sweep)
    return found


def sweep_warnings(spec: Spec) -> Iterator[Problem]:
    """What is likely not meant in a sweep, though it can be run."""
    if spec.sweep is None:
        return
    sweep = spec.sweep
    if sweep.scheduler != "fifo" and spec.train.epochs <= sweep.grace_epochs:
        what = (
            f"trials end with epoch {spec.train.epochs}, and {sweep.scheduler} may stop or change one only after that"
        )
        yield Problem(what, "Lower it, or raise train.epochs", key="sweep.grace_epochs")
    if (sweep.better == "max") == (sweep.metric == "val_loss"):
        yield Problem(f"{sweep.mode} prefers the worse {sweep.metric}", "Leave it out", key="sweep.mode")
    if "seed" in sweep.space and isinstance(spec.data.val, float) and spec.data.split_seed is None:
        what = "each seed draws validation images of its own, so the trials' metrics differ by those as well"
        yield Problem(what, f"Give data.split_seed, for example {spec.seed}", key=dotted((*SPACE, "seed")))


def _grid_is_listed(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    if sweep.search != "grid":
        return
    for key, domain in sweep.space.items():
        if domain.kind not in LISTED:
            what = f"{domain.kind} has no end of values, and a grid takes all of them"
            action = "List the values with grid, or write sweep.search: random and sweep.num_trials"
            yield Problem(what, action, key=dotted((*SPACE, key)))


def _number_of_trials_fits(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    count = num_configurations(sweep.space)
    if sweep.search != "grid" and sweep.num_trials is None:
        yield Problem("is missing", f"Say how many trials the {sweep.search} search makes", key="sweep.num_trials")
    elif sweep.search == "grid" and count is not None and sweep.num_trials not in (None, count):
        action = "Leave it out, or write sweep.search: random to try some of them"
        yield Problem(
            f"{sweep.num_trials} is not the {count} configurations of the grid", action, key="sweep.num_trials"
        )
    elif sweep.search != "grid" and count is not None and (sweep.num_trials or 0) > count:
        what = f"{sweep.num_trials} trials are more than the {count} configurations of the space"
        yield Problem(what, f"Give at most {count}, or widen sweep.space", key="sweep.num_trials")


def _optuna_has_no_grid(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    for key, domain in sweep.space.items():
        if sweep.search == "optuna" and domain.kind == "grid":
            what = "Optuna does not go through a grid; it chooses values"
            yield Problem(what, "Write choice instead of grid", key=dotted((*SPACE, key, "grid")))


def _search_suits_scheduler(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    if sweep.search == "optuna" and sweep.scheduler in _POPULATION:
        what = f"{sweep.scheduler} changes the values of trials itself, which Optuna could not learn from"
        yield Problem(what, "Write sweep.search: random, or another scheduler", key="sweep.scheduler")


def _population_has_something_to_change(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    if sweep.scheduler in _POPULATION and not mutable_keys(sweep):
        between = " between two bounds" if sweep.scheduler == "pb2" else ""
        what = f"{sweep.scheduler} needs a searched number{between} that may change in mid-training"
        yield Problem(what, f"Search one of {', '.join(MUTABLE)}", key="sweep.scheduler")


def _pausing_has_lanes(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    if sweep.isolation == "process" and sweep.scheduler in _PAUSING:
        what = f"{sweep.scheduler} pauses trials and goes on from their states, which processes of their own lose"
        yield Problem(what, "Write isolation: lanes, or another scheduler", key="sweep.isolation")


def _epochs_are_the_same(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    if sweep.scheduler != "fifo" and "train.epochs" in sweep.space:
        what = f"{sweep.scheduler} compares trials at the same epoch of trainings of the same length"
        yield Problem(what, "Take it out, or write sweep.scheduler: fifo", key=dotted((*SPACE, "train.epochs")))


def _there_is_validation(spec: Spec, sweep: SweepSpec) -> Iterator[Problem]:
    if not has_validation(spec):
        what = f"the winner is chosen by {sweep.metric}, and there are no validation images"
        yield Problem(what, "Give data.val, for example 0.1", key="data.val")


_Check = Callable[[Spec, SweepSpec], Iterator[Problem]]
_CHECKS: tuple[tuple[tuple[str, ...], _Check], ...] = (
    (_SEARCH, _grid_is_listed),
    (_SEARCH, _number_of_trials_fits),
    (("sweep.space", "sweep.search"), _optuna_has_no_grid),
    (("sweep.search", "sweep.scheduler"), _search_suits_scheduler),
    (("sweep.space", "sweep.scheduler"), _population_has_something_to_change),
    (("sweep.isolation", "sweep.scheduler"), _pausing_has_lanes),
    (("sweep.scheduler",), _epochs_are_the_same),
    (("data.val", "sweep.metric"), _there_is_validation),
)
