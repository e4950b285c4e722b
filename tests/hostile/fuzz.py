"""Coverage-guided fuzzing of what reads foreign text and bytes: `python tests/hostile/fuzz.py TARGET [OPTIONS]`.

TARGET is spec, set or image. OPTIONS are libFuzzer's, such as `-max_total_time=180`, or the path of an input to read
once more. A finding ends it with a traceback, and its input stands in `.fuzz/`. Inputs that reach new code are kept in
`.fuzz/TARGET`, where the next time begins.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]  of the extra fuzz

# The parser of YAML is left as it is: following it costs most of the speed.
with atheris.instrument_imports(include=["tltrain", "PIL"]):  # pyright: ignore[reportAttributeAccessIssue]
    from corpus import HEAD, SPECS
    from hostile_images import IMAGES
    from ruamel.yaml import YAML

    from tltrain.data.decode import decode
    from tltrain.errors import DataError, SpecError, TltrainError
    from tltrain.spec.load import parse_spec

HERE, FOLDER = Path(__file__).resolve().parent, Path(".fuzz")
LIMITS = ("-max_total_time=600", "-timeout=30", "-rss_limit_mb=2048", "-max_len=2048", "-print_final_stats=1")
MAX_PIXELS = 1 << 22


def _check(error: TltrainError) -> None:
    for problem in error.problems:
        if not problem.what or not str(problem).isprintable():
            raise AssertionError(f"no message for a terminal: {str(problem)!r}")


def read_spec(data: bytes) -> None:
    """A spec's text is a spec or has problems."""
    text = data.decode("utf-8", "replace")
    for whole in (text, HEAD + text):
        try:
            parse_spec(whole, where="j.yaml", base=Path("/specs"))
        except SpecError as error:
            _check(error)


def read_set(data: bytes) -> None:
    """Lines as `--set` values are applied or have problems."""
    try:
        parse_spec(HEAD, where="j.yaml", base=Path("/specs"), sets=data.decode("utf-8", "replace").split("\n"))
    except SpecError as error:
        _check(error)


def read_image(data: bytes) -> None:
    """Bytes are an RGB image or have one problem."""
    try:
        image = decode(data, "a/1.jpg", MAX_PIXELS)
    except DataError as error:
        _check(error)
    else:
        if image.mode != "RGB" or len(image.tobytes()) != image.width * image.height * 3:
            raise AssertionError(f"{image.mode}, {image.size}, {len(image.tobytes())} bytes")


def _specs() -> Iterable[bytes]:
    yaml = YAML(typ="safe")
    yield from (entry["spec"].encode() for entry in yaml.load(HERE.parent / "spec" / "bad_specs.yaml"))
    yield from (str(e["text"]).encode() for e in yaml.load(HERE / "expected.yaml")["specs"].values() if "text" in e)
    yield from (path.read_bytes() for path in HERE.parent.parent.glob("jobs/*.yaml"))
    yield from (make()[: 1 << 10] for make in SPECS.values())


def _sets() -> Iterable[bytes]:
    for entry in YAML(typ="safe").load(HERE / "expected.yaml")["specs"].values():
        yield "\n".join(entry.get("sets", ())).encode("utf-8", "replace")
    yield b"optim.learning_rate=1e-3\ntrain.unfreeze=[{at_epoch: 1, freeze_depth: 2}]\nsweep.space.seed={choice: [1]}"


def _images() -> Iterable[bytes]:
    yield from (make()[: 1 << 12] for make in IMAGES.values())


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterable[bytes]]]] = {
    "spec": (read_spec, _specs),
    "set": (read_set, _sets),
    "image": (read_image, _images),
}


def main(name: str, options: list[str]) -> None:
    """Fuzz one target from its seeds on."""
    function, seeds = TARGETS[name]
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    inputs = options if any(not option.startswith("-") for option in options) else [str(folder), *options]
    atheris.Setup([sys.argv[0], *LIMITS, f"-artifact_prefix={FOLDER}/{name}-", *inputs], function)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py {'|'.join(TARGETS)} [OPTIONS]")
    main(sys.argv[1], sys.argv[2:])
