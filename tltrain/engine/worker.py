"""What runs in each Ray Train worker: the training floor, told by Ray who its neighbours are."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from tltrain.engine.stop_request import STOPPED_BY, listening
from tltrain.environment import take_secrets
from tltrain.lease import join
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.stopping import PREEMPTED, StoppedError
from tltrain.train.distributed import Group
from tltrain.train.presence import present
from tltrain.train.session import fine_tune


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank. `config` holds the spec as JSON text, the run's address and the driver's folder."""
    if config["python_path"] not in sys.path:
        sys.path.insert(0, config["python_path"])
    spec, run, group = Spec.model_validate_json(config["spec"]), open_run(config), current_group()
    with listening(config["stop_key"], is_first=group.is_first) as asked, present(group):
        try:
            return fine_tune(spec, run, group, report=_report, wished=lambda: asked() or _preemption())
        except StoppedError as stopped:
            return {STOPPED_BY: stopped.number}


def open_run(config: dict[str, Any]) -> RunFolder:
    """Return the run folder; it refuses this worker's writes once another attempt has taken over."""
    take_secrets()
    return RunFolder(join(RunFolder.open(config["run"]).folder, config["lease"]))


def current_group() -> Group:
    """Return this worker's place as Ray Train sees it; Ray has started the process group already."""
    import ray.train.torch  # seconds of imports, and workers without Ray Train need none of it

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Group(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        device=device,
    )


def _preemption() -> int:
    """Return PREEMPTED where Ray has said that a node of this group is taken back, else 0."""
    # The public ray.train.get_preemption_info() is a collective of its own; the ranks agree by ours.
    from ray.train.v2._internal.execution.context import get_train_context

    return PREEMPTED if get_train_context().preemption_context.preemption_info is not None else 0


def _report(row: dict[str, Any]) -> None:
    import ray.train

    ray.train.report(row)
