"""Drawing as SVG: axes, legends, lines and dots. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tltrain.report.markup import Markup, element, join
from tltrain.report.scales import Axis, fit_axis, number_text

WIDTH = 480
CHARACTER = 7.0  # width of one at the size of a chart's text, about
MANY = 40  # lines that are drawn thin, so that they can be told apart
_MAX_POINTS = 200

Text = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line of a chart: its points (x, y), what a tooltip says, its CSS classes, the trial it belongs to."""

    points: Sequence[tuple[float, float]]
    tip: str
    style: str
    lane: str | None = None


@dataclass(frozen=True)
class Plot:
    """The area of a chart between its axes, with the axes themselves."""

    x: Axis
    y: Axis
    top: float = 12
    height: float = 280
    left: float = 68
    right: float = 14
    bottom: float = 42

    def at_x(self, value: float) -> float:
        """Pixels from the left of the chart."""
        return self.left + self.x.share(value) * (WIDTH - self.right - self.left)

    def at_y(self, value: float) -> float:
        """Pixels from the top of the chart."""
        return self.height - self.bottom - self.y.share(value) * (self.height - self.bottom - self.top)

    def draw(self, x_label: str, y_label: str, x_text: Text, y_text: Text, *, whole_x: bool = False) -> Markup:
        """Grid lines with their numbers, and the names of the axes; `whole_x` leaves out fractions."""
        x_ticks = [tick for tick in self.x.ticks(7) if not whole_x or tick == int(tick)]
        foot = self.height - self.bottom
        return join(
            *(self._rule(y_text(tick), self.at_y(tick)) for tick in self.y.ticks()),
            *(draw_text(x_text(tick), self.at_x(tick), foot + 17, "tick", "middle") for tick in x_ticks),
            draw_line(self.left, foot, WIDTH - self.right, foot, "axis"),
            draw_text(x_label, (self.left + WIDTH - self.right) / 2, self.height - 6, "label", "middle"),
            draw_upright(y_label, (self.top + foot) / 2),
        )

    def _rule(self, text: str, y: float) -> Markup:
        return join(
            draw_line(self.left, y, WIDTH - self.right, y, "grid"), draw_text(text, self.left - 6, y + 4, "tick", "end")
        )

    def data(self) -> dict[str, str]:
        """The two scales as attributes, for the page's script to read values off the lines."""
        ends = (
            (self.x, self.left, WIDTH - self.right),
            (self.y, self.height - self.bottom, self.top),
        )
        texts = [f"{axis.lo!r},{axis.hi!r},{int(axis.is_log)},{lo},{hi}" for axis, lo, hi in ends]
        return {"data_x": texts[0], "data_y": texts[1]}


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_text: Text = number_text,
    y_axis: Axis | None = None,
    legend: Sequence[tuple[str, str]] = (),
    data_unit: str = "",
    is_cut: bool = False,
) -> Markup:
    """Return lines over whole numbers such as epochs; a series of one point is a dot. Later series lie on top.

    `legend` holds (name, CSS classes). `data_unit` is `%` where tooltips shall show shares in per cent, and `is_cut`
    says that values above the axis are drawn at its end.
    """
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    rows = legend_rows(legend)
    plot = Plot(fit_axis(xs, is_log=False, is_tight=True), y_axis or fit_axis(ys), top=12 + 20 * len(rows))
    names = {
        "data_x_name": x_label,
        "data_y_name": y_label,
        "data_unit": data_unit or None,
        "data_cut": "1" if is_cut else None,
    }
    return chart(
        title,
        plot.height,
        plot.draw(x_label, y_label, number_text, y_text, whole_x=True),
        *(_series(plot, one) for one in series),
        draw_legend(rows),
        is_many=len(series) > MANY,
        **plot.data(),
        **names,
    )


def _series(plot: Plot, series: Series) -> Markup | None:
    points = series.points
    if not points:
        return None
    if len(points) > _MAX_POINTS:
        stride = math.ceil((len(points) - 1) / (_MAX_POINTS - 1))
        points = [*points[:-1:stride], points[-1]]
    places = [f"{plot.at_x(x):.1f},{plot.at_y(y):.2f}" for x, y in points]
    if len(places) == 1:
        places *= 2  # with round ends, a line without length is a dot
    return element(
        "polyline",
        element("title", series.tip),
        points=" ".join(places),
        class_=f"line {series.style}",
        data_lane=series.lane,
    )


@dataclass(frozen=True)
class Dot:
    """A dot of a chart, of `radius` pixels."""

    x: float
    y: float
    tip: str
    style: str
    radius: float = 5
    lane: str | None = None


def dot_chart(
    dots: Sequence[Dot],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_axis: Axis,
    y_axis: Axis,
    x_text: Text,
    y_text: Text,
) -> Markup:
    """Return dots between two axes."""
    plot = Plot(x_axis, y_axis)
    return chart(
        title,
        plot.height,
        plot.draw(x_label, y_label, x_text, y_text),
        *(draw_dot(plot.at_x(dot.x), plot.at_y(dot.y), dot) for dot in dots),
    )


def draw_dot(x: float, y: float, dot: Dot) -> Markup:
    """Return a dot at a place in pixels."""
    return element(
        "circle", element("title", dot.tip), cx=x, cy=y, r=dot.radius, class_=f"dot {dot.style}", data_lane=dot.lane
    )


def chart(
    title: str,
    height: float,
    *parts: Markup | None,
    width: float = WIDTH,
    is_many: bool = False,
    **attributes: str | None,
) -> Markup:
    """Return an SVG drawing that fills the width it is given, or keeps its own where it is wider than others.

    `is_many` asks for thin lines.
    """
    is_wide = width > WIDTH + 1
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        class_="chart" + " wide" * is_wide + " many" * is_many,
        width=width if is_wide else None,
        role="img",
        aria_label=title,
        **attributes,
    )


def legend_rows(legend: Sequence[tuple[str, str]]) -> list[list[tuple[float, str, str]]]:
    """Entries of (x, name, style) in rows that fit the width."""
    rows: list[list[tuple[float, str, str]]] = []
    x = float(WIDTH)
    for name, style in legend:
        width = 30 + CHARACTER * len(name)
        if x + width > WIDTH:
            rows.append([])
            x = 8
        rows[-1].append((x, name, style))
        x += width + 8
    return rows


def draw_legend(rows: Sequence[Sequence[tuple[float, str, str]]]) -> Markup:
    """Return the rows of `legend_rows` at the top of a chart."""
    return join(
        *(
            join(
                draw_line(x, 12 + 20 * row, x + 18, 12 + 20 * row, f"key {style}"),
                draw_text(name, x + 24, 16 + 20 * row, "tick", "start"),
            )
            for row, entries in enumerate(rows)
            for x, name, style in entries
        )
    )


def draw_line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """Return a straight line; all places are in pixels."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def draw_text(text: str, x: float, y: float, style: str, anchor: str) -> Markup:
    """Return a text of which the start, middle or end (`anchor`) is at a place in pixels."""
    return element("text", text, x=x, y=y, class_=style, text_anchor=anchor)


def draw_upright(text: str, y: float) -> Markup:
    """Return the name of an upright axis, turned, at the left edge with its middle at `y`."""
    turn = f"translate(14 {y:.0f}) rotate(-90)"
    return element("text", text, class_="label", text_anchor="middle", transform=turn)
