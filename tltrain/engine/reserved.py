"""The placement groups of a cluster, with who made them, as its head knows them. Also without a dashboard."""

from __future__ import annotations

from collections.abc import Iterator

from ray._private import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]


def placement_groups() -> Iterator[PlacementGroupTableData]:
    """Yield what the head knows of each placement group, also of those that were removed."""
    for entry in state.state._connect_and_get_accessor().get_placement_group_table():
        yield PlacementGroupTableData.FromString(entry)
