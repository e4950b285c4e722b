"""What is known of a run before it trains: versions, workers, data, model. header.json keeps what is shown."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltrain.progress import Meter
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

if TYPE_CHECKING:
    from tltrain.train.distributed import Group

HEADER_FILE = "header.json"


def gather_facts(spec: Spec, run: RunFolder, *, workers: str, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Check `spec` against data and model, and return what the header shows; `devices` is added by who knows them.

    packages: whose versions matter besides torch's. Raises DataError and SpecError with all problems.
    """
    from tltrain.train.explain import explain
    from tltrain.train.versions import versions

    sweep = spec.sweep
    return {
        **explain(spec).to_dict(),
        "run": shown_path(run),
        "model": spec.model.name or spec.model.factory,
        "workers": workers,
        "versions": {"tltrain": version("tltrain"), **versions(), **{name: version(name) for name in packages}},
        "searched": None if sweep is None else list(sweep.space),
        "search": None if sweep is None else f"{sweep.search} search, {sweep.scheduler}",
    }


def without_skipped(
    facts: Mapping[str, Any], spec: Spec, run: RunFolder, group: Group | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Look at every image where `spec` leaves out those that cannot be used; return the facts about the others.

    What was found is kept in the run folder, and a run that goes on takes it from there. group: processes that look
    together, each calling `look_at_images`; without one, this process. Raises DataError where too many are bad.
    """
    if spec.data.on_bad_image == "fail":
        return dict(facts)
    import torch

    from tltrain.data.loader import steps_per_epoch
    from tltrain.data.splits import load_splits
    from tltrain.train import skipped
    from tltrain.train.distributed import Group

    group = group or Group(0, 1, 0, 1, torch.device("cpu"))
    with contextlib.closing(Meter(run.folder)) as meter:
        looks = skipped.look_at_images(spec, skipped.read_looks(run), group, tell, meter.waits)
    skipped.write_looks(run, looks)
    splits = load_splits(
        spec.data, spec.seed, allow_code=spec.allow_code, check_leakage=False, skipped=skipped.by_source(looks)
    )
    counts = skipped.counts(looks)
    run.update(**counts)
    note = (
        f"{counts['num_skipped']:,} of {counts['num_images']:,} images cannot be used and are left out: {skipped.FILE}"
    )
    return {
        **facts,
        "num_train": len(splits.train),
        "num_val": len(splits.val) if splits.val else 0,
        "num_test": len(splits.test) if splits.test else 0,
        "steps_per_epoch": steps_per_epoch(len(splits.train), spec.train.images_per_step),
        "data_fingerprint": splits.fingerprint,
        "notes": [*facts["notes"], *([note] if counts["num_skipped"] else [])],
    }


def workers_text(spec: Spec) -> str:
    """Return what `spec` asks of Ray, as people say it."""
    count, gpus = spec.resources.num_workers, spec.resources.gpus_per_worker
    number = str(count) if isinstance(count, int) else f"{count.min} to {count.max}"
    where = f"the cluster at {os.environ['RAY_ADDRESS']}" if "RAY_ADDRESS" in os.environ else "this machine"
    each = f"{spec.resources.cpus_per_worker} CPU" + {"auto": "", 0: ""}.get(gpus, f" + {gpus} GPU")
    return f"{number} x {each}, Ray Train on {where}"


def shown_path(run: RunFolder) -> str:
    """Return the run's address as one would type it here: relative where it is below the current directory."""
    path = run.folder.local_path
    return str(path.relative_to(Path.cwd())) if path and path.is_relative_to(Path.cwd()) else str(run.folder)
