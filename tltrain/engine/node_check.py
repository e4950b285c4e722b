"""What a preflight looks at on one node, and how nodes meet: run in a small task of each node, and in the driver."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from tltrain.data.sources import open_source
from tltrain.errors import Problem, TltrainError
from tltrain.spec.names import HUGGINGFACE_PREFIX, TORCHVISION_PREFIX, source_parts
from tltrain.spec.schema import Spec
from tltrain.storage import Folder
from tltrain.train.versions import versions

FOLDER = "preflight"
DRIVER = "driver"
PACKAGE_DIR = Path(__file__).resolve().parent.parent


@dataclass
class Findings:
    """What one node found. Everything in it can be compared with what the driver found."""

    problems: list[Problem] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key of the spec -> fingerprint of the source (names, sizes, labels) and number of images."""
    port: int = 0
    """A free one, where the nodes may meet."""


def look(spec_text: str, run_uri: str, mark: str, me: str, *, has_weights: bool) -> Findings:
    """Look at the versions, the data, the weights and the storage as this node sees them.

    mark: what the driver's file in the storage is called; `me` names this node's. has_weights: whether the run has a
    copy of its own.
    """
    spec = Spec.model_validate_json(spec_text)
    findings = Findings(versions={**versions(), "tltrain": code_version()}, port=_free_port())
    sources: dict[Literal["train", "val", "test"], Any] = {
        "train": spec.data.train,
        "val": spec.data.val,
        "test": spec.data.test,
    }
    for key, source in sources.items():
        if isinstance(source, str) and not (spec.data.download and _is_fetched(source)):
            with _noted(findings, f"data.{key}"):
                opened = open_source(source, spec.data, split=key, allow_code=spec.allow_code)
                findings.data[f"data.{key}"] = opened.fingerprint(), len(opened)
    if not has_weights and spec.model.weights != "random":
        from tltrain.models.at_hand import check_weights  # torchvision takes seconds

        with _noted(findings, "model.weights"):
            check_weights(spec.model)
    with _noted(findings, "storage"):
        _leave_mark(Folder.open(run_uri).child(FOLDER), mark, me, findings)
    return findings


def _is_fetched(source: str) -> bool:
    """Whether a source is a name that each node fetches for itself."""
    prefix, path, _ = source_parts(source)
    return prefix == TORCHVISION_PREFIX or (prefix == HUGGINGFACE_PREFIX and not path.startswith("/"))


def _leave_mark(folder: Folder, mark: str, me: str, findings: Findings) -> None:
    """Write into the storage what the driver can look for, if what the driver wrote is there."""
    if me != DRIVER and not folder.exists(f"{mark}-{DRIVER}"):
        what = f"what the driver wrote into {folder} is not there: this is another folder"
        action = "Set storage to a place that all nodes share, such as a shared disk or s3://bucket/runs"
        findings.problems.append(Problem(what, action, key="storage"))
        return
    folder.write_bytes(f"{mark}-{me}", b"")


@contextlib.contextmanager
def _noted(findings: Findings, key: str) -> Iterator[None]:
    """Add the problems of an error to the findings instead of raising it."""
    try:
        yield
    except TltrainError as error:
        findings.problems += [replace(problem, key=problem.key or key) for problem in error.problems]


def code_version(folder: Path = PACKAGE_DIR) -> str:
    """Version of the package, with a digest of its code: installations of one version may differ."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{importlib.metadata.version('tltrain')} (code {digest.hexdigest()[:8]})"
    return f"not installed (code {digest.hexdigest()[:8]})"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def meet(rank: int, count: int, host: str, port: int, limit_s: float) -> str:
    """Sum a number over all nodes as training sums gradients; return what went wrong, or nothing.

    The first node listens at `host`:`port`, the others come there.
    """
    limit = timedelta(seconds=limit_s)
    try:
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, port, count, is_master=rank == 0, timeout=limit, wait_for_workers=False
        )
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
        try:
            total = torch.ones(1)
            dist.all_reduce(total)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0][:200]
    return "" if total.item() == count else f"the sum over {count} nodes is {total.item()}"
