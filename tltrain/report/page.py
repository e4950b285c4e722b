"""The page of a run or a sweep: one HTML file without any other, built from the run's folder at any time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from tltrain.arrow_files import read_parquet
from tltrain.errors import Problem, StorageError
from tltrain.report import evaluation_page, sweep_page
from tltrain.report.document import document
from tltrain.report.layout import card, facts, join_words, row, tile
from tltrain.report.markup import Markup, element, escaped, join, shortened
from tltrain.report.scales import duration_text, number_text
from tltrain.report.svg import Series, line_chart
from tltrain.report.sweep import TRIALS_FILE
from tltrain.report.sweep_view import Sweep
from tltrain.report.time_page import run_time_card
from tltrain.report.trials import Metric
from tltrain.run_folder import SPEC_FILE, RunFolder
from tltrain.spec.yaml_text import parse_document

REPORT_FILE = "report.html"
PREDICTIONS_FILE, THUMBNAILS_FILE = "predictions.parquet", "thumbnails.parquet"
MAX_SPEC = 200_000
_YAML_LINE = re.compile(r"^(\s*(?:- )?)([\w.-]+:)?(.*?)((?:^|\s)#.*)?$")


def write_report(run: RunFolder) -> None:
    """Build the page and write it as report.html into the run's folder. Raises StorageError."""
    run.folder.write_bytes(REPORT_FILE, build_report(run).encode())


def build_report(run: RunFolder) -> str:
    """Return the page of a run or a sweep as it stands. Raises StorageError where a file of it is damaged.

    It needs no network and no other file, shows light or dark as the reader's system does, and can be read without
    its script, which sorts tables and shows tooltips.
    """
    state, spec = run.state(), _spec(run)
    evaluation = _json(run, "evaluation.json")
    sweep = _sweep(run, spec) if state.get("kind") == "sweep" else None
    rows = [] if sweep else run.metrics()
    parts = sweep_page.sections(sweep) if sweep else run_sections(rows)
    if evaluation:
        parts += evaluation_page.sections(evaluation, _table(run, PREDICTIONS_FILE), _table(run, THUMBNAILS_FILE))
    body = element(
        "main",
        _header(run.name, state, spec, sweep, evaluation),
        _tiles(state, spec, sweep, rows, evaluation),
        _errors(state),
        *parts,
        row(None if sweep else run_time_card(_json(run, "timings.json")), _about(run, state, spec, evaluation)),
        _spec_card(run),
    )
    return document(f"{run.name} - tltrain", body, has_images=run.folder.exists(THUMBNAILS_FILE))


def _spec(run: RunFolder) -> dict[str, Any]:
    """The values of spec.yaml; not validated, so that runs of other versions can be shown."""
    if not run.folder.exists(SPEC_FILE):
        return {}
    values = parse_document(run.spec_text(), where=f"{run.folder}/{SPEC_FILE}").values
    return values if isinstance(values, dict) else {}


def _json(run: RunFolder, name: str) -> Any:
    return run.read_json(name) if run.folder.exists(name) else None


def _sweep(run: RunFolder, spec: Mapping[str, Any]) -> Sweep:
    settings = spec.get("sweep") or {}
    metric = Metric.of(settings.get("metric") or "val_top1", settings.get("mode"))
    trials = _json(run, TRIALS_FILE) or []
    return Sweep.read(trials, run.metrics(), metric, _json(run, "confirm.json"), _json(run, "sharing.json"))


def _table(run: RunFolder, name: str) -> pa.Table | None:
    if not run.folder.exists(name):
        return None
    try:
        return read_parquet(run.folder.read_bytes(name))
    except pa.ArrowInvalid as error:
        what, action = f"the file is damaged: {error}", "Restore it from a copy, or delete it to do without"
        raise StorageError(Problem(what, action, f"{run.folder}/{name}")) from error


def _header(
    name: str, state: Mapping[str, Any], spec: Mapping[str, Any], sweep: Sweep | None, evaluation: Any
) -> Markup:
    shown = str(state.get("state", "not started"))
    model, data = spec.get("model") or {}, spec.get("data") or {}
    num_classes = f"{len(evaluation['per_class']):,} classes" if evaluation else None
    source = "/".join(str(data.get("train") or "").rsplit("/", 2)[-2:])  # the whole stands in About
    about = ["sweep" if sweep else "run", model.get("name") or model.get("factory"), source, num_classes]
    line = " · ".join(shortened(str(part), 80) for part in about if part)
    badge = element("span", shown, class_=f"badge {shown}")
    return element(
        "header", element("div", element("h1", name), badge, class_="top"), element("div", line, class_="soft")
    )


def _tiles(
    state: Mapping[str, Any],
    spec: Mapping[str, Any],
    sweep: Sweep | None,
    rows: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
) -> Markup:
    tiles = _sweep_tiles(sweep) if sweep else _run_tiles(state, spec, rows)
    if evaluation:
        low, high = evaluation["accuracy_interval_95"]
        note = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %, {evaluation['num_images']:,} images"
        tiles.append(tile(f"{100 * evaluation['accuracy']:.1f} %", f"{evaluation.get('split', 'test')} accuracy", note))
    if state.get("started_at") and state.get("finished_at"):
        tiles.append(tile(duration_text(state["finished_at"] - state["started_at"]), "time, start to end"))
    return element("div", *tiles, class_="tiles")


