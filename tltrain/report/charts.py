"""Charts of more than lines: heat maps, parallel coordinates, intervals, stacked bars, scales of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tltrain.report.markup import Markup, element, join, shortened
from tltrain.report.scales import Axis, fit_axis
from tltrain.report.svg import (
    CHARACTER,
    WIDTH,
    Dot,
    Plot,
    Series,
    Text,
    chart,
    draw_dot,
    draw_legend,
    draw_line,
    draw_text,
    legend_rows,
)

_LABEL_CHARACTERS = 18


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: what it says, its tooltip and CSS class."""

    text: str
    tip: str
    style: str


def heat_map(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Mapping[tuple[int, int], Cell],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marked: tuple[int, int] | None = None,
    cell_size: tuple[float, float] = (34, 32),
) -> Markup:
    """Return a table of coloured cells at (row, column); missing ones stay hollow, `marked` gets a frame.

    `cell_size` is the smallest width of a cell and its height; the chart gets wider than others where it must.
    """
    row_labels = [shortened(label, _LABEL_CHARACTERS) for label in rows]
    column_labels = [shortened(label, _LABEL_CHARACTERS) for label in columns]
    left = 30 + CHARACTER * max(map(len, row_labels))
    width, height = max(cell_size[0], (WIDTH - left - 8) / len(columns)), cell_size[1]
    is_turned = CHARACTER * max(map(len, column_labels)) > width - 4
    foot = 8 + height * len(rows)
    depth = 14 + (CHARACTER * 0.75 * max(map(len, column_labels)) if is_turned else 8)
    total_width, total_height = left + width * len(columns) + 8, foot + depth + 22

    def place(row: int, column: int) -> tuple[float, float]:
        return left + column * width, 8 + row * height

    def box(row: int, column: int, style: str) -> Markup:
        x, y = place(row, column)
        return element("rect", x=x + 1, y=y + 1, width=width - 2, height=height - 2, rx=3, class_=style)

    def cell(row: int, column: int) -> Markup:
        found = cells.get((row, column))
        if found is None:
            return box(row, column, "hollow")
        x, y = place(row, column)
        text = draw_text(found.text, x + width / 2, y + height / 2 + 4, "value", "middle") if found.text else None
        return element("g", element("title", found.tip), box(row, column, "fill"), text, class_=found.style)

    return chart(
        title,
        total_height,
        *(cell(row, column) for row in range(len(rows)) for column in range(len(columns))),
        box(*marked, "mark") if marked else None,
        *(
            draw_text(label, left - 6, place(row, 0)[1] + height / 2 + 4, "tick", "end")
            for row, label in enumerate(row_labels)
        ),
        *(
            _foot_label(label, place(0, c)[0] + width / 2, foot + 15, is_turned)
            for c, label in enumerate(column_labels)
        ),
        draw_text(x_label, left + width * len(columns) / 2, total_height - 5, "label", "middle"),
        element(
            "text",
            y_label,
            class_="label",
            text_anchor="middle",
            transform=f"translate(12 {8 + height * len(rows) / 2:.0f}) rotate(-90)",
        ),
        width=total_width,
    )


def _foot_label(text: str, x: float, y: float, is_turned: bool) -> Markup:
    if not is_turned:
        return draw_text(text, x, y, "tick", "middle")
    return element(
        "text", text, class_="tick", text_anchor="end", transform=f"translate({x + 4:.0f} {y - 3:.0f}) rotate(-48)"
    )


@dataclass(frozen=True)
class Coordinate:
    """An axis of parallel coordinates: its name, and its ticks as (share of the height, text)."""

    name: str
    ticks: Sequence[tuple[float, str]]


