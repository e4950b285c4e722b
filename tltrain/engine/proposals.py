"""Optuna as the searcher of a sweep: the space in its own terms, and what earlier trials taught."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from tltrain.engine.trial import worst
from tltrain.errors import Problem, SpecError
from tltrain.spec.domains import canonical, share
from tltrain.spec.schema import Spec
from tltrain.spec.space import ATTEMPTS, Trial, left_over, settled, tune_space

logger = logging.getLogger(__name__)

PREFIX = "lane/values/"  # where a trial's configuration has them, as Ray Tune writes nested keys
SCALARS = (str, int, float, bool, type(None))


def make_searcher(spec: Spec, trials: Sequence[Trial], earlier: Sequence[tuple[Mapping[str, Any], float]]) -> Searcher:
    """Return Optuna's searcher, seeded, which proposes the values of `trials` first and then none that is known.

    earlier: values and metric of trials that have ended; a metric that is not finite counts as the worst.
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
    _teach(searcher, [(v, value if math.isfinite(value) else worst(spec.sweep.better)) for v, value in earlier])
    return NewOnly(searcher, spec, given=len(trials), known=[values for values, _ in earlier])


def _teach(searcher: Searcher, earlier: Sequence[tuple[Mapping[str, Any], float]]) -> None:
    num_outside = 0
    for values, value in earlier:
        try:
            searcher.add_evaluated_point(_point(values), value)
        except ValueError:  # an extension may search other keys, or other values of them
            num_outside += 1
    if num_outside:
        logger.warning(
            "Optuna does not learn from %d of %d earlier trials: they lie outside sweep.space as it is now",
            num_outside,
            len(earlier),
        )


class NewOnly(Searcher):
    """A searcher that passes on what another proposes, but no configuration twice.

    Optuna repeats itself in a space of a few listed values. A repeat is told to it as failed, of which it learns
    nothing; after `ATTEMPTS` of them one of the configurations that are left is taken, and none left ends the search.
    """

    def __init__(self, proposer: Searcher, spec: Spec, *, given: int, known: Iterable[Mapping[str, Any]]) -> None:
        """given: how many of the first proposals pass in any case. known: values that were run before."""
        super().__init__(metric=proposer.metric, mode=proposer.mode)
        self._proposer, self._spec, self._given = proposer, spec, given
        self._seen = {canonical(values) for values in known}
        self._asked: dict[str, str] = {}  # trial -> the name under which the proposer knows it
        self._taken: dict[str, dict[str, Any]] = {}  # trial -> values that the proposer did not propose

    def suggest(self, trial_id: str) -> Any:
        """Return the next configuration as Ray Tune writes it, or `FINISHED`."""
        for attempt in range(ATTEMPTS):
            asked = f"{trial_id}-{attempt}"
            proposed = self._proposer.suggest(asked)
            if not isinstance(proposed, dict):
                return proposed
            if self._is_new(proposed["lane"]["values"]):
                self._asked[trial_id] = asked
                return proposed
            self._proposer.on_trial_complete(asked, error=True)
        assert self._spec.sweep is not None
        values = left_over(self._spec.sweep, self._seen, share(self._spec.seed, len(self._seen)))
        if values is None:
            logger.warning("the search ends: all configurations of sweep.space that could be found have been run")
            return self.FINISHED
        self._seen.add(canonical(values))
        self._taken[trial_id] = values
        return {"lane": {"values": values}}

    def _is_new(self, values: Mapping[str, Any]) -> bool:
        text = canonical(settled(self._spec, values))
        is_new = text not in self._seen or self._given > 0
        self._given = max(0, self._given - 1)
        self._seen.add(text)
        return is_new

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on a result."""
        if trial_id in self._asked:
            self._proposer.on_trial_result(self._asked[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on a trial's end."""
        if trial_id in self._asked:
            self._proposer.on_trial_complete(self._asked.pop(trial_id), result, error)
        elif trial_id in self._taken:
            values, value = self._taken.pop(trial_id), (result or {}).get(self._proposer.metric)
            if value is not None:
                self._proposer.add_evaluated_point(_point(values), value)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the run folder is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: `make_searcher` is told what has ended."""


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
