"""The job layer in front of a cluster of 1,000 nodes, by way of a fake Jobs server: submit, list, status; many at once.

    python benchmarks/load_jobs.py --nodes 1000 --jobs 5000 --submits 200

The fake (tests/jobs/fake_server.py) answers as Ray's server does, with the resources of that many nodes and so many
jobs that others have submitted. First all submits are made at once by threads of one process, one answer in ten lost on
the way; each must be one job there. Then the verbs, each a process as a user starts it. Prints one JSON object: seconds
that passed, of CPU time, and the largest resident set in MB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from process_memory import Ran, run

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests" / "jobs"), str(PROJECT / "tests")]

from fake_server import FakeRay, Fault, running_fake, write_cluster_file  # noqa: E402  # pyright: ignore

from tltrain.jobs.clusters import load_cluster  # noqa: E402
from tltrain.jobs.ledger import Ledger  # noqa: E402
from tltrain.jobs.submission import Options, plan_job, submit  # noqa: E402
from tltrain.spec.load import load_spec  # noqa: E402

SPEC = """\
name: load
model: {{name: resnet18}}
data: {{train: "torchvision:CIFAR10", test: "torchvision:CIFAR10"}}
train: {{batch_size: {workers}}}
resources: {{num_workers: {workers}, gpus_per_worker: 1}}
storage: {storage}
"""


def fill(fake: FakeRay, nodes: int, jobs: int) -> None:
    """Give a fake the resources of so many nodes, and jobs that others have submitted."""
    fake.usage = {"CPU": (0.0, 64.0 * nodes), "GPU": (0.0, 8.0 * nodes), "memory": (0.0, 2.0**38 * nodes)}
    fake.usage |= {f"node:10.{n >> 16}.{n >> 8 & 255}.{n & 255}": (0.0, 1.0) for n in range(nodes)}
    states = itertools.cycle(["RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
    for number, status in zip(range(jobs), states, strict=False):
        body = {
            "submission_id": f"other-{number:06d}-1",
            "entrypoint": "python train.py",
            "metadata": {"owner": "other"},
        }
        fake.take(
            {**body, "runtime_env": {"env_vars": {"KEY": "x" * 200}, "working_dir": f"gcs://_ray_pkg_{number}.zip"}}
        )
        fake.set(f"other-{number:06d}-1", status)


def submit_all(spec: Path, cluster: str, count: int) -> None:
    """Submit as many jobs at once, from threads of this process."""
    loaded, target = load_spec(spec).spec, load_cluster(cluster)

    def one(_: int) -> float:
        began = time.perf_counter()
        with Ledger() as ledger:
            job, package = plan_job(loaded, target, Options(with_tltrain=False))
            submit(ledger, job, package, deadline_s=120.0)
        return time.perf_counter() - began

    with ThreadPoolExecutor(count) as executor:
        taken = list(executor.map(one, range(count)))
    print(json.dumps({"median_s": round(statistics.median(taken), 2), "slowest_s": round(max(taken), 2)}))


def loses_answers() -> Any:
    """A fault that loses the answer to every tenth submission after its work is done."""
    numbers = itertools.count(1)
    return lambda method, _: Fault(drops_answer=True) if method == "POST" and next(numbers) % 10 == 0 else None


def shown(ran: Ran) -> dict[str, float]:
    """What a command took, in few digits."""
    return {name: round(value, 2) for name, value in ran._asdict().items()}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fill a fake, submit, and look."""
    os.environ.update({f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("DATA", "CONFIG", "STATE", "CACHE")})
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(workers=options.nodes, storage=folder / "runs"))
    with running_fake() as fake:
        fill(fake, options.nodes, options.jobs)
        cluster = str(write_cluster_file(fake, folder / "config" / "tltrain" / "cluster", "large"))
        fake.fault = loses_answers()
        with (folder / "taken.json").open("w") as taken:
            command = [sys.executable, __file__, "--submit-all", str(spec), cluster, "--submits", str(options.submits)]
            at_once = run(command, stdout=taken)
        fake.fault = lambda *_: None
        ours = {own_id: count for own_id, count in fake.accepted.items() if own_id.startswith("load-")}
        assert len(ours) == options.submits
        assert set(ours.values()) == {1}, "each is one job there"
        for own_id in ours:
            fake.set(own_id, "RUNNING")
        result = {"at_once": {**shown(at_once), **json.loads((folder / "taken.json").read_text())}}
        own_id = next(iter(ours)).rpartition("-")[0]
        verbs = {
            "submit": ["submit", str(spec), "--cluster", cluster, "-d"],
            "jobs": ["jobs"],
            "jobs_all_json": ["jobs", "-a", "--json"],
            "status": ["status", own_id],
            "cluster_status": ["cluster", "status", "large"],
        }
        for name, verb in verbs.items():
            result[name] = shown(run([sys.executable, "-m", "tltrain", *verb]))
    return {"nodes": options.nodes, "jobs_of_others": options.jobs, "submits": options.submits, **result}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=5000, help="jobs of others that the cluster knows")
    parser.add_argument("--submits", type=int, default=200, help="submits at once")
    parser.add_argument("--submit-all", nargs=2, metavar=("SPEC", "CLUSTER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.submit_all:
        submit_all(Path(options.submit_all[0]), options.submit_all[1], options.submits)
        return
    with tempfile.TemporaryDirectory(prefix="tltrain-load-") as folder:
        print(json.dumps(measure(Path(folder), options)))


if __name__ == "__main__":
    main()
