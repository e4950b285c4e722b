"""Elements of HTML and SVG in which every text and attribute is escaped unless it is markup already."""

from __future__ import annotations

import html
import re

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_EMPTY = {"br", "circle", "img", "line", "meta", "path", "polygon", "polyline", "rect"}


class Markup(str):
    """Text that is markup already. Any other string is escaped where an element takes it."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: str | float | bool | None) -> Markup:
    """Return an element. An attribute that is None or False is left out; `_` in its name becomes `-`.

    Numbers are written with two decimals at most. `class_` stands for `class`, `for_` for `for`.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{_attribute(value)}"')
    opening = " ".join(parts)
    if name in _EMPTY and not children:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(*children)}</{name}>")


def join(*parts: str | None) -> Markup:
    """Return all parts one after the other, escaped where they are not markup; None is nothing."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def escaped(text: str) -> Markup:
    """Return `text` as markup; characters that XML does not have become the replacement character."""
    return text if isinstance(text, Markup) else Markup(html.escape(_NOT_XML.sub("\ufffd", text)))


def shortened(text: str, limit: int) -> str:
    """Return `text` with at most `limit` characters, the last one an ellipsis where some are left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def decimal(value: float) -> str:
    """Return a coordinate with two decimals at most."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escaped(value)
    return "" if value is True else decimal(value)
