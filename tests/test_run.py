"""The far side: one run from spec file to result, resumed, finished, refused, interrupted; alone and under torchrun."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain.attempt import attempt, time_limit
from tltrain.errors import DivergedError, SpecError, TimeLimitError
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.train.cohort import Cohort


def spec_file(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(dump_yaml(tiny_spec(folder, changes)))
    return path


def execute(path: Path, *sets: str) -> int:
    return far_side.execute(load_spec(path, sets), local=True)


def test_a_local_run_prints_its_result_to_stdout_and_its_progress_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(spec_file(tmp_path)) == 0
    output = capsys.readouterr()
    assert "Test accuracy" in output.out
    assert str(tmp_path / "runs" / "tiny") in output.out
    assert "  1/2" in output.out
    assert "  2/2" in output.out
    assert "Frozen" in output.err
    said = [*output.out.splitlines(), *output.err.splitlines()]
    assert all(len(line) <= 80 for line in said if str(tmp_path) not in line)
    state = RunFolder.open(str(tmp_path / "runs" / "tiny")).state()
    assert state["state"] == "finished"
    assert state["evaluation"]["num_images"] == 45


def test_a_finished_run_says_so_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec_file(tmp_path)
    execute(path)
    capsys.readouterr()
    page, temporary = tmp_path / "runs" / "tiny" / "report.html", tmp_path / "tltrain-ray-12345678"
    page.unlink()  # as if the process had been killed before it was written
    temporary.mkdir()
    (temporary / ".held").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert execute(path) == 0
    output = capsys.readouterr()
    assert "is finished already" in output.err
    assert "Test accuracy" in output.out
    assert page.exists()
    assert not temporary.exists()


def test_another_spec_under_the_same_name_is_refused_key_by_key(tmp_path: Path) -> None:
    path = spec_file(tmp_path)
    execute(path)
    with pytest.raises(SpecError) as error:
        execute(path, "optim.learning_rate=0.5", "train.batch_size=8")
    assert [problem.key for problem in error.value.problems] == ["optim.learning_rate", "train.batch_size"]


def test_what_does_not_change_the_numbers_may_change_on_resume(tmp_path: Path) -> None:
    path = spec_file(tmp_path)
    execute(path)
    assert execute(path, "resources.cpus_per_worker=2", "checkpoint.keep=1") == 0


def test_a_diverged_run_is_recorded_as_failed_with_its_error(tmp_path: Path) -> None:
    path = spec_file(tmp_path, {"optim.learning_rate": 1e30, "model.freeze_depth": 0})
    with pytest.raises(DivergedError):
        execute(path)
    state = RunFolder.open(str(tmp_path / "runs" / "tiny")).state()
    assert state["state"] == "failed"
    assert "is not finite" in state["error"][0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit], ids=["Ctrl-C", "SIGTERM of a Ray job"])
def test_an_interrupted_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    path = spec_file(tmp_path)

    def interrupt(*_: object) -> None:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(Cohort, "train_epoch", interrupt)
        with pytest.raises(kind):
            execute(path)
    run = RunFolder.open(str(tmp_path / "runs" / "tiny"))
    assert run.state()["state"] == "interrupted"
    assert execute(path) == 0
    assert run.state()["state"] == "finished"


def test_problems_of_data_and_model_come_together_before_training(tmp_path: Path) -> None:
    path = spec_file(tmp_path, {"data.train": str(tmp_path / "nowhere"), "model.freeze_depth": 99})
    with pytest.raises(Exception, match="nowhere") as error:
        execute(path)
    assert "freeze_depth" in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_explain_shows_stages_counts_and_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_spec(spec_file(tmp_path, {"optim.layer_decay": 0.5}))
    far_side.explain(loaded, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    stages = facts["stages"]
    assert [stage["trained"] for stage in stages[:2]] == [False, False]
    assert stages[-1]["name"] == "head"
    assert sum(stage["forward_share"] for stage in stages) == pytest.approx(1.0)
    assert stages[-2]["learning_rate"] == pytest.approx(0.5 * stages[-1]["learning_rate"])
    assert facts["trained_parameters"] < facts["parameters"]
    far_side.explain(loaded, as_json=False)
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


def test_under_torchrun_the_module_trains_without_ray(tmp_path: Path) -> None:
    path = spec_file(tmp_path, {"resources.num_workers": 2})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "ray.py").write_text("raise ImportError('ray is not installed here')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'blocked'}:{Path(far_side.__file__).parent.parent}"}
    done = subprocess.run(
        [*launcher, "-m", "tltrain.run", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Test accuracy") == 1


def test_the_module_prints_all_problems_and_exits_with_their_code(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: BAD\nmodel: {nam: resnet18}\ndata: {train: x}\n")
    done = subprocess.run(
        [sys.executable, "-m", "tltrain.run", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"{path}:1:7 name" in done.stderr
    assert "model.nam" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_that_takes_too_long_ends_with_the_cause_time_limit(tmp_path: Path) -> None:
    path = spec_file(tmp_path, {"train.epochs": 100000})

    code = far_side.main([str(path), "--local", "--max-duration", "4"])

    state = RunFolder.open(str(tmp_path / "runs" / "tiny")).state()
    assert code == 1
    assert (state["state"], state["cause"]) == ("failed", "time limit")
    assert state["error"][0].startswith("the run has not ended within 4 s")


def test_a_time_limit_that_ends_the_decoding_of_an_image_is_not_told_as_an_error_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, decode = itertools.count(), Image.Image.convert

    def over(image: Image.Image, *arguments: Any) -> Image.Image:
        if next(numbers) == 20:
            signal.raise_signal(signal.SIGALRM)
        return decode(image, *arguments)

    monkeypatch.setattr(Image.Image, "convert", over)
    path = spec_file(tmp_path)

    assert far_side.main([str(path), "--local", "--max-duration", "3600"]) == 1

    state = RunFolder.open(str(tmp_path / "runs" / "tiny")).state()
    assert next(numbers) == 21, "nothing was read any more"
    assert (state["state"], state["cause"]) == ("failed", "time limit")


def test_a_time_limit_that_ends_what_is_done_before_training_is_recorded(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    run = RunFolder.at(spec.storage, spec.name)

    with pytest.raises(TimeLimitError), time_limit(1.0), attempt(spec, run, print):
        time.sleep(60)

    assert (run.state()["state"], run.state()["cause"]) == ("failed", "time limit")


def test_errors_of_any_kind_are_recorded_with_their_cause_and_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("mine")

    path = spec_file(tmp_path)
    monkeypatch.setenv("TLTRAIN_JOB", "tiny-012345-1")
    monkeypatch.setattr(Cohort, "train_epoch", fail)

    with pytest.raises(KeyError):
        execute(path)

    state = RunFolder.open(str(tmp_path / "runs" / "tiny")).state()
    assert (state["state"], state["cause"], state["job"]) == ("failed", "user code", "tiny-012345-1")
    assert state["error"] == ["KeyError: 'mine'"]


def test_out_of_memory_is_gone_on_with_in_smaller_parts(tmp_path: Path) -> None:
    path = spec_file(tmp_path)
    execute(path, "train.epochs=1")

    with pytest.raises(SpecError) as error:
        execute(path, "train.accumulation_steps=2")

    assert [problem.key for problem in error.value.problems] == ["train.epochs"], "the parts may change"
