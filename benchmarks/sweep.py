"""Compares a sweep by tltrain with the same sweep written by hand: same images, order, network and settings.

    python benchmarks/sweep.py                                        # everything: hours on 2 cores
    python benchmarks/sweep.py --grids mixed --arms B --repetitions 1

Arms: A is Ray Tune with a TorchTrainer per trial, as Ray documents it; B is Ray Tune tuned by hand; D is a plain
loop without Ray; E is `tltrain run`. On the grid `asha`, B and E both stop trials early. Every run is a process of
its own with an empty home folder, so that nothing kept by an earlier run is found. Its time runs from the start of
the process until the ranked table of all trials is on disk. The arms take turns, forwards and backwards, and ratios
are taken within each turn. There is a gate: on every grid, E's losses have to agree with D's (or with those of the arm
that --reference names, which saves D's time), but for a few trials whose rates make chaos of rounding, or be about as
near to them as those of the other arms, which are plain torch; and E's best trial has to be as good. Compare only
figures of one run of this program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from sweep_arms.common import FREEZE_DEPTH, LEARNING_RATE, Sweep, open_data, read_sweep
from sweep_arms.launch import BENCHMARKS_DIR, Ran, run_arm
from sweep_arms.outcomes import APART, Difference, Trial, compare
from sweep_arms.rates import Rates, alone_bound, average, shared_bound

GRIDS = ("mixed", "head", "half", "depths", "asha")
TARGETS = {("mixed", "A"): 15.0, ("mixed", "B"): 5.0, ("head", "A"): 30.0, ("half", "A"): 1.5, ("depths", "B"): 1.0}
ARMS_OF_GRID = {"depths": ("B", "E"), "asha": ("B", "E")}
CONSOLE = Console(width=120)


def fresh_folder(path: Path) -> Path:
    """Return an empty folder at `path`; what stood there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def read_grid(name: str, depth: int | str | None = None, *, quick: bool = False) -> dict[str, Any]:
    """Return the spec of a grid with absolute paths; only one freeze depth of it if `depth` is given."""
    spec = YAML(typ="safe", pure=True).load(BENCHMARKS_DIR / "specs" / f"{name}.yaml")
    for part in ("train", "val"):
        spec["data"][part] = str((BENCHMARKS_DIR / "specs" / spec["data"][part]).resolve())
    space = spec["sweep"]["space"]
    if depth is not None:
        space[FREEZE_DEPTH]["grid"] = [depth]
    if quick:
        spec["train"]["epochs"] = 1
        space[LEARNING_RATE]["grid"] = space[LEARNING_RATE]["grid"][:2]
    return spec


class Grid:
    """One grid (or one freeze depth of it), its runs and what is known of its bounds."""

    def __init__(self, name: str, depth: int | str | None, arguments: argparse.Namespace, work_dir: Path) -> None:
        self.name, self._work_dir = name, work_dir
        self.title = name if depth is None else f"{name}, freeze depth {depth}"
        self.arms = [arm for arm in arguments.arms if arm in ARMS_OF_GRID.get(name, arguments.arms)]
        self.judge: str = arguments.reference
        self._spec = read_grid(name, depth, quick=arguments.quick)
        self.runs: dict[str, list[Ran]] = {arm: [] for arm in self.arms}
        self.reference: list[Trial] = []
        self.plain: Difference | None = None
        self.differences: dict[str, float] = {}

    def sweep(self) -> Sweep:
        """Return the grid as the arms read it."""
        return read_sweep(self.write_spec(fresh_folder(self._work_dir / "read")))

    def write_spec(self, folder: Path, **changes: Any) -> Path:
        """Write the spec of a run that leaves its results in `folder`."""
        path = folder / "spec.yaml"
        path.write_text(json.dumps({**self._spec, "storage": str(folder), **changes}))  # JSON is YAML
        return path

    def run(self, arm: str, *, scheduler: str | None = None) -> Ran:
        """Run one arm in an empty folder."""
        folder = fresh_folder(self._work_dir / arm)
        changes = {"sweep": {**self._spec["sweep"], "scheduler": scheduler}} if scheduler else {}
        return run_arm(arm, self.write_spec(folder, **changes), folder / self._spec["name"], folder)

    def check(self, arm: str, ran: Ran, tolerance: float) -> None:
        """Compare a run with the reference; end the benchmark where tltrain differs from it."""
        stops = self._spec["sweep"]["scheduler"] != "fifo"
        difference = compare(ran.trials, self.reference, may_stop_early=stops)
        self.differences[arm] = max(self.differences.get(arm, 0.0), difference.largest)
        medians = ", ".join(f"{median:.1e} at depth {depth}" for depth, median in difference.medians.items())
        CONSOLE.print(
            f"{self.title}, {arm} against {self.judge}: losses differ by {medians} (medians), at most by "
            f"{difference.largest:.1e} ({difference.where}), in {difference.apart:.0%} of the trials by more than "
            f"{APART:g}; best trial {difference.lost_by_choice:.3f} below {self.judge}'s"
        )
        if arm not in ("E", self.judge) and self.plain is None:
            self.plain = difference
        if arm == "E" and not difference.is_within(tolerance, self.plain, may_stop_early=stops):
            sys.exit(
                f"E does not compute what {self.judge} does (tolerance {tolerance:.0e}), so its speed is not compared."
            )