def parallel_coordinates(
    coordinates: Sequence[Coordinate], lines: Sequence[tuple[Sequence[float], Series]], *, title: str
) -> Markup:
    """Return one upright axis per coordinate, and lines of (share of the height per axis, a series for its looks)."""
    height, top, foot = 300, 40, 282
    width = max(WIDTH, 120 * len(coordinates))
    left, right = 64, 64
    gap = (width - left - right) / max(1, len(coordinates) - 1)

    def axis(index: int, coordinate: Coordinate) -> Markup:
        x = left + index * gap
        return join(
            draw_line(x, top, x, foot, "axis"),
            draw_text(shortened(coordinate.name, 18), x, 20, "label", "middle"),
            *(
                draw_text(shortened(text, 12), x + 7, foot - share * (foot - top) + 4, "tick halo", "start")
                for share, text in coordinate.ticks
            ),
        )

    def line(shares: Sequence[float], series: Series) -> Markup:
        points = " ".join(f"{left + i * gap:.1f},{foot - share * (foot - top):.1f}" for i, share in enumerate(shares))
        return element(
            "polyline",
            element("title", series.tip),
            points=points,
            class_=f"line {series.style}",
            data_lane=series.lane,
        )

    return chart(
        title,
        height,
        *(line(shares, series) for shares, series in lines),
        *(axis(index, coordinate) for index, coordinate in enumerate(coordinates)),
        width=width,
    )


def interval_chart(
    rows: Sequence[tuple[str, Sequence[float], float, tuple[float, float] | None]],
    *,
    title: str,
    x_label: str,
    x_text: Text,
    best: int,
) -> Markup:
    """Return rows of (name, single values, mean, interval): values as rings, the mean as a dot on its interval."""
    values = [v for _, singles, mean, interval in rows for v in (*singles, mean, *(interval or ()))]
    left = 24 + CHARACTER * max(len(shortened(name, _LABEL_CHARACTERS)) for name, *_ in rows)
    foot = 10 + 36 * len(rows)
    plot = Plot(fit_axis(values, is_log=False), Axis(0, 1), top=6, height=foot + 42, left=left)

    def row(index: int) -> Markup:
        name, singles, mean, interval = rows[index]
        y, style = 28 + 36 * index, "best" if index == best else "plain"
        tip = f"{name}: mean {x_text(mean)}"
        return join(
            draw_text(shortened(name, _LABEL_CHARACTERS), left - 10, y + 4, "tick", "end"),
            draw_line(plot.at_x(interval[0]), y, plot.at_x(interval[1]), y, f"interval {style}") if interval else None,
            *(draw_dot(plot.at_x(v), y, Dot(v, 0, f"{name}: {x_text(v)}", "ring")) for v in singles),
            draw_dot(plot.at_x(mean), y, Dot(mean, 0, tip, style)),
        )

    ticks = join(
        *(
            join(
                draw_line(plot.at_x(t), 6, plot.at_x(t), foot, "grid"),
                draw_text(x_text(t), plot.at_x(t), foot + 17, "tick", "middle"),
            )
            for t in plot.x.ticks()
        )
    )
    label = draw_text(x_label, (left + WIDTH - 14) / 2, foot + 36, "label", "middle")
    return chart(title, foot + 42, ticks, *(row(index) for index in range(len(rows))), label)


def stacked_bars(bars: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], *, title: str, text: Text) -> Markup:
    """Return horizontal bars on a common scale: (name, parts), each part of (name, size, CSS class); with a legend."""
    longest = max(sum(size for _, size, _ in parts) for _, parts in bars) or 1.0
    legend = list(dict.fromkeys((name, style) for _, parts in bars for name, size, style in parts if size > 0))
    rows = legend_rows(legend)
    top = 8 + 20 * len(rows)

    def bar(index: int) -> Markup:
        name, parts = bars[index]
        y, x, boxes = top + 54 * index, 8.0, []
        for part, size, style in parts:
            width = size / longest * (WIDTH - 16)
            tip = element("title", f"{part}: {text(size)}")
            if size > 0:
                boxes.append(element("rect", tip, x=x, y=y + 20, width=width, height=22, class_=f"part {style}"))
            x += width
        return join(draw_text(f"{name}: {text(sum(size for _, size, _ in parts))}", 8, y + 14, "tick", "start"), *boxes)

    return chart(title, top + 54 * len(bars), draw_legend(rows), *(bar(index) for index in range(len(bars))))


def color_bar(low: str, high: str, styles: Sequence[str]) -> Markup:
    """Return the colours of a scale from `low` to `high`."""
    left = 10 + CHARACTER * len(low)
    boxes = [
        element("g", element("rect", x=left + 20 * i, y=4, width=20, height=12, class_="fill"), class_=style)
        for i, style in enumerate(styles)
    ]
    right = left + 20 * len(styles) + 8
    return chart(
        f"Colours from {low} to {high}",
        20,
        draw_text(low, left - 8, 14, "tick", "end"),
        *boxes,
        draw_text(high, right, 14, "tick", "start"),
    )
