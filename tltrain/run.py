"""The far side: `python -m tltrain.run SPEC` trains what a spec asks for, here or on the cluster it is started on."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tltrain.environment import JOB_VARIABLE, take_secrets
from tltrain.errors import EXIT_INTERRUPTED, Problem, SpecError, TimeLimitError, TltrainError
from tltrain.lease import hold
from tltrain.report import lines
from tltrain.run_folder import Result, RunFolder
from tltrain.spec.load import LoadedSpec, differences, dump_yaml, load_spec, parse_spec
from tltrain.spec.schema import Spec

logger = logging.getLogger("tltrain")

# Keys that do not change what is computed, so that a run may go on with other values. With more accumulation steps sums
# are taken in another order, which a run that is out of memory has to put up with.
FREE_ON_RESUME = (
    "resources",
    "checkpoint",
    "storage",
    "data.num_loader_workers",
    "data.download",
    "data.root",
    "train.accumulation_steps",
    "cache.budget_gb",
    "cache.dir",
    "sweep.max_concurrent",
    "sweep.time_budget_s",
)


def execute(loaded: LoadedSpec, *, local: bool) -> int:
    """Train `loaded` and print how it goes; return the exit code.

    `local` trains in this process without Ray; under torchrun, which has started the workers, that is always so.
    Raises TltrainError.
    """
    spec = loaded.spec
    run = RunFolder.at(spec.storage, spec.name)
    if local or "TORCHELASTIC_RUN_ID" in os.environ:
        if spec.sweep is not None:
            raise SpecError("a sweep needs Ray", "Leave --local out, or train one trial with --set sweep=null")
        return _execute_local(spec, run)
    return _execute_on_ray(spec, run) if spec.sweep is None else _execute_sweep(spec, run)


def run_spec(spec: Spec, *, local: bool = False) -> Result:
    """Train, evaluate and return what came of it; a run that was cut short goes on, a finished one is only read.

    On the cluster of RAY_ADDRESS, or on a private one of this machine; `local` trains in this process without Ray.
    Progress goes to stderr, the result to stdout as well. Raises TltrainError.
    """
    execute(LoadedSpec(spec, {}, ()), local=local)
    return RunFolder.at(spec.storage, spec.name).result()


class _Module(types.ModuleType):
    """This module; a call of it is `tltrain.run(spec)` of the Python API, whose name it has."""

    def __call__(self, spec: Spec, *, local: bool = False) -> Result:
        return run_spec(spec, local=local)


sys.modules[__name__].__class__ = _Module


def _execute_on_ray(spec: Spec, run: RunFolder) -> int:
    if _is_finished(spec, run):
        return _tell_finished(run)
    from tltrain.engine.fit import fit

    with _while_ray_starts(lambda: _facts(spec, run, workers=_workers_text(spec))) as wait_for_facts:
        facts = wait_for_facts()
        with _attempt(spec, run) as run:
            _write_lines(lines.header(facts))
            follower = lines.Follower(run, spec.train.epochs, _progress)
            summary = fit(spec, run, poll=follower.poll)
            follower.poll(now=True)
            run.update(state="finished", finished_at=time.time(), **summary)
        return _print_result(run)  # before Ray ends, which takes a second: who follows a job has seen the state already


def _execute_sweep(spec: Spec, run: RunFolder) -> int:
    if _is_finished(spec, run):
        return _tell_finished(run)
    from tltrain.engine.groups import prestart

    with _while_ray_starts(lambda: _facts(spec, run, workers=_workers_text(spec))) as wait_for_facts:
        started = prestart(spec)
        run = _sweep(spec, run, wait_for_facts(), started)
        return _print_result(run)


@contextlib.contextmanager
def _while_ray_starts(function: Callable[[], dict[str, Any]]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield what waits for the result of `function`, connected to Ray: both take seconds, and Ray mostly waits.

    All that either needs has to be imported before: torchvision's modules import each other, and two threads that
    import them at once get halves of them.
    """
    for name in ("tltrain.train.explain", "tltrain.engine.fit", "tltrain.engine.sweep"):
        importlib.import_module(name)
    from tltrain.engine.cluster import connected

    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="facts") as executor:
        future = executor.submit(function)
        with connected():
            yield future.result


