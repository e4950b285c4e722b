"""Jobs for tests: a home of their own, a fake cluster, and small specs whose run folders stand in the home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeRay, running_fake, write_cluster_file
from tiny import tiny_spec

from tltrain.jobs.clusters import LoadedCluster, load_cluster
from tltrain.jobs.ledger import Job, Ledger
from tltrain.jobs.submission import Options, plan_job, submit
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec


@dataclass
class Home:
    """A user's home with a fake cluster to submit to."""

    folder: Path
    fake: FakeRay
    cluster: LoadedCluster

    def spec(self, **changes: Any) -> Spec:
        return tiny_spec(self.folder / "digits", changes)

    def ledger(self) -> Ledger:
        return Ledger()

    def submit(self, ledger: Ledger, *, spec: Spec | None = None, **options: Any) -> Job:
        """Submit a tiny job without the package in its upload."""
        job, package = plan_job(spec or self.spec(), self.cluster, Options(with_tltrain=False, **options))
        return submit(ledger, job, package, deadline_s=20.0)

    def run_says(self, job: Job, *, attempt: int = 1, **fields: Any) -> None:
        """Write into the run's folder what an attempt would."""
        RunFolder.at(job.storage, job.run).update(job=f"{job.id}-{attempt}", **fields)


@contextmanager
def home_at(folder: Path) -> Iterator[Home]:
    """A home in `folder` whose fake cluster answers for the length of a `with` block."""
    with pytest.MonkeyPatch.context() as patch, running_fake() as fake:
        for name in ("DATA", "CONFIG", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
        path = write_cluster_file(fake, folder / "config" / "tltrain" / "cluster")
        yield Home(folder, fake, load_cluster(str(path)))
