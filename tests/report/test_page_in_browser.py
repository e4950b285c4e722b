"""The page in a real browser: no complaints, tables sort, curves tell their values, narrow windows hold it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser, browser
from report_folders import grid_values, write_sweep

from tltrain.report.page import write_report

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium here")


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    write_report(write_sweep(folder, grid_values()))
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests here."""
    with browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def column(chromium: Browser, number: int) -> list[str]:
    cells = f"[...document.querySelectorAll('#trials tbody tr')].map(row => row.cells[{number}].textContent)"
    return chromium.evaluate(cells)


def click_heading(chromium: Browser, number: int) -> str:
    head = f"document.querySelectorAll('#trials th')[{number}]"
    chromium.evaluate(f"{head}.querySelector('button').click()")
    return chromium.evaluate(f"{head}.getAttribute('aria-sort')")


def test_a_click_on_a_heading_sorts_and_another_turns_round(chromium: Browser, sweep_page: Path) -> None:
    chromium.open(sweep_page)
    rates = sorted(map(float, column(chromium, 2)))

    assert click_heading(chromium, 2) == "descending"
    assert list(map(float, column(chromium, 2))) == rates[::-1]
    assert click_heading(chromium, 2) == "ascending"
    assert list(map(float, column(chromium, 2))) == rates


def test_hovering_a_curve_tells_its_trial_epoch_and_value(chromium: Browser, sweep_page: Path) -> None:
    chromium.open(sweep_page)
    chromium.evaluate("document.querySelector('#curves-val-top1').scrollIntoView()")
    chromium.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    at = "(() => { const line = document.querySelector('#curves-val-top1 polyline.best');"
    at += " const point = line.points[2].matrixTransform(line.getScreenCTM()); return [point.x, point.y]; })()"

    chromium.move_mouse(*chromium.evaluate(at))

    tip = chromium.evaluate("document.querySelector('.tip').textContent")
    assert "learning_rate 0.003" in tip
    assert "epoch 3: 8" in tip
    assert not chromium.evaluate("document.querySelector('.tip').hidden")
    assert chromium.evaluate("document.querySelectorAll('tr.hot').length") == 2  # among the trials and over seeds


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("is_dark", [False, True])
def test_page_fits_the_window_without_complaints_or_requests(
    chromium: Browser, sweep_page: Path, tmp_path: Path, width: int, is_dark: bool
) -> None:
    chromium.open(sweep_page, width=width, is_dark=is_dark)

    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(14, 18, 22)" if is_dark else "rgb(244, 246, 248)")
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert chromium.complaints == []
    assert {address.partition(":")[0] for address in chromium.requests} <= {"file", "about"}


def test_the_browser_notes_complaints_so_that_these_tests_can_fail(chromium: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><meta charset='utf-8'><script>console.error('bad'); missing()</script>")

    chromium.open(page)

    assert len(chromium.complaints) >= 2
    chromium.complaints.clear()
