"""Requests against clusters: what fits, and the arithmetic where it does not."""

from __future__ import annotations

import pytest

from tltrain.engine.plan import Node, Request, capacity, find_shortage, make_request
from tltrain.spec.schema import ResourcesSpec

LAPTOP = [Node("laptop", cpus=2, gpus=0)]
TWO_GPU_NODES = [Node("a", cpus=8, gpus=1), Node("b", cpus=8, gpus=4)]


def request(settings: dict[str, object], nodes: list[Node]) -> Request:
    return make_request(ResourcesSpec.model_validate(settings), nodes)


def test_auto_takes_one_gpu_where_there_are_some_and_none_otherwise() -> None:
    assert request({}, TWO_GPU_NODES).gpus_per_worker == 1
    assert request({}, LAPTOP).gpus_per_worker == 0


@pytest.mark.parametrize(
    ("settings", "node", "workers"),
    [
        ({"cpus_per_worker": 3}, Node("n", 8, 0), 2),
        ({"gpus_per_worker": 2}, Node("n", 8, 5), 2),
        ({"gpus_per_worker": 1, "cpus_per_worker": 4}, Node("n", 8, 8), 2),
        ({"gpus_per_worker": 1}, Node("n", 8, 0), 0),
    ],
)
def test_a_node_holds_what_its_scarcest_resource_allows(settings: dict[str, object], node: Node, workers: int) -> None:
    assert capacity(request(settings, [node]), node) == workers


def test_a_request_that_fits_has_no_shortage() -> None:
    assert find_shortage(request({"num_workers": 5}, TWO_GPU_NODES), TWO_GPU_NODES) is None


def test_resources_of_different_nodes_do_not_add_up_for_one_worker() -> None:
    nodes = [Node("a", 4, 1), Node("b", 4, 1)]
    assert find_shortage(request({"num_workers": 1, "gpus_per_worker": 2}, nodes), nodes) is not None


def test_a_shortage_shows_its_arithmetic_and_what_would_fit() -> None:
    shortage = find_shortage(request({"num_workers": 8, "gpus_per_worker": 1}, TWO_GPU_NODES), TWO_GPU_NODES)
    assert str(shortage) == (
        "resources: 8 worker(s) of 1 CPU + 1 GPU are asked for and the cluster holds 5 "
        "(a has 8 CPU + 1 GPU, holds 1; b has 8 CPU + 4 GPU, holds 4). Set resources.num_workers to 5."
    )


def test_an_elastic_request_needs_only_its_minimum() -> None:
    assert find_shortage(request({"num_workers": {"min": 2, "max": 100}}, LAPTOP), LAPTOP) is None
