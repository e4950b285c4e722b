"""The dotted keys of a spec: its leaves, the type of each, and setting one in plain values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from tltrain.spec.schema import Domain, Section, Spec
from tltrain.spec.yaml_text import KeyPath

SPACE = ("sweep", "space")
_KINDS = frozenset(Domain.model_fields)


def leaves(value: Section, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Path and value of every setting. A list of numbers or a mapping of class weights is one leaf."""
    for name in type(value).model_fields:
        yield from _leaves_of(getattr(value, name), (*path, name))


def _leaves_of(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Section):
        yield from leaves(value, path)
    elif isinstance(value, list) and value and isinstance(value[0], Section):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    elif path == SPACE and isinstance(value, dict):
        yield from (((*path, key), {domain.kind: domain.values}) for key, domain in value.items())
    else:
        yield path, value


@cache
def hints(section: type[Section]) -> dict[str, Any]:
    """The annotation of each field, its bounds included."""
    every = get_type_hints(section, include_extras=True)
    return {name: every[name] for name in section.model_fields}


def bare(hint: Any) -> Any:
    """An annotation without its bounds."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def branches(hint: Any) -> list[Any]:
    """The alternatives of an annotation, null left out; one alone where it is no union."""
    if get_origin(bare(hint)) not in (Union, UnionType):
        return [hint]
    return [branch for part in get_args(bare(hint)) if part is not NoneType for branch in branches(part)]


def is_section(hint: Any) -> bool:
    """Whether an annotation is a section of the spec."""
    return isinstance(bare(hint), type) and issubclass(bare(hint), Section)


@cache
def all_keys(section: type[Section] = Spec, prefix: str = "") -> tuple[str, ...]:
    """Every dotted key that the schema knows, sections included; items of lists left out."""
    found: list[str] = []
    for name, hint in hints(section).items():
        found.append(prefix + name)
        for branch in branches(hint):
            if is_section(branch):
                found += all_keys(bare(branch), f"{prefix}{name}.")
    return tuple(found)


def split_key(key: str) -> KeyPath:
    """The path of a dotted key; a searched key, which holds dots of its own, is one part of it."""
    parts = key.split(".")
    if tuple(parts[:2]) != SPACE or len(parts) == 2:
        return tuple(parts)
    inside = parts[2:]
    end = next((index for index, part in enumerate(inside) if index and part in _KINDS), len(inside))
    return (*SPACE, ".".join(inside[:end]), *inside[end:])


def set_value(values: Any, path: KeyPath, value: Any) -> KeyPath:
    """Set one value in nested dicts and lists, making sections on the way; return the path with list indices.

    What stands in the way and is neither a mapping nor an item of a list is replaced by a mapping.
    """
    step, rest = _step(values, path[0]), path[1:]
    if not rest:
        values[step] = value
        return (step,)
    below = values.get(step) if isinstance(values, dict) else values[step]
    if not isinstance(below, dict) and _step(below, rest[0]) is rest[0]:
        below = {}
    taken = set_value(below, rest, value)
    values[step] = below
    return (step, *taken)


def _step(values: Any, part: str | int) -> str | int:
    """The index that `part` names in a list, or `part` itself."""
    text = str(part)
    is_index = isinstance(values, list) and text.isascii() and text.isdigit() and len(text) < 6
    return int(text) if is_index and int(text) < len(values) else part
