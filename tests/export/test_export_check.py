"""Tests of tltrain.export.check: an export that gives something else is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from finished_runs import finished_run
from torch import Tensor

from tltrain.errors import ExportError
from tltrain.export.check import check
from tltrain.export.graph import LOGITS, PROBABILITIES, classifier
from tltrain.export.images import find_sample
from tltrain.export.trained import Trained, open_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return open_trained(finished_run(tmp_path_factory.mktemp("run"), {"model.name": "resnet18"}).uri)


def test_the_same_network_differs_in_nothing(trained: Trained) -> None:
    found = check(trained.network, classifier(trained.network), find_sample(trained, None), "itself")

    assert (found.logit_difference, found.probability_difference) == (0, 0)
    assert found.num_images == 16


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_what_differs_is_refused(trained: Trained, error: float) -> None:
    own = classifier(trained.network)

    def wrong(images: Tensor) -> dict[str, Tensor]:
        outputs = own(images)
        outputs[LOGITS][-1, -1] += error
        return outputs

    with pytest.raises(ExportError, match="differs"):
        check(trained.network, wrong, find_sample(trained, None), "another")


def test_a_graph_that_mixes_up_images_of_a_batch_is_refused(trained: Trained) -> None:
    own = classifier(trained.network)

    def reversed_batch(images: Tensor) -> dict[str, Tensor]:
        return own(images.flip(0))

    with pytest.raises(ExportError):
        check(trained.network, reversed_batch, find_sample(trained, None), "another")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_probabilities_are_those_at_the_temperature_of_the_model(trained: Trained, temperature: float) -> None:
    network = dataclasses.replace(trained.network, temperature=temperature)

    with torch.inference_mode():
        outputs = classifier(network)(find_sample(trained, None).images)

    torch.testing.assert_close((outputs[LOGITS] / temperature).softmax(1), outputs[PROBABILITIES])
