"""What values a searched key takes: counting, drawing and rounding them, and trying one in a spec."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tltrain.spec.keys import bare, branches, hints, split_key
from tltrain.spec.overrides import put
from tltrain.spec.schema import Domain, OptimSpec, Spec, SweepSpec
from tltrain.spec.translate import Finding, validate
from tltrain.spec.yaml_text import Document

LISTED = ("grid", "choice")
DIGITS = 6  # of a drawn number, so that it can be read, typed and written without loss

# What may change while a lane trains: read anew at every step, and part of no tensor's shape.
MUTABLE = (
    *(f"optim.{name}" for name, hint in hints(OptimSpec).items() if {bare(b) for b in branches(hint)} <= {int, float}),
    "train.label_smoothing",
    "train.clip_grad_norm",
)


def mutable_keys(sweep: SweepSpec) -> list[str]:
    """The searched keys that the scheduler may change in mid-training; pb2 needs bounds, not listed values."""
    usable = {key for key, domain in sweep.space.items() if sweep.scheduler != "pb2" or domain.kind not in LISTED}
    return [key for key in sweep.space if key in MUTABLE and key in usable]


def num_configurations(space: Mapping[str, Domain]) -> int | None:
    """How many configurations a space has; None where a key takes any number between two bounds."""
    counts = [num_values(domain) for domain in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def share(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone, the same on every machine and version of Python."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def num_values(domain: Domain) -> int | None:
    """How many values there are; None where they are too many to count."""
    if domain.kind in LISTED:
        return len({canonical(value) for value in domain.values})
    if domain.randint is not None:
        return domain.randint[1] - domain.randint[0]
    if domain.quniform is not None:
        first, last = _steps(domain.quniform)
        return last - first + 1
    return None


def all_values(domain: Domain) -> Iterator[Any]:
    """Every value of a domain that `num_values` can count, once and in order."""
    if domain.kind in LISTED:
        by_text: dict[str, Any] = {}
        for value in domain.values:
            by_text.setdefault(canonical(value), value)
        yield from by_text.values()
    elif domain.randint is not None:
        yield from range(*domain.randint)
    else:
        assert domain.quniform is not None, "values without number cannot be listed"
        first, last = _steps(domain.quniform)
        yield from (_multiple(step, domain.quniform) for step in range(first, last + 1))


def draw(domain: Domain, at: float) -> Any:
    """The value of a domain that stands at the share `at`, in [0, 1), of it."""
    if domain.kind in LISTED:
        values = list(all_values(domain))
        return values[int(at * len(values))]
    if domain.randint is not None:
        low, high = domain.randint
        return low + int(at * (high - low))
    if domain.quniform is not None:
        first, last = _steps(domain.quniform)
        return _multiple(first + int(at * (last + 1 - first)), domain.quniform)
    if domain.loguniform is not None:
        low, high = map(math.log, domain.loguniform)
        return settle(domain, math.exp(low + at * (high - low)))
    low, high = domain.values
    return settle(domain, low + at * (high - low))


def settle(domain: Domain, value: Any) -> Any:
    """The value of a domain nearest to one that was found elsewhere: within the bounds, on a step, readable."""
    if domain.kind in LISTED:
        return value
    if domain.randint is not None:
        return min(max(round(value), domain.randint[0]), domain.randint[1] - 1)
    if domain.quniform is not None:
        first, last = _steps(domain.quniform)
        return _multiple(min(max(round(value / domain.quniform[2]), first), last), domain.quniform)
    low, high = domain.values
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def bounds(domain: Domain) -> list[Any]:
    """The bounds as they are reached: those of quniform are multiples of its step."""
    if domain.quniform is None:
        return list(domain.values)
    first, last = _steps(domain.quniform)
    step = domain.quniform[2]
    return [_multiple(first, domain.quniform), _multiple(last, domain.quniform), int(step) if _is_whole(step) else step]


def samples(domain: Domain) -> list[Any]:
    """Values that show what a domain does to a spec: all that are listed, or the two ends."""
    if domain.kind in LISTED:
        return list(domain.values)
    if domain.randint is not None:
        return [domain.randint[0], domain.randint[1] - 1]
    return bounds(domain)[:2]


def canonical(value: Any) -> str:
    """A text that two values share where they mean the same, such as 1 and 1.0."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _steps(quniform: list[float]) -> tuple[int, int]:
    """The first and the last whole number whose multiple of the step lies within the bounds."""
    low, high, step = quniform
    slack = 1e-9  # so that 0.3 / 0.1, a little below 3, is 3 steps
    return math.ceil(low / step - slack), math.floor(high / step + slack)


def _multiple(count: int, quniform: list[float]) -> int | float:
    """`count` steps: a whole number where all three numbers are whole, so that it suits keys that count."""
    low, high, step = quniform
    if all(map(_is_whole, quniform)):
        return count * int(step)
    return min(max(float(f"{count * step:.12g}"), low), high)


def _is_whole(number: float) -> bool:
    return float(number).is_integer()


def try_value(spec: Spec, key: str, value: Any) -> tuple[Spec | None, list[Finding]]:
    """The spec of a plain run with one value replaced, or None and what keeps the value from fitting."""
    document = Document(spec.model_copy(update={"sweep": None}).model_dump())
    put(document, split_key(key), Document(value))
    return validate(document)
