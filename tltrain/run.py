"""The far side: `python -m tltrain.run SPEC` trains what a spec asks for, here or on the cluster it is started on."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tltrain import messages
from tltrain.attempt import attempt, is_finished, time_limit
from tltrain.environment import JOB_VARIABLE, take_secrets
from tltrain.errors import EXIT_INTERRUPTED, SpecError, TltrainError
from tltrain.following import RunFollower, SweepFollower
from tltrain.header import HEADER_FILE, gather_facts, shown_path, without_skipped, workers_text
from tltrain.output import Output
from tltrain.progress import PROGRESS_FOLDER
from tltrain.report import lines
from tltrain.run_folder import Result, RunFolder
from tltrain.scratch import LOADER, RAY, TENSORBOARD, TUNE, delete_abandoned
from tltrain.settle import settled_here, settled_locally, settled_on_ray
from tltrain.spec.load import LoadedSpec, load_spec
from tltrain.spec.schema import Spec
from tltrain.track.tracking import check_packages, tracked

if TYPE_CHECKING:
    from tltrain.train.distributed import Group

logger = logging.getLogger("tltrain")


def execute(loaded: LoadedSpec, *, local: bool, output: Output | None = None) -> int:
    """Train `loaded` and print how it goes; return the exit code.

    `local` trains in this process without Ray; under torchrun, which has started the workers, that is always so.
    Raises TltrainError.
    """
    spec, output = loaded.spec, output or Output()
    run = RunFolder.at(spec.storage, spec.name)
    check_packages(spec)
    if local or "TORCHELASTIC_RUN_ID" in os.environ:
        if spec.sweep is not None:
            raise SpecError("a sweep needs Ray", "Leave --local out, or train one trial with --set sweep=null")
        return _execute_local(spec, run, output)
    with settled_on_ray(spec, run, output.batch_size) as spec:
        return _execute_on_ray(spec, run, output) if spec.sweep is None else _execute_sweep(spec, run, output)


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


def _execute_on_ray(spec: Spec, run: RunFolder, output: Output) -> int:
    if is_finished(spec, run):
        return _tell_finished(run, output)
    with _while_ray_starts(spec, run) as wait_for_facts:
        facts = wait_for_facts()
        from tltrain.engine.fit import fit

        with _attempt(spec, run, facts, output) as run:
            _train(spec, run, output, lambda follower: fit(spec, run, poll=follower.poll))
        return _print_result(run, output)  # before Ray ends, which takes a second: who follows a job sees it at once


def _execute_local(spec: Spec, run: RunFolder, output: Output) -> int:
    import torch

    from tltrain.train.distributed import describe_devices, group_from_environment
    from tltrain.train.plain import train_plainly
    from tltrain.train.skipped import look_at_images

    wants_gpu = spec.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    group = group_from_environment(use_gpu=wants_gpu, timeout_s=spec.resources.collective_timeout_s)
    spec = settled_locally(spec, run, group, output.batch_size)
    if group.broadcast(is_finished(spec, run) if group.is_first else None):
        return _tell_finished(run, output) if group.is_first else 0
    if not group.is_first:
        look_at_images(spec, [], group)
        group.barrier()
        train_plainly(spec, run, group)
        return 0
    facts = gather_facts(spec, run, workers=f"{group.world_size} on {group.device.type}, in this process (--local)")
    with _attempt(spec, run, {**facts, "devices": describe_devices()}, output, group) as run:
        group.barrier()

        def train(follower: RunFollower) -> dict[str, Any]:
            with follower.polling():
                return train_plainly(spec, run, group)

        _train(spec, run, output, train)
    return _print_result(run, output)


def _train(spec: Spec, run: RunFolder, output: Output, train: Callable[[RunFollower], dict[str, Any]]) -> None:
    """Have a single run trained, show how it goes, and record what came of it."""
    with output.live() as (show, _):
        follower = RunFollower(spec, run, output, show)
        summary = train(follower)
        follower.poll(now=True)
    _finish(run, summary)


def _execute_sweep(spec: Spec, run: RunFolder, output: Output) -> int:
    if is_finished(spec, run):
        return _tell_finished(run, output)
    from tltrain.engine.alone import prestart

    with _while_ray_starts(spec, run) as wait_for_facts:
        started = prestart(spec)
        facts = wait_for_facts()
        with _attempt(spec, run, facts, output) as run:
            texts = _sweep(spec, run, facts, started, output)
        return _print_result(run, output, texts)


def _sweep(spec: Spec, run: RunFolder, facts: Mapping[str, Any], started: Sequence[Any], output: Output) -> list[str]:
    """Run the sweep, show how it goes, and return its tables. started: processes that `prestart` gave."""
    from tltrain.engine.sweep import sweep
    from tltrain.report.trial_lines import winner_lines

    shares = {stage["name"]: stage["forward_share"] for stage in facts["stages"]}
    run.update(kind="sweep", classes=facts["classes"])
    with output.live() as (show, has_table):
        follower = SweepFollower(spec, run, output, show, has_table=has_table)
        summary = sweep(spec, run, shares, poll=follower.poll, started=started)
    _finish(run, summary)
    confirmed = run.read_json("confirm.json")["top"] if run.folder.exists("confirm.json") else []
    return [*follower.grid(), *winner_lines(run.state(), confirmed)]


@contextlib.contextmanager
def _attempt(
    spec: Spec, run: RunFolder, facts: Mapping[str, Any], output: Output, group: Group | None = None
) -> Iterator[RunFolder]:
    """Begin an attempt with its header and its trackers; yields the folder to write into.

    group: the processes that look at the images together where the spec asks for that; without one, this process.
    """
    with attempt(spec, run, output.tell) as run:
        facts = without_skipped(facts, spec, run, group, output.tell)
        run.write_json(HEADER_FILE, facts)
        output.start(facts)
        with tracked(spec, run):
            yield run


def _finish(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Record that the run is finished, with what came of it."""
    from tltrain.report.page import write_report

    run.folder.delete(PROGRESS_FOLDER)
    run.update(state="finished", finished_at=time.time(), **summary)
    write_report(run)


