"""The errors a user can see, and the exit code of each.

    TltrainError                 1   anything below; never raised itself
    ├── SpecError                2   the spec, a --set value or a command-line argument is wrong
    ├── ResourceError            3   the machine or cluster cannot give what was asked for
    │   └── OutOfMemoryError     3   a worker's memory or a GPU's is too small for the micro-batch
    ├── DataError                4   images, labels, weights or splits cannot be used
    ├── ExportError              1   a trained model cannot be exported, or what was exported differs from it
    └── RunError                 1   the run started and failed
        ├── StorageError         1   a run folder cannot be read or written
        ├── CheckpointError      1   no usable checkpoint where there should be one
        ├── DivergedError        1   the loss is not finite
        ├── LostError            1   workers or nodes were lost, and no restarts are left
        │   └── PreemptedError   1   ... because the cloud took a node back
        └── TimeLimitError       1   the run's time is used up

Every error carries a list of problems, so that all of them can be shown at once, and the cause that decides whether the
job is worth trying again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it is, what it is, and what to do about it.

    `where` is `file:line:column`, `--set #1`, a path, or empty. `key` is a dotted key of the spec, or empty.
    """

    what: str
    action: str = ""
    where: str = ""
    key: str = ""

    def __str__(self) -> str:
        place = shown(" ".join(part for part in (self.where, self.key) if part))
        text = f"{_sentence(self.what)} {_sentence(self.action)}".strip()
        text = "\n".join(shown(line.expandtabs(4)) for line in text.split("\n"))
        return f"{place}: {text}" if place else text


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."


def shown(text: str) -> str:
    """Text on one line as a terminal can show it: names of files may hold line breaks and escape sequences."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class TltrainError(Exception):
    """Base of all errors shown to a user without a traceback.

    Built from one message (`what`, `action`) or from a list of problems.
    """

    exit_code = 1
    cause = "user code"
    """What run.json names as the cause of a failure; one of `tltrain.jobs.states.Cause`."""

    def __init__(self, problems: str | Problem | Sequence[Problem], action: str = "") -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, action)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[TltrainError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class SpecError(TltrainError):
    """The spec, a --set value or a command-line argument is wrong."""

    exit_code = 2


class ResourceError(TltrainError):
    """The machine or the cluster cannot give what was asked for."""

    exit_code = 3
    cause = "resources"


class OutOfMemoryError(ResourceError):
    """A worker's memory, or a GPU's, is too small for the micro-batch."""

    cause = "out of memory"


class DataError(TltrainError):
    """Images, labels, weights or splits cannot be used."""

    exit_code = 4
    cause = "data"


class ExportError(TltrainError):
    """A trained model cannot be exported, or what was exported differs from it."""


class RunError(TltrainError):
    """The run started and failed."""


class StorageError(RunError):
    """A run folder cannot be read or written."""

    cause = "storage"


class CheckpointError(RunError):
    """No usable checkpoint where there should be one."""


class DivergedError(RunError):
    """The loss is not a finite number."""


class LostError(RunError):
    """Workers or nodes were lost, and no restarts are left."""

    cause = "node lost"


class PreemptedError(LostError):
    """The cloud took nodes back, and no restarts are left."""

    cause = "preempted"


class TimeLimitError(RunError):
    """The run's time is used up."""

    cause = "time limit"
