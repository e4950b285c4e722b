"""Adding trials to a finished sweep: which keys may change, which configurations are new."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from tltrain.engine.sweep_record import SweepRecord
from tltrain.errors import Problem, SpecError
from tltrain.report.sweep import TRIALS_FILE
from tltrain.run_folder import RunFolder
from tltrain.spec.load import differences, dump_yaml, parse_spec, replace
from tltrain.spec.schema import Spec, SweepSpec
from tltrain.spec.space import Trial, check_all, propose

FREE_TO_CHANGE = ("sweep.", "resources.", "cache.")


def add_trials(run: RunFolder, num_trials: int, sets: Sequence[str]) -> Spec:
    """Add `num_trials` trials to the finished sweep in `run` and return its new spec; nothing is trained yet.

    sets: `KEY=VALUE` for keys of sweep, resources and cache. A grid goes on with the first configurations that were
    not run, a random search with its next draws; Optuna proposes its own later. Raises SpecError with every problem;
    then the folder is as it was.
    """
    before = _loaded(run, ())
    if before.sweep is None or not run.folder.exists(TRIALS_FILE):
        raise SpecError(Problem(f"{run.uri} is no sweep", "Name the folder of a sweep that `tltrain run` has run"))
    _check_finished(run)
    spec = _loaded(run, sets)
    _check_changes(before, spec)
    assert spec.sweep is not None
    record = SweepRecord(run, spec.sweep)
    known = [Trial(entry["trial"], entry["values"]) for entry in record.trials.values()]
    spec, trials = extended(spec, known, num_trials)
    # In this order: wherever it is cut short, `tltrain run RUN/spec.yaml` goes on with what is in the record.
    run.update(state="running")
    run.write_spec(dump_yaml(spec))
    record.add(trials)
    return spec


def extended(spec: Spec, known: Sequence[Trial], num_trials: int) -> tuple[Spec, list[Trial]]:
    """Return `spec` with `num_trials` more trials than the `known` ones, and the trials that can be named already.

    Raises SpecError where the space has too few configurations left.
    """
    assert spec.sweep is not None
    skip, start = [trial.values for trial in known], len(known)
    if spec.sweep.search == "grid":
        trials = list(itertools.islice(propose(spec, skip=skip, start=start), num_trials))
        _check_enough(trials, num_trials)
        more = spec
    else:
        is_named = spec.sweep.search == "random"
        trials = propose(_with_trials(spec, num_trials), skip=skip, start=start) if is_named else []
        more = replace(spec, {"sweep.num_trials": start + num_trials})
    check_all(spec, trials)
    return more, trials


def _with_trials(spec: Spec, count: int) -> Spec:
    assert spec.sweep is not None
    return spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"num_trials": count})})


def _check_enough(trials: Sequence[Trial], wanted: int) -> None:
    if len(trials) < wanted:
        left = f"{len(trials)} configuration{'s' if len(trials) != 1 else ''} of the grid"
        what = f"{wanted} more trials are asked for, and only {left} were not run"
        action = "Add values, for example --set 'sweep.space.\"optim.learning_rate\"={grid: [0.001, 0.01]}'"
        raise SpecError(Problem(what, action, key="sweep.space"))


def _loaded(run: RunFolder, sets: Sequence[str]) -> Spec:
    return parse_spec(run.spec_text(), where=f"{run.uri}/spec.yaml", base=Path.cwd(), sets=sets).spec


def _check_finished(run: RunFolder) -> None:
    state = run.state().get("state")
    if state != "finished":
        action = f"Let it end first: tltrain run {run.folder}/spec.yaml"
        raise SpecError(Problem(f"the sweep {run.name} is {state or 'not begun'}, not finished", action))


def _check_changes(before: Spec, spec: Spec) -> None:
    problems = [*_fixed_keys(before, spec), *_counted_elsewhere(before.sweep, spec.sweep)]
    if problems:
        raise SpecError(problems)


def _fixed_keys(before: Spec, spec: Spec) -> Iterable[Problem]:
    for key, old, new in differences(before, spec):
        if not key.startswith(FREE_TO_CHANGE):
            what = f"the trials that were run have {old!r}, and with {new!r} new ones could not be compared to them"
            yield Problem(what, "Leave it, or start a sweep under another name", key=key)


def _counted_elsewhere(before: SweepSpec | None, sweep: SweepSpec | None) -> Iterable[Problem]:
    if before is not None and sweep is None:
        yield Problem("a sweep without sweep settings has no trials to add", "Leave it out", key="sweep")
    elif (
        sweep is not None
        and sweep.num_trials is not None
        and before is not None
        and sweep.num_trials != before.num_trials
    ):
        yield Problem("the number of trials follows from --trials", "Leave it out", key="sweep.num_trials")