def _sweep(spec: Spec, run: RunFolder, facts: Mapping[str, Any], started: Sequence[Any] = ()) -> RunFolder:
    """Run the sweep, show how it goes, and return its folder. started: processes that `prestart` gave."""
    from tltrain.engine.sweep import sweep
    from tltrain.report.page import write_report
    from tltrain.report.trial_lines import TrialFollower, winner_lines
    from tltrain.terminal import shown_in_place

    shares = {stage["name"]: stage["forward_share"] for stage in facts["stages"]}
    with _attempt(spec, run) as run:
        run.update(kind="sweep", classes=facts["classes"])
        _write_lines(lines.header(facts))
        with shown_in_place() as show:
            follower = TrialFollower(spec, _progress, show)
            summary = sweep(spec, run, shares, poll=follower.poll, started=started)
        run.update(state="finished", finished_at=time.time(), **summary)
        write_report(run)
    print("\n".join([*follower.grid(run), *winner_lines(run.state(), _confirmed(run))]), flush=True)
    return run


def _confirmed(run: RunFolder) -> list[dict[str, Any]]:
    return run.read_json("confirm.json")["top"] if run.folder.exists("confirm.json") else []


def _execute_local(spec: Spec, run: RunFolder) -> int:
    import torch

    from tltrain.train.distributed import group_from_environment
    from tltrain.train.session import fine_tune

    wants_gpu = spec.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    group = group_from_environment(use_gpu=wants_gpu, timeout_s=spec.resources.collective_timeout_s)
    if group.broadcast(_is_finished(spec, run) if group.is_first else None):
        return _tell_finished(run) if group.is_first else 0
    if not group.is_first:
        group.barrier()
        fine_tune(spec, run, group)
        return 0
    facts = _facts(spec, run, workers=f"{group.world_size} on {group.device.type}, in this process (--local)")
    with _attempt(spec, run) as run:
        _write_lines(lines.header(facts))
        group.barrier()
        follower = lines.Follower(run, spec.train.epochs, _progress)
        summary = fine_tune(spec, run, group, report=lambda _: follower.poll(now=True))
        run.update(state="finished", finished_at=time.time(), **summary)
    return _print_result(run)


def _is_finished(spec: Spec, run: RunFolder) -> bool:
    """Whether the run is done already. Raises SpecError where the folder holds a run of another spec."""
    if not run.exists():
        return False
    before = parse_spec(run.spec_text(), where=f"{run.uri}/spec.yaml", base=Path.cwd()).spec
    changed = [
        Problem(
            f"the run {spec.name} in {run.uri} was started with {old!r}, and now it is {new!r}",
            "Choose another name, or go back to the old value to resume it",
            key=key,
        )
        for key, old, new in differences(before, spec)
        if not key.startswith(FREE_ON_RESUME)
    ]
    if changed:
        raise SpecError(changed)
    return run.state().get("state") == "finished"


def _facts(spec: Spec, run: RunFolder, *, workers: str) -> dict[str, Any]:
    """Check the spec against data and model, and return what the header shows."""
    from tltrain.train.explain import explain
    from tltrain.train.finish import versions

    explanation = explain(spec).to_dict()
    shown = ", ".join(f"{name} {version}" for name, version in versions().items())
    model = spec.model.name or spec.model.factory
    return {**explanation, "run": run.uri, "model": model, "workers": workers, "versions": shown}


def _workers_text(spec: Spec) -> str:
    count, gpus = spec.resources.num_workers, spec.resources.gpus_per_worker
    number = str(count) if isinstance(count, int) else f"{count.min} to {count.max}"
    where = f"the cluster at {os.environ['RAY_ADDRESS']}" if "RAY_ADDRESS" in os.environ else "this machine"
    each = f"{spec.resources.cpus_per_worker} CPU" + {"auto": "", 0: ""}.get(gpus, f" + {gpus} GPU")
    return f"{number} x {each}, Ray Train on {where}"


@contextlib.contextmanager
def _attempt(spec: Spec, run: RunFolder) -> Iterator[RunFolder]:
    """Hold the run folder for a `with` block and keep run.json's state true whatever happens in it.

    Yields the folder to write into: once another attempt has taken over, its writes are refused.
    """
    from tltrain.train.finish import versions

    with hold(run.folder) as folder:
        run = RunFolder(folder)
        if run.exists():
            _progress(f"Resuming run {spec.name}")
        run.write_spec(dump_yaml(spec))
        started = run.state().get("started_at", time.time())
        job = os.environ.get(JOB_VARIABLE)
        begun = {"state": "running", "error": None, "cause": None, "job": job}
        run.update(name=spec.name, started_at=started, versions=versions(), **begun)
        try:
            yield run
        except KeyboardInterrupt:
            run.update(state="interrupted")
            _progress("Interrupted. Run the same command again to go on from the newest checkpoint.")
            raise
        except TltrainError as error:
            run.update(state="failed", error=[str(problem) for problem in error.problems], cause=error.cause)
            raise
        except Exception as error:
            run.update(state="failed", error=[f"{type(error).__name__}: {error}"], cause=TltrainError.cause)
            raise


