"""Optuna as the searcher of a sweep: the space in its own terms, and what earlier trials taught."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tltrain.engine.trial import worst
from tltrain.errors import Problem, SpecError
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, tune_space

PREFIX = "lane/values/"  # where a trial's configuration has them, as Ray Tune writes nested keys
SCALARS = (str, int, float, bool, type(None))


def make_searcher(spec: Spec, trials: Sequence[Trial], earlier: Sequence[tuple[Mapping[str, Any], float]]) -> Any:
    """Return Optuna's searcher, seeded, which proposes the values of `trials` first and knows the `earlier` results.

    earlier: values and metric; a metric that is not finite counts as the worst.
    Raises SpecError where Optuna is missing or a listed value is no scalar, which Optuna could not tell apart.
    """
    assert spec.sweep is not None
    if importlib.util.find_spec("optuna") is None:
        raise SpecError(Problem("optuna is not installed", "pip install 'tltrain[optuna]'", key="sweep.search"))
    _check_scalars(spec)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = OptunaSearch(
        {PREFIX + key: _distribution(*described) for key, described in tune_space(spec).items()},
        metric=spec.sweep.metric,
        mode=spec.sweep.better,
        seed=(spec.seed + len(earlier) + len(trials)) % 2**32,  # else it would begin with the proposals of before
        points_to_evaluate=[_point(trial.values) for trial in trials],
    )
    for values, value in earlier:
        searcher.add_evaluated_point(_point(values), value if math.isfinite(value) else worst(spec.sweep.better))
    return searcher


def _point(values: Mapping[str, Any]) -> dict[str, Any]:
    return {PREFIX + key: value for key, value in values.items()}


def _check_scalars(spec: Spec) -> None:
    problems = [
        Problem(
            f"optuna chooses among numbers, texts and truth values, and {value!r} is none", key=f"sweep.space.{key}"
        )
        for key, (kind, arguments) in tune_space(spec).items()
        if kind in ("choice", "grid")
        for value in arguments
        if not isinstance(value, SCALARS)
    ]
    if problems:
        raise SpecError(problems)


def _distribution(kind: str, arguments: list[Any]) -> Any:
    from optuna import distributions as optuna

    if kind in ("choice", "grid"):
        return optuna.CategoricalDistribution(arguments)
    low, high = arguments[:2]
    if kind == "randint":
        return optuna.IntDistribution(low, high - 1)
    if kind == "quniform":
        return optuna.FloatDistribution(low, high, step=arguments[2])
    return optuna.FloatDistribution(low, high, log=kind == "loguniform")
