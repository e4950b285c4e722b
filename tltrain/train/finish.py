"""The end of a run: evaluate a split over all ranks, and save the whole model with all it needs to be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safetensors.torch import save
from torch import Tensor

from tltrain.data.loader import Batch
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.splits import Split, Splits
from tltrain.models.zoo import Network
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.storage import Folder
from tltrain.train.distributed import Group
from tltrain.train.evaluation import Predictions, evaluate, write_predictions
from tltrain.train.lane import Lane
from tltrain.train.thumbnails import write_thumbnails
from tltrain.train.versions import versions
from tltrain.train.workbench import Workbench


def finish_lane(bench: Workbench, lane: Lane, run: RunFolder) -> dict[str, Any]:
    """Evaluate `lane` on the test images (without any: on the validation images) and save the whole model in `run`.

    Every rank calls it. Returns the best epoch, and the evaluation's headline on rank 0.
    """
    splits = bench.splits
    name, split = ("test", splits.test) if splits.test else ("validation", splits.val)
    evaluation = None
    if split is not None:
        outputs = bench.evaluation(split).logits(lane)
        num_thumbnails = lane.spec.data.thumbnails
        evaluation = evaluate_split(outputs, split, splits.classes, bench.group, run.folder, num_thumbnails)
    shown = None if evaluation is None else {"split": name, **headline(evaluation)}
    summary = {"best": lane.best, "evaluation": shown}
    if bench.group.is_first:
        if evaluation is not None:
            run.write_json("evaluation.json", {"split": name, **evaluation})
        card = model_card(lane.spec, bench.network, bench.preprocessing, splits, summary)
        save_model(run.model, card, {**bench.network.module.state_dict(), **lane.kept.state_dict()})
    bench.group.barrier()
    return summary


def evaluate_split(
    outputs: Iterable[tuple[Batch, Tensor]],
    split: Split,
    classes: Sequence[str],
    group: Group,
    folder: Folder,
    num_thumbnails: int,
) -> dict[str, Any] | None:
    """Evaluate this rank's `outputs` (batches with logits float32 [b, C]) together with all other ranks'.

    Writes predictions.parquet into `folder`, and thumbnails.parquet where `num_thumbnails` is not 0. Returns the
    evaluation on rank 0, None elsewhere.
    """
    mine = [Predictions.from_logits(logits, batch.labels, batch.ids) for batch, logits in outputs]
    gathered = group.gather(mine)
    if gathered is None:
        return None
    predictions = Predictions.concatenate([part for parts in gathered for part in parts])
    write_predictions(folder, predictions, [split.identity(i) for i in range(len(split))], classes)
    if num_thumbnails:
        write_thumbnails(folder, split, predictions, classes, num_thumbnails)
    return evaluate(predictions, classes)


def headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an evaluation that belong in a summary."""
    names = (
        "num_images",
        "accuracy",
        "accuracy_interval_95",
        "top5_accuracy",
        "loss",
        "expected_calibration_error",
    )
    return {name: evaluation[name] for name in names}


def model_card(
    spec: Spec,
    network: Network,
    preprocessing: Preprocessing,
    splits: Splits,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what stands in model.json: all that is needed to rebuild the network and to use it."""
    return {
        "format": 1,
        "name": spec.model.name,
        "factory": spec.model.factory,
        "arguments": network.arguments,
        "classes": list(splits.classes),
        "preprocessing": preprocessing.to_dict(),
        "run": spec.name,
        "pretrained": network.weights_origin,
        "freeze_depth": spec.model.freeze_depth,
        "stages": [stage.name for stage in network.staged.stages],
        "data": _described(splits),
        "versions": versions(),
        **summary,
    }


def _described(splits: Splits) -> dict[str, Any]:
    return {
        "fingerprint": splits.fingerprint,
        "num_train": len(splits.train),
        "num_val": len(splits.val) if splits.val else 0,
        "num_test": len(splits.test) if splits.test else 0,
    }


def save_model(folder: Folder, card: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write model.safetensors and model.json into `folder`; model.json comes last."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    folder.write_bytes("model.safetensors", save(tensors))
    folder.write_bytes("model.json", (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
