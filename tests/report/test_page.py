"""The page of a run or a sweep: complete, well-formed, escaped, small, and without any other file."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_folders import HOSTILE, grid_values, random_values, write_run, write_sweep

from tltrain.errors import StorageError
from tltrain.report.page import build_report, write_report
from tltrain.run_folder import RunFolder

ONE_KEY = [{"optim.learning_rate": rate} for rate in (0.0003, 0.001, 0.003, 0.01)]
NO_NUMBERS = [
    {"model.freeze_depth": depth, "optim.nesterov": nesterov} for depth in ("all", 3) for nesterov in (True, False)
]


def build(kind: str, folder: Path) -> RunFolder:
    """A folder of the kind that a test is given."""
    makers = {
        "sweep": lambda: write_sweep(folder, grid_values()),
        "random": lambda: write_sweep(folder, random_values(120)),
        "mid-sweep": lambda: write_sweep(folder, grid_values(), state="running", has_extras=False),
        "by loss": lambda: write_sweep(folder, grid_values(), metric="val_loss"),
        "one key": lambda: write_sweep(folder, ONE_KEY),
        "no numbers": lambda: write_sweep(folder, NO_NUMBERS),
        "no trials": lambda: write_sweep(folder, [], state="running", has_extras=False),
        "one trial": lambda: write_sweep(folder, grid_values()[:1]),
        "hostile": lambda: write_hostile(folder),
        "run": lambda: write_run(folder),
        "one epoch": lambda: write_run(folder, done=1),
        "begun": lambda: write_run(folder, done=0),
    }
    return makers[kind]()


def write_hostile(folder: Path) -> RunFolder:
    """A sweep in which every text that a user or a data set chooses is an attack."""
    values = [{"model.freeze_depth": HOSTILE, "optim.learning_rate": rate, HOSTILE: HOSTILE} for rate in (0.001, 0.01)]
    run = write_sweep(folder, values, classes=[f"{HOSTILE}{index}" for index in range(10)])
    run.update(error=[HOSTILE], versions={HOSTILE: HOSTILE}, state=HOSTILE, workers=HOSTILE, data_fingerprint=HOSTILE)
    run.write_json(
        "trials.json", [{**one, "reason": HOSTILE, "state": "stopped"} for one in run.read_json("trials.json")]
    )
    run.write_spec(run.spec_text() + "# </pre><script>alert('x')</script>\n")
    return run


KINDS = (
    "sweep", "random", "mid-sweep", "by loss", "one key", "no numbers", "no trials", "one trial", "hostile", "run",
    "one epoch", "begun",
)  # fmt: skip
VOID = {"meta", "br", "img"}


class Outline(HTMLParser):
    """Checks that every element is closed where it should be, and collects what the page has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}


