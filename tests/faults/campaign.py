"""Runs that are broken at random places and started again, and what has to be true of them afterwards.

    python tests/faults/campaign.py --faults 200 --table docs/reliability.md

Every fault is drawn from a seed, so that a run of this program can be repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ranks
from breaking import break_run
from campaign_table import insert, keep, kept, table
from injector import ACTIONS, AFTER, BEFORE, INTERRUPT, TERMINATE, Fault, count_calls
from tiny import tiny_spec

from tltrain.lease import LEASE_FILE, hold
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.session import fine_tune

VALUES_WITH_TIMES = ("train_images_per_s", "epoch_s")
FILES_WITH_TIMES = ("metrics.jsonl", "timings.json", "0.json")
WEIGHTS = (4, 2, 2, 1, 1)
"""How often each action is drawn, in proportion."""


@dataclass(frozen=True)
class Setting:
    """A kind of training that is broken."""

    name: str
    changes: Mapping[str, Any]
    world_size: int = 1


SETTINGS = (
    Setting("head", {"model.freeze_depth": "all"}),
    Setting("upper stages, loader processes", {"model.freeze_depth": 2, "data.num_loader_workers": 1}),
    Setting(
        "all stages, averaged weights, accumulation",
        {"model.freeze_depth": 0, "train.ema_decay": 0.9, "train.accumulation_steps": 2, "optim.name": "adamw"},
    ),
    Setting("augmented, bf16", {"data.augment": "randaugment", "data.mixup": 0.3, "train.precision": "bf16"}),
    Setting(
        "unfreezing, two ranks",
        {"train.unfreeze": {"at_epoch": 1, "freeze_depth": 1, "learning_rate_factor": 0.5}},
        world_size=2,
    ),
    Setting("augmented, all stages, four ranks", {"model.freeze_depth": 0, "data.augment": "basic"}, world_size=4),
    Setting(
        "unfreezing to the bottom, fp16, averaged weights, clipped",
        {
            "model.freeze_depth": "all",
            "train.unfreeze": {"at_epoch": 1, "freeze_depth": 0},
            "train.precision": "fp16",
            "train.ema_decay": 0.9,
            "train.clip_grad_norm": 1.0,
        },
    ),
    Setting(
        "augmented views kept, accumulation, loader processes, two ranks",
        {
            "data.augment": "trivialaugment",
            "cache.views": 1,
            "train.accumulation_steps": 2,
            "data.num_loader_workers": 1,
        },
        world_size=2,
    ),
)


@dataclass
class Clean:
    """An uninterrupted run: what it left, and how often every place was reached, by rank."""

    files: dict[str, str]
    rows: list[dict[str, Any]]
    calls: list[Counter[str]]


@dataclass
class Outcome:
    """What came of one fault."""

    setting: str
    fault: Fault
    problems: list[str] = field(default_factory=list)
    recovery_s: float = 0.0
    """Seconds from the new start to the end of the run."""


def clean_run(setting: Setting, folder: Path) -> Clean:
    """Train without a fault."""
    spec = _spec(setting, folder, "clean")
    calls = ranks.run(setting.world_size, _train_counting, spec)
    return Clean(_files(spec), _rows(spec), calls)


def draw(chance: random.Random, clean: Clean, action: str | None = None) -> Fault:
    """Return a fault at a place that the clean run came to; every place is as likely as the others."""
    rank = chance.randrange(len(clean.calls))
    place = chance.choice(sorted(clean.calls[rank]))
    call = chance.randint(1, clean.calls[rank][place])
    moment = chance.choice((BEFORE, AFTER))
    return Fault(place, call, moment, rank, action or chance.choices(ACTIONS, weights=WEIGHTS)[0])


def broken_run(
    setting: Setting, folder: Path, clean: Clean, fault: Fault, resume: Callable[[Group, Spec], None] | None = None
) -> Outcome:
    """Train until `fault` happens, start again (by `resume`), and compare what is left with the clean run."""
    spec, outcome = _spec(setting, folder, f"broken-{time.monotonic_ns()}"), Outcome(setting.name, fault)
    outcome.problems += break_run(setting.world_size, train, spec, fault)
    began = time.monotonic()
    with hold(RunFolder.at(spec.storage, spec.name).folder):  # as the program does, which clears what was half written
        ranks.run(setting.world_size, resume or train, spec)
    outcome.recovery_s = time.monotonic() - began
    outcome.problems += [*_differences(clean, spec, fault), *_processes_left()]
    outcome.problems += [f"{name} is left among temporary files" for name in os.listdir(_temporary(spec))]
    return outcome


def _spec(setting: Setting, folder: Path, name: str) -> Spec:
    changes = {"checkpoint.every_steps": 2, "train.epochs": 2, "storage": str(folder / name), **setting.changes}
    return tiny_spec(folder, changes, name="run")


def _temporary(spec: Spec) -> Path:
    """The folder for temporary files of a run's processes."""
    return Path(spec.storage) / "t"