def run_reference(grid: Grid) -> None:
    """Run D, which never stops early."""
    reference = grid.run("D", scheduler="fifo")
    grid.reference = reference.trials
    CONSOLE.print(f"{grid.title}, D: {reference.table_s:.1f} s")


def take_turns(grid: Grid, repetitions: int, repetitions_of_a: int, tolerance: float) -> None:
    """Run all arms `repetitions` times (A may have fewer), every other time backwards, so that drift hits all alike.

    The reference comes first in the first turn and E last, so that what it has to agree with is known.
    """
    first = sorted(grid.arms, key=lambda arm: (arm == "E", arm != grid.judge))
    for repetition in range(repetitions):
        arms = [arm for arm in first if arm != "A" or repetition < repetitions_of_a]
        for arm in arms if repetition % 2 == 0 else reversed(arms):
            ran = grid.run(arm)
            grid.runs[arm].append(ran)
            CONSOLE.print(f"{grid.title} {repetition + 1}/{repetitions} {arm}: {ran.table_s:.1f} s")
            if arm == grid.judge and not grid.reference:
                grid.reference = ran.trials
            grid.check(arm, ran, tolerance)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def format_spread(values: dict[str, float], digits: int) -> str:
    """Return `median (smallest to largest)`."""
    median, smallest, largest = (f"{values[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({smallest} to {largest})"


def summarise(grid: Grid) -> dict[str, dict[str, Any]]:
    """Return arm -> figures; `speedup` is how much longer the arm took than E, within each turn."""
    ours = [ran.table_s for ran in grid.runs.get("E", [])]
    summary: dict[str, dict[str, Any]] = {}
    for arm, runs in grid.runs.items():
        figures: dict[str, Any] = {
            "table_s": spread([ran.table_s for ran in runs]),
            "exit_s": spread([ran.exit_s for ran in runs]),
            "peak_memory_mb": max(ran.peak_memory_mb or 0.0 for ran in runs),
            "written_mb": max(ran.written_mb for ran in runs),
            "difference": grid.differences[arm],
        }
        if ours and arm != "E":
            figures["speedup"] = spread([ran.table_s / base for ran, base in zip(runs, ours, strict=False)])
        summary[arm] = figures
    return summary


def print_summary(grid: Grid, summary: dict[str, dict[str, Any]]) -> None:
    """Print a grid's figures and whether they reach what is aimed at."""
    columns = ("arm", "to the table, s", "to the exit, s", "E is faster by", "memory, MB", "files, MB")
    table = Table(*columns, f"off {grid.judge}", title=grid.title)
    for arm, figures in summary.items():
        table.add_row(
            arm,
            format_spread(figures["table_s"], 1),
            format_spread(figures["exit_s"], 1),
            format_spread(figures["speedup"], 2) if "speedup" in figures else "",
            f"{figures['peak_memory_mb']:.0f}",
            f"{figures['written_mb']:.1f}",
            f"{figures['difference']:.0e}",
        )
    CONSOLE.print(table)
    for arm, figures in summary.items():
        target = TARGETS.get((grid.name, arm))
        if target is not None and "speedup" in figures:
            verdict = "reaches" if figures["speedup"]["median"] >= target else "misses"
            CONSOLE.print(f"{grid.title}: {verdict} the aim of {target:g} times the speed of {arm}")


def measure_rates(grid: Grid) -> Rates:
    """Measure the parts of a trial on all cores at once."""
    spec = grid.write_spec(fresh_folder(grid._work_dir / "rates"))
    command = [sys.executable, "-m", "sweep_arms.rates", str(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, cwd=BENCHMARKS_DIR, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(num_cores())
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"{' '.join(command)} failed")
    return average([Rates(**json.loads(text)) for text in printed])


def num_cores() -> int:
    """Return the cores that the arms use."""
    return os.cpu_count() or 1


def print_bounds(grid: Grid, summary: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Print how near E comes to the fastest possible, and its gain over B to the largest possible."""
    sweep, rates = grid.sweep(), measure_rates(grid)
    train, val, _ = open_data(sweep)
    sizes = (len(train), len(val), num_cores())
    bounds = {"shared_s": shared_bound(sweep, rates, *sizes), "alone_s": alone_bound(sweep, rates, *sizes)}
    ours = summary["E"]["table_s"]["median"]
    CONSOLE.print(
        f"{grid.title}: without start-up, sharing all it can, the sweep takes at least {bounds['shared_s']:.1f} s: "
        f"achieved / bound {bounds['shared_s'] / ours:.2f}, {ours - bounds['shared_s']:.1f} s are start-up and the rest"
    )
    if "B" in summary:
        gain, most = summary["B"]["speedup"]["median"], bounds["alone_s"] / bounds["shared_s"]
        CONSOLE.print(
            f"{grid.title}: sharing can gain {most:.2f} times, it gained {gain:.2f}: achieved / bound {gain / most:.2f}"
        )
    return {**bounds, **{f"rate_{name}": value for name, value in asdict(rates).items()}}


def measure(grid: Grid, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all arms on one grid."""
    if grid.judge == "D":
        run_reference(grid)
    take_turns(grid, arguments.repetitions, arguments.repetitions_of_a, arguments.tolerance)
    summary = summarise(grid)
    print_summary(grid, summary)
    report: dict[str, Any] = {"arms": summary}
    if "E" in summary and grid.name != "asha":  # which trials are stopped when is not known beforehand
        report["bounds"] = print_bounds(grid, summary)
    return report


def make_grids(arguments: argparse.Namespace, work_dir: Path) -> list[Grid]:
    """Return the grids asked for; `depths` is one for each freeze depth."""
    grids = []
    for name in arguments.grids:
        depths = read_grid(name)["sweep"]["space"][FREEZE_DEPTH]["grid"] if name == "depths" else [None]
        grids += [Grid(name, depth, arguments, work_dir) for depth in depths]
    return grids


def describe_machine() -> dict[str, Any]:
    """Return the versions and cores that the figures belong to."""
    packages = ("torch", "torchvision", "ray", "pillow", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}, "cpus": num_cores()}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--arms", nargs="+", choices=["A", "B", "E"], default=["A", "B", "E"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--repetitions-of-a", type=int, default=3, help="A takes most of the time")
    parser.add_argument("--quick", action="store_true", help="2 learning rates, 1 epoch: to see that it works")
    parser.add_argument(
        "--reference", choices=["D", "A", "B"], default="D", help="who E has to agree with: D, or one of --arms"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="median relative difference of E's losses at each freeze depth"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    if arguments.reference not in ("D", *arguments.arms):
        parser.error(f"--reference {arguments.reference} is none of --arms")
    return arguments


def main() -> None:
    """Measure every grid and keep the figures."""
    arguments = parse_arguments()
    report: dict[str, Any] = {"machine": describe_machine(), "arguments": vars(arguments) | {"output": None}}
    # A short name: Ray's sockets are below it, and their paths may not be long.
    with tempfile.TemporaryDirectory(prefix="s-", ignore_cleanup_errors=True) as work_dir:
        grids = make_grids(arguments, Path(work_dir))
        report["grids"] = {grid.title: measure(grid, arguments) for grid in grids}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
