"""How long until a job's first line is read: `tltrain submit` against `ray job submit`, in pairs on one local head.

    python benchmarks/submit_latency.py --pairs 5

Both arms submit the same spec with the same upload (the spec and the tltrain package, new in each pair), and the clock
runs from the start of the command to the first line that the program on the cluster prints. Within a pair the arms take
turns in going first, and nothing else runs on the head. `tltrain status` and `tltrain jobs` are timed while a job runs.
Prints one JSON object: medians and ranges in seconds, and of the pairs' ratios. Of the looks the CPU time is there as
well, which says more where other programs run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tltrain.environment import JOB_VARIABLE
from tltrain.jobs.endpoint import Endpoint
from tltrain.jobs.local_state import read_state, token_path, without_ray
from tltrain.jobs.ray_jobs import RayJobs
from tltrain.jobs.request import PROGRAM, build_package
from tltrain.jobs.upload import unpack
from tltrain.spec.load import dump_yaml, load_spec

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CLUSTER = "latency"
FIRST_LINE = re.compile(r"Data +\d")
"""What the program on the cluster prints first: its header, in one go."""
LIMIT_S = 120.0
ACTIVE = ("PENDING", "RUNNING")


class Bench:
    """A local head in a home of its own, and the two ways to submit to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "DATA", "CONFIG")}
        os.environ.update(homes)  # for what is read in this process
        self._environment = without_ray(os.environ) | {"NO_COLOR": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        self._cluster = folder / f"{CLUSTER}.yaml"
        self._cluster.write_text("kind: local\n")

    def up(self) -> None:
        self.tltrain("cluster", "up", str(self._cluster))
        state = read_state(CLUSTER)
        assert state is not None
        token = token_path(CLUSTER).read_text().strip()
        self._jobs = RayJobs(Endpoint(state.url, token))
        self._ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_API_SERVER_ADDRESS": state.url}

    def down(self) -> None:
        self.tltrain("cluster", "down", str(self._cluster))

    def tltrain(self, *arguments: str) -> float:
        """Run a command to its end and return the seconds it took."""
        began = time.perf_counter()
        quiet = subprocess.DEVNULL
        subprocess.run([BIN / "tltrain", *arguments], env=self._environment, stdout=quiet, stderr=quiet, check=True)
        return time.perf_counter() - began

    def spec(self, name: str) -> Path:
        """Write a spec whose run has this name."""
        loaded = load_spec(PROJECT / "jobs" / "fashion-lite0.yaml", [f"name={name}", f"storage={self._folder}/runs"])
        path = self._folder / f"{name}.yaml"
        path.write_text(dump_yaml(loaded.spec))
        return path

    def first_line_of_ours(self, name: str) -> float:
        command = [str(BIN / "tltrain"), "submit", str(self.spec(name)), "--cluster", str(self._cluster)]
        return self._first_line(command, {})

    def first_line_of_rays(self, name: str) -> float:
        folder = self._folder / name
        for entry in unpack(build_package(load_spec(self.spec(name)).spec).content):
            assert isinstance(entry.source, bytes)
            path = folder / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.source)
        variables = json.dumps({"env_vars": {JOB_VARIABLE: name, "PYTHONUNBUFFERED": "1"}})
        command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(folder)]
        command += ["--runtime-env-json", variables, "--", *PROGRAM]
        return self._first_line(command, self._ray)

    def settle(self) -> None:
        """End every job, and wait until the head is idle."""
        deadline = time.monotonic() + LIMIT_S
        while active := [own_id for own_id, info in self._jobs.list().items() if info.status in ACTIVE]:
            assert time.monotonic() < deadline, active
            for own_id in active:
                self._jobs.stop(own_id)
            time.sleep(0.5)
        time.sleep(2)

    def submit(self, name: str) -> str:
        """Submit a job, wait until it runs, and return its id."""
        self.tltrain("submit", str(self.spec(name)), "--cluster", str(self._cluster), "-d")
        deadline = time.monotonic() + LIMIT_S
        while not (self._folder / "runs" / name / "run.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return name

    def _first_line(self, command: Sequence[str], variables: dict[str, str]) -> float:
        """Seconds from the start of a command to the program's first line; the command is ended then."""
        began = time.perf_counter()
        said = []
        pipe, environment = subprocess.PIPE, self._environment | variables
        with subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if FIRST_LINE.match(line):
                    seconds = time.perf_counter() - began
                    process.kill()
                    return seconds
                said.append(line)
        raise AssertionError(f"{command} printed no first line: {''.join(said)}")


def numbers(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the range."""
    median = statistics.median(seconds)
    return {name: round(value, 2) for name, value in (("median", median), ("min", min(seconds)), ("max", max(seconds)))}


def look(bench: Bench, *verb: str) -> dict[str, dict[str, float]]:
    """Seconds that a verb takes, and seconds of CPU time."""
    passed, cpu = [], []
    for _ in range(7):
        before = cpu_s()
        passed.append(bench.tltrain(*verb))
        cpu.append(cpu_s() - before)
    return {"passed": numbers(passed), "cpu": numbers(cpu)}


def cpu_s() -> float:
    """CPU time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(bench: Bench, pairs: int) -> dict[str, object]:
    """Time all pairs, then the verbs that look at jobs. The first pair warms the head up and is not counted."""
    arms = {"tltrain": bench.first_line_of_ours, "ray": bench.first_line_of_rays}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for pair in range(pairs + 1):
        for name in list(arms) if pair % 2 else reversed(list(arms)):
            seconds = arms[name](f"{name}-{pair}")
            bench.settle()
            if pair:
                taken[name].append(seconds)
    job = bench.submit("looked-at")
    verbs = {"status": ("status", job), "jobs": ("jobs",)}
    looks = {name: look(bench, *verb) for name, verb in verbs.items()}
    bench.settle()
    ratios = [ours / rays for ours, rays in zip(taken["tltrain"], taken["ray"], strict=True)]
    first = {name: numbers(seconds) for name, seconds in taken.items()}
    return {"pairs": pairs, "first_line_s": first, "ratio": numbers(ratios), "looks_s": looks}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tltrain-latency-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder))
        try:
            bench.up()
            print(json.dumps(measure(bench, options.pairs)))
        finally:
            bench.down()


if __name__ == "__main__":
    main()
