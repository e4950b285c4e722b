"""What the worker groups of a sweep measured, as sharing.json has it: seconds by phase, and what was shared by whom."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tltrain.train.phases import add_seconds
from tltrain.train.workbench import Workbench

Record = dict[str, Any]


class LaneEpochs:
    """Counts how many epochs each lane has trained at each freeze depth."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def add(self, lane: str, depth: int) -> None:
        """Count an epoch."""
        self._counts[lane][depth] += 1

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return lane -> freeze depth -> epochs, with texts for keys as in JSON."""
        return {lane: {str(depth): n for depth, n in counts.items()} for lane, counts in self._counts.items()}


def bench_record(bench: Workbench, lanes: LaneEpochs) -> Record:
    """Return what `bench` measured on this rank, with the lanes that stood on it.

    Images are those of this rank; `computed` has (cut from which, -1 for the images; cut up to which) with seconds and
    images; `kept` the cuts of each split that are computed once, `views` how often where images are augmented.
    """
    splits = bench.splits
    val = 0 if splits.val is None else len(splits.val)
    return {
        "images": {"train": len(splits.train), "val": val},
        "stages": [stage.name for stage in bench.network.staged.stages],
        "views": bench.num_views,
        "kept": bench.kept_depths(),
        "decoded": bench.phases.num_decoded,
        "decode_s": round(bench.phases.seconds().get("decode", 0.0), 3),
        "computed": [[*cuts, round(c.seconds, 3), c.images] for cuts, c in sorted(bench.taps.computed.items())],
        "lanes": lanes.to_dict(),
    }


def group_record(benches: Mapping[str, Record], seconds: Iterable[Mapping[str, float]], workers: int) -> Record:
    """Return the record of one worker group from those of its workbenches and the seconds of all its phases."""
    return {"seconds": add_seconds(*seconds), "workers": workers, "benches": dict(benches)}


def merged(records: Iterable[Record]) -> Record:
    """Return several groups' records as one; groups that ended early and measured nothing are left out."""
    total: Record = {"seconds": {}, "workers": 1, "benches": {}}
    for record in records:
        if record:
            total["seconds"] = add_seconds(total["seconds"], record["seconds"])
            total["workers"] = record["workers"]
            for key, bench in record["benches"].items():
                known = total["benches"].get(key)
                total["benches"][key] = bench if known is None else _both(known, bench)
    return total


def _both(one: Record, other: Record) -> Record:
    """Return the records of two groups on the same images and network as one."""
    costs: dict[tuple[int, int], list[float]] = {}
    for start, stop, seconds, images in [*one["computed"], *other["computed"]]:
        known = costs.setdefault((start, stop), [0.0, 0])
        known[0], known[1] = round(known[0] + seconds, 3), known[1] + images
    lanes = {lane: Counter(counts) for lane, counts in one["lanes"].items()}
    for lane, counts in other["lanes"].items():
        lanes[lane] = lanes.get(lane, Counter()) + Counter(counts)
    return {
        **one,
        "kept": {split: sorted({*one["kept"][split], *other["kept"][split]}) for split in one["kept"]},
        "decoded": one["decoded"] + other["decoded"],
        "decode_s": round(one["decode_s"] + other["decode_s"], 3),
        "computed": [[*cuts, *cost] for cuts, cost in sorted(costs.items())],
        "lanes": {lane: dict(counts) for lane, counts in lanes.items()},
    }
