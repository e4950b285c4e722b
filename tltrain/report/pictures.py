"""The sections with thumbnails: the surest mistakes, and the images that the model was least sure of."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from tltrain.report.layout import card
from tltrain.report.markup import Markup, element, shortened

MAX_BYTES = 400_000
"""Most bytes of pictures in one section, so that a page stays small."""
_NAME = 60
_JPEG = b"\xff\xd8\xff"


def pictures_card(thumbnails: pa.Table | None, kind: str, title: str, note: str, id_: str) -> Markup | None:
    """Return the thumbnails of one kind (`mistake`, `uncertain`) with true and predicted class; None without any."""
    rows = [] if thumbnails is None else [row for row in thumbnails.to_pylist() if row["kind"] == kind]
    figures = list(_figures(rows))
    return card(title, element("div", *figures, class_="pictures"), note=note, id_=id_) if figures else None


def _figures(rows: list[dict[str, Any]]) -> Iterator[Markup]:
    """Yield a figure per row as long as they are small enough together; what is no JPEG file is left out."""
    room = MAX_BYTES
    for row in rows:
        room -= len(row["image"])
        if room >= 0 and row["image"].startswith(_JPEG):
            yield _figure(row)


def _figure(row: Mapping[str, Any]) -> Markup:
    true, predicted = shortened(row["label"], _NAME), shortened(row["prediction"], _NAME)
    is_right, sure = row["label"] == row["prediction"], f"{100 * row['probability']:.0f} %"
    picture = element(
        "img",
        src=Markup("data:image/jpeg;base64," + base64.b64encode(row["image"]).decode()),
        alt=f"{true}, taken for {predicted}",
    )
    said = element("span", f"{'✓' if is_right else '✗'} {predicted} ", class_="right" if is_right else "wrong")
    caption = element("figcaption", element("b", true), element("span", said, element("i", sure)))
    tip = f"{row['id']}\ntrue: {row['label']}\npredicted: {row['prediction']}, {100 * row['probability']:.1f} %"
    return element("figure", picture, caption, data_tip=shortened(tip, 500))