def train(group: Group, spec: Spec) -> None:
    folder = _temporary(spec)
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)
    fine_tune(spec, RunFolder.at(spec.storage, spec.name), group)


def _train_counting(group: Group, spec: Spec) -> Counter[str]:
    counts = count_calls()
    train(group, spec)
    return counts


def _files(spec: Spec) -> dict[str, str]:
    """Return path -> sha256 of all that a run left, but for files with times in them."""
    root = Path(spec.storage) / spec.name
    paths = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != LEASE_FILE)
    return {str(path.relative_to(root)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    return "" if path.name in FILES_WITH_TIMES else hashlib.sha256(path.read_bytes()).hexdigest()


def _rows(spec: Spec) -> list[dict[str, Any]]:
    lines = (Path(spec.storage) / spec.name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key not in VALUES_WITH_TIMES} for row in rows]


def _differences(clean: Clean, spec: Spec, fault: Fault) -> Iterator[str]:
    files = _files(spec)
    missing, more = clean.files.keys() - files.keys(), files.keys() - clean.files.keys()
    if fault.action in (TERMINATE, INTERRUPT):
        # Its checkpoint is one more among those that are kept, in the place of the last but one.
        missing, more = ({name for name in names if not name.startswith("checkpoints/")} for names in (missing, more))
        if _newest(clean.files) != _newest(files):
            yield f"the newest checkpoint is {_newest(files)}"
    yield from (f"{name} is missing" for name in missing)
    yield from (f"{name} was left behind" for name in more)
    yield from (f"{name} differs" for name in clean.files.keys() & files.keys() if clean.files[name] != files[name])
    if _rows(spec) != clean.rows:
        yield "metrics.jsonl has other rows"


def _newest(files: Mapping[str, str]) -> int:
    return max(int(name.split("/")[1]) for name in files if name.startswith("checkpoints/"))


def _processes_left(within_s: float = 10.0) -> list[str]:
    """Name the training and loader processes that are still there after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while (left := ranks.alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"process {pid} is still there" for pid in left]


def run_campaign(num_faults: int, seed: int, record: Path | None = None) -> list[Outcome]:
    """Break every setting in turn until `num_faults` faults have happened; those in `record` have happened before."""
    chance = random.Random(seed)
    outcomes: dict[int, Outcome] = kept(record, Outcome, Fault)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        cleans = [clean_run(setting, Path(folder) / str(index)) for index, setting in enumerate(SETTINGS)]
        for number in range(num_faults):
            index = number % len(SETTINGS)
            setting, clean = SETTINGS[index], cleans[index]
            fault = draw(chance, clean)
            if number in outcomes:
                assert outcomes[number].fault == fault, "the record is of another campaign"
                continue
            outcome = outcomes[number] = broken_run(setting, Path(folder) / str(index), clean, fault)
            keep(number, outcome, record)
            verdict = "; ".join(outcome.problems) or f"equal, {outcome.recovery_s:.1f} s"
            print(f"{number + 1:>4}  {setting.name}: {fault}: {verdict}", flush=True)
    return [outcomes[number] for number in range(num_faults)]


def main() -> int:
    """Run the campaign and write its table; 1 where a run did not end as the clean one did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="Markdown page to write the result into, between its marks")
    parser.add_argument("--record", type=Path, help="file to write outcomes into as they come, and to go on from")
    arguments = parser.parse_args()
    outcomes = run_campaign(arguments.faults, arguments.seed, arguments.record)
    result = table(outcomes)
    print(result)
    if arguments.table:
        insert(
            arguments.table,
            f"python tests/faults/campaign.py --faults {arguments.faults} --seed {arguments.seed}",
            result,
        )
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
