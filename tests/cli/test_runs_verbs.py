"""The verbs around runs: what they print, and what they refuse."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tltrain.cli import runs as cli_runs
from tltrain.cli.main import app
from tltrain.cli.run_tables import duration, run_lines, shortened
from tltrain.jobs.runs import Run
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, parse_spec, replace

SPEC = parse_spec("name: a\nmodel: {name: resnet18}\ndata: {train: x}\n", where="x", base=Path("/")).spec


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage of three finished runs; the working directory is the folder around it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b", "long-" * 12 + "end")):
        run = RunFolder.at("runs", name)
        run.write_spec(dump_yaml(replace(SPEC, {"name": name, "train.epochs": 5 + number})))
        best = {"epoch": number, "top1": 0.9, "loss": 0.125}
        evaluation = {"split": "test", "accuracy": 0.875}
        state = {"name": name, "state": "finished", "started_at": 1e9 + number, "finished_at": 1e9 + 90}
        run.update(**state, best=best, evaluation=evaluation)
    return tmp_path / "runs"


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_runs_are_listed_in_80_columns() -> None:
    code, out, _ = invoke("runs")
    lines = out.splitlines()
    assert code == 0
    assert [line[0] for line in lines] == ["n", "l", "b", "a"]
    assert re.match(r"long-\S*…\S*-end  run ", lines[1])
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].split()[1:] == ["run", "finished", "2001-09-09", "2", "min", "90.0%", "87.5%"]


def test_the_newest_runs_alone_are_listed() -> None:
    code, out, _ = invoke("runs", "-n", "2")
    assert code == 0
    assert [line[0] for line in out.splitlines()] == ["n", "l", "b"]
    assert [run["name"][0] for run in json.loads(invoke("runs", "-n", "1", "--json")[1])] == ["l"]
    assert invoke("runs", "-n", "0")[0] == 2


def test_a_long_list_is_cut_in_words_and_only_where_nobody_said_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_runs, "SHOWN", 2)
    code, out, said = invoke("runs")
    assert code == 0
    assert [line[0] for line in out.splitlines()] == ["n", "l", "b"]
    assert "--all" in said
    for arguments in (("--all",), ("-n", "3")):
        _, out, said = invoke("runs", *arguments)
        assert ([line[0] for line in out.splitlines()], said) == (["n", "l", "b", "a"], "")
    assert len(json.loads(invoke("runs", "--json")[1])) == 3
    monkeypatch.setattr(cli_runs, "SHOWN", 3)
    assert invoke("runs")[2] == ""
    assert invoke("runs", "--all", "-n", "2")[0] == 2


def test_runs_as_json_have_whole_names_and_numbers() -> None:
    _, out, _ = invoke("runs", "runs", "--json")
    newest = json.loads(out)[0]
    assert newest["name"] == "long-" * 12 + "end"
    assert RunFolder.open(newest["uri"]).name == newest["name"]
    assert (newest["state"], newest["test_accuracy"], newest["duration_s"]) == ("finished", 0.875, 88.0)


def test_an_empty_storage_says_so(tmp_path: Path) -> None:
    assert invoke("runs", str(tmp_path / "nowhere")) == (0, "", f"No runs in {tmp_path / 'nowhere'}.\n")


def test_compare_shows_differences_beside_numbers() -> None:
    code, out, _ = invoke("compare", "runs/a", "runs/b")
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines() if line.strip()}
    assert code == 0
    assert rows["train.epochs"] == ["5", "6"]
    assert rows["val top-1"] == ["90.0%", "90.0%"]
    assert rows["val loss"] == ["0.1250", "0.1250"]
    assert "optim.learning_rate" not in rows
    assert all(len(line) <= 80 for line in out.splitlines())


def test_compare_as_json() -> None:
    _, out, _ = invoke("compare", "runs/a", "runs/b", "--json")
    assert json.loads(out)["spec"] == {"train.epochs": [5, 6]}


def test_a_single_run_is_not_compared() -> None:
    code, _, err = invoke("compare", "runs/a")
    assert (code, "two or more" in err) == (2, True)


def test_a_run_is_deleted_with_yes_and_not_without_a_terminal(runs: Path) -> None:
    code, _, err = invoke("rm-run", "runs/a")
    assert (code, "--yes" in err, (runs / "a").exists()) == (2, True, True)
    assert invoke("rm-run", "runs/a", "--yes")[0] == 0
    assert not (runs / "a").exists()
    assert (runs / "b").exists()


@pytest.mark.parametrize(("answer", "is_left"), [("n\n", True), ("y\n", False)])
def test_at_a_terminal_it_is_asked(runs: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_left: bool) -> None:
    monkeypatch.setattr("tltrain.cli.runs.has_terminal", lambda: True)
    done = CliRunner().invoke(app, ["rm-run", "runs/a"], input=answer)
    assert (done.exit_code, (runs / "a").exists()) == (int(is_left), is_left)
    assert "Delete the run" in done.output


def test_what_is_no_run_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    code, _, err = invoke("rm-run", "photos", "--yes")
    assert (code, "no run folder" in err) == (2, True)
    assert (tmp_path / "photos").exists()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_lines_fit_whatever_a_run_holds(columns: int) -> None:
    run = Run("n" * 63, "sweep", "interrupted", time.time(), None, 0.0, 1.0, 1.0, "", duration_s=99.9 * 3600)
    assert max(map(len, run_lines([run], columns))) <= max(columns, 12 + 58)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0 s"), (59, "59 s"), (90, "2 min"), (5000, "83 min"), (6000, "1.7 h"), (1e6, "11.6 d")],
)
def test_durations_as_people_say_them(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("length", range(3, 12))
def test_shortened_names_keep_both_ends(length: int) -> None:
    text = shortened("abcdefghij", length)
    assert len(text) <= length
    assert (text[0], text[-1]) == ("a", "j")
