"""The frozen stages' pass: what it costs is known without standing still for it at every batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.train.distributed import Group
from tltrain.train.session import fine_tune
from tltrain.train.taps import SAMPLED_EVERY, Cost, Taps

ALONE = Group(0, 1, 0, 1, torch.device("cpu"))


def test_the_batches_that_were_timed_stand_for_all_but_for_the_first_which_warms_up() -> None:
    seldom, always = Cost(), Cost()
    for batch in range(2 * SAMPLED_EVERY):
        seconds = 0.5 if batch else 9.0
        seldom.add(10, seconds if batch == 0 or seldom.is_sample() else None)
        always.add(10, seconds)
    assert (seldom.timed_images, always.timed_images) == (20, 20 * SAMPLED_EVERY - 10)
    assert [seldom.seconds, always.seconds] == pytest.approx([9.0 + (2 * SAMPLED_EVERY - 1) * 0.5] * 2)
    never_first = Cost()
    for _ in range(4):
        never_first.add(10, 0.5 if never_first.is_sample() else None)
    assert never_first.seconds == pytest.approx(4 * 0.5)
    assert Cost().seconds == 0.0


def test_a_queue_is_waited_for_only_where_a_batch_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, made, begin = list[Any](), list[Taps](), Taps.__init__

    def with_queue(self: Taps, *arguments: Any) -> None:
        begin(self, *arguments)
        self._has_queue = True
        made.append(self)

    monkeypatch.setattr(Taps, "__init__", with_queue)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    spec = tiny_spec(tmp_path, {"data.augment": "basic", "train.epochs": 14})
    fine_tune(spec, RunFolder.at(spec.storage, spec.name), ALONE)
    costs = [cost for taps in made for cost in taps.computed.values()]
    batches = sum(cost.batches for cost in costs)
    assert batches > 2 * SAMPLED_EVERY
    assert len(waits) < batches / 2
    assert all(cost.timed_images for cost in costs if cost.batches > 1)
