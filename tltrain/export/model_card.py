"""The model card, README.md of a Hugging Face folder: what a run knows of its model, and what nobody has measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from tltrain.export.card_results import class_table, result_sections
from tltrain.export.description import before_the_graph
from tltrain.export.markdown import bullets, facts, plain
from tltrain.export.trained import Trained
from tltrain.models import lite
from tltrain.report.evaluation_page import worst_pairs
from tltrain.spec.schema import DataSpec, Spec

_FEW_IMAGES = 30
_SHOWN_CLASSES = 20
_UNKNOWN = "not recorded"


def render_model_card(trained: Trained, library: str) -> str:
    """Return the card as Markdown with its YAML head; no licence is named in it.

    library: what builds the network: `timm`, `torchvision` or `tltrain`. Of sources no more than their last name is
    shown, for addresses may hold what is nobody's business.
    """
    evaluation = read_evaluation(trained)
    sections = {
        "": _introduction(trained),
        "Results": result_sections(trained, evaluation),
        "Classes": class_table(trained, evaluation),
        "Use": _use(trained, library),
        "Training data": _data(trained),
        "Training": _training(trained),
        "Limits": _limits(trained, evaluation),
        "Licence": _licence(trained),
    }
    texts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    return "\n\n".join([_head(trained, library, evaluation), f"# {trained.name}", *texts]) + "\n"


def read_evaluation(trained: Trained) -> Mapping[str, Any] | None:
    """Return evaluation.json of the run, or the headline in model.json where there is no run beside the model."""
    if trained.place.run is not None and trained.place.run.folder.exists("evaluation.json"):
        return trained.place.run.read_json("evaluation.json")
    return trained.card.get("evaluation")


def _head(trained: Trained, library: str, evaluation: Mapping[str, Any] | None) -> str:
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- transfer-learning",
        "- tltrain",
        "# license: name yours here, for example apache-2.0",
    ]
    if evaluation is not None:
        low, high = evaluation["accuracy_interval_95"]
        name = f"Accuracy on the {evaluation['split']} images (95 % interval {low:.3f} to {high:.3f})"
        source = "unknown" if trained.place.spec is None else _test_source(trained.place.spec.data, evaluation["split"])
        lines += [
            "model-index:",
            f"- name: {json.dumps(trained.name)}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{type: custom, name: {json.dumps(source)}}}",
            f"    metrics: [{{type: accuracy, value: {evaluation['accuracy']:.4f}, name: {json.dumps(name)}}}]",
        ]
    return "\n".join([*lines, "---"])


def _introduction(trained: Trained) -> str:
    names = [plain(name) for name in trained.network.classes]
    more = f" and {len(names) - _SHOWN_CLASSES:,} more" if len(names) > _SHOWN_CLASSES else ""
    listed = ", ".join(names[:_SHOWN_CLASSES]) + more
    origin = plain(_without_folders(trained.card.get("pretrained") or _UNKNOWN))
    return (
        f"`{trained.architecture}`, fine-tuned to tell {len(names):,} classes of images apart: {listed}.\n\n"
        f"It started from these weights: {origin}. The files and this card were made from the folder of a "
        f"`tltrain` run; what stands below is what that run recorded."
    )


def _use(trained: Trained, library: str) -> str:
    p = trained.network.preprocessing
    return (
        f"FOLDER is this folder.\n\n```python\n{_code(trained, library)}\n```\n\n"
        f"For an image: {before_the_graph(p)}, scale it to 0..1, subtract {list(p.mean)} and divide by {list(p.std)} "
        "per channel. `preprocessor_config.json` says the same. The network gives logits; the softmax of the logits, "
        f"divided by {trained.network.temperature:g} (`temperature`), gives probabilities, and `id2label` the names of "
        "the classes; both stand in `config.json`."
    )


def _code(trained: Trained, library: str) -> str:
    """Return lines of Python that load the model."""
    if library == "timm":
        return 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
    if library == "torchvision":
        imports, call = "import torchvision", 'torchvision.models.get_model(config["architecture"], '
    else:
        path, _, function = (trained.card.get("factory") or f"tltrain.models.lite:{lite.NAME}").partition(":")
        imports, call = f"from {path} import {function}", f"{function}("
    return (
        f"import json\n\n{imports}\nfrom safetensors.torch import load_file\n\n"
        'config = json.load(open("FOLDER/config.json", encoding="utf-8"))\n'
        f'model = {call}**config["arguments"]).eval()\n'
        'model.load_state_dict(load_file("FOLDER/model.safetensors"))'
    )


def _data(trained: Trained) -> str:
    counts: Mapping[str, Any] = trained.card.get("data") or {}
    data = None if trained.place.spec is None else trained.place.spec.data
    entries = [
        ("Training images", _count(counts, "num_train")),
        ("Validation images", _count(counts, "num_val")),
        ("Test images", _count(counts, "num_test")),
        ("Classes", f"{len(trained.network.classes):,}"),
        ("Source of the training images", None if data is None else _last_name(data.train)),
        ("Validation", None if data is None else _part(data.val)),
        ("Test", None if data is None else _part(data.test)),
        ("Fingerprint", counts.get("fingerprint", _UNKNOWN)),
    ]
    note = "The fingerprint is a SHA-256 over the ids, sizes and labels of all images and over their division."
    return f"{facts(entries)}\n\n{note}"


def _count(counts: Mapping[str, Any], name: str) -> str:
    return f"{counts[name]:,}" if name in counts else _UNKNOWN


def _part(part: float | str | None) -> str:
    if isinstance(part, str):
        return _last_name(part)
    return f"{100 * part:g} % of each class, taken out of the training images" if part else "none"


def _test_source(data: DataSpec, split: str) -> str:
    part = data.test if split == "test" else data.val
    return _last_name(part if isinstance(part, str) else data.train)


def _training(trained: Trained) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in trained.card.get("versions", {}).items())
    spec = trained.place.spec
    if spec is None:
        return facts([("Freeze depth", str(trained.card.get("freeze_depth", _UNKNOWN))), ("Versions", versions)])
    return facts([*_settings(spec), *_outcome(trained, spec), ("Versions", versions)])


def _settings(spec: Spec) -> list[tuple[str, str | None]]:
    train, optim, data = spec.train, spec.optim, spec.data
    mixing = [f"{name} {value:g}" for name, value in (("mixup", data.mixup), ("CutMix", data.cutmix)) if value]
    phases = [f"from epoch {phase.at_epoch + 1}: {phase.freeze_depth}" for phase in train.unfreeze_phases]
    return [
        ("Freeze depth", ", ".join([str(spec.model.freeze_depth), *phases])),
        ("Optimiser", f"{optim.name}, learning rate {optim.learning_rate:g}, weight decay {optim.weight_decay:g}"),
        ("Schedule", f"{optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up"),
        ("Batch size", str(train.batch_size)),
        ("Augmentation", ", ".join([data.augment, *mixing])),
        ("Label smoothing", f"{train.label_smoothing:g}" if train.label_smoothing else None),
        ("Class weights", None if train.class_weights == "none" else str(train.class_weights)),
        ("Moving average of the weights", f"decay {train.ema_decay:g}" if train.ema_decay else None),
        ("Precision", train.precision),
        ("Seed", str(spec.seed)),
    ]


def _outcome(trained: Trained, spec: Spec) -> list[tuple[str, str | None]]:
    best = trained.card.get("best")
    state = {} if trained.place.run is None else trained.place.run.state()
    finished = state.get("finished_at")
    date = None if finished is None else f"{datetime.fromtimestamp(finished, timezone.utc):%Y-%m-%d}"
    epochs = f"{spec.train.epochs}; kept is the best, epoch {best['epoch']}" if best else str(spec.train.epochs)
    return [("Epochs", epochs), ("Finished", date)]


def _limits(trained: Trained, evaluation: Mapping[str, Any] | None) -> str:
    texts = [
        f"It knows {len(trained.network.classes):,} classes and gives one of them for every image, also for one "
        "that shows none of them. Probabilities always sum to 1.",
        "How it does on images unlike those it was measured on (other cameras, places, times, groups of people) is not "
        "known.",
        "What its pretrained weights have learnt from their own data, biases included, may show in its answers.",
    ]
    if evaluation is not None:
        error, temperature = evaluation["expected_calibration_error"], trained.network.temperature
        texts.append(
            f"Its probabilities are off by {100 * error:.1f} percentage points on average (expected calibration error)"
            + (f", measured before a temperature of {temperature:g} was fitted to it." if temperature != 1 else ".")
        )
        texts += _limits_by_class(evaluation)
    texts.append("What it may and may not be used for is for whoever publishes it to say.")
    return bullets(texts)


def _limits_by_class(evaluation: Mapping[str, Any]) -> list[str]:
    classes = evaluation.get("per_class", [])
    few = [one for one in classes if one["support"] < _FEW_IMAGES]
    texts = []
    if few:
        texts.append(
            f"{len(few):,} of its {len(classes):,} classes have fewer than {_FEW_IMAGES} {evaluation['split']} images: "
            "their numbers say little."
        )
    if "confusion_matrix" in evaluation:
        pairs = [
            f"{plain(classes[true]['class'])} taken for {plain(classes[predicted]['class'])} ({count:,})"
            for count, true, predicted in worst_pairs(evaluation)[:5]
        ]
        texts += [f"Most frequent mistakes: {', '.join(pairs)}."] if pairs else []
    return texts


def _licence(trained: Trained) -> str:
    origin = plain(_without_folders(trained.card.get("pretrained") or _UNKNOWN))
    return (
        "None is named. Whoever publishes the model chooses one, in line with that of the pretrained weights "
        f"({origin}) and of the training images, and writes it into `license:` in the head of this file."
    )


def _last_name(source: str) -> str:
    """Return the last part of a path or address, without its query."""
    return re.split(r"[/\\]", source.partition("?")[0].rstrip("/\\"))[-1]


def _without_folders(origin: str) -> str:
    """Return where weights come from; of a path or an address no more than its last name."""
    return _last_name(origin) if "://" in origin or origin.startswith(("/", "~", ".")) else origin
