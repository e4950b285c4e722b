"""The sections of where the time went: by phase, and what sharing saved a sweep, with the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tltrain.report.charts import stacked_bars
from tltrain.report.layout import Row, Value, card, join_words, table
from tltrain.report.markup import Markup, element
from tltrain.report.scales import duration_text, number_text
from tltrain.report.sharing import Sharing, Work

PHASES = {
    "decode": ("waiting for images", "p0"),
    "prefix": ("frozen layers", "p1"),
    "lanes": ("trained layers", "p2"),
    "validation": ("validation", "p3"),
    "checkpoint": ("checkpoints", "p4"),
}
AROUND = {
    "test": ("test images and model", "p5"),
    "winner": ("the winner's own run", "p5"),
    "waiting": ("waiting for decisions", "p6"),
    "other": ("start and rest", "p7"),
}
Part = tuple[str, float, str]


def run_time_card(timings: Mapping[str, Any] | None) -> Markup | None:
    """Return how a run's time is divided into phases; None where nothing was timed."""
    seconds = (timings or {}).get("seconds") or {}
    if sum(seconds.values()) <= 0:
        return None
    picture = stacked_bars([("First worker", _parts(seconds))], title="Time by phase", text=duration_text)
    note = "Of the first worker, without the start of Ray. Waiting for images is what decoding did not do beforehand."
    return card("Time by phase", picture, note=note, id_="time")


def sharing_card(record: Mapping[str, Any] | None) -> Markup | None:
    """Return what a sweep spent its time on, beside what the same work would have taken trial by trial."""
    seconds = (record or {}).get("seconds") or {}
    if record is None or sum(seconds.get(phase, 0.0) for phase in PHASES) <= 0:
        return None
    sharing = Sharing.of(record)
    own = {phase: seconds.get(phase, 0.0) for phase in PHASES}
    bars = [("All of this sweep", _parts(seconds))]
    if sharing.saved_s > 0:
        bars = [("In lanes, as it was", _parts(own)), ("Trial by trial, calculated", _parts(_alone(own, sharing)))]
    picture = stacked_bars(bars, title="Time by phase", text=duration_text)
    title = "Saved by sharing" if sharing.saved_s > 0 else "Time by phase"
    note = _note(sum(own.values()), sharing)
    why = _arithmetic(sharing)
    content = element("div", element("div", picture, _rest(seconds)), why, class_="split") if why else picture
    return card(title, content, note=note, id_="sharing", is_wide=why is not None)


def _parts(seconds: Mapping[str, float]) -> list[Part]:
    return [(name, seconds.get(phase, 0.0), style) for phase, (name, style) in {**PHASES, **AROUND}.items()]


def _alone(own: Mapping[str, float], sharing: Sharing) -> dict[str, float]:
    """The seconds by phase of trials by themselves; reading what was kept costs them at least what it cost here."""
    extra = {True: 0.0, False: 0.0}
    for work in sharing.works:
        extra[work.name == "decoding"] += work.seconds_alone - work.seconds
    return {**own, "decode": own["decode"] + extra[True], "prefix": own["prefix"] + extra[False]}


def _note(spent: float, sharing: Sharing) -> str:
    if sharing.saved_s <= 0:
        return "Summed over the workers that trained."
    times = (spent + sharing.saved_s) / spent
    return (
        f"Sharing saved {duration_text(sharing.saved_s)} of work: {times:.1f} times less. {sharing.num_lanes:,} trials "
        f"and repeats, {sharing.num_epochs:,} epochs, summed over the workers that trained."
    )


def _arithmetic(sharing: Sharing) -> Markup | None:
    if sharing.saved_s <= 0:
        return None
    heads = ["shared work", "images here", "time here", "images trial by trial", "ms each", "time trial by trial"]
    why = (
        "The last column is images times the rate that was measured here. A trial by itself is taken to keep what its "
        "frozen layers give between its epochs, as this sweep did; starting its process is not counted."
    )
    rows = [_work_row(work) for work in sharing.works]
    return element("div", table(heads, rows, wrapped=(0,)), element("p", why, class_="note"))


def _work_row(work: Work) -> Row:
    return Row(
        [
            work.name,
            Value(f"{work.images:,}", work.images),
            Value(duration_text(work.seconds), work.seconds),
            Value(f"{work.images_alone:,.0f}", work.images_alone),
            Value(number_text(1000 * work.seconds_each, 3), work.seconds_each),
            Value(duration_text(work.seconds_alone), work.seconds_alone),
        ]
    )


def _rest(seconds: Mapping[str, float]) -> Markup | None:
    rest = [f"{name} {duration_text(seconds[phase])}" for phase, (name, _) in AROUND.items() if seconds.get(phase)]
    return element("p", f"Besides: {join_words(rest)}.", class_="note") if rest else None
