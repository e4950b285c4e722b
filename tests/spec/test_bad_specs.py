"""Faulty specs: each fault of bad_specs.yaml is told at its place, in these words, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tltrain.errors import SpecError
from tltrain.spec.load import parse_spec

BEGINNING = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"
CASES = YAML(typ="safe").load(Path(__file__).with_name("bad_specs.yaml"))
FOREIGN_WORDS = ("pydantic", "Input should", "validation error", "Literal[", "errors.pydantic.dev")


def problems_of(text: str, sets: tuple[str, ...] = ()) -> list[str]:
    """Return what is said about a spec; nothing where it is accepted."""
    try:
        parse_spec(text, where="j.yaml", base=Path("/specs"), sets=sets)
    except SpecError as error:
        return [str(problem) for problem in error.problems]
    return []


def matches(said: str, expected: str) -> bool:
    """Compare, where an expected message that ends in ... gives the beginning alone."""
    return said.startswith(expected.removesuffix("...")) if expected.endswith("...") else said == expected


def test_there_are_cases() -> None:
    assert len(CASES) > 50


@pytest.mark.parametrize("case", CASES, ids=[case["spec"][:40] for case in CASES])
def test_each_fault_is_told_at_its_place(case: dict[str, Any]) -> None:
    said = problems_of(case.get("alone", BEGINNING) + case["spec"] + "\n")

    unexpected = [text for text in said if not any(matches(text, wanted) for wanted in case["says"])]
    missing = [wanted for wanted in case["says"] if not any(matches(text, wanted) for text in said)]
    assert (unexpected, missing) == ([], [])
    assert len(said) == len(case["says"])
    assert not [word for word in FOREIGN_WORDS for text in said if word in text]


SETS = [
    ("noequals", "--set #1: noequals is not KEY=VALUE. Write for example --set optim.learning_rate=1e-3."),
    ("=3", "--set #1: the key of =3 is not a dotted key. Write for example --set optim.learning_rate=1e-3."),
    ("a..b=1", "--set #1: the key of a..b=1 is not a dotted key. Write for example ..."),
    ("data.val=", "--set #1 data.val: no value after =. Write data.val=null for none."),
    ("optim.lr=1", "--set #1 optim.lr: there is no key lr in optim. Did you mean learning_rate? Keys ..."),
    ("optim.name=[1", "--set #1 optim.name: not valid YAML: a bracket is not closed. Close it, ..."),
    ("optim.name=!!python/name:os.system x", "--set #1 optim.name: the tag !!python/name:os.system is not ..."),
    ("optim.learning_rate='1e-3'", '--set #1 optim.learning_rate: "1e-3" is text, not a number. Take ...'),
    ("optim.learning_rate=-1", "--set #1 optim.learning_rate: -1 is not a number above 0. The default ..."),
    ("optim={name: sgd, lr: 1}", "--set #1 optim.lr: there is no key lr in optim. Did you mean learning_rate? ..."),
    ("model.name=resnet5o", "--set #1 model.name: there is no model resnet5o. Nearest names: resnet50, ..."),
    ("model.name.x=1", "--set #1 model.name: {x: 1} is a section, not text. The default is null."),
    ("name=a\udc80", "--set #1 name: the character U+DC80 cannot stand in a spec. Remove it."),
    ("a\x1b[2J=1", "--set #1: the key of a\\x1b[2J=1 holds characters no key has. Remove them."),
]


@pytest.mark.parametrize(("text", "expected"), SETS, ids=[text.split("=")[0] for text, _ in SETS])
def test_faulty_set_is_cited_by_number(text: str, expected: str) -> None:
    said = problems_of(BEGINNING, (text,))

    assert len(said) == 1
    assert matches(said[0], expected), said[0]


def test_set_and_file_are_cited_together_and_set_by_its_position() -> None:
    said = problems_of(BEGINNING + "seed: -1\n", ("train.epochs=3", "train.batch_size=0"))

    assert [text.partition(" ")[0] for text in said] == ["j.yaml:4:7", "--set"]
    assert said[1].startswith("--set #2 train.batch_size: ")


@pytest.mark.timeout(20)
def test_alias_bomb_ends_early() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{c}: &{c} [{', '.join(['*' + b] * 9)}]" for b, c in zip("abcdefgh", "bcdefghi", strict=True)]

    said = problems_of("\n".join(lines))

    assert len(said) == 1
    assert "more than 8,000 values, aliases counted in full" in said[0]


def test_aliases_are_read_at_each_place() -> None:
    text = BEGINNING.replace("{train: a}", "{train: &a x, test: *a, mean: &m [0.5, 0.5, 0.5], std: *m}")

    spec = parse_spec(text, where="j.yaml", base=Path("/specs")).spec

    assert spec.data.test == spec.data.train
    assert spec.data.std == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("text", ["[" * 5000, "a: " * 3 + "{a: " * 5000, "a: &a [*a]", "- " * 5000])
def test_deep_nesting_is_refused(text: str) -> None:
    said = problems_of(text)

    assert len(said) == 1
    assert "more than 32 levels of nesting" in said[0] or "not valid YAML" in said[0]


def test_large_text_is_refused() -> None:
    assert problems_of("# x\n" * 300_000) == ["j.yaml: is larger than 1 MiB. A spec has a few lines."]


def test_old_yaml_directive_does_not_turn_numbers_into_text() -> None:
    text = "%YAML 1.1\n---\n" + BEGINNING + "optim: {learning_rate: 1e-3}\n"

    assert parse_spec(text, where="j.yaml", base=Path("/")).spec.optim.learning_rate == 0.001
