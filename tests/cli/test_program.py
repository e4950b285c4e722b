"""The program: its verbs, what goes to which stream, and the exit codes."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tltrain.run
from tltrain import messages
from tltrain.cli.main import main
from tltrain.errors import DataError, DivergedError, ResourceError, TltrainError
from tltrain.output import Output
from tltrain.run_folder import RunFolder
from tltrain.spec.load import LoadedSpec, load_spec, parse_spec

SPEC = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Leave the logger as other tests expect it."""
    logger = logging.getLogger("tltrain")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture
def spec_path(tmp_path: Path) -> Path:
    """A small valid spec."""
    path = tmp_path / "j.yaml"
    path.write_text(SPEC)
    return path


def tltrain_exits(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the program in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["tltrain", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_validate_prints_the_resolved_spec_with_origins(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tltrain_exits(monkeypatch, "validate", spec_path, "--set", "optim.learning_rate=1e-3")

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert re.search(r"^  learning_rate: 0\.001 +# --set #1$", out, re.MULTILINE)
    assert re.search(r"^name: x +# j\.yaml:1:7$", out, re.MULTILINE)
    assert re.search(r"^  epochs: 5 +# default$", out, re.MULTILINE)
    again = parse_spec(out, where="again", base=Path("/")).spec
    assert again == load_spec(spec_path, ["optim.learning_rate=1e-3"]).spec


def test_validate_fits_80_columns_with_its_comments_in_one(
    project_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tltrain_exits(monkeypatch, "validate", project_dir / "jobs" / "cifar10-resnet50.yaml")

    lines = [line for line in capsys.readouterr().out.splitlines() if str(project_dir) not in line]
    assert max(map(len, lines)) <= 80
    assert len({line.index(" # ") for line in lines if " # " in line}) == 1


def test_validate_as_json_has_spec_origins_and_warnings(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "validate", spec_path, "--json", "--set", "optim.betas=[0.5, 0.9]") == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["spec"]["data"]["train"] == str(spec_path.parent / "a")
    assert printed["origins"]["name"] == f"{spec_path}:1:7"
    assert printed["warnings"][0].startswith("--set #1 optim.betas: has no effect")


def test_all_problems_go_to_stderr_with_exit_code_2(
    spec_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tltrain_exits(monkeypatch, "validate", spec_path, "--set", "seed=-1", "--set", "optim.lr=1")

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    said = {line.split(": ")[1] for line in err.splitlines()}
    assert said == {"--set #1 seed", "--set #2 optim.lr"}
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tltrain_exits(monkeypatch, "--debug", "validate", "no-such.yaml") == 2

    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: no-such.yaml: there is no such file.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vaildate", "x"], "Did you mean 'validate'"),
        (["validate"], "SPEC"),
        (["validate", "x", "--nope"], "--nope"),
        (["-q", "-v", "schema"], "exclude each other"),
        (["evaluate", "runs/x"], "--data"),
        (["sweep", "extend", "runs/x"], "--trials"),
        (["sweep", "extend", "runs/x", "--trials", "0"], "--trials"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else None,
)
def test_usage_errors_exit_with_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, *arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tltrain_exits(monkeypatch, "--version") == 0

    assert re.fullmatch(r"tltrain \d+\.\d+\S*\n", capsys.readouterr().out)


def test_schema_is_json_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tltrain_exits(monkeypatch, "schema") == 0

    assert json.loads(capsys.readouterr().out)["title"] == "tltrain spec"


def test_init_writes_a_valid_spec_and_overwrites_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.yaml"

    assert tltrain_exits(monkeypatch, "init", path) == 0
    assert load_spec(path).warnings == ()
    path.write_text("mine")
    assert tltrain_exits(monkeypatch, "init", path) == 2
    assert path.read_text() == "mine"
    assert tltrain_exits(monkeypatch, "init", path, "--force") == 0
    assert load_spec(path).spec.name == "my-first-run"
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {path}: is there already. Choose another path, or --force." in err


def test_init_into_a_missing_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "init", tmp_path / "no" / "new.yaml") == 2

    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_run_and_explain_hand_over_what_was_asked(spec_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def execute(loaded: LoadedSpec, *, local: bool, output: Output) -> int:
        calls.append(("run", loaded.spec.seed, local))
        return 0

    def explain(loaded: LoadedSpec, *, as_json: bool) -> int:
        calls.append(("explain", loaded.spec.seed, as_json))
        return 0

    for function in (execute, explain):
        monkeypatch.setattr(tltrain.run, function.__name__, function)

    assert tltrain_exits(monkeypatch, "run", spec_path, "--local", "--set", "seed=3") == 0
    assert tltrain_exits(monkeypatch, "explain", spec_path, "--json") == 0
    assert calls == [("run", 3, True), ("explain", 0, True)]


def test_evaluate_prints_and_writes_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate_model(path: str, data: str, *, calibrate: bool) -> dict[str, object]:
        return {"path": path, "data": data, "calibrate": calibrate}

    monkeypatch.setattr("tltrain.train.reevaluate.evaluate_model", evaluate_model)
    out = tmp_path / "numbers.json"
    arguments = ("evaluate", "runs/x", "--data", "torchvision:CIFAR10", "--calibrate", "--json", "--out", out)

    assert tltrain_exits(monkeypatch, *arguments) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown == {"path": "runs/x", "data": "torchvision:CIFAR10", "calibrate": True}
    assert json.loads(out.read_text()) == shown


def test_plan_and_extend_hand_over_what_was_asked(spec_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def plan(loaded: LoadedSpec, cluster: str | None, *, as_json: bool) -> int:
        calls.append(("plan", loaded.spec.seed, cluster, as_json))
        return 0

    def extend(run: str, trials: int, sets: list[str], output: Output) -> int:
        calls.append(("extend", run, trials, sets))
        return 3

    for function in (plan, extend):
        monkeypatch.setattr(tltrain.run, function.__name__, function, raising=False)

    assert tltrain_exits(monkeypatch, "plan", spec_path, "--json", "--set", "seed=3", "--cluster", "lab") == 0
    assert tltrain_exits(monkeypatch, "sweep", "extend", "runs/x", "--trials", "+20") == 3
    assert tltrain_exits(monkeypatch, "sweep", "extend", "runs/x", "--trials", "4", "--set", "a=1", "--set", "b=2") == 3
    assert calls == [
        ("plan", 3, "lab", True),
        ("extend", "runs/x", 20, []),
        ("extend", "runs/x", 4, ["a=1", "b=2"]),
    ]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run that has just begun."""
    run = RunFolder.at(str(tmp_path), "x")
    run.write_spec(SPEC)
    run.update(name="x", state="running")
    return tmp_path / "x"


def test_report_is_written_into_the_run_or_where_asked(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "report", run_dir) == 0
    assert tltrain_exits(monkeypatch, "report", run_dir, "--out", tmp_path / "page.html") == 0

    written = [run_dir / "report.html", tmp_path / "page.html"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written]
    assert all(path.read_text("utf-8").startswith("<!doctype html>") for path in written)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-run"], "no-such-run"),
        (["x", "--out", "no/page.html"], "error: no/page.html: cannot be written: No such file or directory."),
    ],
    ids=["run", "out"],
)
def test_report_that_cannot_be_made_exits_with_2(
    arguments: list[str],
    words: str,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run_dir.parent)

    assert tltrain_exits(monkeypatch, "report", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResourceError("too few GPUs"), 3),
        (DataError("no images"), 4),
        (DivergedError("not finite"), 1),
        (KeyboardInterrupt("Run it again."), 130),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, BaseException) else None,
)
def test_exit_code_is_that_of_the_error(
    error: BaseException,
    code: int,
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(loaded: LoadedSpec, *, local: bool, output: Output) -> int:
        raise error

    monkeypatch.setattr(tltrain.run, "execute", fail)

    assert tltrain_exits(monkeypatch, "run", spec_path) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"error: {error}" if isinstance(error, TltrainError) else "Interrupted. Run it again."]


@pytest.mark.parametrize(("option", "shown"), [((), True), (("-q",), False), (("-v",), True)])
def test_quiet_hides_warnings(
    option: tuple[str, ...],
    shown: bool,
    spec_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tltrain_exits(monkeypatch, *option, "validate", spec_path, "--set", "optim.step_epochs=3") == 0

    assert ("warning: --set #1 optim.step_epochs: has no effect" in capsys.readouterr().err) is shown
    assert logging.getLogger("tltrain").isEnabledFor(logging.DEBUG) is (option == ("-v",))


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert messages.colored("x", "\033[31m") == "\033[31mx\033[0m"

    monkeypatch.setenv("NO_COLOR", "1")

    assert messages.colored("x", "\033[31m") == "x"


HELP = """
import sys
sys.argv = ["tltrain", *sys.argv[1:]]
from tltrain.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "torchvision", "ray", "pyarrow", "numpy", "pydantic", "rich"} & set(sys.modules)
    print(sorted(heavy), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP, "--help"], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "validate" in done.stdout


def test_module_is_the_same_program(spec_path: Path) -> None:
    command = [sys.executable, "-m", "tltrain", "validate", str(spec_path), "--set", "seed=-1"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --set #1 seed: -1 is not a whole number")


def test_text_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_text("name: x\nmodel: {name: resnet50}\ndata: {train: /blüten}\n", encoding="utf-8")
    command = [sys.executable, "-X", "utf8=0", "-m", "tltrain", "validate", str(path)]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert "/bl\\xfcten" in done.stdout
