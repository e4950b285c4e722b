"""One rank of a run without Ray: alone, or beside those that torchrun has started."""

from __future__ import annotations

import os
from typing import Any

from tltrain import messages, stopping
from tltrain.errors import LostError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.presence import present
from tltrain.train.session import fine_tune


def train_plainly(spec: Spec, run: RunFolder, group: Group) -> dict[str, Any]:
    """Train `spec` in `run` and return the summary, as `fine_tune` does; a signal ends it with a checkpoint.

    Where another rank gives no sign of life, this process ends with an error that names it: whoever waits in a
    collective cannot be reached by an exception.
    """

    def give_up(error: LostError) -> None:
        messages.show_error(error)
        if group.is_first:
            run.update(state="failed", error=[str(problem) for problem in error.problems], cause=error.cause)
        os._exit(error.exit_code)

    with stopping.handled(), present(group, on_silence=give_up):
        try:
            return fine_tune(spec, run, group)
        except stopping.StoppedError as stopped:
            stopping.end(stopped.number)
