"""A plan as lines of text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH = 80


def with_cost(plan: Mapping[str, Any], price: float | None, currency: str) -> dict[str, Any]:
    """Return a plan with what its hours cost at `price` per worker and hour; with a note where there is no price."""
    if price is None:
        return {**plan, "notes": [*plan["notes"], "the cluster file has no price_per_worker_hour, so no cost is shown"]}
    each = plan["groups"] * plan["workers_per_group"] * price
    costs = {name: each * plan[f"hours_{name}"] for name in ("in_lanes", "trial_by_trial")}
    return {**plan, "cost": {**costs, "price_per_worker_hour": price, "currency": currency}}


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
    alone = _taken(plan, "trial_by_trial")
    if plan["search"] == "none":
        return [f"Time        {alone}"]
    together = _taken(plan, "in_lanes")
    return [f"In lanes    {together}, with the winner's own run", f"One by one  {alone}, trial by trial"]


def _taken(plan: Mapping[str, Any], way: str) -> str:
    """Return the time and the workers' hours of one way to train, and its cost where a price is known."""
    hours = plan[f"hours_{way}"]
    text = f"{_duration(hours)}, {_number(plan['groups'] * plan['workers_per_group'] * hours)} worker hours"
    cost = plan.get("cost")
    return text if cost is None else f"{text}, {_number(cost[way])} {cost['currency']}"


def _number(value: float) -> str:
    """Return a number with two digits that count, or two after the point."""
    return f"{value:.2g}" if value < 1 else f"{value:,.2f}"


def _wrapped(label: str, texts: Iterable[str]) -> list[str]:
    text = " ".join(texts)
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:<12}", subsequent_indent=" " * 14)


def _duration(hours: float) -> str:
    """Return hours as people say them."""
    seconds = 3600 * hours
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{hours:,.1f} h"
