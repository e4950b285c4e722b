"""Checks of each searched key by itself: that it may be searched, that its domain makes sense, that its values fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

from tltrain.errors import Problem
from tltrain.spec.checks import check, overlap
from tltrain.spec.domains import LISTED, canonical, num_values, samples, try_value
from tltrain.spec.keys import SPACE, all_keys, hints, is_section, split_key
from tltrain.spec.schema import Domain, Spec
from tltrain.spec.translate import Finding, suggest_key
from tltrain.spec.wording import nearest, show
from tltrain.spec.yaml_text import dotted, printable

_ONCE = "it is about the sweep as a whole"
_NO_EFFECT = "it does not change what is learned"
_SAME_IMAGES = "trials are compared by the same images"

# Keys and sections that all trials share, and why.
SHARED = {
    "version": _ONCE,
    "name": "trials have names of their own",
    "allow_code": _ONCE,
    "resources": "trials share the same workers",
    "checkpoint": _ONCE,
    "sweep": _ONCE,
    "cache": "trials share what is kept",
    "storage": _ONCE,
    "track": _ONCE,
    "data.val": _SAME_IMAGES,
    "data.test": _SAME_IMAGES,
    "data.split_seed": _SAME_IMAGES,
    "data.root": _NO_EFFECT,
    "data.download": _NO_EFFECT,
    "data.num_loader_workers": _NO_EFFECT,
    "data.thumbnails": _NO_EFFECT,
    "data.on_bad_image": _SAME_IMAGES,
    "data.max_bad_fraction": _SAME_IMAGES,
}


def check_searched(spec: Spec, wrong: Collection[str]) -> Iterator[Problem]:
    """Every problem of the searched keys, left out those whose setting or domain is in `wrong` already."""
    assert spec.sweep is not None
    good: list[str] = []
    for key, domain in spec.sweep.space.items():
        here = dotted((*SPACE, key))
        if overlap([here], wrong):
            continue
        found = [*_key_problems(spec, key, good), *_domain_problems(here, domain)]
        if not found:
            good.append(key)
        yield from found
    for key in good:
        if not overlap([key], wrong):
            yield from _value_problems(spec, key, [other for other in good if other != key], wrong)


@cache
def searchable_keys() -> tuple[str, ...]:
    """Every dotted key that a sweep may search, without those inside lists."""
    sections = {name for name, hint in hints(Spec).items() if is_section(hint)}
    return tuple(key for key in all_keys() if key not in sections and not _why_shared(key))


def _why_shared(key: str) -> str:
    return next((why for shared, why in SHARED.items() if f"{key}.".startswith(f"{shared}.")), "")


def _key_problems(spec: Spec, key: str, others: Collection[str]) -> Iterator[Problem]:
    here = dotted((*SPACE, key))
    without_indices = ".".join(part for part in key.split(".") if not part.isdigit())
    if key in hints(Spec) and is_section(hints(Spec)[key]) and not _why_shared(key):
        example = next(known for known in searchable_keys() if known.startswith(f"{key}."))
        yield Problem(f"{key} is a whole section", f"Name one key of it, such as {example}", key=here)
    elif without_indices in all_keys() and (why := _why_shared(key)):
        yield Problem(f"{key} cannot be searched: {why}", "Set it once, outside sweep.space", key=here)
    elif without_indices not in searchable_keys():
        guess = _guess(key)
        action = f"Did you mean {guess}?" if guess else "Write a dotted key, such as optim.learning_rate"
        yield Problem(f"there is no key {printable(key)}", action, key=here)
    elif close := [other for other in others if overlap([key], [other])]:
        yield Problem(f"{close[0]} is searched as well, and one holds the other", "Keep one of them", key=here)
    elif key == "data.train" and isinstance(spec.data.val, float) and spec.data.val:
        action = "Give data.val a source of its own"
        yield Problem(f"each data.train has other validation images, but {_SAME_IMAGES}", action, key=here)


def _guess(key: str) -> str:
    """The searchable key that was most likely meant; empty where none is near."""
    section, _, word = key.rpartition(".")
    inside = [known.removeprefix(f"{section}.") for known in searchable_keys() if known.startswith(f"{section}.")]
    guess = suggest_key(word, inside)
    full = f"{section}.{guess}" if guess in inside else guess
    if full in searchable_keys():
        return full
    return next(iter(nearest(key, searchable_keys())), "")


def _domain_problems(here: str, domain: Domain) -> Iterator[Problem]:
    values, key = domain.values, f"{here}.{domain.kind}"
    if domain.kind in LISTED:
        texts = [canonical(value) for value in values]
        for index, text in enumerate(texts):
            if text in texts[:index]:
                yield Problem(f"{show(values[index])} is listed twice", "Keep one of the two", key=f"{key}.{index}")
        return
    low, high = values[:2]
    if low == high:
        yield Problem(f"both bounds are {show(low)}", "Give two bounds, or a choice", key=key)
    elif low > high:
        yield Problem(f"the lower bound {show(low)} is above {show(high)}", "Write the smaller one first", key=key)
    elif domain.loguniform and low <= 0:
        yield Problem(f"{show(low)} has no logarithm", "Give a lower bound above 0", key=f"{key}.0")
    elif domain.quniform and values[2] <= 0:
        yield Problem(f"{show(values[2])} is no step", "Give a step above 0", key=f"{key}.2")
    elif domain.quniform and not num_values(domain):
        what = f"no multiple of {show(values[2])} lies between {show(low)} and {show(high)}"
        yield Problem(what, "Give a smaller step", key=key)


def _value_problems(spec: Spec, key: str, others: Collection[str], wrong: Collection[str]) -> Iterator[Problem]:
    """Problems of a domain's values, each beside the other settings; those between searched keys come with trials."""
    assert spec.sweep is not None
    domain, left_out = spec.sweep.space[key], [*others, *wrong]
    if domain.kind in ("uniform", "loguniform") and _counts(spec, key, domain.values[1]):
        what = f"{key} takes whole numbers, and {domain.kind} has others as well"
        action = "Write randint, or quniform with a whole step"
        yield Problem(what, action, key=f"{dotted((*SPACE, key))}.{domain.kind}")
        return
    known = {(problem.key, problem.what) for problem in check(spec, left_out)}
    for index, value in enumerate(samples(domain)):
        here = f"{dotted((*SPACE, key))}.{domain.kind}.{index}"
        variant, findings = try_value(spec, key, value)
        yield from (_moved(finding, key, here) for finding in findings)
        for problem in check(variant, left_out) if variant else ():
            if (problem.key, problem.what) not in known:
                what = problem.what if problem.key == key else f"{problem.key} does not fit it: {problem.what}"
                yield Problem(what, problem.action, key=here)


def _counts(spec: Spec, key: str, value: float) -> bool:
    """Whether a setting takes the whole number next to a value, and no other number."""
    return try_value(spec, key, value)[0] is None and try_value(spec, key, max(1, round(value)))[0] is not None


def _moved(finding: Finding, key: str, here: str) -> Problem:
    """A problem of the setting `key` as one of the value that stands at `here`."""
    path, found = split_key(key), finding.path
    inside = dotted(found[len(path) :]) if tuple(map(str, found[: len(path)])) == path else ""
    about = "" if inside or dotted(found) == key else f"{dotted(found)} "
    return Problem(f"{about}{finding.problem.what}", finding.problem.action, key=f"{here}.{inside}".rstrip("."))
