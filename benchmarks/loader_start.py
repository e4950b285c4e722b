"""Seconds until four fresh loader processes have read eight items, as at each validation of images in a bucket.

    python benchmarks/loader_start.py --rounds 3

Each round is two programs, one whose fork server imports the loader beforehand, as tltrain has it, and one where each
loader process imports it. A program goes through the items three times; the first time starts the server. Prints one
JSON object: the median seconds of the first time and of the others, and the ratio of the latter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PASSES = 3
PROGRAM = """
import multiprocessing, sys, time

class Items(list):
    def __getitem__(self, item):
        import tltrain.data.loader
        return item

if __name__ == "__main__":
    from tltrain.data.loader import open_loader
    if sys.argv[1] == "each":
        multiprocessing.set_forkserver_preload = lambda names: None
    for _ in range(int(sys.argv[2])):
        began = time.perf_counter()
        list(open_loader(Items(), range(8), False, seed=0, num_workers=4, pin_memory=False))
        print(time.perf_counter() - began)
"""


def passes(folder: str, imports: str) -> list[float]:
    """Seconds of each time that a program goes through the items."""
    command = [sys.executable, "-W", "ignore", f"{folder}/program.py", imports, str(PASSES)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(line) for line in output.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    result: dict[str, Any] = {"rounds": rounds}
    with tempfile.TemporaryDirectory(prefix="tltrain-loader-") as folder:
        Path(folder, "program.py").write_text(PROGRAM)
        measured = [(passes(folder, "once"), passes(folder, "each")) for _ in range(rounds)]
    for index, name in enumerate(("once", "each")):
        result[f"{name}_first_s"] = round(statistics.median(each[index][0] for each in measured), 2)
        result[f"{name}_later_s"] = round(statistics.median(s for each in measured for s in each[index][1:]), 2)
    result["ratio"] = round(result["each_later_s"] / result["once_later_s"], 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