@contextlib.contextmanager
def _while_ray_starts(spec: Spec, run: RunFolder) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield what waits for the facts of a run, connected to Ray: both take seconds, and Ray mostly waits.

    What a cluster and its processes need to start imports no torch. The rest of the engine may be imported once the
    facts are there: torchvision's modules import each other, and two threads that import them at once get halves.
    """
    from tltrain.engine.cluster import connected, describe_devices

    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="facts") as executor:
        future = executor.submit(gather_facts, spec, run, workers=workers_text(spec), packages=("ray",))
        with connected():
            yield lambda: {**future.result(), "devices": describe_devices()}


def _tell_finished(run: RunFolder, output: Output) -> int:
    from tltrain.report.page import REPORT_FILE, write_report

    if not run.folder.exists(REPORT_FILE):  # its process ended before it was written
        write_report(run)
    for prefix in (RAY, TUNE, TENSORBOARD, LOADER):  # of a process killed at its very end; nothing makes new ones now
        delete_abandoned(prefix)
    output.tell(f"Run {run.name} is finished already; nothing was trained.")
    return _print_result(run, output)


def _print_result(run: RunFolder, output: Output, texts: Sequence[str] = ()) -> int:
    state = run.state()
    kept = RunFolder(run.folder.child(state["winner_run"])) if "winner_run" in state else run
    output.result(state, [*texts, *lines.result(state, shown_path(kept))])
    return 0


def extend(run: str, trials: int, sets: Sequence[str], output: Output | None = None) -> int:
    """Add `trials` trials to the finished sweep in the folder `run`, and run them. Returns the exit code.

    sets: `KEY=VALUE` for keys of sweep, resources and cache. Raises TltrainError.
    """
    from tltrain.engine.extension import add_trials

    folder = RunFolder.open(run)
    return _execute_sweep(add_trials(folder, trials, sets), folder, output or Output())


def explain(loaded: LoadedSpec, *, as_json: bool) -> int:
    """Print what `loaded` would do: stages, frozen or trained, rates, costs, data counts. Returns the exit code."""
    from tltrain.train.explain import explain as work_out

    spec = settled_here(loaded.spec, Output().batch_size)
    explanation = work_out(spec)
    if as_json:
        print(json.dumps(explanation.to_dict(), indent=2))
    else:
        print("\n".join(lines.explanation(explanation.to_dict(), workers_text(spec))))
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
    spec = settled_here(loaded.spec, Output().batch_size)
    room = find_room(spec.resources)
    worked_out = work_out(spec, groups=room.groups, workers=room.workers, device=room.device).to_dict()
    if described is not None:
        worked_out = with_cost(worked_out, described.price_per_worker_hour, described.currency)
    print(json.dumps(worked_out, indent=2) if as_json else "\n".join(plan_lines(worked_out, room.where)))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m tltrain.run SPEC [--set KEY=VALUE ...] [--local]`; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tltrain.run", description=main.__doc__)
    parser.add_argument("spec", metavar="SPEC", help="the spec file")
    parser.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[], help="override a key")
    parser.add_argument("--local", action="store_true", help="train in this process, without Ray")
    parser.add_argument("--max-duration", metavar="S", type=float, help="fail after this many seconds")
    options = parser.parse_args(arguments)
    messages.set_up_logging(0)
    try:
        take_secrets()
        with time_limit(options.max_duration):
            loaded = load_spec(options.spec, options.sets)
            # Whoever submitted a job has seen them; its spec names every setting.
            for warning in () if JOB_VARIABLE in os.environ else loaded.warnings:
                logger.warning("%s", warning)
            return execute(loaded, local=options.local)
    except TltrainError as error:
        messages.show_error(error)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        messages.show_interrupt(interrupt)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