def _sweep_tiles(sweep: Sweep) -> list[Markup]:
    counts = Counter(trial.state for trial in sweep.trials)
    tiles = [
        tile(f"{len(sweep.trials):,}", "trials", join_words([f"{n:,} {state}" for state, n in counts.most_common()]))
    ]
    if sweep.winner and sweep.winner.score is not None:
        tiles.append(
            tile(sweep.metric.text(sweep.winner.score), f"best {sweep.metric.label}", sweep.settings(sweep.winner))
        )
    return tiles


def _run_tiles(state: Mapping[str, Any], spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    epochs = (spec.get("train") or {}).get("epochs")
    last, best = rows[-1] if rows else {}, state.get("best")
    tiles = [tile(str(last.get("epoch", 0)), "epochs", f"of {epochs}" if epochs else "")]
    if best:
        tiles.append(
            tile(f"{100 * best['top1']:.1f} %", "best val top-1", f"epoch {best['epoch']}, loss {best['loss']:.4f}")
        )
    return tiles


def run_sections(rows: Sequence[Mapping[str, Any]]) -> list[Markup | None]:
    """Return the curves of a plain run."""
    if not rows:
        return [card("Curves", element("p", "No epoch has ended yet.", class_="soft"))]
    share, number = Metric("val_top1"), Metric("val_loss", higher_is_better=False)
    return [
        row(
            _curves("Loss", rows, ("train_loss", "val_loss"), number),
            _curves("Top-1 accuracy", rows, ("train_top1", "val_top1"), share),
            _curves("Learning rate", rows, ("learning_rate",), Metric("learning_rate")),
            _curves("Images per second", rows, ("train_images_per_s",), Metric("images_per_s")),
        ),
    ]


def _curves(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], metric: Metric) -> Markup:
    styles = dict(zip(columns, ("second", "best"), strict=False))
    names = {column: "training" if column.startswith("train_") else "validation" for column in columns}
    lines = {c: [(r["epoch"], r[c]) for r in rows if r.get(c) is not None] for c in columns}
    series = [
        Series(points, names[c], f"{styles[c]} {'dot-only' if len(points) == 1 else ''}") for c, points in lines.items()
    ]
    legend = [(names[column], styles[column]) for column in columns if lines[column]] if len(columns) > 1 else []
    picture = line_chart(
        series,
        title=title,
        x_label="epoch",
        y_label=title.lower(),
        y_text=metric.tick,
        legend=legend,
        data_unit="%" if metric.is_share else "",
    )
    return card(title, picture)


def _errors(state: Mapping[str, Any]) -> Markup | None:
    errors = state.get("error")
    if not errors:
        return None
    lines = [errors] if isinstance(errors, str) else [str(error) for error in errors]
    return element(
        "section",
        element("h2", "What went wrong"),
        element("ul", *(element("li", line) for line in lines[:20])),
        class_="card errors",
    )


def _about(run: RunFolder, state: Mapping[str, Any], spec: Mapping[str, Any], evaluation: Any) -> Markup:
    data, header = spec.get("data") or {}, _json(run, "header.json") or {}
    known = {**header, **state}
    entries = {
        "Run folder": str(run.folder),
        "Started": _time(state.get("started_at")),
        "Finished": _time(state.get("finished_at")),
        "Training images": _plain(data.get("train")),
        "Validation": _plain(data.get("val")),
        "Test": _plain(data.get("test")),
        "Classes": _plain(
            join_words([one["class"][:40] for one in evaluation["per_class"]], 20) if evaluation else None
        ),
        "Images": _counts(header),
        "Data fingerprint": _plain(known.get("data_fingerprint")),
        "Parameters": _parameters(header),
        "Devices": _plain(known.get("devices")),
        "Workers": _plain(header.get("workers") or state.get("workers")),
        "Attempts": _plain(state.get("attempts")),
        "Versions": _plain(header.get("versions") or state.get("versions")),
    }
    return card("About", facts(entries), id_="about")


def _counts(header: Mapping[str, Any]) -> str | None:
    if "num_train" not in header:
        return None
    counts = ", ".join(f"{header[f'num_{name}']:,} {name}" for name in ("train", "val", "test"))
    return f"{counts}; {header['image_size']} x {header['image_size']} pixels"


def _parameters(header: Mapping[str, Any]) -> str | None:
    if "parameters" not in header:
        return None
    trained, total = header["trained_parameters"], header["parameters"]
    where = " as the spec stands, before the sweep's values" if header.get("searched") else ""
    return f"{trained:,} of {total:,} train{where}"


def _plain(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return shortened(number_text(value) if isinstance(value, float) else str(value), 2000)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _spec_card(run: RunFolder) -> Markup | None:
    if not run.folder.exists(SPEC_FILE):
        return None
    text = run.spec_text()
    more = "\n..." if len(text) > MAX_SPEC else ""
    lines = [_yaml_line(line) for line in text[:MAX_SPEC].splitlines()]
    code = element("pre", Markup("\n".join(lines) + more), tabindex="0")
    return element("section", element("details", element("summary", "Spec, resolved"), code), class_="card", id="spec")


def _yaml_line(line: str) -> Markup:
    found = _YAML_LINE.match(line)
    if not found:
        return escaped(line)
    indent, key, value, comment = found.groups()
    return join(indent, element("b", key) if key else None, value, element("i", comment) if comment else None)
