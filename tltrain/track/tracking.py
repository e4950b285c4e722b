"""Tracking beside training: each tracker has a thread that nobody waits for, and none of them can stop a run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tltrain.errors import Problem, ResourceError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.track.entries import Tracker
from tltrain.track.mirror import Mirror

LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 2.0, 15.0
"""Seconds between two looks into the run folder, on a local disk and elsewhere."""
END_LIMIT_S = {"finished": 300.0}
"""How long a tracker may take to send the rest, by how the run has ended."""
SHORT_LIMIT_S = 10.0
SILENT_S = 3.0
"""How long it may take without a word."""
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}

logger = logging.getLogger(__name__)


def check_packages(spec: Spec) -> None:
    """Raise ResourceError where a tracker was asked for whose package is not installed.

    Without tensorboardX there are no event files, and nothing is said: they are the default.
    """
    missing = [name for name in spec.track if name != "tensorboard" and not _is_installed(name)]
    if missing:
        problems = [
            Problem(f"{name} is not installed", f"pip install 'tltrain[{name}]', or leave it out", key="track")
            for name in missing
        ]
        raise ResourceError(problems)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


@contextlib.contextmanager
def tracked(spec: Spec, run: RunFolder) -> Iterator[None]:
    """Tell the trackers of `spec` for a `with` block what the run folder says, and at its end how it ended."""
    threads = [_Thread(spec, run, name) for name in spec.track if _is_installed(name)]
    state = "failed"
    try:
        yield
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        _end(threads, state)


def _end(threads: Sequence[_Thread], state: str) -> None:
    """Have the trackers take the rest; Ctrl-C leaves it out, and a finished run stays finished."""
    limit_s = END_LIMIT_S.get(state, SHORT_LIMIT_S)
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.ask_to_end(state)
    try:
        for thread in threads:
            if not thread.wait(min(deadline, time.monotonic() + SILENT_S)):
                logger.info("waiting up to %g s for %s; Ctrl-C leaves out the rest", limit_s, thread.name)
            if not thread.wait(deadline):
                logger.warning("%s has not taken everything in time; the rest is left out", thread.name)
    except KeyboardInterrupt:
        if state != "finished":
            raise
        logger.warning("not everything was told to %s", ", ".join(thread.name for thread in threads))


class _Thread:
    """Keeps one tracker up to date."""

    def __init__(self, spec: Spec, run: RunFolder, name: str) -> None:
        self._spec, self._run, self.name = spec, run, name
        self._interval_s = LOCAL_INTERVAL_S if run.folder.local_path else REMOTE_INTERVAL_S
        self._ending = threading.Event()
        self._state = ""
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._thread.start()

    def ask_to_end(self, state: str) -> None:
        self._state = state
        self._ending.set()

    def wait(self, deadline: float) -> bool:
        """Wait for the thread's end; return whether it has come."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while not self._has_news() and not self._ending.wait(self._interval_s):
                pass  # nothing is imported before there is something to tell
            mirror = Mirror(self._spec, self._run, self.name, _make(self.name)(self._run))
            while not self._ending.is_set():
                mirror.update()
                self._ending.wait(self._interval_s)
            mirror.end(self._state)
        except Exception as error:  # noqa: BLE001  whatever a tracker raises, training goes on
            logger.warning("%s is told nothing more of this run: %s: %s", self.name, type(error).__name__, error)

    def _has_news(self) -> bool:
        return bool(self._run.metrics())


def _make(name: str) -> Callable[[RunFolder], Tracker]:
    if name == "tensorboard":
        from tltrain.track.tensorboard import TensorBoard

        return lambda run: TensorBoard(run.folder)
    if name == "mlflow":
        from tltrain.track.mlflow import Mlflow

        return lambda _: Mlflow()
    from tltrain.track.wandb import WandB

    return lambda run: WandB(run.folder)
