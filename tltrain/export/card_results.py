"""The numbers of a model card, each with what it was measured on and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tltrain.export.markdown import bullets, plain, table
from tltrain.export.trained import Trained
from tltrain.report.sweep import TRIALS_FILE

MAX_CLASSES = 1000


def result_sections(trained: Trained, evaluation: Mapping[str, Any] | None) -> str:
    """Return the headline, and how to read it."""
    if evaluation is None:
        return "None: this run had neither test nor validation images."
    return f"{_headline(evaluation)}\n\n{bullets(_reading(trained, evaluation))}"


def _headline(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["accuracy_interval_95"]
    top5, macro = evaluation.get("top5_accuracy"), evaluation.get("macro")
    rows = [["Accuracy (top-1)", f"{evaluation['accuracy']:.4f}", f"{low:.3f} to {high:.3f}"]]
    rows += [["Accuracy (top-5)", f"{top5:.4f}", ""]] if top5 is not None else []
    rows += [["F1, mean of the classes", f"{macro['f1']:.4f}", ""]] if macro is not None else []
    rows += [
        ["Cross-entropy", f"{evaluation['loss']:.4f}", ""],
        ["Expected calibration error", f"{evaluation['expected_calibration_error']:.4f}", ""],
    ]
    heading = f"On {evaluation['num_images']:,} {evaluation['split']} images:"
    return f"{heading}\n\n{table(['metric', 'value', '95 % interval'], rows)}"


def _reading(trained: Trained, evaluation: Mapping[str, Any]) -> list[str]:
    choice = _choice(trained)
    texts = [
        "The interval (Wilson's) covers the chance of which images were drawn, not that of another training run or of "
        "images from elsewhere.",
    ]
    if evaluation["split"] == "test":
        texts.insert(
            0,
            f"The test images took no part in training, nor in choosing {choice}. The run evaluated them once, at its "
            "end. Whether other runs were compared on the same images this card cannot tell; if so, the accuracy is "
            "somewhat too high.",
        )
    else:
        texts.insert(
            0,
            f"No test images were set aside. These images decided the choice of {choice}, so the numbers are too high: "
            "expect less on new images.",
        )
    best = trained.card.get("best")
    if best and evaluation["split"] == "test":
        texts.append(
            f"Validation top-1 was {100 * best['top1']:.1f} %. It decided the choice of {choice}, so it is too high; "
            "the accuracy on the test images is the number to go by."
        )
    return texts + _confirmed(trained)


def _choice(trained: Trained) -> str:
    """Return in words what the validation images decided."""
    if trained.sweep is not None and trained.sweep.folder.exists(TRIALS_FILE):
        return f"the epoch and the settings (the best of {len(trained.sweep.read_json(TRIALS_FILE)):,} trials)"
    is_winner = trained.place.run is not None and "trial" in trained.place.run.state()
    return "the epoch and the settings (the best trial of a sweep)" if is_winner else "the epoch"


def _confirmed(trained: Trained) -> list[str]:
    """Return how the winning settings did over several seeds, where the sweep has tried that."""
    if trained.sweep is None or not trained.sweep.folder.exists("confirm.json"):
        return []
    confirm = trained.sweep.read_json("confirm.json")
    winner = next((one for one in confirm["top"] if one["trial"] == confirm["winner"]), None)
    if winner is None:
        return []
    low, high = winner["interval"]
    return [
        f"Trained anew over {len(winner['seeds'])} seeds, the same settings gave a mean validation top-1 of "
        f"{100 * winner['mean']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})."
    ]


def class_table(trained: Trained, evaluation: Mapping[str, Any] | None) -> str:
    """Return precision, recall and F1 of each class; of very many classes those with the lowest F1."""
    found = [] if evaluation is None else evaluation.get("per_class", [])
    if evaluation is None or not found:
        return f"The run recorded no numbers per class; it has {len(trained.network.classes):,} of them."
    shown = found if len(found) <= MAX_CLASSES else sorted(found, key=lambda one: one["f1"])[:MAX_CLASSES]
    rows = [
        [plain(one["class"]), f"{one['support']:,}", *(f"{one[name]:.3f}" for name in ("precision", "recall", "f1"))]
        for one in shown
    ]
    note = "" if len(shown) == len(found) else f"The {MAX_CLASSES:,} of {len(found):,} with the lowest F1.\n\n"
    return note + table(["class", f"{evaluation['split']} images", "precision", "recall", "F1"], rows)
