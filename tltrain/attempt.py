"""One attempt at a run: whether there is anything to do, and run.json kept true whatever happens in it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tltrain import stopping
from tltrain.environment import JOB_VARIABLE
from tltrain.errors import Problem, SpecError, TimeLimitError, TltrainError
from tltrain.lease import hold
from tltrain.progress import PROGRESS_FOLDER
from tltrain.run_folder import RunFolder
from tltrain.spec.load import differences, dump_yaml, parse_spec
from tltrain.spec.schema import Spec

# Keys that do not change what is computed, so that a run may go on with other values. With more accumulation steps sums
# are taken in another order, which a run that is out of memory has to put up with.
FREE_ON_RESUME = (
    "resources",
    "checkpoint",
    "storage",
    "track",
    "data.num_loader_workers",
    "data.thumbnails",
    "data.download",
    "data.on_bad_image",
    "data.max_bad_fraction",
    "data.root",
    "train.accumulation_steps",
    "cache.budget_gb",
    "cache.dir",
    "sweep.max_concurrent",
    "sweep.time_budget_s",
)


def is_finished(spec: Spec, run: RunFolder) -> bool:
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


@contextlib.contextmanager
def attempt(spec: Spec, run: RunFolder, tell: Callable[[str], None]) -> Iterator[RunFolder]:
    """Hold the run folder for a `with` block and keep run.json's state true whatever happens in it.

    Yields the folder to write into: once another attempt has taken over, its writes are refused. `tell` shows a line.
    """
    from tltrain.train.versions import versions

    with stopping.handled(), hold(run.folder) as folder:
        run = RunFolder(folder)
        if run.exists():
            tell(f"Resuming run {spec.name}")
        run.folder.delete(PROGRESS_FOLDER)  # what an earlier attempt was at when it ended
        run.write_spec(dump_yaml(spec))
        started = run.state().get("started_at", time.time())
        job = os.environ.get(JOB_VARIABLE)
        begun = {"state": "running", "error": None, "cause": None, "waiting": None, "job": job}
        run.update(name=spec.name, started_at=started, versions=versions(), **begun)
        try:
            with stopping.errors_told():
                yield run
        except KeyboardInterrupt:
            run.update(state="interrupted")
            raise KeyboardInterrupt("Run the same command again to go on from the newest checkpoint.") from None
        except SystemExit:  # SIGTERM, by which a job is stopped
            run.update(state="interrupted")
            tell("Stopped. Run the same command again to go on from the newest checkpoint.")
            raise
        except TltrainError as error:
            run.update(state="failed", error=[str(problem) for problem in error.problems], cause=error.cause)
            raise
        except Exception as error:
            run.update(state="failed", error=[f"{type(error).__name__}: {error}"], cause=TltrainError.cause)
            raise


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeLimitError in the main thread once `seconds` have passed in a `with` block."""
    if seconds is None:
        yield
        return

    def end(*_: object) -> None:
        what = f"the run has not ended within {seconds:g} s"
        action = "Give it longer (--max-duration) and start it again: it goes on where it was"
        raise stopping.CutShort(TimeLimitError(what, action))

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with stopping.errors_told():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
