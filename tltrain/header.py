"""What is known of a run before it trains: versions, workers, data, model. header.json keeps what is shown."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

HEADER_FILE = "header.json"


def gather_facts(spec: Spec, run: RunFolder, *, workers: str, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Check `spec` against data and model, and return what the header shows; `devices` is added by who knows them.

    packages: whose versions matter besides torch's. Raises DataError and SpecError with all problems.
    """
    from tltrain.train.explain import explain
    from tltrain.train.finish import versions

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
