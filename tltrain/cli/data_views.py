"""What was found in a source's images, as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tltrain.cli.run_tables import shortened
from tltrain.data.samples import telling_first
from tltrain.errors import shown

SHOWN = 10
_WIDEST_CLASS = 32


def check_lines(findings: Mapping[str, Any], columns: int) -> list[str]:
    """The findings of `tltrain.data.check`, in `columns` columns: ten of a kind are named, and the rest counted."""
    splits = findings["splits"]
    lines = _class_table(splits, findings["classes"], columns)
    for name, found in splits.items():
        lines += ["", *_split_lines(name, found, columns)]
    lines += ["", *_duplicate_lines(findings["duplicates"], columns)]
    warnings = [line for text in findings["warnings"] for line in _wrapped("warning  ", text, columns)]
    return [*lines, "", *warnings] if warnings else lines


def _class_table(splits: Mapping[str, Any], classes: Sequence[str], columns: int) -> list[str]:
    """Images per class and split: all classes, or the largest and the smallest where there are many."""
    counts = {name: [found["per_class"][name] for found in splits.values()] for name in classes}
    listed = sorted(counts, key=lambda name: -sum(counts[name]))
    left_out = len(listed) - 2 * SHOWN
    if left_out > 1:
        listed = [*listed[:SHOWN], "", *listed[-SHOWN:]]
    width = min(max(map(len, [*listed, "all 1000"])), _WIDEST_CLASS, max(columns - 10 * len(splits), 12))
    lines = [f"{'class':<{width}}" + "".join(f"{name:>10}" for name in splits)]
    for name in listed:
        cells = "".join(f"{count:>10,}" for count in counts[name]) if name else f"  {left_out} more classes"
        lines.append(f"{shortened(shown(name), width) or '...':<{width}}{cells}")
    totals = "".join(f"{found['images']:>10,}" for found in splits.values())
    return [*lines, f"{f'all {len(classes)}':<{width}}{totals}"]


def _split_lines(name: str, found: Mapping[str, Any], columns: int) -> list[str]:
    facts = [("formats", _counts(found["formats"])), ("modes", _counts(found["modes"]))]
    if found["width"]:
        facts = [*((side, _spread(found[side])) for side in ("width", "height")), *facts]
        facts += [(key, ", ".join(f"{value:.4f}" for value in found[key])) for key in ("mean", "std")]
    lines = [name, *(f"  {key:<8} {value}" for key, value in facts if value)]
    bad = found["bad"]
    if bad:
        lines.append(f"  {len(bad)} cannot be used:")
        for image in bad[:SHOWN]:
            lines += _wrapped("    ", f"{image['id']}: {image['error']}", columns)
        if len(bad) > SHOWN:
            lines.append(f"    and {len(bad) - SHOWN} more; --json and --page name all")
    return lines


def _spread(values: Mapping[str, float]) -> str:
    if values["min"] == values["max"]:
        return f"{values['min']} pixels"
    return f"{values['min']} to {values['max']} pixels, median {values['median']:g}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _duplicate_lines(duplicates: Mapping[str, Any], columns: int) -> list[str]:
    lines = ["duplicates"]
    for kind, meaning in (("exact", "byte for byte"), ("near", "nearly the same")):
        found = duplicates[kind]
        if found is None:
            lines.append(f"  {meaning}: not looked for")
            continue
        where = [f"{count} within {name}" for name, count in found["within"].items()]
        where += [f"{count} between {pair.replace('/', ' and ')}" for pair, count in found["across"].items()]
        lines += _wrapped("  ", f"{meaning}: {', '.join(where) or 'none'}", columns)
        for group in telling_first(found["groups"])[:SHOWN]:
            members = [f"{one['split']}: {one['id']} ({one['class']})" for one in group[:3]]
            more = f" and {len(group) - 3} more" if len(group) > 3 else ""
            lines += _wrapped("    ", " = ".join(members) + more, columns)
        if len(found["groups"]) > SHOWN:
            lines.append(f"    and {len(found['groups']) - SHOWN} more groups; --json and --page name all")
    return lines


def _wrapped(head: str, text: str, columns: int) -> list[str]:
    """Text behind a head, its further lines indented alike; what cannot be broken stays whole."""
    return textwrap.wrap(
        shown(text),
        max(columns, len(head) + 20),
        initial_indent=head,
        subsequent_indent=" " * max(len(head), 2) + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
