"""A plan as lines of text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH = 80


def plan_lines(plan: Mapping[str, Any], where: str) -> list[str]:
    """Return what a plan says: counts, depths, hours, taps. `where`: the machine or the cluster it was made for."""
    groups, workers = plan["groups"], plan["workers_per_group"]
    by = "" if plan["search"] == "none" else f" ({plan['search']})"
    lines = [
        f"Trials      {plan['trials']:,}{by}, {plan['epochs']:,} epochs, {plan['steps']:,} steps in all",
        f"Workers     {groups} group{'s' if groups != 1 else ''} of {workers} on {where}",
        "",
        f"{'frozen up to':<32}{'trials':>8}{'forward shared':>16}{'step per image':>18}",
    ]
    lines += [
        f"{depth['frozen_up_to'][:31]:<32}{depth['trials']:>8}{100 * depth['forward_shared']:>14.1f} %"
        f"{depth['step_ms_per_image']:>15.2f} ms"
        for depth in plan["depths"]
    ]
    lines += [
        "",
        f"Per image   {plan['decode_ms_per_image']:.2f} ms to decode, "
        f"{plan['frozen_ms_per_image']:.2f} ms through the frozen stages",
        *_hours(plan),
        f"            estimate from {plan['batches']} batches on this machine",
    ]
    lines += _wrapped("Taps", plan["kept"][:1])
    lines += [line for text in plan["kept"][1:] for line in _wrapped("", [text.strip()])]
    return lines + [line for note in plan["notes"] for line in _wrapped("Note", [note])]


def _hours(plan: Mapping[str, Any]) -> list[str]:
    alone = _duration(plan["hours_trial_by_trial"])
    if plan["search"] == "none":
        return [f"Time        {alone}"]
    together = _duration(plan["hours_in_lanes"])
    return [f"In lanes    {together}, the winner's own run included", f"One by one  {alone}, trial by trial"]


def _wrapped(label: str, texts: Iterable[str]) -> list[str]:
    text = " ".join(texts)
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:<12}", subsequent_indent=" " * 14)


def _duration(hours: float) -> str:
    """Return hours as people say them."""
    seconds = 3600 * hours
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{hours:,.1f} h"
