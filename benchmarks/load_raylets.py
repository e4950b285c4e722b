"""Fifty nodes on one machine, each a raylet of its own: plan, preflight, and workers that are spread over them.

    python benchmarks/load_raylets.py --nodes 50 --workers 10

The nodes are `ray.cluster_utils.Cluster`'s, with one CPU each. Checked: the plan counts them all and refuses one worker
more with the arithmetic; in the preflight every node looks around and meets all others; a request for a worker on each
node is placed on as many nodes; training with --workers workers ends well with each on a node of its own. The
preflight's deadlines are for nodes that have cores of their own; here all share those of one machine, and --patience
multiplies them. A process that has imported torch takes 0.3 GB of its own (a build for CUDA): 50 nodes need 25 GB, swap
included. Prints one JSON object: seconds of each part, and memory in MB of all processes together, what they share
counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests"))
PATIENT = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_failure_threshold": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_memory_monitor_refresh_ms": "0",  # which knows of no swap
    "REPORTER_UPDATE_INTERVAL_MS": "600000",  # each agent looks at all of the machine
}
os.environ.update(PATIENT)  # before Ray is imported, which reads them then

import ray  # noqa: E402
from process_memory import shared_out_mb  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group  # noqa: E402
from tiny import tiny_spec  # noqa: E402  # pyright: ignore

from tltrain.engine import fit as fit_module  # noqa: E402
from tltrain.engine import preflight as preflight_module  # noqa: E402
from tltrain.engine.cluster import live_nodes, wait_for_room  # noqa: E402
from tltrain.engine.plan import find_shortage, make_request  # noqa: E402
from tltrain.jobs.processes import Process, family  # noqa: E402
from tltrain.run_folder import RunFolder  # noqa: E402
from tltrain.spec.load import dump_yaml  # noqa: E402
from tltrain.spec.schema import ResourcesSpec, Spec  # noqa: E402

STORE_BYTES = 80 << 20
PARTS = ("plan", "place", "preflight", "train")


class Bench:
    """The cluster, and what its parts took."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self.result: dict[str, Any] = {"nodes": options.nodes}

    def timed(self, name: str, part: Callable[[], Any]) -> Any:
        """Do a part, and note its seconds and the memory of all processes after it."""
        began = time.perf_counter()
        value = part()
        me = Process.of(os.getpid())
        assert me is not None
        members = [process.pid for process in family([me])]
        memory = shared_out_mb([os.getpid(), *members])
        took = {"seconds": round(time.perf_counter() - began, 1), "mb": round(memory), "processes": len(members)}
        self.result[name] = took
        print(name, took, file=sys.stderr, flush=True)
        return value

    def start(self) -> Cluster:
        """Start the nodes, one after the other."""
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        began = time.perf_counter()
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for number in range(self._options.nodes):
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            print(f"node {number + 1} after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes(timeout=120)
        return cluster

    def plan(self) -> None:
        """All nodes are counted, and one worker more than there is room for is refused."""
        nodes = self._options.nodes
        assert wait_for_room(ResourcesSpec(num_workers=nodes, placement="spread")).max_workers == nodes
        shortage = find_shortage(make_request(ResourcesSpec(num_workers=nodes + 1), live_nodes()), live_nodes())
        assert shortage is not None
        assert f"{nodes + 1} worker(s) of 1 CPU are asked for and the cluster holds {nodes}" in shortage.what

    def spec(self, name: str, workers: int) -> tuple[Spec, RunFolder]:
        """A spec of spread workers, and its run folder."""
        resources = {"num_workers": workers, "placement": "spread", "wait_s": 60, "collective_timeout_s": 900}
        changes = {"resources": resources, "train.epochs": 1, "train.batch_size": max(16, workers)}
        spec = tiny_spec(self._folder, changes, name=name)
        run = RunFolder.at(spec.storage, spec.name)
        run.write_spec(dump_yaml(spec))
        return spec, run

    def preflight(self) -> None:
        """Every node looks around and meets the others."""
        for name in ("TOTAL_S", "LOOK_S", "MEET_S"):
            setattr(preflight_module, name, getattr(preflight_module, name) * self._options.patience)
        spec, run = self.spec("checked", self._options.nodes)
        preflight_module.preflight(spec, run, wait_for_room(spec.resources))

    def place(self) -> None:
        """A worker for each node is placed on a node of its own."""
        group = placement_group([{"CPU": 1}] * self._options.nodes, strategy="SPREAD")
        ray.get(group.ready(), timeout=600)
        places = placement_group_table(group)["bundles_to_node_id"]
        assert len(set(places.values())) == self._options.nodes, places
        remove_placement_group(group)

    def train(self) -> None:
        """Workers on nodes of their own train to a good end."""
        spec, run = self.spec("trained", self._options.workers)
        seen: set[str] = set()

        def look() -> None:
            for group in placement_group_table().values():
                if group["state"] == "CREATED" and len(group["bundles"]) >= self._options.workers:
                    seen.update(group["bundles_to_node_id"].values())

        with mock.patch.object(fit_module, "preflight", lambda *given: given[2]):  # it is measured by itself
            summary = fit_module.fit(spec, run, poll=look)
        assert summary["best"] is not None
        assert len(seen) >= self._options.workers, seen


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=10, help="workers that train, spread")
    parser.add_argument("--patience", type=float, default=10, help="what the preflight's deadlines are multiplied by")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tltrain-load-", ignore_cleanup_errors=True) as folder:
        bench = Bench(options, Path(folder))
        cluster = bench.timed("start", bench.start)
        try:
            for part in options.parts:
                bench.timed(part, getattr(bench, part))
        finally:
            ray.shutdown()
            cluster.shutdown()
    bench.result["driver_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    print(json.dumps(bench.result))


if __name__ == "__main__":
    main()
