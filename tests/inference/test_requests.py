"""What a server answers, without a server: limits, forms, bad images, paths and methods."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import evaluation_transform
from tltrain.inference.ranking import Ranking
from tltrain.inference.requests import Answer, Limits, Request, answer, decode_upload, top_of

HEALTH = {"status": "ok"}
LIMITS = Limits(max_bytes=50_000, max_pixels=10_000)
BOUNDARY = "x-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def png(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def form(*files: bytes) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f{i}.png"\r\n\r\n'.encode() + file
        for i, file in enumerate(files)
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


async def classify(content: bytes) -> dict[str, Any]:
    image = decode_upload(content, evaluation_transform(Preprocessing(32, 24)), LIMITS)
    return {"shape": list(image.shape)}


def ask(method: str, path: str, body: bytes = b"", chunk: int = 1000, **headers: str) -> Answer:
    sent: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk):
            sent.append(start)
            yield body[start : start + chunk]

    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answered = asyncio.run(answer(Request(method, path, given, chunks()), LIMITS, HEALTH, classify))
    if answered.status == 413:
        assert len(sent) * chunk <= LIMITS.max_bytes + 2 * chunk, "more was read than is allowed"
    return answered


GOOD = {"shape": [3, 24, 24]}
ANSWERS = {
    "raw bytes": (("POST", "/predict", png()), {}, 200, GOOD),
    "a type of image": (("POST", "/predict", png()), {"content_type": "image/png"}, 200, GOOD),
    "a form": (("POST", "/predict", form(png())), {"content_type": FORM}, 200, GOOD),
    "a slash at the end": (("POST", "/predict/", png()), {}, 200, GOOD),
    "health": (("GET", "/healthz"), {}, 200, HEALTH),
    "nothing": (("POST", "/predict"), {}, 400, "has no image"),
    "an empty file": (("POST", "/predict", form(b"")), {"content_type": FORM}, 400, "has no image"),
    "two files": (("POST", "/predict", form(png(), png())), {"content_type": FORM}, 400, "holds 2 files"),
    "no file": (("POST", "/predict", form()), {"content_type": FORM}, 400, "holds 0 files"),
    "no boundary": (("POST", "/predict", form(png())), {"content_type": "multipart/form-data"}, 400, "cannot be read"),
    "no form": (("POST", "/predict", png()), {"content_type": FORM}, 400, "cannot be read"),
    "text": (("POST", "/predict", b"hello"), {}, 422, "cannot be decoded"),
    "half an image": (("POST", "/predict", png(90, 90)[:120]), {}, 422, "cannot be decoded"),
    "a bomb": (("POST", "/predict", png(200, 200)), {}, 422, "200 x 200 pixels are more than the 10,000 allowed"),
    "announced too large": (("POST", "/predict", b"x"), {"content_length": "50001"}, 413, "larger than 50,000 bytes"),
    "too large": (("POST", "/predict", b"x" * 500_000), {}, 413, "larger than 50,000 bytes"),
    "a wrong method": (("GET", "/predict"), {}, 405, "takes POST"),
    "a wrong health": (("POST", "/healthz"), {}, 405, "takes GET and HEAD"),
    "another path": (("GET", "/admin"), {}, 404, "there is no /admin"),
    "the root": (("GET", "/"), {}, 404, "POST an image to /predict"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_every_request_gets_its_answer(case: str) -> None:
    arguments, headers, status, body = ANSWERS[case]

    answered = ask(*arguments, **headers)  # type: ignore[arg-type]

    assert answered.status == status, answered
    if isinstance(body, str):
        assert body in answered.body["error"]
        assert "\n" not in answered.body["error"]
    else:
        assert answered.body == body


def test_a_wrong_method_says_which_ones_there_are() -> None:
    assert ask("PUT", "/predict").headers == {"Allow": "POST"}


@pytest.fixture
def ranking() -> Ranking:
    return Ranking(np.array([[2, 0], [1, 2]]), np.array([[0.75, 0.25], [0.5, 0.25]], np.float32))


def test_the_answer_names_classes_the_most_probable_first(ranking: Ranking) -> None:
    assert top_of(ranking, ["a", "b", "c"]) == [
        {"top": [{"class": "c", "probability": 0.75}, {"class": "a", "probability": 0.25}]},
        {"top": [{"class": "b", "probability": 0.5}, {"class": "c", "probability": 0.25}]},
    ]
