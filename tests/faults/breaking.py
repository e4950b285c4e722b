"""A run that is broken by one fault, up to the end of its processes, and whether that went as it should."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ranks
from injector import FULL, INTERRUPT, KILL, STOP, TERMINATE, Fault, arm, intercept

from tltrain import stopping
from tltrain.errors import LostError
from tltrain.spec.schema import Spec
from tltrain.train import presence
from tltrain.train.distributed import Group

CODES = {KILL: -signal.SIGKILL, FULL: 1, TERMINATE: 143, INTERRUPT: 130}
NOTICED_WITHIN_S = 60.0
BEAT_S = 0.5
"""Seconds between the ranks' signs of life here, instead of 5."""


def break_run(world_size: int, train: Callable[[Group, Spec], None], spec: Spec, fault: Fault) -> list[str]:
    """Train until `fault` happens; return what did not go as it should have."""
    if fault.action == STOP and world_size == 1:
        return list(_pause(train, spec, fault))
    began = time.monotonic()
    code, others = _run_until_death(world_size, train, spec, fault)
    if fault.action == STOP and code is None:
        if all(other == 0 for other in others):  # they had no more to do, and notice nothing any more
            return []
        return list(_unnoticed(spec, fault, time.monotonic() - began))
    if fault.action == STOP or code != CODES[fault.action]:
        return [f"the fault did not happen: rank {fault.rank} ended with {code}"]
    return list(_lost_steps(spec, fault)) if fault.action in (TERMINATE, INTERRUPT) else []


def _run_until_death(
    world_size: int, train: Callable[[Group, Spec], None], spec: Spec, fault: Fault
) -> tuple[int | None, list[int | None]]:
    """Run until the rank that is struck ends, or the others where it stands still; return its exit code and theirs.

    Its code is None where it stands still, as are those of others that have not ended when one does with an error.
    """
    processes, _ = ranks.start(world_size, train_and_break, train, spec, fault)
    watched = processes[: fault.rank] + processes[fault.rank + 1 :] if fault.action == STOP else [processes[fault.rank]]
    deadline = time.monotonic() + ranks.LIMIT_S
    while time.monotonic() < deadline and _go_on(watched):
        time.sleep(0.02)
    struck = processes[fault.rank]
    while time.monotonic() < deadline and struck.exitcode is None and not _stands_still(struck.pid):
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    if fault.action in (KILL, STOP):  # as a launcher does; who was told to end does so by itself
        for process in processes:
            process.kill()
    ranks.stop(processes)
    return codes.pop(fault.rank), codes


def _go_on(processes: Sequence[Any]) -> bool:
    """Whether none has ended with an error, and not all of them well."""
    codes = [process.exitcode for process in processes]
    return None in codes and not any(codes)


def train_and_break(group: Group, train: Callable[[Group, Spec], None], spec: Spec, fault: Fault) -> None:
    """Train on one rank, as the program does, and let `fault` happen."""
    presence.BEAT_S = BEAT_S
    steps = _counted_steps()
    if group.rank == fault.rank:
        arm(fault)

    def note_and_leave(error: LostError) -> None:
        Path(spec.storage).mkdir(parents=True, exist_ok=True)
        (Path(spec.storage) / "silence").write_text(str(error))
        os._exit(1)

    try:
        with stopping.handled(), presence.present(group, on_silence=note_and_leave):
            train(group, spec)
    except stopping.StoppedError as stopped:
        _leave(spec, group, steps[0], 128 + stopped.number)
    except KeyboardInterrupt:
        _leave(spec, group, steps[0], 130)
    except SystemExit as ended:
        _leave(spec, group, steps[0], int(ended.code or 0))


def _counted_steps() -> list[int]:
    steps = [0]

    def count(call: Callable[[], Any]) -> Any:
        result = call()
        steps[0] += 1
        return result

    intercept("optimiser step", count)
    return steps


def _leave(spec: Spec, group: Group, steps: int, code: int) -> None:
    Path(spec.storage).mkdir(parents=True, exist_ok=True)
    (Path(spec.storage) / f"steps-{group.rank}").write_text(json.dumps(steps))
    os._exit(code)


def _lost_steps(spec: Spec, fault: Fault) -> Iterator[str]:
    """After a signal that may be followed in order, every step that was taken is in a checkpoint."""
    steps = json.loads((Path(spec.storage) / f"steps-{fault.rank}").read_text())
    commits = (Path(spec.storage) / spec.name / "checkpoints").glob("*/COMMIT")
    newest = max((int(path.parent.name) for path in commits), default=0)
    if newest != steps:
        yield f"{steps - newest} of {steps} steps were lost"


def _unnoticed(spec: Spec, fault: Fault, seconds: float) -> Iterator[str]:
    """A rank that stands still has to be noticed by another one, and named."""
    note = Path(spec.storage) / "silence"
    text = note.read_text() if note.exists() else ""
    if f"rank {fault.rank} (process" not in text:
        yield f"nobody named rank {fault.rank}, which stood still: {text!r}"
    if seconds > NOTICED_WITHIN_S:
        yield f"that rank {fault.rank} stood still was noticed after {seconds:.0f} s"


def _pause(train: Callable[[Group, Spec], None], spec: Spec, fault: Fault) -> Iterator[str]:
    """A process alone that stands still for a moment goes on as if nothing had been."""
    (process,), queue = ranks.start(1, train_and_break, train, spec, fault)
    try:
        deadline = time.monotonic() + ranks.LIMIT_S
        while not _stands_still(process.pid) and process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.exitcode is not None:
            yield "the fault did not happen"
            return
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGCONT)
        _, error, _ = queue.get(timeout=ranks.LIMIT_S)
        if error is not None:
            yield f"it did not go on: {error}"
    finally:
        ranks.stop([process])


def _stands_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
