"""What hostile input is drawn from: texts near to specs, bytes near to images, spaces, names and paths."""

from __future__ import annotations

from typing import Any

from hostile_images import IMAGES, JPEG, PHOTO, PNG, encoded
from hypothesis import strategies as st

from tltrain.spec.emit import scalar
from tltrain.spec.keys import all_keys
from tltrain.spec.schema import NAME_PATTERN

HEAD = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"

# Pieces that mean something to a YAML parser, or to ours.
MARKS = (
    ": ", "- ", "\n", "\r\n", "\n  ", "\n\t", "{", "}", "[", "]", ", ", "&a ", "*a", "<<: ", "? ", "!!int ",
    "!!python/object:x ", "|\n", ">-\n", "'", '"', "\t", "---\n", "...\n", "%YAML 1.1\n", "#", "\0", "\x85", "\u2028",
    "\ufeff", "\ud800", "\u202e", "null", "~", "true", "yes", ".nan", "-.inf", "1e400", "0o17", "0x", "1_0", "010",
    "1:30", "9" * 30, "9" * 5000, "2024-01-01", "[" * 40, "{a: " * 40, "*a, " * 50,
)  # fmt: skip
WORDS = st.sampled_from([*MARKS, *(f"{key.rpartition('.')[2]}: " for key in all_keys()), *all_keys()]) | st.text(
    max_size=6
)
TEXTS = st.lists(WORDS, max_size=16).map("".join)
VERSIONS = st.builds("%YAML {}.{}\n---\n".format, st.integers(0, 2), st.integers(0, 12))
SPECS = (
    TEXTS | TEXTS.map(HEAD.__add__) | st.text() | st.text().map(HEAD.__add__) | st.builds(str.__add__, VERSIONS, TEXTS)
)
SPEC_BYTES = SPECS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=200)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(all_keys()) | st.lists(st.text(max_size=5) | st.sampled_from(all_keys()), max_size=5).map(
    ".".join
)
SETS = st.lists(
    TEXTS | st.tuples(KEYS, TEXTS | VALUES.map(lambda value: flow(value))).map("=".join) | st.text(), max_size=3
)


def flow(value: Any) -> str:
    """A value as YAML on one line; what YAML has no word for stands as it comes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return str(value) if isinstance(value, float) else scalar(value)


# Images: what a decoder knows, with some bytes replaced, taken out or put in.

SEEDS = [
    JPEG, PNG, *(encoded(PHOTO, kind) for kind in ("WEBP", "BMP", "TIFF", "GIF")),
    *(make() for name, make in IMAGES.items() if "bomb" not in name),
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of an image with a few changes."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content), 1)))
        length = draw(st.integers(0, 8))
        content[at : at + length] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


IMAGE_BYTES = damaged() | st.binary(max_size=300)

# Search spaces


@st.composite
def domains(draw: st.DrawFn) -> dict[str, Any]:
    """A domain of positive numbers below 1, such as `optim.final_factor` takes."""
    kind = draw(st.sampled_from(("grid", "choice", "uniform", "loguniform", "quniform")))
    numbers = st.floats(0.0001, 0.9999).map(lambda number: float(f"{number:.4g}"))
    if kind in ("grid", "choice"):
        return {kind: draw(st.lists(numbers, min_size=1, max_size=4, unique=True))}
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    if kind == "quniform":
        step = draw(st.sampled_from((0.1, 0.05, 0.001)))
        low = min(low, 0.7)
        return {kind: [low, max(high, low + 2 * step), step]}
    return {kind: [low, high]}


SPACES = st.dictionaries(
    st.sampled_from(("optim.momentum", "train.label_smoothing", "optim.weight_decay", "optim.final_factor")),
    domains(),
    min_size=1,
    max_size=3,
)

# Names and paths

NAMES = (
    st.from_regex(NAME_PATTERN)
    | st.text(max_size=80)
    | st.sampled_from(("..", "../x", "a/b", "a\0", "a\n", "-a", "$(x)", "a" * 64))
)
PARTS = st.sampled_from(
    ("..", ".", "~", "~root", "a", "", "a b", "\u202e", "s3:", "file:", "%2e", "torchvision:", "a.tar")
)
PATHS = st.text(max_size=30) | st.lists(PARTS, max_size=6).map("/".join)
