"""The verb lr-find: what it hands over, prints and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tltrain.cli.main import main
from tltrain.spec.schema import FreezeDepth, Spec
from tltrain.train.rate_choice import Curve, DepthResult, RangeTest

SPEC = "name: flowers\nmodel: {name: resnet50}\ndata: {train: a}\n"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the range test was asked for; it gives the same curves for every depth."""
    seen: dict[str, Any] = {}

    def find_here(
        spec: Spec, rates: Sequence[float], depths: Sequence[FreezeDepth], *, steps: int, tell: Callable[[str], None]
    ) -> RangeTest:
        seen.update(seed=spec.seed, rates=rates, depths=depths, steps=steps)
        curves = tuple(Curve(rate, (2.0, 1.0)) for rate in rates)
        return RangeTest("resnet50", "sgd", steps, 64, 10, 1.0, tuple(DepthResult(d, 0, 1, curves) for d in depths))

    monkeypatch.setattr("tltrain.train.lr_find.find_here", find_here)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers.yaml").write_text(SPEC)
    return seen


def tltrain_exits(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tltrain", "lr-find", "flowers.yaml", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_all_options_are_handed_over_and_the_page_stands_where_asked(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--set seed=3 --freeze-depth all --freeze-depth 2 --rates 3 --from 0.01 --to 1 --steps 9 --out page.html"

    assert tltrain_exits(monkeypatch, *options.split()) == 0

    assert asked == {"seed": 3, "rates": [0.01, 0.1, 1.0], "depths": ["all", 2], "steps": 9}
    out = capsys.readouterr().out
    assert "Suggestion  optim.learning_rate=1\n" in out
    assert out.endswith("page.html\n")
    assert "learning rates of flowers" in (tmp_path / "page.html").read_text()


def test_json_has_all_losses_and_the_depth_is_the_specs_own(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "--json", "--rates", "4") == 0

    found = json.loads(capsys.readouterr().out)
    assert [curve["losses"] for curve in found["depths"][0]["curves"]] == [[2.0, 1.0]] * 4
    assert asked["depths"] == ["all"]
    assert (tmp_path / "flowers-lr-find.html").exists()


def test_bounds_without_rates_between_them_exit_with_2(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tltrain_exits(monkeypatch, "--from", "1", "--to", "0.1") == 2
    assert "no rates from 1 to 0.1" in capsys.readouterr().err
    assert asked == {}
