"""What came of a campaign: kept as it comes, and as Markdown in its place in a page."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def keep(number: int, outcome: Any, record: Path | None) -> None:
    """Add the outcome of a fault to the file `record`, so that a campaign can go on after it."""
    if record is not None:
        with record.open("a") as file:
            file.write(json.dumps({"number": number, **dataclasses.asdict(outcome)}) + "\n")


def kept(record: Path | None, outcome: type, fault: type) -> dict[int, Any]:
    """Return number of the fault -> the outcome that an earlier start of the same campaign has kept in `record`.

    Those that did not end as they had to are left out: they are struck again.
    """
    found: dict[int, Any] = {}
    if record is not None and record.exists():
        for line in record.read_text().splitlines():
            row = json.loads(line)
            number = row.pop("number")
            found[number] = outcome(**{**row, "fault": fault(**row["fault"])})
    return {number: one for number, one in found.items() if not one.problems}


def table(outcomes: Sequence[Any]) -> str:
    """Return the outcomes by what happened, by where, and by setting, as Markdown tables."""
    good = sum(not outcome.problems for outcome in outcomes)
    views: tuple[tuple[str, Callable[[Any], str]], ...] = (
        ("what happened", lambda outcome: outcome.fault.action),
        ("where", lambda outcome: outcome.fault.place),
        ("in a run that trains", lambda outcome: outcome.setting),
    )
    parts = [f"{good} of {len(outcomes)} runs ended as the one that was left alone."]
    return "\n\n".join([*parts, *(view(outcomes, title, key) for title, key in views)]) + "\n"


def view(outcomes: Sequence[Any], title: str, key: Callable[[Any], str]) -> str:
    """Return the outcomes by `key`, which stands under `title`, as one Markdown table."""
    lines = [f"| {title} | faults | ended equal | median time to the end, s | longest, s |", "|---|---|---|---|---|"]
    for name in sorted({key(outcome) for outcome in outcomes}):
        here = [outcome for outcome in outcomes if key(outcome) == name]
        times = [outcome.recovery_s for outcome in here]
        good = sum(not outcome.problems for outcome in here)
        lines.append(f"| {name} | {len(here)} | {good} | {statistics.median(times):.1f} | {max(times):.1f} |")
    return "\n".join(lines)


def insert(page: Path, command: str, result: str, name: str = "campaign") -> None:
    """Put a result between the marks `<!-- NAME: start -->` and `<!-- NAME: end -->` of a page."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    text = f"{start}\n<!-- made by `{command}` -->\n\n{result}\n{end}"
    whole, count = re.subn(f"{re.escape(start)}.*{re.escape(end)}", lambda _: text, page.read_text(), flags=re.DOTALL)
    assert count == 1, f"{page} lacks the marks"
    page.write_text(whole)
