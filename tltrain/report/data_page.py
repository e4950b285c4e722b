"""The page of a source's images: counts, sizes, problems, duplicates, and examples of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tltrain.report.document import document
from tltrain.report.layout import Row, Value, card, facts, share_bar, table, tile
from tltrain.report.markup import Markup, element, shortened

if TYPE_CHECKING:
    from tltrain.data.samples import Samples

_Group = Sequence[Mapping[str, str]]


def build_page(findings: Mapping[str, Any], samples: Samples) -> str:
    """Return the page of what `tltrain.data.check` found, with pictures. It needs no network and no other file."""
    splits = findings["splits"]
    body = element(
        "main",
        _header(findings),
        _tiles(findings),
        _texts("What would end a run", findings["problems"], "card errors"),
        _texts("What to know", findings["warnings"], "card"),
        _classes(splits, findings["classes"], samples),
        card("Images", *(_split_facts(name, found) for name, found in splits.items())),
        _bad(splits),
        _duplicates("Byte for byte the same", findings["duplicates"]["exact"], samples),
        _duplicates("Nearly the same", findings["duplicates"]["near"], samples),
    )
    return document(f"{findings['source']} - tltrain", body, has_images=True)


def _header(findings: Mapping[str, Any]) -> Markup:
    state = ("cannot be used as it is", "failed") if findings["problems"] else ("can be used", "finished")
    badge = element("span", state[0], class_=f"badge {state[1]}")
    title = element("h1", shortened(findings["source"], 120))
    return element("header", element("div", title, badge, class_="top"))


def _tiles(findings: Mapping[str, Any]) -> Markup:
    splits, duplicates = findings["splits"], findings["duplicates"]
    tiles = [tile(f"{found['images']:,}", f"images of {name}") for name, found in splits.items()]
    tiles.append(tile(f"{len(findings['classes']):,}", "classes"))
    tiles.append(tile(f"{sum(len(found['bad']) for found in splits.values()):,}", "cannot be used"))
    for kind, name in (("exact", "groups byte for byte the same"), ("near", "groups nearly the same")):
        tiles.append(tile("-" if duplicates[kind] is None else f"{len(duplicates[kind]['groups']):,}", name))
    return element("div", *tiles, class_="tiles")


def _texts(title: str, texts: Sequence[str], style: str) -> Markup | None:
    if not texts:
        return None
    return element(
        "section", element("h2", title), element("ul", *(element("li", text) for text in texts)), class_=style
    )


def _classes(splits: Mapping[str, Any], classes: Sequence[str], samples: Samples) -> Markup:
    """One row per class: how many images there are in each split, and some of them."""
    largest = max((found["per_class"][name] for found in splits.values() for name in classes), default=0)
    first = next(iter(splits))
    rows = []
    for name in classes:
        counts = [Value(f"{found['per_class'][name]:,}", found["per_class"][name]) for found in splits.values()]
        share = splits[first]["per_class"][name] / largest if largest else 0.0
        pictures = element(
            "div", *(_picture(place, samples) for place in samples.of_class.get(name, ())), class_="grid-row"
        )
        rows.append(Row([name, *counts, share_bar(share), pictures]))
    note = f"The pictures are of {first}, drawn at random, the same each time."
    return card("Classes", table(["class", *splits, "share", "examples"], rows, wrapped=[0]), note=note, id_="classes")


def _picture(place: tuple[str, str], samples: Samples) -> Markup:
    return element("img", src=samples.pictures[place], alt=place[1], title=place[1], class_="sample")


def _split_facts(name: str, found: Mapping[str, Any]) -> Markup:
    entries = {
        "Images": f"{found['images']:,}",
        "Width": _spread(found["width"]),
        "Height": _spread(found["height"]),
        "Colour modes": _counts(found["modes"]),
        "Formats": _counts(found["formats"]),
        "Mean of R, G, B": _triple(found["mean"]),
        "Standard deviation": _triple(found["std"]),
    }
    return element("div", element("h3", name), facts(entries))


def _spread(values: Mapping[str, float] | None) -> str | None:
    if values is None:
        return None
    if values["min"] == values["max"]:
        return f"{values['min']:,} pixels"
    return f"{values['min']:,} to {values['max']:,} pixels, median {values['median']:,g}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _triple(values: Sequence[float] | None) -> str | None:
    return None if values is None else ", ".join(f"{value:.4f}" for value in values)


def _bad(splits: Mapping[str, Any]) -> Markup | None:
    rows = [
        Row([name, image["id"], image["class"], image["error"]])
        for name, found in splits.items()
        for image in found["bad"]
    ]
    if not rows:
        return None
    return card(
        "Images that cannot be used",
        table(["split", "image", "class", "why"], rows, wrapped=[1, 3], is_tall=True),
        id_="bad",
    )


def _duplicates(title: str, found: Mapping[str, Any] | None, samples: Samples) -> Markup | None:
    if found is None or not found["groups"]:
        return None
    where = [f"{count} within {name}" for name, count in found["within"].items()]
    where += [f"{count} between {pair.replace('/', ' and ')}" for pair, count in found["across"].items()]
    note = f"Groups: {len(found['groups']):,}; {', '.join(where)}. With more than one label: {found['conflicts']}."
    shown = [group for group in found["groups"] if any((m["split"], m["id"]) in samples.pictures for m in group)]
    pictures = element("div", *(_group_pictures(group, samples) for group in shown[:12]), class_="groups")
    rows = [Row([_labels(group), _places(group)]) for group in found["groups"][:500]]
    listed = table(["classes", "images"], rows, wrapped=[0, 1], is_tall=True)
    return card(title, pictures, listed, note=note, id_="exact" if title.startswith("Byte") else "near")


def _group_pictures(group: _Group, samples: Samples) -> Markup:
    places = [(one["split"], one["id"]) for one in group]
    pictures = [_picture(place, samples) for place in places if place in samples.pictures]
    return element("figure", *pictures[:4], element("figcaption", shortened(_labels(group), 40)), class_="group")


def _labels(group: _Group) -> str:
    return ", ".join(sorted({one["class"] for one in group}))


def _places(group: _Group) -> str:
    more = f" and {len(group) - 10} more" if len(group) > 10 else ""
    return ", ".join(f"{one['split']}: {one['id']}" for one in group[:10]) + more
