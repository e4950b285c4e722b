"""The page of a comparison, and its differences."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from report_folders import CLASSES, HOSTILE, grid_values, write_evaluation, write_run, write_sweep

from tltrain.report.compare_page import build_comparison, difference_lines, find_differences, p_text
from tltrain.run_folder import RunFolder


def build(runs: list[RunFolder], spec: dict[str, list[object]] | None = None) -> str:
    names = [run.name for run in runs]
    return build_comparison(runs, names, spec or {}, find_differences(runs, names))


def change_ids(run: RunFolder) -> None:
    table = pq.read_table(io.BytesIO(run.folder.read_bytes("predictions.parquet")))
    changed = table.set_column(0, "id", [[f"other-{index}" for index in range(len(table))]])
    sink = io.BytesIO()
    pq.write_table(changed, sink)
    run.folder.write_bytes("predictions.parquet", sink.getvalue())


def test_runs_on_the_same_images_are_compared_image_by_image(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=3)]

    (found,) = find_differences(runs, ["one", "two"])

    accuracy = [run.read_json("evaluation.json")["accuracy"] for run in runs]
    assert (found.one, found.other) == ("two", "one")
    assert found.is_paired
    assert found.images == 500
    assert found.value == pytest.approx(accuracy[1] - accuracy[0])
    assert found.only_one - found.only_other == pytest.approx(500 * found.value)


def test_runs_on_other_images_are_compared_by_their_counts(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=3)]
    change_ids(runs[1])

    (found,) = find_differences(runs, ["one", "two"])

    assert not found.is_paired


def test_of_many_runs_each_is_compared_with_the_first(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{number}", seed=number) for number in range(8)]
    names = [run.name for run in runs]

    assert [found.one for found in find_differences(runs, names)] == names[1:]
    assert len(find_differences(runs[:4], names[:4])) == 6


def test_page_has_curves_numbers_settings_and_classes(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "one"),
        write_sweep(tmp_path / "two", grid_values()),
        write_run(tmp_path / "new", done=1),
    ]

    page = build(runs, {"optim.learning_rate": [0.1, None, 0.3]})

    for part in ("numbers", "chance", "curves-val-top1", "curves-val-loss", "settings", "classes"):
        assert f'id="{part}"' in page
    assert page.count('data-lane="one"') >= 4
    assert "<td>optim.learning_rate</td>" in page
    assert len(page) < 200_000


def test_runs_without_results_have_a_page_too(tmp_path: Path) -> None:
    page = build([write_run(tmp_path / "one", done=0), write_run(tmp_path / "two", done=2)])

    assert 'id="chance"' not in page
    assert "The specs are the same." in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two")]
    for run in runs:
        write_evaluation(run, [f"{HOSTILE}{name}" for name in CLASSES], 100)
        run.update(state=HOSTILE)

    page = build_comparison(runs, [HOSTILE, "two"], {HOSTILE: [HOSTILE, 1]}, find_differences(runs, [HOSTILE, "two"]))

    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert" in page


def test_lines_say_what_is_chance(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=3)]

    lines = difference_lines(find_differences(runs, ["one", "two"]))

    assert lines[0] == ""
    assert lines[1].startswith("two against one: ")
    assert lines[1].endswith(": may be chance")
    assert difference_lines([]) == []


def test_tiny_p_is_not_written_as_zero() -> None:
    assert (p_text(0.0), p_text(0.0314)) == ("< 0.001", "0.031")
