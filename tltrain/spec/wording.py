"""What a setting may be, and what a given value is, in words a user of the spec knows."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from tltrain.spec.keys import bare, branches, is_section
from tltrain.spec.schema import NAME_PATTERN
from tltrain.spec.yaml_text import parse_scalar, printable

_PATTERNS = {
    NAME_PATTERN: "a name of at most 63 lower-case letters, digits and hyphens that begins with a letter or digit"
}
_BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below")}
_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def show(value: Any, limit: int = 60) -> str:
    """A value as one would write it in YAML, on one line of at most `limit` characters."""
    if isinstance(value, str):
        plain = value == value.strip() and isinstance(parse_scalar(value), str) and ": " not in value
        return printable(value, limit) if plain and value else f'"{printable(value, limit)}"'
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, dict):
        return printable("{" + ", ".join(f"{show(k)}: {show(v)}" for k, v in list(value.items())[:20]) + "}", limit)
    if isinstance(value, Sequence):
        return printable("[" + ", ".join(show(item) for item in value[:20]) + "]", limit)
    return printable(str(value), limit)


def kind(value: Any) -> str:
    """The kind of a value: text, a number, a truth value, a list, a section or empty."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "a truth value"
    names = {int: "a number", float: "a number", str: "text", dict: "a section", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def describe(hint: Any) -> str:
    """What an annotation accepts: `a number above 0`, `none, balanced or ...`."""
    parts: list[str] = []
    for branch in branches(hint):
        parts += _words(branch)
    return listing(dict.fromkeys(parts), "or")


def _words(hint: Any) -> list[str]:
    """What one alternative accepts; several words where it is a choice of words."""
    plain, metadata = bare(hint), _metadata(hint)
    if get_origin(plain) is Literal:
        return [str(word) for word in get_args(plain)]
    if is_section(plain):
        return [f"a section with {listing(plain.model_fields, 'and')}"]
    if get_origin(plain) is list:
        exact = {item.max_length for item in metadata if isinstance(item, MaxLen)}
        lengths = [f"{item.min_length} " for item in metadata if isinstance(item, MinLen) and item.min_length in exact]
        return [f"a list of {''.join(lengths)}{_plural(get_args(plain)[0])}"]
    if get_origin(plain) is dict:
        return [f"a mapping of names to {_plural(get_args(plain)[1])}"]
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[plain]
    for item in metadata:
        words = _PATTERNS.get(getattr(item, "pattern", None) or "", words)
    return [words + bounds(metadata)]


def _plural(hint: Any) -> str:
    if get_origin(bare(hint)) is Literal:
        return f"words, each {listing(get_args(bare(hint)), 'or')}"
    if is_section(hint):
        return "such sections"
    if bare(hint) is Any:
        return "values"
    words = {int: "whole numbers", float: "numbers", str: "texts"}[bare(hint)]
    return words + bounds(_metadata(hint))


def _metadata(hint: Any) -> list[Any]:
    """The constraints of an annotation, as single items."""
    found: list[Any] = []
    for item in getattr(hint, "__metadata__", ()):
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return found


def bounds(metadata: Iterable[Any]) -> str:
    """The limits of a number in words, with a leading space; empty where there are none."""
    found = []
    for item in metadata:
        if type(item) in _BOUNDS and not isinstance(item, (MinLen, MaxLen)):
            attribute, words = _BOUNDS[type(item)]
            found.append(f"{words} {getattr(item, attribute)}")
    if not found:
        return ""
    return (" of " if found[0].startswith("at ") else " ") + " and ".join(found)


def listing(words: Iterable[Any], last: str) -> str:
    """`a, b or c`."""
    names = [str(word) for word in words]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def nearest(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known words closest to `word`, case ignored."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word[:100].lower(), list(by_lower), n=count, cutoff=cutoff)
    return [by_lower[match] for match in matches]


def judge(hint: Any, value: Any) -> tuple[str, str]:
    """What is wrong with a value that an annotation refuses, and what to do; the action may be empty."""
    options = branches(hint)
    types = {bare(option) for option in options}
    choices = [
        str(word) for option in options if get_origin(bare(option)) is Literal for word in get_args(bare(option))
    ]
    if isinstance(value, str):
        return _judge_text(hint, value, types, choices)
    if value is None:
        return "has no value", f"Give {describe(hint)}, or leave the key out"
    if isinstance(value, bool):
        return f"{show(value)} is a truth value, not {describe(hint)}", ""
    if isinstance(value, (int, float)):
        return _judge_number(hint, value, options)
    said = "" if describe(hint).startswith(kind(value)) else f"{kind(value)}, "
    return f"{show(value)} is {said}not {describe(hint)}", ""


def _judge_text(hint: Any, value: str, types: set[Any], choices: list[str]) -> tuple[str, str]:
    meaning = parse_scalar(value) if value else value
    if types & {int, float} and isinstance(meaning, (int, float)) and not isinstance(meaning, bool):
        return f'"{printable(value)}" is text, not a number', "Take away the quotes"
    if bool in types:
        word = _YES_NO.get(value.lower(), value.lower())
        action = f"Write {word}, without quotes" if word in ("true", "false") else "Write true or false"
        return f"{show(value)} is text, not true or false", action
    close = nearest(value, choices, cutoff=0.5)
    action = f"Did you mean {close[0]}?" if close else ""
    if describe(hint) == _PATTERNS[NAME_PATTERN] and (name := _as_name(value)):
        action = f"Write for example {name}"
    return f"{show(value)} is not {describe(hint)}", action


def _judge_number(hint: Any, value: int | float, options: list[Any]) -> tuple[str, str]:
    numeric = [option for option in options if bare(option) in (int, float)]
    if not math.isfinite(value):
        return f"{show(value)} is not a finite number", f"Give {describe(hint)}"
    if not numeric:
        action = f'Write "{show(value)}", in quotes' if {bare(option) for option in options} == {str} else ""
        return f"{show(value)} is a number, not {describe(hint)}", action
    whole = all(bare(option) is int for option in numeric) and isinstance(value, float)
    action = f"Write {int(value)}" if whole and value == int(value) else ""
    return f"{show(value)} is not {listing([word for option in numeric for word in _words(option)], 'or')}", action


def _as_name(text: str) -> str:
    """The run name nearest to a text; empty where nothing of it can stay."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")