@pytest.fixture(scope="module", params=KINDS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of each kind of folder in turn."""
    return build_report(build(request.param, tmp_path_factory.mktemp("runs") / "demo"))


def test_every_drawing_is_well_formed_and_inside_its_bounds(page: str) -> None:
    for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        drawing = ET.fromstring(text)
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        assert "NaN" not in text
        assert "inf" not in text.replace("information", "")
        for part in drawing.iter():
            for pair in part.get("points", "").split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height
            assert 0 <= float(part.get("x", 0)) <= width
            assert float(part.get("width", 0)) >= 0


def test_page_is_balanced_and_refers_to_nothing_outside(page: str) -> None:
    outline = Outline(page)

    assert not {tag for tag, _ in outline.tags} & {"link", "iframe", "object", "embed", "base", "form", "a"}
    for tag, attributes in outline.tags:
        assert not attributes.keys() & {"href", "xlink:href", "style", "action", "srcset"}, (tag, attributes)
        if "src" in attributes:
            assert tag == "img"
            assert re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*", attributes["src"] or "")
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    code = "".join(re.findall(r"<(?:style|script)>.*?</(?:style|script)>", page, re.DOTALL))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|import\(|fetch\(|XMLHttp|innerHTML", code)


def test_page_has_one_script_and_it_is_ours(page: str) -> None:
    outline = Outline(page)

    assert [tag for tag, _ in outline.tags].count("script") == 1
    policies = [attributes["content"] for _, attributes in outline.tags if "http-equiv" in attributes]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'; ")
    assert page.count("<style>") == 1


def test_page_is_small(page: str) -> None:
    assert len(page.encode()) < 500_000


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    outline = Outline(build_report(build("hostile", tmp_path / "demo")))

    shown = HOSTILE.replace("\x07", "\ufffd")
    assert sum(shown in text for text in outline.texts) > 20
    assert not any("\x07" in text for text in outline.texts)


def test_sweep_has_every_section(tmp_path: Path) -> None:
    outline = Outline(build_report(build("sweep", tmp_path / "demo")))

    assert outline.ids >= {
        "winner", "grid", "curves-val-top1", "curves-val-loss", "parallel", "confirm", "sharing", "stopped", "trials",
        "confusion", "pairs", "reliability", "mistakes", "uncertain", "classes", "about", "spec",
    }  # fmt: skip


def test_sweep_in_its_middle_shows_what_is_there(tmp_path: Path) -> None:
    outline = Outline(build_report(build("mid-sweep", tmp_path / "demo")))

    assert outline.ids >= {"winner", "grid", "curves-val-top1", "parallel", "stopped", "trials", "about", "spec"}
    assert not outline.ids & {"confirm", "sharing", "confusion", "classes"}
    assert "Best trial" in outline.texts


def test_cells_of_trials_stand_below_their_headings(tmp_path: Path) -> None:
    run = build("sweep", tmp_path / "demo")

    table = re.search(r'id="trials".*?</table>', build_report(run), re.DOTALL)
    assert table is not None
    heads = re.findall(r"<th [^>]*>(.*?)</th>", table[0])
    first = dict(zip(heads, re.findall(r"<td[^>]*>(.*?)</td>", table[0])[: len(heads)], strict=True))
    trial = next(one for one in run.read_json("trials.json") if one["trial"] == first["trial"])
    assert first["learning_rate"] == f"{trial['values']['optim.learning_rate']:g}"
    assert first["freeze_depth"] == str(trial["values"]["model.freeze_depth"])
    assert first["val top-1"] == f"{100 * trial['best']['top1']:.1f} %"
    assert first["best at"] == str(trial["best"]["epoch"])
    assert first["state"] == trial["state"]


def test_winner_is_the_confirmed_one_not_the_luckiest(tmp_path: Path) -> None:
    run = build("sweep", tmp_path / "demo")
    second = run.read_json("confirm.json")["top"][1]["trial"]
    run.write_json("confirm.json", {**run.read_json("confirm.json"), "winner": second})

    page = build_report(run)

    assert re.search(rf'id="winner".*?<dt>Trial</dt><dd>{second}</dd>', page)


def test_stopped_trials_are_counted_by_what_stopped_them(tmp_path: Path) -> None:
    run = build("sweep", tmp_path / "demo")

    section = re.search(r'id="stopped".*?</section>', build_report(run), re.DOTALL)

    assert section is not None
    reasons = {one["reason"] for one in run.read_json("trials.json") if one["state"] in ("stopped", "failed")}
    assert len(reasons) >= 3
    assert all(f">{reason}</td>" in section[0] for reason in reasons)


def test_worst_pair_is_named_first(tmp_path: Path) -> None:
    run = build("run", tmp_path / "demo")
    evaluation = run.read_json("evaluation.json")
    evaluation["confusion_matrix"][6][0] = 400  # shirts taken for T-shirts
    run.write_json("evaluation.json", evaluation)

    pairs = re.search(r'id="pairs".*?</section>', build_report(run), re.DOTALL)

    assert pairs is not None
    assert re.findall(r"<td[^>]*>(.*?)</td>", pairs[0])[:3] == ["Shirt", "T-shirt/top", "400"]


def test_mistakes_are_shown_as_pictures_with_both_classes(tmp_path: Path) -> None:
    run = build("run", tmp_path / "demo")
    page = build_report(run)

    rows = pq.read_table(io.BytesIO(run.folder.read_bytes("thumbnails.parquet"))).to_pylist()
    assert page.count('src="data:image/jpeg;base64,') == len(rows) == 48
    assert f'alt="{rows[0]["label"]}, taken for {rows[0]["prediction"]}"' in page


def test_without_thumbnails_mistakes_are_a_table(tmp_path: Path) -> None:
    run = build("run", tmp_path / "demo")
    run.folder.delete("thumbnails.parquet")

    page = build_report(run)

    assert 'id="mistakes"' in page
    assert "img-src" not in page
    assert "<img" not in page


def test_pictures_that_are_no_jpeg_or_too_many_are_left_out(tmp_path: Path) -> None:
    run = build("run", tmp_path / "demo")
    row = {"kind": "mistake", "id": "1", "label": "a", "prediction": "b", "probability": 0.9}
    contents = [b"<svg onload='alert(1)'/>", *[b"\xff\xd8\xff" + bytes(90_000)] * 9]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**row, "image": content} for content in contents]), sink)
    run.folder.write_bytes("thumbnails.parquet", sink.getvalue())

    assert build_report(run).count("<img") == 4


def test_a_run_says_where_it_ran_and_on_which_data(tmp_path: Path) -> None:
    run = build("run", tmp_path / "demo")
    counts = {"num_train": 1800, "num_val": 200, "num_test": 500, "image_size": 64}
    sizes = {"parameters": 3_383_818, "trained_parameters": 12_810, "searched": None}
    run.write_json("header.json", {**counts, **sizes, "devices": "no GPU, 2 CPU cores", "data_fingerprint": "ab12"})

    page = build_report(run)

    for text in ("1,800 train, 200 val, 500 test; 64 x 64 pixels", "12,810 of 3,383,818 train", "ab12", "2 CPU cores"):
        assert f"<dd>{text}</dd>" in page or f"<dd>no GPU, {text}</dd>" in page
    assert 'id="time"' in page


def test_thousands_of_trials_and_classes_stay_below_two_megabytes(tmp_path: Path) -> None:
    classes = [f"a class with quite a long name, number {index}" for index in range(1100)]
    run = write_sweep(tmp_path / "demo", random_values(1100), epochs=12, classes=classes, images=3300)

    page = build_report(run)

    assert 500_000 < len(page.encode()) < 2_000_000
    Outline(page)


def test_long_runs_are_drawn_with_fewer_points(tmp_path: Path) -> None:
    page = build_report(write_run(tmp_path / "demo", epochs=5000))

    assert len(page.encode()) < 200_000


def test_loss_that_ran_away_does_not_flatten_the_others(tmp_path: Path) -> None:
    run = build("sweep", tmp_path / "demo")
    rows = run.metrics()
    rows[0]["val_loss"] = 1e30
    run.record_metrics(rows)

    page = build_report(run)

    assert "Values above" in page
    assert 'data-cut="1"' in page


@pytest.mark.parametrize("name", ["trials.json", "predictions.parquet", "thumbnails.parquet"])
def test_damaged_file_is_reported(tmp_path: Path, name: str) -> None:
    run = build("sweep", tmp_path / "demo")
    run.folder.write_bytes(name, b"[{")

    with pytest.raises(StorageError, match="damaged"):
        build_report(run)


def test_report_is_written_into_the_run_and_is_the_same_each_time(tmp_path: Path) -> None:
    run = build("sweep", tmp_path / "demo")

    write_report(run)

    assert run.folder.read_bytes("report.html").decode() == build_report(run)
