"""The pages in a real browser: no complaints, tables sort, curves tell their values, narrow windows hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser, browser
from report_folders import grid_values, write_run, write_sweep

from tltrain.report.compare_page import build_comparison, find_differences
from tltrain.report.page import write_report

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium here")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a sweep, of a run, and of a comparison of both."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_sweep(folder / "sweep", grid_values()), write_run(folder / "run")]
    for run in runs:
        write_report(run)
    names = [run.name for run in runs]
    page = build_comparison(runs, names, {"train.epochs": [6, 5]}, find_differences(runs, names))
    (folder / "compare.html").write_text(page, encoding="utf-8")
    paths = {name: folder / name / "report.html" for name in names}
    return {**paths, "compare": folder / "compare.html"}


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


def hover(chromium: Browser, section: str, place: str) -> str:
    """The tooltip at a place, an expression of x and y in the window, of a section."""
    chromium.evaluate(f"document.querySelector('#{section}').scrollIntoView()")
    chromium.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    chromium.move_mouse(*chromium.evaluate(place))
    assert not chromium.evaluate("document.querySelector('.tip').hidden")
    return chromium.evaluate("document.querySelector('.tip').textContent")


def point_of(section: str, style: str, index: int) -> str:
    line = f"document.querySelector('#{section} polyline.{style}')"
    return (
        f"(() => {{ const point = {line}.points[{index}].matrixTransform({line}.getScreenCTM());"
        " return [point.x, point.y]; })()"
    )


def test_page_sorts_its_tables_and_tells_the_values_of_its_curves(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["sweep"])
    rates = sorted(map(float, column(chromium, 2)))

    assert click_heading(chromium, 2) == "descending"
    assert list(map(float, column(chromium, 2))) == rates[::-1]
    assert click_heading(chromium, 2) == "ascending"
    assert list(map(float, column(chromium, 2))) == rates

    tip = hover(chromium, "curves-val-top1", point_of("curves-val-top1", "best", 2))
    assert "learning_rate 0.003" in tip
    assert "epoch 3: 8" in tip
    assert chromium.evaluate("document.querySelectorAll('tr.hot').length") == 2  # among the trials and over seeds
    assert chromium.complaints == []


@pytest.mark.slow
def test_pictures_are_shown_and_tell_their_image(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["run"])

    loaded = "[...document.images].filter((image) => image.complete && image.naturalWidth === 96).length"
    assert chromium.evaluate(loaded) == 48
    middle = "(() => { const box = document.querySelector('#mistakes img').getBoundingClientRect();"
    tip = hover(chromium, "mistakes", middle + " return [box.x + 9, box.y + 9]; })()")
    assert tip.startswith("img/")
    assert "predicted: " in tip


@pytest.mark.slow
def test_curves_of_a_comparison_tell_their_run(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["compare"])

    assert hover(chromium, "curves-val-loss", point_of("curves-val-loss", "c1", 1)).startswith("run\nepoch 2: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "run", "compare"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("is_dark", [False, True])
def test_page_fits_the_window_without_complaints_or_requests(
    chromium: Browser, pages: dict[str, Path], tmp_path: Path, name: str, width: int, is_dark: bool
) -> None:
    chromium.open(pages[name], width=width, is_dark=is_dark)

    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(14, 18, 22)" if is_dark else "rgb(244, 246, 248)")
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert chromium.complaints == []
    assert {address.partition(":")[0] for address in chromium.requests} <= {"file", "about", "data"}


@pytest.mark.slow
def test_the_browser_notes_complaints_so_that_these_tests_can_fail(chromium: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><meta charset='utf-8'><script>console.error('bad'); missing()</script>")

    chromium.open(page)

    assert len(chromium.complaints) >= 2
    chromium.complaints.clear()
