"""How long `tltrain runs` takes in a storage of many runs: the first look, a later one, and one after changes.

    python benchmarks/runs_index.py --runs 10000

Each look is a process of its own, as a user starts it, with its lines written to a file; the start of Python counts.
The runs are made in a temporary folder, and so is the index. Besides run.json each has a spec, a metrics file and a
checkpoint's files, which a look must not go through. Prints one JSON object: seconds that passed, seconds of CPU time,
which say more where other programs run beside it, and the largest resident set in MB; all are medians of several looks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from process_memory import Ran, run

OTHER_FILES = (
    "spec.yaml",
    "metrics.jsonl",
    "lease.json",
    "evaluation.json",
    "checkpoints/10/COMMIT",
    "model/model.json",
)


def make_runs(storage: Path, count: int) -> None:
    """Write `count` finished runs."""
    for number in range(count):
        folder = storage / f"run-{number:05d}"
        for name in OTHER_FILES:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        write_state(folder, number)


def write_state(folder: Path, number: int) -> None:
    """Write the run.json of a finished run."""
    started_at = 1_700_000_000 + 60 * number
    state = {
        "format": 1,
        "name": folder.name,
        "state": "finished",
        "started_at": started_at,
        "finished_at": started_at + 50,
        "best": {"epoch": 3, "step": 87, "top1": number % 1000 / 1000, "top5": 0.99, "loss": 0.31},
        "evaluation": {"split": "test", "num_images": 500, "accuracy": 0.894, "loss": 0.3},
        "versions": {"python": "3.11", "torch": "2.14"},
    }
    (folder / "run.json").write_text(json.dumps(state, indent=2))


def look(storage: Path, cache: Path, *arguments: str) -> Ran:
    """Run `tltrain runs` and return what it took."""
    command = [sys.executable, "-m", "tltrain", "runs", str(storage), *arguments]
    with (cache / "lines.txt").open("w") as lines:
        return run(command, environment=os.environ | {"XDG_CACHE_HOME": str(cache)}, stdout=lines)


def median(looks: Sequence[Ran]) -> Ran:
    """The median of each."""
    return Ran(*(statistics.median(values) for values in zip(*looks, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--changed", type=int, default=100, help="runs that change before the last look")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tltrain-runs-") as folder:
        storage, cache = Path(folder, "runs"), Path(folder, "cache")
        cache.mkdir()
        make_runs(storage, options.runs)
        time.sleep(3)  # what was written just now would be read again
        first = look(storage, cache)
        later = median([look(storage, cache) for _ in range(options.repeats)])
        every = median([look(storage, cache, "--all") for _ in range(options.repeats)])
        as_json = median([look(storage, cache, "--json") for _ in range(options.repeats)])
        for number in range(min(options.changed, options.runs)):
            write_state(storage / f"run-{number:05d}", number + 1)
        changed = look(storage, cache, "--all")
        (storage / "run-new").mkdir()
        write_state(storage / "run-new", options.runs)
        one_new = look(storage, cache)
        rebuild = look(storage, cache, "--rebuild", "--all")
        listed = len((cache / "lines.txt").read_text().splitlines()) - 1
    assert listed == options.runs + 1, listed
    looks = {
        "first": first,
        "later": later,
        "all": every,
        "all_as_json": as_json,
        "all_some_changed": changed,
        "one_new": one_new,
        "rebuild": rebuild,
    }
    shown = {kind: {name: round(getattr(ran, kind), 3) for name, ran in looks.items()} for kind in Ran._fields}
    print(json.dumps({"runs": options.runs, **shown}))


if __name__ == "__main__":
    main()
