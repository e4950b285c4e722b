"""Trials that take turns: what all schedulers that stop or change trials have in common here."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler


class TakesTurns:
    """Mixed into a scheduler: a trial whose lane goes on makes room for another trial while the lane trains.

    A paused trial costs no state on disk, since its lane lives in the worker group. Trials with the fewest epochs come
    first, so lanes stay abreast and share their batches.

    takes_turns: not so where each trial has workers of its own, which would wait for their trial to come back while
    the trials that took its place wait for workers.
    """

    broker: Any
    takes_turns = True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide as the scheduler does; let the lane go on at once, and pause its trial where another waits."""
        decision = super().on_trial_result(tune_controller, trial, result)  # pyright: ignore[reportAttributeAccessIssue]
        if not self.takes_turns or decision in (TrialScheduler.STOP, TrialScheduler.NOOP) or trial.is_saving:
            return decision
        if not self._goes_on(trial, decision):
            tune_controller.pause_trial(trial, should_checkpoint=False)
            return TrialScheduler.NOOP
        self.broker.allow.remote(str(trial), result["epoch"] + 1)
        # Without a trial that waits, Ray Tune would end the process instead of keeping it for the next trial.
        if not any(other.status == Trial.PENDING for other in tune_controller.get_live_trials()):
            return TrialScheduler.CONTINUE
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return TrialScheduler.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that has the fewest epochs of those that may run."""
        waiting = [trial for trial in tune_controller.get_trials() if self._may_run(trial)]
        return min(waiting, key=lambda trial: trial.last_result.get("epoch", 0), default=None)

    def _goes_on(self, trial: Trial, decision: str) -> bool:
        return True

    def _may_run(self, trial: Trial) -> bool:
        return trial.status in (Trial.PENDING, Trial.PAUSED)
