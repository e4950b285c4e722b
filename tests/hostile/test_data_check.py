"""`tltrain data check` on bad images that a run would leave out, and names that would write to a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus import build

from tltrain.cli.data_views import check_lines
from tltrain.data.check import check_parts
from tltrain.data.parts import open_parts, spec_of

GOOD = ["a/1.png * 9", "b/1.png * 9"]


@pytest.mark.parametrize(("allowed", "ends"), [(0.2, False), (0.05, True)])
def test_what_would_be_left_out_is_named_and_ends_nothing_unless_it_is_too_much(
    tmp_path: Path, allowed: float, ends: bool
) -> None:
    build(tmp_path / "data", [*GOOD, "a/2.jpg = no image", "b/2.png -> gone"])
    settings = f"data: {{train: data, val: null, on_bad_image: skip, max_bad_fraction: {allowed}}}"
    (tmp_path / "x.yaml").write_text(f"name: x\nmodel: {{name: resnet18}}\n{settings}\n")
    findings, problems = check_parts(open_parts(*spec_of(str(tmp_path / "x.yaml"), [], [])), num_threads=1)
    assert [bad["id"] for bad in findings["splits"]["train"]["bad"]] == ["a/2.jpg", "b/2.png"]
    assert bool(problems) == ends
    assert any("a run leaves them out" in warning for warning in findings["warnings"]) != ends


def test_names_are_shown_so_that_they_change_no_terminal(tmp_path: Path) -> None:
    build(tmp_path / "data", [*GOOD, "a/\x1b[31m\n.jpg = no image", "\x1b[2J/1.png"])
    findings, problems = check_parts(open_parts(*spec_of(str(tmp_path / "data"), [], [])), num_threads=1)
    lines = [*check_lines(findings, 80), *map(str, problems)]
    assert all(line.isprintable() for line in lines)
    assert any("a/\\x1b[31m\\n.jpg" in line for line in lines)
    assert "names of classes must be words on one line" in str(problems[0])
