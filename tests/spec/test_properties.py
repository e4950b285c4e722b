"""Properties of reading specs: any text ends in a spec or in problems, and any spec survives YAML."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tltrain.errors import Problem, SpecError
from tltrain.spec.emit import scalar
from tltrain.spec.keys import all_keys
from tltrain.spec.load import dump_yaml, parse_spec
from tltrain.spec.yaml_text import parse_value

BEGINNING = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"
MARKS = [
    ": ",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
    "!!int ",
    "|\n",
    "'",
    '"',
    "\t",
    "---\n",
    "null",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from([*MARKS, *(key.rpartition(".")[2] + ": " for key in all_keys())]) | st.text(max_size=4)
TEXTS = st.lists(WORDS, max_size=12).map("".join)

few = settings(max_examples=100, deadline=None)


def ends_well(text: str, *sets: str) -> None:
    """Check that a spec, or one line for each problem, comes of a text."""
    problems: tuple[Problem, ...] = ()
    origins: dict[str, str] = {}
    try:
        origins = parse_spec(text, where="j.yaml", base=Path("/specs"), sets=sets).origins
    except SpecError as error:
        problems = error.problems
    assert bool(problems) != bool(origins)
    assert all(problem.what and str(problem).isprintable() for problem in problems)


@few
@given(TEXTS, st.booleans())
def test_any_text_is_a_spec_or_has_problems(text: str, begun: bool) -> None:
    ends_well(BEGINNING + text if begun else text)


@few
@given(TEXTS | st.tuples(st.sampled_from(all_keys()), TEXTS).map("=".join))
def test_any_set_is_applied_or_has_problems(text: str) -> None:
    ends_well(BEGINNING, text)


@few
@given(st.sampled_from(all_keys()), VALUES)
def test_any_value_of_any_key_is_accepted_or_has_problems(key: str, value: object) -> None:
    ends_well(BEGINNING, f"{key}={as_flow(value)}")


@few
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20))
def test_any_text_survives_yaml(text: str) -> None:
    document = parse_value(f"a: {scalar(text)}", "x")

    assert (document.values, document.problems) == ({"a": text}, [])


@few
@given(
    st.floats(1e-300, 1e300),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8), st.just(1.5)),
)
@example(rate=1.0, betas=[0.0, 0.0], weights={":0": 1.5})
def test_any_valid_spec_survives_yaml(rate: float, betas: list[float], weights: dict[str, float]) -> None:
    sets = (
        f"optim.learning_rate={scalar(rate)}",
        f"optim.betas={scalar(betas)}",
        f"train.class_weights={as_flow(weights)}",
    )
    spec = parse_spec(BEGINNING, where="j.yaml", base=Path("/specs"), sets=sets).spec

    assert spec.train.class_weights == weights
    assert parse_spec(dump_yaml(spec), where="again", base=Path("/")).spec == spec


def as_flow(value: object) -> str:
    """Write a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {as_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_flow(item) for item in value) + "]"
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return ".nan"
    return scalar(value)
