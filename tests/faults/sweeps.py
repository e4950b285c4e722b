"""Sweeps whose driver, broker, trials, workers or nodes are killed, and what has to be true of them afterwards.

    python tests/faults/sweeps.py --faults 75 --seed 0 --table docs/reliability.md

Every fault is drawn from a seed. When exactly it meets the sweep depends on the machine all the same: a sweep is many
processes that run at once.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from campaign_table import insert, keep, kept, view
from injector import AFTER, BEFORE
from sweep_bench import NOT_STRUCK, SETTINGS, Bench, Outcome, Setting
from sweep_injector import AT_RANDOM, BROKER, DRIVER, NODE, TRIAL, WORKER, Calls, SweepFault
from sweep_machine import machine

WHO = (DRIVER, WORKER, BROKER, TRIAL, NODE)
OWN_SHARE = 0.3
"""Of the faults, those that meet a sweep on a cluster of its driver's own; a lost node is one of a joined cluster."""
RANDOM_SHARE = 0.25
"""Of the faults of drivers and nodes, those at a random moment instead of a place."""
REDRAWS = 3
"""How often another fault is drawn where one does not happen: how often a process comes to a place differs from
sweep to sweep where a scheduler stops trials by what it knows so far."""


def draw(chance: random.Random, who: str, calls: Calls, seconds: float) -> SweepFault:
    """Return a fault at a place that a clean sweep of `seconds` came to; every place is as likely as the others."""
    if who in (DRIVER, NODE) and chance.random() < RANDOM_SHARE:
        return SweepFault(who, AT_RANDOM, round(1000 * seconds * chance.uniform(0.1, 0.9)), "")
    where = WORKER if who == NODE else who
    place = chance.choice(sorted(place for one, place in calls if one == where))
    return SweepFault(who, place, chance.randint(1, calls[where, place]), chance.choice((BEFORE, AFTER)))


def run_campaign(
    numbers: Sequence[int], seed: int, folder: Path, who: Sequence[str] = WHO
) -> Iterator[tuple[int, Outcome]]:
    """Break every setting by every one of `who` in turn; of these faults, those of `numbers`."""
    with machine() as here, here.running_cluster():
        bench = Bench(here, folder)
        for number in numbers:
            chance = random.Random(f"{seed}/{number}")
            one, setting = who[number % len(who)], SETTINGS[number // len(who) % len(SETTINGS)]
            outcome = strike(bench, chance, one, setting)
            for _ in range(REDRAWS):
                if outcome.problems == [NOT_STRUCK]:
                    print(f"drawn again: {outcome}", file=sys.stderr)
                    outcome = strike(bench, chance, one, setting)
            yield number, outcome


def strike(bench: Bench, chance: random.Random, who: str, setting: Setting) -> Outcome:
    """Break a sweep by a fault that is drawn."""
    fault = draw(chance, who, bench.calls(setting), bench.seconds[setting.name])
    joins = who == NODE or chance.random() >= OWN_SHARE
    return bench.broken(setting, fault, joins=joins)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes by who died, and by the kind of sweep, as Markdown tables."""
    good = sum(not outcome.problems for outcome in outcomes)
    by_who = view(outcomes, "who dies", lambda outcome: outcome.fault.who)
    by_setting = view(outcomes, "in a sweep", lambda outcome: outcome.setting)
    return f"{good} of {len(outcomes)} sweeps ended as they had to.\n\n{by_who}\n\n{by_setting}\n"


def write_table(arguments: argparse.Namespace, outcomes: Mapping[int, Outcome]) -> None:
    """Put the outcomes into the page that was asked for."""
    if arguments.table:
        command = f"python tests/faults/sweeps.py --faults {arguments.faults} --seed {arguments.seed}"
        insert(arguments.table, command, table(list(outcomes.values())), "sweeps")


def main() -> int:
    """Run the campaign, its table written after each fault; 1 where a sweep did not end as it has to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=75)
    parser.add_argument("--first", type=int, default=1, help="which of them is the first, where the rest ran elsewhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--who", choices=WHO, action="append", help="who dies; may be given several times")
    parser.add_argument("--table", type=Path, help="Markdown page to put the result into, between its marks")
    parser.add_argument("--record", type=Path, help="file to write outcomes into as they come, and to go on from")
    parser.add_argument("--folder", type=Path, help="where the sweeps and their logs stay; else they are deleted")
    arguments = parser.parse_args()
    outcomes: dict[int, Outcome] = kept(arguments.record, Outcome, SweepFault)
    with tempfile.TemporaryDirectory(prefix="tltrain-sweeps-") as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        missing = [number for number in range(arguments.first - 1, arguments.faults) if number not in outcomes]
        for number, outcome in run_campaign(missing, arguments.seed, folder, arguments.who or WHO):
            outcomes[number] = outcome
            keep(number, outcome, arguments.record)
            print(f"{number + 1:>4}  {outcome}", flush=True)
            write_table(arguments, outcomes)
    write_table(arguments, outcomes)
    print(table(list(outcomes.values())))
    return int(any(outcome.problems for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
