"""Parts that the sections of a page are made of: cards, tiles, lists of facts, tables, and shades for values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tltrain.report.markup import Markup, element, shortened
from tltrain.report.trials import Metric

LONGEST_TEXT = 120
NUM_SHADES = 9


@dataclass(frozen=True)
class Value:
    """A number in a table: what is shown, and what it is sorted by (None: it is missing, and comes last)."""

    text: str
    number: float | None = None


def card(
    title: str, *content: Markup | None, note: str | None = None, id_: str | None = None, is_wide: bool = False
) -> Markup:
    """Return a section with a heading and, below it, a line of explanation; in a row, a wide one stands alone."""
    below = element("p", note, class_="note") if note else None
    return element("section", element("h2", title), below, *content, class_="card wide" if is_wide else "card", id=id_)


def row(*cards: Markup | None) -> Markup:
    """Return cards side by side where there is room."""
    return element("div", *cards, class_="row")


def scroll(*content: Markup, is_tall: bool = False) -> Markup:
    """Return content that scrolls on its own where it is too wide (`is_tall`: or too long)."""
    return element("div", *content, class_="scroll tall" if is_tall else "scroll", tabindex="0")


def tile(value: str, name: str, note: str = "") -> Markup:
    """Return one large figure with its name."""
    return element(
        "div", element("small", name), element("b", value), element("small", note) if note else None, class_="tile"
    )


def facts(entries: Mapping[str, str | None]) -> Markup:
    """Return names with their values, those without a value left out."""
    pairs = [(name, value) for name, value in entries.items() if value]
    return element("dl", *(part for name, value in pairs for part in (element("dt", name), element("dd", value))))


@dataclass(frozen=True)
class Row:
    """A row of a table; `lane` is the trial it shows, `style` its CSS class."""

    cells: Sequence[str | Value]
    lane: str | None = None
    style: str | None = None


def table(heads: Sequence[str], rows: Sequence[Row], *, wrapped: Sequence[int] = (), is_tall: bool = False) -> Markup:
    """Return a table that can be sorted; a column is one of numbers where its first cell is a Value.

    The texts of the columns `wrapped` may take several lines.
    """
    numbers = {index for one in rows[:1] for index, cell in enumerate(one.cells) if isinstance(cell, Value)}
    head = element(
        "tr",
        *(element("th", name, class_="number" if i in numbers else None, scope="col") for i, name in enumerate(heads)),
    )
    body = [
        element(
            "tr", *(_cell(cell, i in wrapped) for i, cell in enumerate(one.cells)), class_=one.style, data_lane=one.lane
        )
        for one in rows
    ]
    return scroll(element("table", element("thead", head), element("tbody", *body), class_="sortable"), is_tall=is_tall)


def _cell(cell: str | Value, is_wrapped: bool) -> Markup:
    if isinstance(cell, Value):
        return element("td", cell.text, class_="number", data_value="" if cell.number is None else f"{cell.number!r}")
    return element(
        "td",
        shortened(cell, LONGEST_TEXT) if not isinstance(cell, Markup) else cell,
        class_="wrap" if is_wrapped else None,
    )


def share_bar(share: float) -> Markup:
    """Return a small bar filled up to `share` (0 to 1)."""
    back = element("rect", width=90, height=10, rx=3, class_="back")
    return element(
        "svg",
        back,
        element("rect", width=90 * share, height=10, rx=3),
        class_="share",
        viewBox="0 0 90 10",
        aria_hidden="true",
    )


@dataclass(frozen=True)
class Shades:
    """Nine shades for the values of a metric, the last one for `best`; whatever is beyond `worst` has the first."""

    worst: float
    best: float

    @classmethod
    def of(cls, values: Sequence[float], metric: Metric) -> Shades:
        """Shades for some values. A few far behind do not take the shades of all others."""
        if not values:
            return cls(0.0, 1.0)
        best = metric.best(values)
        furthest = min(values) if metric.higher_is_better else max(values)
        near = best + 2 * (median(values) - best)
        worst = furthest if near == best else max(furthest, near) if metric.higher_is_better else min(furthest, near)
        return cls(worst, best)

    def share(self, value: float) -> float:
        """Where `value` is between worst (0) and best (1)."""
        return 1.0 if self.worst == self.best else min(1.0, max(0.0, (value - self.worst) / (self.best - self.worst)))

    def style(self, value: float) -> str:
        """The CSS class of the shade of `value`."""
        return f"q{min(NUM_SHADES - 1, int(self.share(value) * NUM_SHADES))}"


def join_words(words: Sequence[str], limit: int = 12) -> str:
    """Return words with commas, at most `limit` of them, and how many more there are."""
    rest = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {rest} more" if rest > 0 else "")
