"""What is made of the schema for readers: descriptions, the JSON Schema and the starter spec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from tltrain.spec import schema as schema_module
from tltrain.spec.keys import all_keys
from tltrain.spec.load import json_schema, parse_spec
from tltrain.spec.schema import Section
from tltrain.spec.starter import starter_text

SECTIONS = [item for item in vars(schema_module).values() if isinstance(item, type) and issubclass(item, Section)]
JOBS = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))
MINIMAL: dict[str, Any] = {"name": "x", "model": {"name": "vgg16"}, "data": {"train": "a"}}


def is_accepted(value: Any) -> bool:
    """Return whether the JSON Schema accepts a value."""
    return jsonschema.Draft202012Validator(json_schema()).is_valid(value)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_and_section_is_described(section: type[Section]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        assert (field.description or "").endswith("."), f"{section.__name__}.{name}"


def test_json_schema_is_one_and_describes_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())

    described = re.findall(r"'description'", str(json_schema()))
    assert len(described) >= len(all_keys())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_json_schema_accepts_specs_and_their_resolved_form(path: Path) -> None:
    text = path.read_text()

    assert is_accepted(YAML(typ="safe").load(text))
    assert is_accepted(parse_spec(text, where=str(path), base=path.parent).spec.model_dump())


def test_json_schema_accepts_a_sweep_and_its_resolved_form() -> None:
    text = (
        "name: x\nmodel: {name: vgg16}\ndata: {train: a}\nsweep: {space: {seed: {grid: [1, 2]}}, confirm: {top: 2}}\n"
    )

    assert is_accepted(YAML(typ="safe").load(text))
    assert is_accepted(parse_spec(text, where="j.yaml", base=Path("/")).spec.model_dump())


@pytest.mark.parametrize(
    "part",
    [
        {"optim": {"lr": 1}},
        {"optim": {"learning_rate": -1}},
        {"optim": {"learning_rate": "1e-3"}},
        {"optim": {"name": "sdg"}},
        {"train": {"epochs": True}},
        {"resources": {"num_workers": {"min": 1}}},
        {"name": "My Run"},
        {"model": {}},
        {"model": {"name": "vgg16", "factory": "a:b"}},
        {"data": {}},
        {"sweep": {}},
        {"sweep": {"space": {}}},
        {"sweep": {"space": {"seed": {}}}},
        {"sweep": {"space": {"seed": {"grid": [1], "choice": [1]}}}},
    ],
    ids=str,
)
def test_json_schema_refuses_what_is_wrong(part: dict[str, Any]) -> None:
    assert is_accepted(MINIMAL)
    assert not is_accepted({**MINIMAL, **part})


def test_starter_is_valid_and_names_every_setting() -> None:
    spec = parse_spec(starter_text(), where="spec.yaml", base=Path("/")).spec

    assert spec.name == "my-first-run"
    named = set(re.findall(r"^ *#?(\w+):", starter_text(), re.MULTILINE))
    plain = [key for key in all_keys() if key.count(".") < 2 and not key.startswith("sweep.")]
    assert {key.rpartition(".")[2] for key in plain} == named


def test_starter_has_no_sweep_but_a_valid_example_of_one() -> None:
    text = starter_text()
    example = re.search(r"^# sweep:\n(#  .*\n)+", text, re.MULTILINE)
    assert example is not None
    uncommented = "".join(f"{line[2:]}\n" for line in example.group().splitlines())

    with_sweep = parse_spec(text.replace("#sweep: null\n", uncommented), where="spec.yaml", base=Path("/"))

    assert parse_spec(text, where="spec.yaml", base=Path("/")).spec.sweep is None
    assert with_sweep.warnings == ()
    assert with_sweep.spec.sweep is not None
    assert with_sweep.spec.sweep.num_trials == 16


def test_starter_is_valid_and_the_same_with_every_setting_uncommented() -> None:
    uncommented = re.sub(r"^( *)#(?=\w+:)", r"\1", starter_text(), flags=re.MULTILINE)
    assert uncommented != starter_text()

    given = parse_spec(uncommented, where="spec.yaml", base=Path("/"))

    assert given.spec == parse_spec(starter_text(), where="spec.yaml", base=Path("/")).spec
    assert "default" not in given.origins.values()


def test_starter_fits_80_columns() -> None:
    assert max(len(line) for line in starter_text().splitlines()) <= 80
