"""A spec as YAML, plain or with a comment behind each setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tltrain.spec.keys import SPACE
from tltrain.spec.schema import Section, Spec
from tltrain.spec.yaml_text import KeyPath, dotted, parse_scalar

_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./~@+-:")
_OLD_YAML_WORDS = {"yes", "no", "on", "off", "y", "n"}  # truth values to readers of YAML 1.1
_WIDEST = 50  # lines up to here have their comments in one column


class Line(NamedTuple):
    """One line of YAML, and the leaf of the spec that it holds ("" for the head of a section)."""

    text: str
    key: str


def dump_yaml(spec: Spec) -> str:
    """The resolved spec as YAML; loading it gives an equal spec."""
    return "".join(f"{line.text}\n" for line in _lines(spec))


def annotated_yaml(spec: Spec, comments: Mapping[str, str]) -> str:
    """The resolved spec as YAML, the comment of each dotted key behind it, in one column where it fits."""
    lines = list(_lines(spec))
    column = max(len(line.text) for line in lines if len(line.text) <= _WIDEST)
    shown = (f"{line.text:<{column}}  # {comments[line.key]}" if line.key in comments else line.text for line in lines)
    return "".join(f"{text}\n" for text in shown)


def scalar(value: Any) -> str:
    """One value in YAML's flow form; it reads back as the same value and shows no raw control characters."""
    if isinstance(value, str):
        is_plain = set(value) <= _PLAIN and not value.endswith(":") and value[:1] not in ("-", "@", ":")
        return value if is_plain and value and _stays_text(value) else _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(scalar(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, allow_nan=False)


def _stays_text(value: str) -> bool:
    return isinstance(parse_scalar(value), str) and value.lower() not in _OLD_YAML_WORDS


def _quoted(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in quoted)


def _lines(section: Section, path: KeyPath = (), indent: str = "") -> Iterator[Line]:
    for name in type(section).model_fields:
        yield from _field(name, getattr(section, name), (*path, name), indent)


def _field(name: str, value: Any, path: KeyPath, indent: str) -> Iterator[Line]:
    if isinstance(value, Section):
        yield Line(f"{indent}{name}:", "")
        yield from _lines(value, path, indent + "  ")
    elif isinstance(value, list) and value and isinstance(value[0], Section):
        yield Line(f"{indent}{name}:", "")
        for index, item in enumerate(value):
            yield from _item(list(_lines(item, (*path, index), indent + "    ")), indent)
    elif path == SPACE and isinstance(value, dict):
        yield Line(f"{indent}{name}:", "")
        for key, domain in value.items():
            yield Line(f"{indent}  {scalar(key)}: {scalar({domain.kind: domain.values})}", dotted((*path, key)))
    elif isinstance(value, dict) and value:
        yield Line(f"{indent}{name}:", dotted(path))
        yield from (Line(f"{indent}  {scalar(key)}: {scalar(each)}", "") for key, each in value.items())
    else:
        yield Line(f"{indent}{name}: {scalar(value)}", dotted(path))


def _item(lines: list[Line], indent: str) -> Iterator[Line]:
    """Lines of one section in a list: the first begins with a dash."""
    first = lines[0]
    yield first._replace(text=f"{indent}  - {first.text.lstrip()}")
    yield from lines[1:]
