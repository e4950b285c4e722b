"""The trials of a sweep: proposing them, the spec of each, and which of them may share batches."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tltrain.errors import Problem, SpecError
from tltrain.spec.domains import all_values, bounds, canonical, draw, mutable_keys, num_configurations, settle, share
from tltrain.spec.load import replace
from tltrain.spec.schema import Domain, Spec, SweepSpec
from tltrain.spec.wording import show

ATTEMPTS = 64  # draws for one trial before what is left of the space is counted out

# What lanes beside each other may differ in: all that comes after the batch, and what never reaches the training.
OWN_SECTIONS = ("name", "optim", "sweep", "storage", "track", "checkpoint", "resources")
OWN_KEYS = {
    "model": ("freeze_depth",),
    "train": (
        "epochs",
        "label_smoothing",
        "class_weights",
        "clip_grad_norm",
        "ema_decay",
        "early_stopping",
        "unfreeze",
        "best_metric",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep: the dotted keys that are searched, with a value for each."""

    name: str
    values: dict[str, Any]


def propose(spec: Spec, *, skip: Collection[Mapping[str, Any]] = (), start: int = 0) -> list[Trial]:
    """The trials of a `grid` or `random` search, none with the values of another or of one in `skip`.

    A grid has all combinations of its values, the last key changing fastest. A random search has `num_trials` of them:
    trial k is drawn from (seed, k) alone, so that it is the same in a longer sweep; keys with a `grid` go through its
    combinations in turn, the others are drawn. Names and k begin at `start`. An extension by N trials is therefore
    `num_trials` N, `start` the number of trials before, and `skip` their values.

    Raises SpecError where a random search asks for more trials than the space has.
    """
    sweep = _sweep(spec)
    assert sweep.search != "optuna", "Optuna proposes its own trials"
    seen = {canonical(values) for values in skip}
    found = _all(sweep, seen) if sweep.search == "grid" else _drawn(spec, seen, start)
    return [Trial(f"t{number:04}", values) for number, values in enumerate(found, start)]


def _sweep(spec: Spec) -> SweepSpec:
    assert spec.sweep is not None, "the spec asks for no sweep"
    return spec.sweep


def _all(sweep: SweepSpec, seen: Collection[str]) -> Iterator[dict[str, Any]]:
    """Every configuration of a countable space that is not in `seen`."""
    for values in _product(sweep.space):
        if canonical(values) not in seen:
            yield values


def _product(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    for combination in itertools.product(*(list(all_values(domain)) for domain in space.values())):
        yield dict(zip(space, combination, strict=True))


def _drawn(spec: Spec, seen: set[str], start: int) -> Iterator[dict[str, Any]]:
    sweep = _sweep(spec)
    assert sweep.num_trials is not None, "a random search has num_trials"
    cells = list(_product({key: domain for key, domain in sweep.space.items() if domain.grid}))
    for number in range(start, start + sweep.num_trials):
        cell = cells[number % len(cells)]
        draws = (_draw(spec.seed, number, attempt, cell, sweep.space) for attempt in range(ATTEMPTS))
        values = next((values for values in draws if canonical(values) not in seen), None)
        values = values or left_over(sweep, seen, share(spec.seed, number))
        if values is None:
            what = f"the space is used up after {number - start} of {sweep.num_trials} new trials"
            raise SpecError(Problem(what, "Ask for fewer trials, or widen sweep.space", key="sweep.num_trials"))
        seen.add(canonical(values))
        yield values


def _draw(seed: int, number: int, attempt: int, cell: Mapping[str, Any], space: Mapping[str, Domain]) -> dict[str, Any]:
    """One configuration. Each key has a stream of its own: searching one more leaves the others' draws as they are."""
    return {
        key: cell[key] if key in cell else draw(domain, share(seed, number, attempt, key))
        for key, domain in space.items()
    }


def left_over(sweep: SweepSpec, seen: Collection[str], at: float) -> dict[str, Any] | None:
    """The configuration at the share `at`, in [0, 1), of those whose `canonical` text is not in `seen`.

    None where none is left, or where they cannot be counted. To be asked for when drawing has failed so often that most
    of the space is taken: it counts the whole space out.
    """
    left = list(_all(sweep, seen)) if num_configurations(sweep.space) is not None else []
    return left[int(at * len(left))] if left else None


def apply(spec: Spec, trial: Trial) -> Spec:
    """The spec of one trial: its values in place, no sweep. Raises SpecError with the trial and every key at fault."""
    try:
        return replace(spec, {**trial.values, "sweep": None})
    except SpecError as error:
        values = ", ".join(f"{key}={show(value)}" for key, value in trial.values.items())
        where = f"trial {trial.name} ({values})"
        raise SpecError([Problem(p.what, p.action, where, p.key) for p in error.problems]) from error


def check_all(spec: Spec, trials: Iterable[Trial]) -> None:
    """Check that every trial's spec is valid. Raises one SpecError; a problem of several trials is told once."""
    found: dict[tuple[str, str], list[Problem]] = {}
    for trial in trials:
        try:
            apply(spec, trial)
        except SpecError as error:
            for problem in error.problems:
                found.setdefault((problem.key, problem.what), []).append(problem)
    if found:
        raise SpecError([_told_once(problems) for problems in found.values()])


def _told_once(problems: Sequence[Problem]) -> Problem:
    first = problems[0]
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Problem(first.what, first.action, first.where + more, first.key)


def cohort_key(spec: Spec) -> str:
    """A text that two specs share where their lanes may train side by side, on the same batches of the same images."""
    values = spec.model_dump(exclude=set(OWN_SECTIONS))
    for section, names in OWN_KEYS.items():
        for name in names:
            del values[section][name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def tune_space(spec: Spec) -> dict[str, tuple[str, list[Any]]]:
    """Key -> kind and arguments of its domain, for a searcher that draws by itself.

    The kinds are those of `Domain`; the bounds of quniform are multiples of its step. What such a searcher proposes is
    to go through `settled`.
    """
    return {key: (domain.kind, bounds(domain)) for key, domain in _sweep(spec).space.items()}


def mutations(spec: Spec) -> dict[str, tuple[str, list[Any]]]:
    """Key -> kind and arguments of the searched keys that population-based training may change in mid-training.

    All other searched keys stay what they are for a whole trial. For pb2, which needs bounds, without listed values.
    """
    described = tune_space(spec)
    return {key: described[key] for key in mutable_keys(_sweep(spec))}


def settled(spec: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values proposed or mutated elsewhere, each the nearest that its domain has, rounded to 6 digits."""
    space = _sweep(spec).space
    return {key: settle(space[key], value) for key, value in values.items()}
