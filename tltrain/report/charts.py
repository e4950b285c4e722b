"""Charts of more than lines: heat maps, parallel coordinates, intervals, stacked bars, scales of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tltrain.report.markup import Markup, element, join, shortened
from tltrain.report.scales import Axis, fit_axis
from tltrain.report.svg import (
    CHARACTER,
    MANY,
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
    draw_upright,
    legend_rows,
)

NARROW = 4  # coordinates that still fit a chart of the usual width
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
    cell_size: tuple[float, float] | None = None,
) -> Markup:
    """Return a table of coloured cells at (row, column); missing ones stay hollow, `marked` gets a frame.

    `cell_size` is the smallest width of a cell and its height, by default what suits the number of rows. The chart
    gets wider than others where it must.
    """
    layout = _Layout.of(columns, rows, cell_size)
    places = [(row, column) for row in range(len(rows)) for column in range(len(columns))]
    middle = layout.top + layout.height * len(rows) / 2
    return chart(
        title,
        layout.foot + layout.depth + 22,
        *(_cell(layout, place, cells.get(place)) for place in places),
        layout.box(marked, "mark") if marked else None,
        *(layout.row_label(index) for index in range(len(rows))),
        *(layout.column_label(index) for index in range(len(columns))),
        draw_text(x_label, (layout.left + layout.right) / 2, layout.foot + layout.depth + 17, "label", "middle"),
        draw_upright(y_label, middle),
        width=layout.right + 8,
    )


@dataclass(frozen=True)
class _Layout:
    """Where the cells and labels of a heat map are, in pixels."""

    columns: Sequence[str]
    rows: Sequence[str]
    left: float
    width: float
    height: float
    top: float = 8

    @classmethod
    def of(cls, columns: Sequence[str], rows: Sequence[str], cell_size: tuple[float, float] | None) -> _Layout:
        columns = [shortened(label, _LABEL_CHARACTERS) for label in columns]
        rows = [shortened(label, _LABEL_CHARACTERS) for label in rows]
        left = 30 + CHARACTER * max(map(len, rows))
        smallest, height = cell_size or (38, min(96, max(32, 160 / len(rows))))
        return cls(columns, rows, left, max(smallest, (WIDTH - left - 8) / len(columns)), height)

    @property
    def right(self) -> float:
        return self.left + self.width * len(self.columns)

    @property
    def foot(self) -> float:
        return self.top + self.height * len(self.rows)

    @property
    def is_turned(self) -> bool:
        """Whether the labels of the columns need to be turned to fit."""
        return CHARACTER * max(map(len, self.columns)) > self.width - 4

    @property
    def depth(self) -> float:
        """Height of the labels of the columns."""
        return 14 + CHARACTER * 0.75 * max(map(len, self.columns)) if self.is_turned else 22

    def centre(self, place: tuple[int, int]) -> tuple[float, float]:
        row, column = place
        return self.left + (column + 0.5) * self.width, self.top + (row + 0.5) * self.height

    def box(self, place: tuple[int, int], style: str) -> Markup:
        x, y = self.centre(place)
        width, height = self.width - 2, self.height - 2
        return element("rect", x=x - width / 2, y=y - height / 2, width=width, height=height, rx=3, class_=style)

    def row_label(self, row: int) -> Markup:
        return draw_text(self.rows[row], self.left - 6, self.centre((row, 0))[1] + 4, "tick", "end")

    def column_label(self, column: int) -> Markup:
        x, text = self.centre((0, column))[0], self.columns[column]
        if not self.is_turned:
            return draw_text(text, x, self.foot + 15, "tick", "middle")
        turn = f"translate({x + 4:.0f} {self.foot + 12:.0f}) rotate(-48)"
        return element("text", text, class_="tick", text_anchor="end", transform=turn)


def _cell(layout: _Layout, place: tuple[int, int], cell: Cell | None) -> Markup:
    if cell is None:
        return layout.box(place, "hollow")
    x, y = layout.centre(place)
    text = draw_text(cell.text, x, y + 4, "value", "middle") if cell.text else None
    return element("g", element("title", cell.tip), layout.box(place, "fill"), text, class_=cell.style)


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
    width = WIDTH if len(coordinates) <= NARROW else 170 * len(coordinates)
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
        is_many=len(lines) > MANY,
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
