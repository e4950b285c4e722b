"""What trials leave on a cluster when they have ended."""

from __future__ import annotations

import time
from typing import Any

from ray.util.placement_group import placement_group_table


def placement_groups() -> list[Any]:
    """The placement groups of the cluster that have not been removed."""
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def placement_groups_left(*, within_s: float = 20.0) -> list[Any]:
    """Those that are still there after `within_s` seconds: their removal takes a moment."""
    deadline = time.monotonic() + within_s
    while (left := placement_groups()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left