def _tell_finished(run: RunFolder) -> int:
    _progress(f"Run {run.name} is finished already; nothing was trained.")
    return _print_result(run)


def _print_result(run: RunFolder) -> int:
    state = run.state()
    kept = RunFolder(run.folder.child(state["winner_run"])) if "winner_run" in state else run
    print("\n".join(lines.result(state, _shown_path(kept))), flush=True)
    return 0


def _shown_path(run: RunFolder) -> str:
    """Return the run's address as one would type it here: relative where it is below the current directory."""
    path = run.folder.local_path
    return str(path.relative_to(Path.cwd())) if path and path.is_relative_to(Path.cwd()) else str(run.folder)


def _write_lines(texts: Sequence[str]) -> None:
    for text in texts:
        _progress(text)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def extend(run: str, trials: int, sets: Sequence[str]) -> int:
    """Add `trials` trials to the finished sweep in the folder `run`, and run them. Returns the exit code.

    sets: `KEY=VALUE` for keys of sweep, resources and cache. Raises TltrainError.
    """
    from tltrain.engine.extension import add_trials

    folder = RunFolder.open(run)
    return _execute_sweep(add_trials(folder, trials, sets), folder)


def explain(loaded: LoadedSpec, *, as_json: bool) -> int:
    """Print what `loaded` would do: stages, frozen or trained, rates, costs, data counts. Returns the exit code."""
    from tltrain.train.explain import explain as work_out

    explanation = work_out(loaded.spec)
    if as_json:
        print(json.dumps(explanation.to_dict(), indent=2))
    else:
        print("\n".join(lines.explanation(explanation.to_dict(), _workers_text(loaded.spec))))
    return 0


def plan(loaded: LoadedSpec, cluster: str | None, *, as_json: bool) -> int:
    """Print the trials of `loaded` and the hours they would take, here or on the cluster of RAY_ADDRESS.

    cluster: name or path of a cluster file, whose price per hour gives the cost. Returns the exit code. Raises
    ResourceError with the arithmetic where a worker group does not fit.
    """
    from tltrain.engine.room import find_room
    from tltrain.jobs.clusters import load_cluster
    from tltrain.report.plan_lines import plan_lines, with_cost
    from tltrain.train.planning import plan as work_out

    described = load_cluster(cluster).cluster if cluster is not None else None
    room = find_room(loaded.spec.resources)
    worked_out = work_out(loaded.spec, groups=room.groups, workers=room.workers, device=room.device).to_dict()
    if described is not None:
        worked_out = with_cost(worked_out, described.price_per_worker_hour, described.currency)
    print(json.dumps(worked_out, indent=2) if as_json else "\n".join(plan_lines(worked_out, room.where)))
    return 0


def evaluate_run(run: str, data: str, *, as_json: bool) -> int:
    """Evaluate a finished run's model on the images of `data` and print the numbers. Returns the exit code."""
    from tltrain.train.reevaluate import evaluate_model

    evaluation = evaluate_model(RunFolder.open(run), data)
    print(json.dumps(evaluation, indent=2) if as_json else "\n".join(lines.evaluation(evaluation)))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m tltrain.run SPEC [--set KEY=VALUE ...] [--local]`; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tltrain.run", description=main.__doc__)
    parser.add_argument("spec", metavar="SPEC", help="the spec file")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    parser.add_argument("--local", action="store_true", help="train in this process, without Ray")
    parser.add_argument("--max-duration", metavar="S", type=float, help="fail after this many seconds")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    try:
        take_secrets()
        with _time_limit(options.max_duration):
            loaded = load_spec(options.spec, options.sets)
            # Whoever submitted a job has seen them; its spec names every setting.
            for warning in () if JOB_VARIABLE in os.environ else loaded.warnings:
                logger.warning("warning: %s", warning)
            return execute(loaded, local=options.local)
    except TltrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeLimitError in the main thread once `seconds` have passed in a `with` block."""
    if seconds is None:
        yield
        return

    def end(*_: object) -> None:
        what = f"the run has not ended within {seconds:g} s"
        raise TimeLimitError(what, "Give it longer (--max-duration) and start it again: it goes on where it was")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
