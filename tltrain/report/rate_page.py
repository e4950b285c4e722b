"""The page of a learning-rate range test: the loss by rate at each freeze depth, and all curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tltrain.report.document import document
from tltrain.report.layout import NUM_SHADES, Row, Value, card, row, table, tile
from tltrain.report.markup import Markup, element
from tltrain.report.scales import duration_text, fit_axis, number_text
from tltrain.report.svg import Dot, Plot, Series, chart, draw_dot, draw_legend, legend_rows, line_chart

_STYLES = ("second", "third", "q7", "q4", "q2")
_ENDED = {"diverged": "shot up", "behind": "ended, others were ahead", None: "trained to the end"}


def rate_page(name: str, found: Mapping[str, Any]) -> str:
    """Return the page of what `RangeTest.to_dict` gives for the spec called `name`; it needs no other file."""
    depths = found["depths"]
    what = f"{found['model']} with {found['optimizer']}, up to {found['steps']} steps of {found['batch_size']} images"
    body = element(
        "main",
        element("header", element("h1", f"Learning rates for {name}"), element("p", what, class_="soft")),
        _tiles(found),
        _rates_card(depths),
        row(*(_curves_card(depth) for depth in depths)),
        *(_table_card(depth) for depth in depths),
    )
    return document(f"learning rates of {name} - tltrain", body)


def _tiles(found: Mapping[str, Any]) -> Markup:
    tiles = [
        tile(_rate(depth["suggestion"]["learning_rate"]), f"freeze_depth {depth['freeze_depth']}")
        for depth in found["depths"]
    ]
    lanes = sum(len(depth["curves"]) for depth in found["depths"])
    return element("div", *tiles, tile(duration_text(found["seconds"]), f"for {lanes} lanes"), class_="tiles")


def _rate(rate: float | None) -> str:
    return "none" if rate is None else number_text(rate, 3)


def _rates_card(depths: Sequence[Mapping[str, Any]]) -> Markup:
    """The loss at the end by rate, a line per depth; the suggested rates are marked."""
    points = {
        index: [(curve["rate"], curve["final_loss"], curve) for curve in depth["curves"] if curve["final_loss"]]
        for index, depth in enumerate(depths)
    }
    rates = [curve["rate"] for depth in depths for curve in depth["curves"]]
    losses = [loss for found in points.values() for _, loss, _ in found]
    styles = {index: _STYLES[index % len(_STYLES)] for index in points}
    rows = legend_rows(
        [(f"freeze_depth {depth['freeze_depth']}", styles[index]) for index, depth in enumerate(depths)]
        + [("suggested", "best")]
    )
    plot = Plot(fit_axis(rates, is_log=True), fit_axis(losses, is_log=False), top=12 + 20 * len(rows))
    picture = chart(
        "Loss by learning rate",
        plot.height,
        plot.draw("learning rate", "loss of the last steps", lambda x: number_text(x, 2), number_text),
        *(_line(plot, found, styles[index]) for index, found in points.items()),
        *(
            _dot(plot, depths[index], rate, loss, curve, styles[index])
            for index, found in points.items()
            for rate, loss, curve in found
        ),
        draw_legend(rows),
    )
    note = (
        "Every dot is a lane trained at this rate alone, on the same batches; those that others were ahead of have had "
        "fewer steps. Rates whose loss shot up have none."
    )
    return card("Loss by learning rate", picture, note=note, id_="rates")


def _line(plot: Plot, points: Sequence[tuple[float, float, Any]], style: str) -> Markup | None:
    places = " ".join(f"{plot.at_x(rate):.1f},{plot.at_y(loss):.1f}" for rate, loss, _ in points)
    return element("polyline", points=places, class_=f"line {style}") if places else None


def _dot(
    plot: Plot, depth: Mapping[str, Any], rate: float, loss: float, curve: Mapping[str, Any], style: str
) -> Markup:
    is_taken = rate == depth["suggestion"]["learning_rate"]
    tip = (
        f"freeze_depth {depth['freeze_depth']}, rate {_rate(rate)}: loss {loss:.4f} after {len(curve['losses'])} steps"
    )
    dot = Dot(rate, loss, tip, "best" if is_taken else style, radius=6 if is_taken else 3.5)
    return draw_dot(plot.at_x(rate), plot.at_y(loss), dot)


def _curves_card(depth: Mapping[str, Any]) -> Markup:
    """The loss over the steps, a line per rate, the higher the darker; the suggested one is marked."""
    curves, taken = depth["curves"], depth["suggestion"]["learning_rate"]
    top = 1.5 * curves[0]["losses"][0]
    series = [
        Series(
            [(step, min(loss, top)) for step, loss in enumerate(curve["losses"], start=1) if loss is not None],
            f"rate {_rate(curve['rate'])}: {_ENDED[curve['ended']]}",
            "best" if curve["rate"] == taken else f"q{index * (NUM_SHADES - 1) // max(1, len(curves) - 1)}",
        )
        for index, curve in enumerate(curves)
    ]
    series.sort(key=lambda one: one.style == "best")
    legend = [("low rates", "q1"), ("high rates", "q8")] + ([("suggested", "best")] if taken is not None else [])
    picture = line_chart(
        series, title=f"Losses at {depth['freeze_depth']}", x_label="step", y_label="training loss", legend=legend
    )
    return card(f"freeze_depth {depth['freeze_depth']}", picture, note=f"{depth['suggestion']['reason']}.")


def _table_card(depth: Mapping[str, Any]) -> Markup:
    rows = [
        Row(
            [
                Value(_rate(curve["rate"]), curve["rate"]),
                Value(str(len(curve["losses"])), len(curve["losses"])),
                Value("-" if curve["final_loss"] is None else f"{curve['final_loss']:.4f}", curve["final_loss"]),
                _ENDED[curve["ended"]],
            ],
            style="best" if curve["rate"] == depth["suggestion"]["learning_rate"] else None,
        )
        for curve in depth["curves"]
    ]
    frozen = f"{depth['frozen_stages']} stages frozen, {depth['trained_parameters']:,} parameters train."
    return card(
        f"Rates at freeze_depth {depth['freeze_depth']}", table(["rate", "steps", "loss", ""], rows), note=frozen
    )
