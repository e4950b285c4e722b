"""Memory of a sweep's driver and broker while many short lanes come and go: does it grow with what has ended?

    python benchmarks/load_soak.py --trials 2000

The sweep is that of load_trials.py: Ray Tune, the broker and the sweep's record are real, rows are made up. The
resident sets of both processes are sampled twice a second, beside the number of trials that have ended. Prints one JSON
object: MB at the first quarter and at the end, and the slope of a line through the samples after the first quarter, in
KB per trial; --samples writes them all to a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from load_trials import driver, finished
from process_memory import resident_mb

from tltrain.jobs.processes import Process, family

BROKER = b"ray::BrokerActor"


class Sample(NamedTuple):
    """Seconds since the start, trials that have ended, and MB of both processes."""

    passed_s: float
    ended: int
    driver_mb: float
    broker_mb: float


def soak(folder: Path, options: argparse.Namespace) -> list[Sample]:
    """Run the sweep and sample."""
    samples: list[Sample] = []
    began = time.perf_counter()
    with driver(folder, options) as process:
        broker: int | None = None
        while process.poll() is None:
            broker = broker or find_broker(process.pid)
            with suppress(FileNotFoundError):  # one of them has just ended
                if broker is not None:
                    memory = resident_mb(process.pid), resident_mb(broker)
                    samples.append(Sample(time.perf_counter() - began, len(finished(folder)), *memory))
            time.sleep(0.5)
        assert process.returncode == 0, process.returncode
    return samples


def find_broker(driver_pid: int) -> int | None:
    """The process of the broker's actor among those that the driver has started."""
    first = Process.of(driver_pid)
    for process in family([first]) if first else ():
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(BROKER):
                return process.pid
    return None


def growth(samples: Sequence[Sample], name: str, num_trials: int) -> dict[str, float]:
    """MB at the first quarter and at the end, and KB per trial in between."""
    later = [sample for sample in samples if sample.ended >= num_trials / 4]
    memory = [getattr(sample, name) for sample in later]
    slope = statistics.linear_regression([sample.ended for sample in later], memory).slope
    return {"quarter_mb": round(memory[0], 1), "end_mb": round(memory[-1], 1), "kb_per_trial": round(slope * 1e3, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--epoch-s", type=float, default=0.05, help="seconds that the worker group takes for an epoch")
    parser.add_argument("--samples", type=Path, help="file for all samples, one JSON object per line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tltrain-soak-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        samples = soak(Path(folder), options)
    if options.samples:
        options.samples.write_text("".join(json.dumps(sample._asdict()) + "\n" for sample in samples))
    result: dict[str, Any] = {"trials": options.trials, "epochs": options.epochs, "samples": len(samples)}
    result["seconds"] = round(samples[-1].passed_s, 1)
    result |= {name: growth(samples, name, options.trials) for name in ("driver_mb", "broker_mb")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
