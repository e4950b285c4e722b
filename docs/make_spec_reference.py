"""Writes docs/spec.md, the reference of all settings, from the schema: `python docs/make_spec_reference.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from tltrain.spec.load import json_schema

Json: TypeAlias = dict[str, Any]

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

## A sweep

```yaml
sweep:
  space:
    optim.learning_rate: {loguniform: [1e-4, 1e-1]}
    model.freeze_depth: {choice: [all, layer3, layer2]}
  search: random
  num_trials: 16
```

- `space` names dotted keys of this page. Every value in it is checked as if it stood in the spec, and each trial's spec
  as a whole before any starts. Not searched are `name`, `storage`, `resources`, `checkpoint`, `cache`, and the images
  that trials are compared by.
- `search: grid` runs all combinations of `grid` and `choice` values, the last key changing fastest.
- `search: random` draws `num_trials` configurations. Trial k depends on the seed and k alone, so a longer sweep begins
  with the same trials. A key with `grid` goes through its values in turn instead of being drawn. No configuration
  comes twice.
- `search: optuna` chooses each trial's values by the results so far.
- Drawn numbers are rounded to 6 digits. A `quniform` of whole numbers gives whole numbers.
"""


def main() -> None:
    """Write docs/spec.md beside this file."""
    Path(__file__).with_name("spec.md").write_text(reference(), encoding="utf-8")


def reference() -> str:
    """Return the text of docs/spec.md."""
    schema = json_schema()
    sections = [_table(f"`{title}`", definition, schema, title) for title, definition in _sections(schema, schema)]
    return "\n".join([INTRODUCTION, _table("The run", schema, schema), *sections])


def _sections(definition: Json, schema: Json, inside: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the dotted name and the definition of each section, those within it right behind it.

    Where each key of a mapping has a section, `KEY` stands for the key.
    """
    for name, value in definition["properties"].items():
        for title, section in _definitions(f"{inside}{name}", value, schema):
            yield title, section
            yield from _sections(section, schema, f"{title}.")


def _definitions(title: str, value: Json, schema: Json) -> list[tuple[str, Json]]:
    """Return the sections that a value may be, each with its dotted name."""
    options = [(title, option) for option in _options(value)]
    options += [(f"{title}.KEY", option["additionalProperties"]) for option in _options(value) if _is_mapping(option)]
    options += [(title, option["items"]) for option in _options(value) if option.get("type") == "array"]
    names = {option["$ref"].rsplit("/", 1)[1]: where for where, option in options if "$ref" in option}
    return [(where, schema["$defs"][name]) for name, where in names.items()]


def _options(value: Json) -> list[Json]:
    return [value, *value.get("anyOf", []), *value.get("allOf", [])]


def _is_mapping(option: Json) -> bool:
    return isinstance(option.get("additionalProperties"), dict)


def _table(heading: str, definition: Json, schema: Json, inside: str = "") -> str:
    rows = [f"## {heading}", "", definition.get("description", ""), "", "| key | default | meaning |", "|---|---|---|"]
    for key, value in definition["properties"].items():
        default, meaning = _default(key, value, definition), _meaning(value)
        for title, section in _definitions(f"{inside}.{key}".lstrip("."), value, schema):
            default = default if _may_be_left_out(value) else ""
            anchor = title.lower().replace(".", "")
            meaning = f"{meaning or section['description']} See [`{title}`](#{anchor})."
        rows.append(f"| `{key}` |{f' {default} ' if default else ' '}| {meaning} |")
    return "\n".join(rows) + "\n"


def _may_be_left_out(value: Json) -> bool:
    """Whether a section's default is a value of its own, such as null, and not the defaults of its keys."""
    return not isinstance(value.get("default"), dict)


def _default(key: str, value: Json, definition: Json) -> str:
    if key in definition.get("required", []):
        return "required"
    default = value.get("default")
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _meaning(value: Json) -> str:
    choices = [str(choice) for option in _options(value) for choice in option.get("enum", [])]
    text = " ".join(str(value.get("description", "")).split()).replace("|", "\\|")
    return f"{text} One of {', '.join(f'`{choice}`' for choice in choices)}." if len(choices) > 1 else text


if __name__ == "__main__":
    main()
