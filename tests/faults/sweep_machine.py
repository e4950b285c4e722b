"""Where sweeps that are broken run: a driver in a process of its own, a cluster of three raylets, and what is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from sweep_injector import FOLDER, node_processes

HERE = Path(__file__).resolve().parent
LIMIT_S = 240.0
"""After which a sweep of seconds counts as hung."""
LEFT_WITHIN_S = 30.0
"""How long what a sweep has used may take to be gone."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
AGENTS_LEFT_WITHIN_S = 90.0
"""The agents of a Ray that is killed with its driver try for up to a minute to reach its head, which is dead too."""
RAYS_ACTORS = ("TrainStateActor", "AutoscalingCoordinator")
"""In the names of actors that Ray keeps for as long as the cluster lives."""
POLL_S = 0.05
OPEN = {"RAY_AUTH_MODE": "disabled"}
"""Nodes that are started like those of Ray's own tests know no token."""
RAYS_OWN = ("raylet/raylet", "gcs_server", "/dashboard/", "/runtime_env/", "log_monitor.py", "monitor.py")
"""In the commands of processes that belong to a cluster and not to those who use it."""


class Machine:
    """A folder for faults and temporary files, and what every process that is started from here gets of it."""

    def __init__(self, folder: Path) -> None:
        # Short, since the paths of Ray's sockets may have 107 characters.
        self.folder = folder
        self.temporary = folder / "t"
        self.temporary.mkdir()
        (folder / "sitecustomize.py").write_text("import sweep_injector\n\nsweep_injector.install()\n")
        self.cluster: Cluster | None = None

    def environment(self) -> dict[str, str]:
        """What makes Python follow the plan in `folder`, and Ray keep to a folder of its own."""
        path = os.pathsep.join([str(self.folder), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {FOLDER: str(self.folder), "PYTHONPATH": path, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        return {**others, **own, "RAY_USAGE_STATS_ENABLED": "0"}

    @contextmanager
    def running_cluster(self) -> Iterator[None]:
        """Have a head without CPUs to train on and two nodes with one each, for a `with` block."""
        with self._starting():
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(2):
                self._add_node()
            self.cluster.wait_for_nodes()
            yield
        finally:
            self.cluster.shutdown()
            self.cluster = None

    def _add_node(self) -> None:
        assert self.cluster is not None
        with self._starting():
            self.cluster.add_node(num_cpus=1)

    def _starting(self) -> AbstractContextManager[None]:
        """What is started in such a `with` block, and nothing later, is on this machine."""
        return _changed_environment({**self.environment(), **OPEN})

    def driver(self, spec: Path, log: Path, *, joins: bool) -> subprocess.Popen[bytes]:
        """Start a sweep's driver, which joins the cluster or starts one of its own."""
        environment = self.environment()
        if joins:
            assert self.cluster is not None
            environment |= {"RAY_ADDRESS": str(self.cluster.address), **OPEN}
        command = [sys.executable, "-m", "tltrain.run", str(spec)]
        with log.open("ab") as file:
            return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def lose_node(self) -> None:
        """End a node with all its processes at once."""
        assert self.cluster is not None
        node = sorted(self.cluster.worker_nodes, key=lambda node: node.node_id)[0]
        for process in node.all_processes["raylet"]:
            for pid in node_processes(process.process.pid):
                os.kill(pid, signal.SIGKILL)

    def replace_lost_nodes(self) -> None:
        """Have a new node for each whose raylet has ended."""
        assert self.cluster is not None
        for node in list(self.cluster.worker_nodes):
            if not node.live_processes() or node.dead_processes():
                self.cluster.remove_node(node, allow_graceful=False)
                self._add_node()

    def problems(self) -> list[str]:
        """Name what is left of sweeps that have ended, on the machine and in the cluster."""
        checks: list[Callable[[], list[str]]] = [self._processes, self._temporary_files]
        if self.cluster is not None:
            checks += [self._actors, self._placement_groups, self._taken_cpus]
        began = time.monotonic()
        while left := [problem for check in checks for problem in check()]:
            slow = all(problem.endswith(AGENTS) for problem in left)
            if time.monotonic() - began > (AGENTS_LEFT_WITHIN_S if slow else LEFT_WITHIN_S):
                break
            time.sleep(0.5)
        return left

    def _processes(self) -> list[str]:
        found = [Process.of(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")]
        mine = [process for process in found if process is not None and process.environment.get(FOLDER)]
        return [
            f"process {process.pid} is still there: {process.command}"
            for process in mine
            if process.environment[FOLDER] == str(self.folder) and not self._is_clusters(process)
        ]

    def _is_clusters(self, process: Process) -> bool:
        return self.cluster is not None and any(word in process.command for word in (*RAYS_OWN, *RAYS_ACTORS))

    def _temporary_files(self) -> list[str]:
        names = sorted(path.name for path in self.temporary.iterdir() if path.name != "ray")
        return [f"{name} is left in the folder of temporary files" for name in names]

    def _actors(self) -> list[str]:
        actors: Any = self._state().actor_table(None)
        names = [each["ActorClassName"] for each in actors.values() if each["State"] != "DEAD"]
        return [f"actor {name} is left" for name in names if not any(word in name for word in RAYS_ACTORS)]

    def _placement_groups(self) -> list[str]:
        groups: Any = self._state().placement_group_table()
        left = [group for group in groups.values() if group["state"] != "REMOVED"]
        return [f"placement group {group['placement_group_id']} is left" for group in left]

    def _taken_cpus(self) -> list[str]:
        free = self._state().available_resources_per_node()
        total = self._state().total_resources_per_node()
        return [
            f"a node has {free.get(node)} of {total[node]} free"
            for node in total
            if _cpus(free, node) < _cpus(total, node)
        ]

    def _state(self) -> Any:
        assert self.cluster is not None
        return self.cluster.global_state


def _cpus(resources: Mapping[str, Mapping[str, float]], node: str) -> float:
    return resources.get(node, {}).get("CPU", 0.0)


@dataclass(frozen=True)
class Process:
    """A process that lives: its number, its command, and the environment that it was started with."""

    pid: int
    command: str
    environment: Mapping[str, str]

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return process `pid`, or None where it has ended or belongs to somebody else."""
        folder = Path("/proc", str(pid))
        try:
            pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return None
        if state in "ZX":
            return None
        return cls(pid, command, dict(pair.split("=", 1) for pair in pairs if "=" in pair))


@contextmanager
def machine() -> Iterator[Machine]:
    """Yield a machine; its folder goes at the end, with every process of its that is still there."""
    folder = Path(tempfile.mkdtemp(prefix="f-", dir="/tmp"))
    try:
        yield Machine(folder)
    finally:
        for entry in Path("/proc").glob("[0-9]*"):
            process = Process.of(int(entry.name))
            if process is not None and process.environment.get(FOLDER) == str(folder):
                os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables and no others in this process, for a `with` block."""
    before = dict(os.environ)
    _set_environment(values)
    tempfile.tempdir = None  # found anew from TMPDIR
    try:
        yield
    finally:
        _set_environment(before)
        tempfile.tempdir = None


def _set_environment(values: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)
