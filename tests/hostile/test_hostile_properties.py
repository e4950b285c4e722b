"""Whatever stands in a spec, a `--set`, an image or a name is taken or refused in words, in little time and memory."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import limited
from strategies import HEAD, IMAGE_BYTES, NAMES, PATHS, SETS, SPACES, SPEC_BYTES

from tltrain.cli.main import main
from tltrain.data.decode import decode
from tltrain.errors import DataError, SpecError, TltrainError
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, parse_spec
from tltrain.spec.schema import NAME_PATTERN
from tltrain.spec.space import apply, propose, settled

COUNTS = pytest.mark.parametrize("examples", [20, pytest.param(3000, marks=pytest.mark.slow)])
SECONDS, MEGABYTES = 5.0, 500


def exit_code(path: Path, sets: list[str]) -> int:
    """The exit code of `tltrain validate` in this process."""
    arguments = ["tltrain", "-q", "validate", str(path), *(f"--set={one}" for one in sets)]
    with pytest.MonkeyPatch.context() as patch, limited(seconds=SECONDS, megabytes=MEGABYTES):
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_:
            main()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def validates(folder: Path, content: bytes, sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "j.yaml"
    path.write_bytes(content)
    code = exit_code(path, sets)
    said = capsys.readouterr()
    assert code in (0, 2)
    assert bool(said.out) == (code == 0)
    assert code == 0 or said.err.startswith("error: ")
    assert all(line.isprintable() for line in said.err.splitlines())


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returns, or the error for the user that it raises."""
    try:
        return function()
    except TltrainError as error:
        return error


def reads(content: bytes) -> None:
    with limited(seconds=SECONDS, megabytes=2000):
        found = outcome(lambda: decode(content, "a/1.jpg", max_pixels=4_000_000))
    if isinstance(found, DataError):
        assert len(found.problems) == 1
        assert str(found).startswith("a/1.jpg: ")
        assert str(found).isprintable()
    else:
        assert found.mode == "RGB"
        assert min(found.size) >= 1
        assert len(found.tobytes()) == found.width * found.height * 3


def comes_back(space: dict[str, dict[str, object]], seed: int) -> None:
    """A space goes through a file and back, and what is drawn from it lies in it and makes valid specs."""
    text = HEAD + f"seed: {seed}\nsweep: {json.dumps({'space': space, 'search': 'random', 'num_trials': 1})}\n"
    spec = parse_spec(text, where="j.yaml", base=Path("/specs")).spec
    assert parse_spec(dump_yaml(spec), where="again", base=Path("/")).spec == spec
    (trial,) = propose(spec)
    assert settled(spec, trial.values) == trial.values
    assert apply(spec, trial).sweep is None


def parsed(values: dict[str, Any], base: Path) -> Any:
    """The spec that is made of `values`, or a SpecError."""
    return outcome(lambda: parse_spec(json.dumps(values), where="j.yaml", base=base).spec)


def is_name_or_refused(text: str, folder: Path) -> None:
    values = {"name": text, "model": {"name": "resnet50"}, "data": {"train": "a"}, "storage": str(folder)}
    spec = parsed(values, folder)
    if re.fullmatch(NAME_PATTERN, text):
        assert RunFolder.at(spec.storage, spec.name).folder.local_path == folder / text
    else:
        assert isinstance(spec, SpecError)
        assert "name" in str(spec)


def is_path_or_refused(text: str, folder: Path) -> None:
    spec = parsed({"name": "x", "model": {"name": "resnet50"}, "data": {"train": text}}, folder)
    if isinstance(spec, SpecError):
        assert all(str(problem).isprintable() for problem in spec.problems)
    else:
        again = parse_spec(dump_yaml(spec), where="again", base=Path("/elsewhere")).spec
        assert again.data.train == spec.data.train
        assert os.path.isabs(spec.data.train) or ":" in spec.data.train


# Deep texts and large images are what is wanted here.
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)


def check(examples: int, holds: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Check that a property holds for `examples` draws."""
    settings(max_examples=examples, deadline=None, suppress_health_check=_SLOW)(given(*strategies)(holds))()


@COUNTS
def test_any_spec_validates_or_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], examples: int) -> None:
    def holds(content: bytes) -> None:
        validates(tmp_path, content, [], capsys)

    check(examples, holds, SPEC_BYTES)


@COUNTS
def test_any_set_is_applied_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], examples: int) -> None:
    def holds(sets: list[str]) -> None:
        validates(tmp_path, HEAD.encode(), sets, capsys)

    check(examples, holds, SETS)


@COUNTS
def test_any_bytes_are_an_rgb_image_or_refused(examples: int) -> None:
    check(examples, reads, IMAGE_BYTES)


@COUNTS
def test_any_search_space_comes_back_and_its_draws_lie_in_it(examples: int) -> None:
    check(examples, comes_back, SPACES, st.integers(0, 2**32 - 1))


@COUNTS
def test_any_text_is_a_run_name_or_refused(tmp_path: Path, examples: int) -> None:
    check(examples, lambda text: is_name_or_refused(text, tmp_path), NAMES)


@COUNTS
def test_any_path_is_absolute_and_stays_the_same(tmp_path: Path, examples: int) -> None:
    check(examples, lambda text: is_path_or_refused(text, tmp_path), PATHS)
