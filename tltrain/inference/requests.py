"""What a server of a model answers, apart from how it is served: requests are read within limits, images checked."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tltrain.data.decode import FORMATS, decode
from tltrain.data.transforms import Transform
from tltrain.errors import DataError
from tltrain.inference.ranking import Ranking

PREDICT, HEALTH = "/predict", "/healthz"
_METHODS = {PREDICT: ("POST",), HEALTH: ("GET", "HEAD")}
_USE = "Send the image itself as the body, or one file as multipart/form-data"


@dataclass(frozen=True)
class Limits:
    """What is accepted at most."""

    max_bytes: int = 20_000_000
    """Of a request's body."""
    max_pixels: int = 50_000_000
    """Width times height of an image, looked at before it is decoded."""


@dataclass(frozen=True)
class ServeOptions:
    """Where a model is served, and how."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    replicas: int = 1
    """Processes with the model, each on a GPU of its own where there are any."""
    max_batch_size: int = 32
    max_wait_s: float = 0.005
    """How long the first image of a batch waits for others."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Answer:
    """What goes back: an HTTP status and an object that becomes JSON."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """A request that is not answered with what it asks for."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.answer = Answer(status, {"error": reason}, headers)


@dataclass(frozen=True)
class Request:
    """A request as any HTTP server has it. headers: by lower-case name. chunks: the body as it comes."""

    method: str
    path: str
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


async def answer(
    request: Request,
    limits: Limits,
    health: Mapping[str, Any],
    classify: Callable[[bytes], Awaitable[Mapping[str, Any]]],
) -> Answer:
    """Answer a request: `health` for GET /healthz, for POST /predict what `classify` gives for the image's bytes."""
    try:
        methods = _METHODS.get(request.path.rstrip("/") or "/")
        if methods is None:
            raise Refusal(404, f"there is no {request.path}; POST an image to {PREDICT}, or GET {HEALTH}")
        if request.method not in methods:
            raise Refusal(405, f"{request.path} takes {' and '.join(methods)}", Allow=", ".join(methods))
        if "GET" in methods:
            return Answer(200, health)
        body = await read_body(request.headers.get("content-length"), request.chunks, limits)
        return Answer(200, await classify(image_in(request.headers.get("content-type", ""), body)))
    except Refusal as refusal:
        return refusal.answer


async def read_body(content_length: str | None, chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    """Return the body. Raises Refusal (413) as soon as it is known to be too large."""
    too_large = Refusal(413, f"the upload is larger than {limits.max_bytes:,} bytes", Connection="close")
    if content_length is not None and content_length.isdigit() and int(content_length) > limits.max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limits.max_bytes:
            raise too_large
    return bytes(body)


def image_in(content_type: str, body: bytes) -> bytes:
    """Return the image's bytes out of a body: the body itself, or the one file of a form. Raises Refusal (400)."""
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        body = _file_in_form(content_type, body)
    if not body:
        raise Refusal(400, f"the request has no image. {_USE}")
    return body


def _file_in_form(content_type: str, body: bytes) -> bytes:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import create_form_parser

    files: list[Any] = []
    headers = {"Content-Type": content_type.encode("latin-1", "replace")}
    try:
        # The body is in memory and within limits already.
        parser = create_form_parser(headers, lambda _: None, files.append, {"MAX_MEMORY_FILE_SIZE": math.inf})
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"the form cannot be read: {error}") from error
    if len(files) != 1:
        raise Refusal(400, f"the form holds {len(files)} files, and one image is classified at a time. {_USE}")
    files[0].file_object.seek(0)
    return files[0].file_object.read()


def decode_upload(content: bytes, transform: Transform, limits: Limits) -> Tensor:
    """Return the image as the network takes it, uint8 [3, H, W]. Raises Refusal (422) where it is none or too large."""
    try:
        return transform(decode(content, "upload", limits.max_pixels))
    except DataError as error:
        raise Refusal(422, f"the image {error.problems[0].what}. Readable are {', '.join(FORMATS)}") from error


def top_of(ranking: Ranking, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each image of `ranking` what is sent back: its most probable classes, the most probable first."""
    rows = zip(ranking.classes.tolist(), ranking.probabilities.tolist(), strict=True)
    return [
        {"top": [{"class": classes[number], "probability": share} for number, share in zip(*row, strict=True)]}
        for row in rows
    ]
