"""Writes docs/spec.md, the reference of all settings, from the schema: `python docs/make_spec_reference.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tltrain.spec.load import json_schema

INTRODUCTION = """\
# The spec

One YAML file says what to train. Made from the schema by `python docs/make_spec_reference.py`; `tltrain schema` prints
the same as JSON Schema for editors, `tltrain init` writes a commented starter, and `tltrain validate SPEC` shows where
each value comes from.

- Unknown keys, duplicate keys and wrong types are refused, all at once, with file, line and column.
- `--set KEY=VALUE` (repeatable) changes a value before validation; the value is read as YAML.
- Relative paths in `data` and in `model.weights` are relative to the spec file (from `--set`: to the current folder).
  `storage` is relative to the current folder.
- A setting that is given but has no effect is named in a warning.
"""


def main() -> None:
    """Write docs/spec.md beside this file."""
    Path(__file__).with_name("spec.md").write_text(reference())


def reference() -> str:
    """Return the text of docs/spec.md."""
    schema = json_schema()
    sections = [INTRODUCTION, _table("The run", schema, schema)]
    for key, value in schema["properties"].items():
        for name, definition in _sections(value, schema):
            title = key if name is None else f"{key}.{name}"
            sections.append(_table(f"`{title}`", definition, schema))
    return "\n".join(sections)


def _sections(value: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    """Return the section that a key holds and the sections within it."""
    found: list[tuple[str | None, dict[str, Any]]] = []
    for definition in _definitions(value, schema):
        found.append((None, definition))
        for key, inner in definition["properties"].items():
            found += [(key, nested) for nested in _definitions(inner, schema)]
    return found


def _definitions(value: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    choices = [value, *value.get("anyOf", []), *value.get("allOf", [])]
    names = [choice["$ref"].rsplit("/", 1)[1] for choice in choices if "$ref" in choice]
    return [schema["$defs"][name] for name in names]


def _table(title: str, definition: dict[str, Any], schema: dict[str, Any]) -> str:
    rows = [f"## {title}", "", definition.get("description", ""), "", "| key | default | meaning |", "|---|---|---|"]
    for key, value in definition["properties"].items():
        if not _is_section(value, schema):
            rows.append(f"| `{key}` | {_default(key, value, definition)} | {_meaning(value)} |")
        else:
            rows.append(f"| `{key}` | | A section of its own, below. |")
    return "\n".join(rows) + "\n"


def _is_section(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    return bool(_definitions(value, schema))


def _default(key: str, value: dict[str, Any], definition: dict[str, Any]) -> str:
    if key in definition.get("required", []):
        return "required"
    default = value.get("default")
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _meaning(value: dict[str, Any]) -> str:
    choices = [str(choice) for option in [value, *value.get("anyOf", [])] for choice in option.get("enum", [])]
    text = " ".join(str(value.get("description", "")).split()).replace("|", "\\|")
    return f"{text} One of {', '.join(f'`{choice}`' for choice in choices)}." if len(choices) > 1 else text


if __name__ == "__main__":
    main()
