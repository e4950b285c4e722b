"""Check the images of a run: what there is, what would end the run, and what would spoil its result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tltrain.data.base import Split
from tltrain.data.duplicates import MAX_IMAGES, exact_groups, near_groups
from tltrain.data.examine import Facts, examine
from tltrain.data.parts import Parts
from tltrain.errors import Problem, shown

SHOWN = 10
IMBALANCE = 10
"""Times as many images in the largest class as in the smallest from which on there is a warning."""
FEW = 10
"""Training images of a class below which there is a warning."""
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
_KNOWN = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)

Findings = dict[str, Any]


def check_parts(
    parts: Parts, *, num_threads: int, advance: Callable[[int], None] = lambda _: None
) -> tuple[Findings, list[Problem]]:
    """Look at every image of some splits; return what was found, ready for JSON, and what would end a run.

    The findings: `classes`; `splits` with, for each, images, per_class, width and height (min, median, max), modes,
    formats, mean and std of the RGB values in 0..1 (each image counts the same) and bad images with their errors;
    `duplicates`, `exact` (byte for byte) and `near` (null where there are too many images to compare), with the
    groups, how many images `within` each split and `across` each two splits have a copy, and the groups with more
    than one label; `warnings`.
    """
    facts = {name: examine(split, num_threads=num_threads, advance=advance) for name, split in parts.splits.items()}
    splits = {name: _summary(split, facts[name], parts.classes) for name, split in parts.splits.items()}
    first = {id(split.source): (name, split.source) for name, split in reversed(parts.splits.items())}
    for name, source in first.values():
        splits[name]["bad"] += [{"id": one.id, "class": "", "error": one.reason} for one in source.bad]
        splits[name]["images"] += len(source.bad)
    duplicates = _duplicates(parts, facts)
    bad = _bad_images(splits, parts.max_bad_fraction)
    problems = [*parts.problems, *(problem for problem, ends in bad if ends)]
    left_out = [f"{problem.key}: {problem.what}: a run leaves them out." for problem, ends in bad if not ends]
    warnings = [
        *parts.warnings,
        *left_out,
        *_of_duplicates(duplicates),
        *_of_classes(splits),
        *_of_suffixes(parts, facts),
    ]
    findings = {
        "classes": list(parts.classes),
        "splits": splits,
        "duplicates": duplicates,
        "warnings": warnings,
        "problems": [str(problem) for problem in problems],
    }
    return findings, problems


def _summary(split: Split, facts: Sequence[Facts], classes: Sequence[str]) -> Findings:
    good = [fact for fact in facts if fact.error is None]
    counts = np.bincount(split.labels, minlength=len(classes)).tolist()
    bad = [
        {"id": split.identity(i), "class": classes[split.labels[i]], "error": fact.error}
        for i, fact in enumerate(facts)
        if fact.error is not None
    ]
    return {
        "images": len(facts),
        "per_class": dict(zip(classes, counts, strict=True)),
        "width": _spread([fact.width for fact in good]),
        "height": _spread([fact.height for fact in good]),
        "modes": dict(Counter(fact.mode for fact in good).most_common()),
        "formats": dict(Counter(fact.format for fact in good if fact.format).most_common()),
        **_moments(good),
        "bad": bad,
    }


def _spread(values: Sequence[int]) -> Findings | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _moments(good: Sequence[Facts]) -> Findings:
    """Return mean and standard deviation per channel."""
    if not good:
        return {"mean": None, "std": None}
    means = np.mean([fact.means for fact in good], axis=0)
    squares = np.mean([fact.squares for fact in good], axis=0)
    std = np.sqrt(np.maximum(squares - means**2, 0))
    return {"mean": [round(value, 4) for value in means.tolist()], "std": [round(value, 4) for value in std.tolist()]}


def _bad_images(splits: Mapping[str, Findings], allowed: float) -> list[tuple[Problem, bool]]:
    """Return a problem for each split with bad images, and whether it would end a run."""
    problems = []
    for name, found in splits.items():
        if bad := found["bad"]:
            what = f"{len(bad)} of {found['images']} images cannot be used, such as {shown(bad[0]['id'])}"
            ends = len(bad) > allowed * found["images"]
            problems.append((Problem(what, "Replace or remove them", key=f"data.{name}"), ends))
    return problems


def _duplicates(parts: Parts, facts: Mapping[str, Sequence[Facts]]) -> Findings:
    """Compare the images of all splits with each other."""
    all_facts = [fact for part in facts.values() for fact in part]
    places = [(name, position) for name, part in facts.items() for position in range(len(part))]
    exact = exact_groups([fact.digest for fact in all_facts])
    # One of each content and split is enough to find what else looks like it.
    kept = {(fact.digest, name): i for i, (fact, (name, _)) in enumerate(zip(all_facts, places, strict=True))}
    some = [i for i in sorted(kept.values()) if all_facts[i].thumbnail is not None]
    near = None
    if len(some) <= MAX_IMAGES:
        groups = near_groups(np.array([all_facts[i].thumbnail for i in some])) if some else []
        near = [[some[i] for i in group] for group in groups]
        near = [group for group in near if len({all_facts[i].digest for i in group}) > 1]

    def described(groups: list[list[int]]) -> Findings:
        return _described([[places[i] for i in group] for group in groups], parts)

    return {"exact": described(exact), "near": None if near is None else described(near)}


def _described(groups: list[list[tuple[str, int]]], parts: Parts) -> Findings:
    within: Counter[str] = Counter()
    across: Counter[str] = Counter()
    described: list[list[Findings]] = []
    for group in groups:
        count = Counter(name for name, _ in group)
        within.update({name: number - 1 for name, number in count.items() if number > 1})
        across.update({f"{one}/{other}": count[other] for one, other in combinations(parts.splits, 2)
                       if count[one] and count[other]})  # fmt: skip
        described.append([_member(name, position, parts) for name, position in group])
    conflicts = sum(len({member["class"] for member in group}) > 1 for group in described)
    return {"groups": described, "within": dict(within), "across": dict(across), "conflicts": conflicts}


def _member(name: str, position: int, parts: Parts) -> Findings:
    split = parts.splits[name]
    return {"split": name, "id": split.identity(position), "class": parts.classes[split.labels[position]]}


def _of_duplicates(duplicates: Findings) -> list[str]:
    warnings = []
    for kind, how in (("exact", "byte for byte the same"), ("near", "nearly the same")):
        found = duplicates[kind]
        if found is None:
            warnings.append(f"More than {MAX_IMAGES:,} images: near duplicates are not looked for.")
            continue
        for pair, count in found["across"].items():
            one, other = pair.split("/")
            warnings.append(
                f"{_images(count)} of {other} {_are(count)} {how} as images of {one}: its accuracy will look too good."
            )
        warnings += [
            f"{_images(count)} of {name} {_are(count)} {how} as others of it."
            for name, count in found["within"].items()
        ]
        if found["conflicts"]:
            warnings.append(f"Images that are {how} have different labels: {_groups(found['conflicts'])}.")
    return warnings


def _of_classes(splits: Mapping[str, Findings]) -> list[str]:
    counts = {name: number for name, number in splits.get("train", {}).get("per_class", {}).items() if number}
    if not counts:
        return []
    warnings = []
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[largest] >= IMBALANCE * counts[smallest]:
        warnings.append(
            f"The largest class of train ({largest}, {counts[largest]:,} images) is "
            f"{counts[largest] / counts[smallest]:.0f} times the smallest ({smallest}, {counts[smallest]:,}): "
            "consider train.class_weights: balanced."
        )
    few = [name for name, number in counts.items() if number < FEW]
    if few:
        warnings.append(f"Fewer than {FEW} training images: {_some(few)}.")
    return warnings


def _of_suffixes(parts: Parts, facts: Mapping[str, Sequence[Facts]]) -> list[str]:
    """Say which files are of another format than their names tell; they are read all the same."""
    warnings = []
    for name, split in parts.splits.items():
        wrong = [
            split.identity(i)
            for i, fact in enumerate(facts[name])
            if fact.format and _suffix(split.identity(i)) in _KNOWN - set(_SUFFIXES.get(fact.format, ()))
        ]
        if wrong:
            warnings.append(
                f"{_images(len(wrong))} of {name} {_are(len(wrong))} not of the format that the name tells: "
                f"{_some(wrong)}."
            )
    return warnings


def _suffix(identity: str) -> str:
    return os.path.splitext(identity)[1].lower()


def _images(count: int) -> str:
    return f"{count:,} image" + ("" if count == 1 else "s")


def _groups(count: int) -> str:
    return f"{count:,} group" + ("" if count == 1 else "s")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
