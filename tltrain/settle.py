"""A spec made definite before its run begins: `train.batch_size: auto` becomes a number, once for all attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tltrain.run_folder import RunFolder
from tltrain.spec.load import parse_spec, replace
from tltrain.spec.schema import Spec

if TYPE_CHECKING:
    from tltrain.train.batch_size import FoundBatchSize
    from tltrain.train.distributed import Group

Find = Callable[[Spec], "FoundBatchSize"]
Show = Callable[["FoundBatchSize", Spec], None]


def _needs_settling(spec: Spec) -> bool:
    """Whether something in `spec` is still to be found."""
    return spec.train.batch_size == "auto"


def _settle(spec: Spec, find: Find, show: Show, run: RunFolder | None = None) -> Spec:
    """Return `spec` with a number where it says `auto`: what `run` began with, or what `find` returns.

    show: called with what was found. Raises what `find` does.
    """
    if not _needs_settling(spec):
        return spec
    if run is not None and run.exists():
        before = parse_spec(run.spec_text(), where=f"{run.uri}/spec.yaml", base=Path.cwd()).spec
        return replace(spec, {"train.batch_size": before.train.batch_size})
    found = find(spec)
    show(found, spec)
    return replace(spec, {"train.batch_size": found.batch_size})


@contextlib.contextmanager
def settled_on_ray(spec: Spec, run: RunFolder, show: Show) -> Iterator[Spec]:
    """Yield `spec` with all that a worker has to find for it, connected to Ray if there was anything."""
    if not _needs_settling(spec):
        yield spec
        return
    from tltrain.engine.batch_size import find_on_worker
    from tltrain.engine.cluster import connected

    with connected():
        yield _settle(spec, find_on_worker, show, run)


def settled_locally(spec: Spec, run: RunFolder, group: Group, show: Show) -> Spec:
    """Return `spec` with all that the first rank has to find for it; the others wait."""
    if not _needs_settling(spec):
        return spec
    from tltrain.train.batch_size import find_here

    found = None
    if group.is_first:
        found = _settle(spec, lambda spec: find_here(spec, group.world_size), show, run).model_dump_json()
    return Spec.model_validate_json(group.broadcast(found))


def settled_here(spec: Spec, show: Show) -> Spec:
    """Return `spec` with what is found for it on this machine."""
    from tltrain.train.batch_size import find_here

    return _settle(spec, find_here, show)
